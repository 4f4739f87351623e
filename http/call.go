package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/mux"
	"go.opentelemetry.io/otel/trace"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections/tokens"
)

// maxRequestID is the longest X-Request-Id of a caller that is kept, in characters.
const maxRequestID = 128

// call is one request on its way through the server, and what is known of it so far.
type call struct {
	server *Server
	w      *responseWriter
	r      *http.Request
	id     string // the request ID
	begun  time.Time
	from   netip.Addr // the caller's address
	route  *route     // nil for a path that is not ours
	code   fault.Code // of the error that was answered; "" for a success
	// documented says that the caller can read about errors where it asked: on the partners' address.
	documented bool
	span       trace.Span // of the request

	base    string        // what URLs of ours begin with; "" until one is made
	caller  tokens.Caller // the zero Caller until it is known
	device  tokens.Device // of a player
	windows []tokens.Window
}

// operation names what was asked for, in logs and metrics.
func (c *call) operation() string {
	if c.route == nil {
		return "Unknown"
	}
	return c.route.operation
}

// endpoint is the route's canonical path, the same for both path families; "" for a path that is not ours.
func (c *call) endpoint() string {
	if c.route == nil {
		return ""
	}
	return c.route.paths[0]
}

// pathVar is a variable of the route's path.
func (c *call) pathVar(name string) string { return mux.Vars(c.r)[name] }

// ctx is the request's, with its deadline.
func (c *call) ctx() context.Context { return c.r.Context() }

// requestID is the caller's own X-Request-Id if it is safe to show and to store, else a new one. One with the caller's token in it is not, nor one with what
// can be none but a token of ours, wherever that was meant to go.
func requestID(h http.Header) string {
	id, token := h.Get("X-Request-Id"), presentedToken(h)
	if id == "" || len(id) > maxRequestID || strings.ContainsFunc(id, unsafeInID) || tokenShape.MatchString(token) && strings.Contains(id, token) || ownToken.MatchString(id) {
		return "req_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	}
	return id
}

// ownToken is a token of a company, a device or an external ID, to the letter.
var ownToken = regexp.MustCompile(`(?:^|[^0-9A-Za-z])(?:comp|dev|[0-9A-Za-z]+_(?:live|test))_[0-9A-Za-z]{43}(?:$|[^0-9A-Za-z])`)

func unsafeInID(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.:=+/@", r)
}

// traceParent is the place of the request in its trace; "" if it is in none.
func (c *call) traceParent() string { return telemetry.TraceParent(c.r.Context()) }

// clientAddr is where the request came from: the last address that a trusted proxy added to X-Forwarded-For, or the connection's.
func (s *Server) clientAddr(r *http.Request) netip.Addr {
	if s.trustForwarded {
		all := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if addr, err := netip.ParseAddr(strings.TrimSpace(all[len(all)-1])); err == nil {
			return addr.Unmap()
		}
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// absolute is the URL of a path here, with its query, as the caller can reach it.
func (c *call) absolute(path string) string {
	if c.base == "" {
		c.base = c.server.baseURL(c.r).String()
	}
	return c.base + path
}

// baseURL is the scheme and host that URLs of ours begin with: those that are set, or else those that the caller reached us by.
func (s *Server) baseURL(r *http.Request) *url.URL {
	if s.publicURL != nil {
		return s.publicURL
	}
	base := &url.URL{Scheme: "http", Host: r.Host}
	if r.TLS != nil {
		base.Scheme = "https"
	}
	if s.trustForwarded {
		if proto := r.Header.Get("X-Forwarded-Proto"); proto == "http" || proto == "https" {
			base.Scheme = proto
		}
		if host := r.Header.Get("X-Forwarded-Host"); host != "" && !strings.ContainsAny(host, "/\\?#@ ,") {
			base.Host = host
		}
	}
	return base
}

// responseWriter notes what was answered.
type responseWriter struct {
	http.ResponseWriter
	wrote  bool
	status int
	bytes  int64
}

func (w *responseWriter) WriteHeader(status int) {
	if !w.wrote && status >= 200 { // 1xx come before the answer
		w.wrote, w.status = true, status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if !w.wrote {
		w.wrote, w.status = true, http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
