package postgres

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Limits of a pool. A URL overrides the first two with its parameters pool_max_conns and connect_timeout, and the server-side ones with
// parameters of their own names (…?statement_timeout=60000).
const (
	defaultMaxConns = 24              // connections; three such pools fit the 100 that a PostgreSQL has unless told otherwise
	connectTimeout  = 5 * time.Second // one attempt at one address

	statementTimeout         = 30 * time.Second // the server ends a statement that takes longer
	lockTimeout              = 10 * time.Second // the server ends a wait for a lock that takes longer
	idleInTransactionTimeout = 60 * time.Second // the server ends a session that left its transaction open

	// planMode has a statement planned once on each connection and not each time: planning one takes longer than carrying it out. Each finds its rows by
	// keys in an index, whatever its arguments are.
	planMode = "force_generic_plan"

	maxConnLifetime       = time.Hour // a connection is replaced in the end, so that a failover moves all of them
	maxConnLifetimeJitter = 6 * time.Minute
	maxConnIdleTime       = 10 * time.Minute
	healthCheckPeriod     = 15 * time.Second
	pingTimeout           = 2 * time.Second // for the check that a connection idle for a while is still good
)

// Connect returns a pool for the server at url (postgres://… or a keyword string as libpq takes it). It does not wait for the server: a server
// that is away shows in the calls that need it (IsUnavailable), and the pool connects when it is back. An error means that url makes no sense.
func Connect(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err) // pgx leaves the password out of the message
	}
	if !names(url, "pool_max_conns") {
		config.MaxConns = defaultMaxConns
	}
	if !names(url, "connect_timeout") {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	config.MaxConnLifetime = maxConnLifetime
	config.MaxConnLifetimeJitter = maxConnLifetimeJitter
	config.MaxConnIdleTime = maxConnIdleTime
	config.HealthCheckPeriod = healthCheckPeriod
	config.PingTimeout = pingTimeout
	for name, value := range map[string]string{
		"application_name":                    "musique",
		"timezone":                            "UTC",
		"statement_timeout":                   milliseconds(statementTimeout),
		"lock_timeout":                        milliseconds(lockTimeout),
		"idle_in_transaction_session_timeout": milliseconds(idleInTransactionTimeout),
		"plan_cache_mode":                     planMode,
	} {
		if _, told := config.ConnConfig.RuntimeParams[name]; !told {
			config.ConnConfig.RuntimeParams[name] = value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return pool, nil
}

// names reports whether the connection string, in either of its forms, sets a parameter. The parsed configuration cannot tell a default from a choice.
func names(connection, parameter string) bool {
	if u, err := url.Parse(connection); err == nil && strings.HasPrefix(u.Scheme, "postgres") {
		return u.Query().Has(parameter)
	}
	return strings.Contains(connection, parameter+"=") || strings.Contains(connection, parameter+" ")
}

// milliseconds is the form in which PostgreSQL takes its timeouts.
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
