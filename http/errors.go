package httpapi

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections"
)

const (
	// unavailableRetry is what callers are told to wait when a dependency is away and nothing better is known.
	unavailableRetry = 2 * time.Second
)

// answer is how a code of the contract looks in HTTP.
type answer struct {
	status int
	kind   string // the `type` of the error
}

var answers = map[fault.Code]answer{
	fault.InvalidToken:       {http.StatusUnauthorized, "authentication_error"},
	fault.ExpiredToken:       {http.StatusUnauthorized, "authentication_error"},
	fault.InsufficientScope:  {http.StatusForbidden, "authorization_error"},
	fault.NotFound:           {http.StatusNotFound, "resource_error"},
	fault.MethodNotAllowed:   {http.StatusMethodNotAllowed, "invalid_request_error"},
	fault.AlreadyExists:      {http.StatusConflict, "resource_error"},
	fault.Conflict:           {http.StatusConflict, "resource_error"},
	fault.InvalidFormat:      {http.StatusBadRequest, "validation_error"},
	fault.MissingField:       {http.StatusBadRequest, "validation_error"},
	fault.OutOfRange:         {http.StatusBadRequest, "validation_error"},
	fault.RateLimitExceeded:  {http.StatusTooManyRequests, "rate_limit_error"},
	fault.QuotaExceeded:      {http.StatusTooManyRequests, "rate_limit_error"},
	fault.Internal:           {http.StatusInternalServerError, "api_error"},
	fault.ServiceUnavailable: {http.StatusServiceUnavailable, "api_error"},
}

var (
	errInternal    = fault.New(fault.Internal, "Something went wrong on our side; try again, and if it stays, contact support with the request_id.")
	errUnavailable = &fault.Error{
		Code:       fault.ServiceUnavailable,
		Message:    "A part of the service is away for the moment; nothing is half done, so try again, with the same Idempotency-Key if there was one.",
		RetryAfter: unavailableRetry,
	}
)

// errorBody is the contract's error object.
type errorBody struct {
	Code       fault.Code     `json:"code"`
	Message    string         `json:"message"`
	Type       string         `json:"type"`
	RequestID  string         `json:"request_id"`
	DocURL     string         `json:"doc_url,omitempty"`
	Param      string         `json:"param,omitempty"`
	Details    map[string]any `json:"details,omitempty"`
	RetryAfter int64          `json:"retryAfter,omitempty"`
}

// publicFault is what the caller is told about err: the fault inside it, or that a dependency is away, or, for everything else, no more than that
// it is our mistake. known is false for the last, which is the one that somebody has to look at.
func publicFault(ctx context.Context, err error) (told *fault.Error, known bool) {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		if _, ok := answers[f.Code]; ok {
			return f, f.Code != fault.Internal
		}
		return errInternal, false
	}
	switch {
	case errors.Is(err, blobs.ErrSignature), errors.Is(err, blobs.ErrNotFound):
		return errNoMedia, true
	case errors.Is(err, eventstore.ErrUnavailable), errors.Is(err, blobs.ErrUnavailable), errors.Is(err, projections.ErrBehind), postgres.IsUnavailable(err),
		errors.Is(err, context.DeadlineExceeded):
		return errUnavailable, true
	case ctx.Err() != nil: // the caller has gone, or the request's time is over: whatever failed, failed for that
		return errUnavailable, true
	}
	return errInternal, false
}

// fail answers with err.
func (c *call) fail(err error) {
	told, known := publicFault(c.r.Context(), err)
	if !known {
		c.server.log.ErrorContext(c.r.Context(), "request failed", "requestId", c.id, "operation", c.operation(), "error", err)
	} else if told.Code == fault.ServiceUnavailable {
		c.server.log.WarnContext(c.r.Context(), "request found a dependency away", "requestId", c.id, "operation", c.operation(), "error", err)
	}
	c.code = told.Code
	if c.w.wrote {
		return // the answer has begun: the log and the metrics are all that can still be told
	}
	as := answers[told.Code]
	if told.Status != 0 {
		as.status = told.Status
	}
	body := errorBody{Code: told.Code, Message: told.Message, Type: as.kind, RequestID: c.id, Param: told.Param, Details: details(told)}
	if c.documented {
		body.DocURL = c.absolute(errorDocs(told.Code))
	}
	if told.Code == fault.RateLimitExceeded || told.Code == fault.ServiceUnavailable || told.RetryAfter > 0 {
		body.RetryAfter = retrySeconds(told.RetryAfter)
		c.w.Header().Set("Retry-After", strconv.FormatInt(body.RetryAfter, 10))
	}
	if as.status == http.StatusUnauthorized {
		c.w.Header().Set("WWW-Authenticate", `Bearer realm="musique"`) // RFC 9110 §11.6.1: a 401 names a scheme
	}
	c.drain()
	c.write(as.status, member{"error", body})
}

// details are the fault's own, with its failing fields under `fields`.
func details(f *fault.Error) map[string]any {
	if len(f.Fields) == 0 {
		return f.Details
	}
	all := make(map[string]any, len(f.Details)+1)
	for k, v := range f.Details {
		all[k] = v
	}
	all["fields"] = f.Fields[:min(len(f.Fields), fault.MaxFields)]
	return all
}

// retrySeconds is a wait as `Retry-After` tells it: whole seconds, at least one.
func retrySeconds(d time.Duration) int64 {
	return max(1, int64(math.Ceil(d.Seconds())))
}
