package telemetry

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/trace"
)

// The fields that lines about a request have, wherever in the system they are written.
const (
	requestIDField = "requestId"
	traceIDField   = "traceId"
)

type requestKey struct{}

// WithRequest gives a context whose log lines are about the request with that ID; "" changes nothing.
func WithRequest(ctx context.Context, id string) context.Context {
	if id == "" {
		return ctx
	}
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID is the ID of the request that the context is of, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// LogHandler adds to the lines of a handler the IDs of the request and of the trace that their context is of.
func LogHandler(next slog.Handler) slog.Handler { return logHandler{next} }

type logHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h logHandler) Handle(ctx context.Context, r slog.Record) error {
	id, of := RequestID(ctx), trace.SpanContextFromContext(ctx)
	if id == "" && !of.HasTraceID() {
		return h.Handler.Handle(ctx, r)
	}
	r = r.Clone()
	if id != "" && !has(r, requestIDField) {
		r.AddAttrs(slog.String(requestIDField, id))
	}
	if of.HasTraceID() {
		r.AddAttrs(slog.String(traceIDField, of.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func has(r slog.Record, key string) (found bool) {
	r.Attrs(func(a slog.Attr) bool {
		found = a.Key == key
		return !found
	})
	return found
}

// WithAttrs implements slog.Handler.
func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h logHandler) WithGroup(name string) slog.Handler { return logHandler{h.Handler.WithGroup(name)} }
