package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// IsUnavailable reports whether err says that the server cannot be used now, as against having refused what it was asked: it is away,
// starting, stopping, out of connections or disk, or did not answer in time. The same call may work later. A call that its own caller
// cancelled (context.Canceled) is not the server's fault.
func IsUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if server, ok := errors.AsType[*pgconn.PgError](err); ok {
		return unavailableState(server.Code)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	// pgconn has no exported error for a connection that broke under a call before anything was sent.
	return pgconn.SafeToRetry(err) || strings.Contains(err.Error(), "conn closed")
}

// unavailableState reads an SQLSTATE (PostgreSQL, appendix A).
func unavailableState(code string) bool {
	switch code {
	case "57014", // query_canceled: nobody here sends cancel requests but for a deadline, so it took too long
		"57P01", // admin_shutdown
		"57P02", // crash_shutdown
		"57P03", // cannot_connect_now
		"57P05", // idle_session_timeout
		"25P03", // idle_in_transaction_session_timeout
		"25006", // read_only_sql_transaction: a failover is under way and this is no longer the primary
		"55P03": // lock_not_available: the wait for a lock hit its limit
		return true
	}
	for _, class := range []string{
		"08", // connection exception
		"53", // insufficient resources: disk, memory, connections
		"58", // system error: I/O
	} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}
