package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
)

const (
	// requestTimeout bounds the work on one request, and transferTimeout on one that carries a file or many rows.
	requestTimeout  = 20 * time.Second
	transferTimeout = 2 * time.Minute
	// answerGrace is how long a caller may take to read an answer after the time for the work on it is over.
	answerGrace = 10 * time.Second
	// maxBodyBytes bounds a JSON body, and maxBulkBodyBytes one that lists up to 10,000 locations or 100,000 external IDs of 128 characters.
	maxBodyBytes     = 1 << 20
	maxBulkBodyBytes = 16 << 20
	// MaxHeaderBytes bounds a request's first line and headers. An http.Server that serves this has to read more than that, so that what is larger is refused
	// as everything else is.
	MaxHeaderBytes = 64 << 10
	// maxName bounds what something is asked for by, in bytes. The keys of blobs are the longest.
	maxName = 256
)

// access says who may use a route.
type access int

const (
	byToken  access = iota // a partner, with a token that has the route's scope
	byDevice               // a player, with a device token
	byAnyone
)

// route is one thing that can be asked for, wherever it can be reached.
type route struct {
	operation string
	method    string
	// paths are the canonical path first, then those of the first family.
	paths  []string
	access access
	// scope is the permission that a token needs; "" for none.
	scope   string
	maxBody int64         // bytes of the request's body; 0 is maxBodyBytes
	timeout time.Duration // of the work on it; 0 is requestTimeout, negative is none
	// evenInOutage answers also while it cannot be found out who is asking.
	evenInOutage bool
	// outside is not in the OpenAPI document: it is reached by URLs that answers give, or is the document itself and what explains it.
	outside bool
	// anyOrigin lets the pages of any site read it (the Fetch standard §3.3). It holds nobody's data.
	anyOrigin bool
	// csv says that who prefers it is answered in CSV.
	csv    bool
	handle func(*call) error
}

func (r *route) bodyLimit() int64 {
	if r.maxBody == 0 {
		return maxBodyBytes
	}
	return r.maxBody
}

const (
	v1     = "/api/v1/integration"
	first  = "/api/integration"
	player = "/api/player/v1"
	// An audio ID right below /api is told from the other words there by its prefix.
	audioBelowAPI = "/api/{audioId:aud_[^/]+}"
)

// routes is everything that partners and players can ask for. The paths are those of the contract.
func (s *Server) routes() []*route {
	get, post, patch, del := http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete
	at := func(paths ...string) []string { return paths }
	return []*route{
		{operation: "GenerateToken", method: post, paths: at(v1+"/auth", first+"/auth"), access: byAnyone, handle: s.generateToken},
		{operation: "TestToken", method: post, paths: at(v1+"/test", first+"/test"), handle: s.testToken},
		{operation: "RevokeToken", method: del, paths: at(v1+"/auth", first+"/auth"), handle: s.revokeToken},
		{operation: "ListTokens", method: get, paths: at(v1 + "/tokens"), scope: "tokens.manage", handle: s.listTokens},
		{operation: "RevokeTokenById", method: del, paths: at(v1 + "/tokens/{tokenId}"), scope: "tokens.manage", handle: s.revokeTokenByID},

		{operation: "UploadAudio", method: post, paths: at(v1+"/audio", "/api/audio"), scope: "audio.write", timeout: transferTimeout, handle: s.uploadAudio},
		{operation: "ListAudio", method: get, paths: at(v1+"/audio", "/api/audio"), scope: "audio.read", handle: s.listAudio},
		{operation: "GetAudio", method: get, paths: at(v1+"/audio/{audioId}", "/api/audio/{audioId}"), scope: "audio.read", handle: s.getAudio},
		{operation: "DeleteAudio", method: del, paths: at(v1+"/audio/{audioId}", "/api/audio/{audioId}", audioBelowAPI), scope: "audio.delete", handle: s.deleteAudio},
		{operation: "SendAudio", method: post, paths: at(v1+"/audio/{audioId}/send", "/api/audio/{audioId}/send", audioBelowAPI+"/send"),
			scope: "audio.send", maxBody: maxBulkBodyBytes, timeout: transferTimeout, handle: s.sendAudio},

		{operation: "ListSends", method: get, paths: at(v1 + "/sends"), scope: "audio.read", handle: s.listSends},
		{operation: "GetSend", method: get, paths: at(v1 + "/sends/{sendId}"), scope: "audio.read", handle: s.getSend},
		{operation: "ListDeliveries", method: get, paths: at(v1 + "/sends/{sendId}/deliveries"), scope: "audio.read", timeout: transferTimeout, csv: true, handle: s.listDeliveries},
		{operation: "ChangeSend", method: patch, paths: at(v1 + "/sends/{sendId}"), scope: "audio.send", handle: s.changeSend},
		{operation: "CancelSend", method: del, paths: at(v1 + "/sends/{sendId}"), scope: "audio.send", handle: s.cancelSend},

		{operation: "CreateLocation", method: post, paths: at(v1 + "/locations"), scope: "locations.write", handle: s.createLocation},
		{operation: "ImportLocations", method: post, paths: at(v1 + "/locations/import"), scope: "locations.write",
			maxBody: maxBulkBodyBytes, timeout: transferTimeout, handle: s.importLocations},
		{operation: "ListLocations", method: get, paths: at(v1 + "/locations"), scope: "locations.read", handle: s.listLocations},
		{operation: "GetLocation", method: get, paths: at(v1 + "/locations/{externalId}"), scope: "locations.read", handle: s.getLocation},
		{operation: "ChangeLocation", method: patch, paths: at(v1 + "/locations/{externalId}"), scope: "locations.write", handle: s.changeLocation},
		{operation: "DeleteLocation", method: del, paths: at(v1 + "/locations/{externalId}"), scope: "locations.write", handle: s.deleteLocation},
		{operation: "CreateDevice", method: post, paths: at(v1 + "/locations/{externalId}/devices"), scope: "locations.write", handle: s.createDevice},
		{operation: "ListDevices", method: get, paths: at(v1 + "/locations/{externalId}/devices"), scope: "locations.read", handle: s.listDevices},
		{operation: "RotateDeviceToken", method: post, paths: at(v1 + "/locations/{externalId}/devices/{deviceId}/rotate"), scope: "locations.write", handle: s.rotateDeviceToken},
		{operation: "DeleteDevice", method: del, paths: at(v1 + "/locations/{externalId}/devices/{deviceId}"), scope: "locations.write", handle: s.deleteDevice},

		{operation: "GetInformation", method: get, paths: at(v1, v1+"/", first), handle: s.information},
		{operation: "GetHealth", method: get, paths: at(v1+"/health", first+"/health"), evenInOutage: true, handle: s.health},
		{operation: "ListLogs", method: get, paths: at(v1+"/logs", first+"/logs"), scope: "logs.read", handle: s.listLogs},
		{operation: "ListAudit", method: get, paths: at(v1 + "/audit"), scope: "audit.read", handle: s.listAudit},
		{operation: "GetLimits", method: get, paths: at(v1+"/limits", first+"/limits"), handle: s.limits},

		{operation: "GetMedia", method: get, paths: at("/media/{key:.+}"), access: byAnyone, timeout: mediaTimeout, outside: true, handle: s.media},
		{operation: "ReportFromEndpoint", method: post, paths: at(reportPath), access: byAnyone, outside: true, handle: s.reportFromEndpoint},

		{operation: "PlayerStream", method: get, paths: at(player + "/stream"), access: byDevice, timeout: -1, handle: s.playerStream},
		{operation: "ReportPlayback", method: post, paths: at(player + "/deliveries/{deliveryId}"), access: byDevice, handle: s.reportPlayback},

		{operation: "GetDocument", method: get, paths: at("/openapi.json"), access: byAnyone, outside: true, anyOrigin: true, handle: s.openapi},
		{operation: "GetEventsDocument", method: get, paths: at("/asyncapi.json"), access: byAnyone, outside: true, anyOrigin: true, handle: s.asyncapi},
		{operation: "GetReference", method: get, paths: at(docsPath, docsPath+"/"), access: byAnyone, outside: true, anyOrigin: true, handle: s.referencePage},
		{operation: "GetReferenceAsset", method: get, paths: at(docsPath + "/assets/{asset}"), access: byAnyone, outside: true, handle: s.referenceAsset},
		{operation: "GetGuide", method: get, paths: at(docsPath + "/{page}"), access: byAnyone, outside: true, handle: s.guidePage},
	}
}

// newRouter serves the routes: serve gets the calls that have one, and lost those that have none, with the error that says so. Each path of theirs answers
// OPTIONS too: on the partners' address to anybody, since it tells what the document tells.
func (s *Server) newRouter(routes []*route, serve func(*call) error, lost func(*call, error) error) *mux.Router {
	router := mux.NewRouter().SkipClean(true) // a path is taken as it came: no redirects to another one
	methods := []string{http.MethodOptions}
	answer := func(w http.ResponseWriter, req *http.Request, found *route, handle func(*call) error) {
		s.serve(w, req, found, func(c *call) error {
			if headerBytes(c.r) > MaxHeaderBytes {
				return lost(c, errLargeHeaders)
			}
			return handle(c)
		})
	}
	named := func(handle func(*call) error) func(*call) error {
		return func(c *call) error {
			for _, name := range mux.Vars(c.r) {
				if !nameable(name) {
					return lost(c, errNoPath)
				}
			}
			return handle(c)
		}
	}
	for _, r := range routes {
		answered := []string{r.method}
		if r.method == http.MethodGet && r.timeout >= 0 {
			answered = append(answered, http.MethodHead) // RFC 9110 §9.1; not for a stream, which has no end
		}
		methods = append(methods, answered...)
		handle := named(func(c *call) error {
			if r.anyOrigin {
				c.w.Header().Set("Access-Control-Allow-Origin", "*")
			}
			return serve(c)
		})
		for _, path := range r.paths {
			router.Path(path).Methods(answered...).HandlerFunc(func(w http.ResponseWriter, req *http.Request) { answer(w, req, r, handle) })
		}
	}
	slices.Sort(methods)
	methods = slices.Compact(methods)
	for _, r := range routes { // after all others, which are so found without a look at these
		options := &route{operation: "Options", method: http.MethodOptions, paths: r.paths, access: byAnyone, outside: true}
		options.handle = func(c *call) error { return c.options(allowedAt(router, c.r, methods), r.anyOrigin) }
		handle := named(serve)
		for _, path := range r.paths {
			router.Path(path).Methods(http.MethodOptions).HandlerFunc(func(w http.ResponseWriter, req *http.Request) { answer(w, req, options, handle) })
		}
	}
	router.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, nil, func(c *call) error {
			allowed := allowedAt(router, r, methods)
			c.w.Header().Set("Allow", allowed)
			return lost(c, fault.New(fault.MethodNotAllowed, "%s is not possible here; use %s.", recordable(r.Method, maxMethod), allowed))
		})
	})
	router.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(w, r, nil, func(c *call) error { return lost(c, errNoPath) })
	})
	return router
}

// options tells what a path can be asked with (RFC 9110 §9.3.7). Where the pages of any site may read, it tells a browser that asks before it does so (the Fetch
// standard's CORS protocol); elsewhere the browser finds no word of it, and does not ask.
func (c *call) options(allowed string, anyOrigin bool) error {
	h := c.w.Header()
	h.Set("Allow", allowed)
	if anyOrigin {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD")
		h.Set("Access-Control-Allow-Headers", "*")
		h.Set("Access-Control-Max-Age", preflightSeconds)
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// preflightSeconds is how long a browser need not ask again: a day.
const preflightSeconds = "86400"

var (
	errNoPath       = fault.New(fault.NotFound, "There is no such path; see the API reference at /docs.")
	errLargeHeaders = fault.New(fault.OutOfRange, "The request's first line and headers are larger than %d bytes; send less in them.", MaxHeaderBytes)
)

// allowedAt lists those of the methods that the request's path can be asked with, as Allow does.
func allowedAt(router *mux.Router, r *http.Request, methods []string) string {
	var allowed []string
	for _, method := range methods {
		probe, match := *r, mux.RouteMatch{}
		probe.Method = method
		if router.Match(&probe, &match) && match.MatchErr == nil {
			allowed = append(allowed, method)
		}
	}
	return strings.Join(allowed, ", ")
}

// nameable reports whether anything can be called so: it is text, and no longer than what is given a name here.
func nameable(name string) bool {
	return len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsRune(name, 0)
}

// serve is what happens around each request: an ID, a deadline, an answer whatever happens, and a note of it in log, metrics and usage.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, found *route, handle func(*call) error) {
	c := &call{server: s, w: &responseWriter{ResponseWriter: w}, r: r, id: requestID(r.Header), begun: s.now(), from: s.clientAddr(r), route: found}
	w.Header().Set("X-Request-Id", c.id)
	timeout := requestTimeout
	if found != nil && found.timeout != 0 {
		timeout = found.timeout
	}
	limitConnection(w, timeout)
	ctx := r.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	ctx, c.span = s.tracer.Accept(telemetry.WithRequest(ctx, c.id), r.Header.Get("traceparent"), c.spanName(), c.givenTrace())
	c.r = r.WithContext(ctx)
	s.metrics.inFlight.Inc()
	defer s.note(c)
	defer func() {
		if thrown := recover(); thrown != nil {
			if err, ok := thrown.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(thrown)
			}
			c.fail(fmt.Errorf("panic: %v\n%s", thrown, debug.Stack()))
		}
	}()
	if err := handle(c); err != nil {
		c.fail(err)
	}
}

// headerBytes is how many bytes a request's first line and headers have on the wire, where nothing stands in them that means nothing.
func headerBytes(r *http.Request) int {
	n := len(r.Method+" "+r.RequestURI+" "+r.Proto+"\r\n") + len("Host: "+r.Host+"\r\n")
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(": ") + len(v) + len("\r\n")
		}
	}
	return n
}

// limitConnection lets nobody hold a connection by sending or reading slowly. The limits of the request before on the same connection end here; no
// timeout is no limit.
func limitConnection(w http.ResponseWriter, timeout time.Duration) {
	read, write := time.Time{}, time.Time{}
	if timeout > 0 {
		read = time.Now().Add(timeout)
		write = read.Add(answerGrace)
	}
	control := http.NewResponseController(w)
	_, _ = control.SetReadDeadline(read), control.SetWriteDeadline(write) // not every kind of connection has them
}

// note writes down what became of a request.
func (s *Server) note(c *call) {
	took := s.now().Sub(c.begun)
	s.metrics.observe(c.operation(), c.w.status, took)
	c.endSpan()
	s.log.InfoContext(c.r.Context(), "request", "requestId", c.id, "operation", c.operation(), "method", recordable(c.r.Method, maxMethod), "path", recordable(c.r.URL.Path, maxLoggedPath),
		"status", c.w.status, "code", string(c.code), "duration", took, "bytes", c.w.bytes, "company", c.companyID(), "actor", c.actor(), "ip", c.from.String())
	s.recordUsage(c, took)
}
