// Package telemetry follows what one request sets off through all that carries it on: the trace of it (OpenTelemetry, in W3C Trace Context), and its ID in
// log lines.
//
// Both travel in a context.Context within a process, and as a `traceparent` between processes: in the metadata of events, in the messages of the dispatch
// topic, in the inbox, in what players and endpoints are told. A trace flows on whether anything is recorded of it or not; what is recorded goes to an OTLP
// receiver if there is a Tracer, and that is the only part that costs something.
//
// The decision whether a trace is recorded is made once, where it begins or comes in (Tracer.Accept), and is in the `traceparent` from then on. A flag that
// comes from outside decides nothing.
//
// No attribute of a span holds what somebody wrote: no name, no header, no query, no message of an error. There are IDs that this system made, and words of
// its own.
package telemetry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Tracer records spans. A nil Tracer records none; everything in this package works with it.
type Tracer struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	// begins decides whether a trace is recorded, where it begins.
	begins sdktrace.Sampler
}

// Config says where spans go.
type Config struct {
	// Endpoint is the base URL of an OTLP/HTTP receiver, such as http://127.0.0.1:4318; spans go to its /v1/traces unless it has a path of its own. Empty is
	// what OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT says.
	Endpoint string
	// Sample is the share of traces that are recorded, from 0 to 1; nil is what OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say, or all.
	Sample *float64
	// Version is the program's, and Roles what the process does.
	Version string
	Roles   []string
	// Log gets what stands in the way of spans.
	Log *slog.Logger
}

// Open makes a tracer; it is nil where the configuration and the environment ask for none. It does not wait for the receiver: spans that cannot be sent are
// lost, and hold nothing up. The other OTEL_EXPORTER_OTLP_… variables, those of the batch (OTEL_BSP_…) and OTEL_RESOURCE_ATTRIBUTES hold as OpenTelemetry has
// them.
func Open(ctx context.Context, config Config) (*Tracer, error) {
	if disabled(config.Endpoint) {
		return nil, nil
	}
	begins, err := sampler(config.Sample)
	if err != nil {
		return nil, err
	}
	var options []otlptracehttp.Option
	if config.Endpoint != "" {
		endpoint, err := endpointURL(config.Endpoint)
		if err != nil {
			return nil, err
		}
		options = append(options, otlptracehttp.WithEndpointURL(endpoint))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "musique"), attribute.String("service.version", config.Version), attribute.String("service.instance.id", uuid.NewString()),
		attribute.StringSlice("musique.roles", config.Roles),
	), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(seldom(complainEvery, func(err error) { config.Log.Warn("traces cannot be sent, and are lost", "error", err) })))
	return newTracer(begins, sdktrace.WithBatcher(exporter), sdktrace.WithResource(about)), nil
}

// complainEvery is how often it is told at most that spans cannot be sent: a receiver that is away is met again every few seconds.
const complainEvery = time.Minute

// seldom lets through what comes after a while of nothing.
func seldom(pause time.Duration, say func(error)) func(error) {
	var mu sync.Mutex
	var said time.Time
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(said) >= pause {
			said = now
			say(err)
		}
	}
}

// NewTracer makes a tracer that records everything, with a processor of the caller's.
func NewTracer(processor sdktrace.SpanProcessor) *Tracer {
	return newTracer(sdktrace.AlwaysSample(), sdktrace.WithSpanProcessor(processor))
}

func newTracer(begins sdktrace.Sampler, options ...sdktrace.TracerProviderOption) *Tracer {
	// Whatever has a parent follows it: what was decided where the trace came in holds to its end.
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSampler(sdktrace.ParentBased(begins)))...)
	return &Tracer{provider: provider, tracer: provider.Tracer("github.com/musique/musique"), begins: begins}
}

// Close sends what is still to be sent.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("traces: %w", err)
	}
	return nil
}

// disabled reports whether nothing asks for traces.
func disabled(endpoint string) bool {
	if off, _ := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); off {
		return true
	}
	return endpoint == "" && (os.Getenv("OTEL_TRACES_EXPORTER") == "none" ||
		os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "")
}

func endpointURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("the endpoint of traces is a URL such as http://127.0.0.1:4318, without a name, password or query: those go into OTEL_EXPORTER_OTLP_HEADERS")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// sampler decides where traces begin. Those of OTEL_TRACES_SAMPLER that look at a parent are the same as those that do not: see newTracer.
func sampler(share *float64) (sdktrace.Sampler, error) {
	if share != nil {
		return sdktrace.TraceIDRatioBased(*share), nil
	}
	name := strings.TrimPrefix(strings.ToLower(strings.TrimSpace(os.Getenv("OTEL_TRACES_SAMPLER"))), "parentbased_")
	switch name {
	case "", "always_on":
		return sdktrace.AlwaysSample(), nil
	case "always_off":
		return sdktrace.NeverSample(), nil
	case "traceidratio":
		text := strings.TrimSpace(os.Getenv("OTEL_TRACES_SAMPLER_ARG"))
		if text == "" {
			return sdktrace.AlwaysSample(), nil
		}
		ratio, err := ParseShare(text)
		if err != nil {
			return nil, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: %w", err)
		}
		return sdktrace.TraceIDRatioBased(ratio), nil
	}
	return nil, fmt.Errorf("OTEL_TRACES_SAMPLER is always_on, always_off or traceidratio, with or without parentbased_, not %q", name)
}

// ParseShare reads a share from 0 to 1.
func ParseShare(text string) (float64, error) {
	share, err := strconv.ParseFloat(text, 64)
	if err != nil || !(share >= 0 && share <= 1) { // NaN is neither
		return 0, fmt.Errorf("a share is a number from 0 to 1, not %q", text)
	}
	return share, nil
}

type tracerKey struct{}

// In gives a context in which Continue and Together record with this tracer.
func (t *Tracer) In(ctx context.Context) context.Context {
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, tracerKey{}, t)
}

func tracerOf(ctx context.Context) *Tracer {
	t, _ := ctx.Value(tracerKey{}).(*Tracer)
	return t
}

// none is a span that nothing is recorded of.
var none trace.Span = noop.Span{}

// Accept begins the span of a request from outside, and makes this tracer that of the context. A well-formed traceparent is gone on with, so that who asks
// finds the request in a trace of theirs; but whether it is recorded is decided here, by chance: neither their flag nor their choice of a trace's ID, by which
// the usual sampler goes, has a say in what it costs. Given says that the traceparent is one that this system gave out: then what it is not to record, it does
// not record.
func (t *Tracer) Accept(ctx context.Context, traceParent, name string, given bool) (context.Context, trace.Span) {
	parent := parse(traceParent)
	over := given && !parent.IsSampled()
	parent = parent.WithTraceFlags(0)
	if t == nil {
		if parent.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
		}
		return ctx, none
	}
	if ctx = t.In(ctx); parent.IsValid() {
		if !over && t.decide() {
			parent = parent.WithTraceFlags(trace.FlagsSampled)
		}
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
}

// decide asks the sampler about a trace with an ID of our own.
func (t *Tracer) decide() bool {
	var id trace.TraceID
	_, _ = rand.Read(id[:]) // it never fails
	return t.begins.ShouldSample(sdktrace.SamplingParameters{ParentContext: context.Background(), TraceID: id}).Decision == sdktrace.RecordAndSample
}

// Start begins a span below that of the context. Where none is being recorded there, none is here.
func Start(ctx context.Context, name string) (context.Context, trace.Span) {
	above := trace.SpanFromContext(ctx)
	if !above.IsRecording() {
		return ctx, none
	}
	return tracerOfSpan(above).Start(ctx, name)
}

func tracerOfSpan(s trace.Span) trace.Tracer {
	return s.TracerProvider().Tracer("github.com/musique/musique")
}

// Continue begins a span in the trace that a traceparent of this system's own names: below the span of the context if that is in it too, else below the one
// that it names, and linked to that of the context. From then on the context is in that trace, whether it is recorded or not. An empty one changes nothing.
func Continue(ctx context.Context, traceParent, name string) (context.Context, trace.Span) {
	parent := parse(traceParent)
	if !parent.IsValid() {
		return Start(ctx, name)
	}
	here := trace.SpanContextFromContext(ctx)
	if here.TraceID() == parent.TraceID() && trace.SpanFromContext(ctx).IsRecording() {
		return Start(ctx, name)
	}
	t := tracerOf(ctx)
	ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	if t == nil || !parent.IsSampled() {
		return ctx, none
	}
	var options []trace.SpanStartOption
	if here.IsSampled() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: here}))
	}
	return t.tracer.Start(ctx, name, options...)
}

// TraceParent is the `traceparent` of the context's span (W3C Trace Context §3.2), "" if it has none.
func TraceParent(ctx context.Context) string { return format(trace.SpanContextFromContext(ctx)) }

func format(c trace.SpanContext) string {
	if !c.IsValid() {
		return ""
	}
	var b [traceParentLength]byte
	traceID, spanID := c.TraceID(), c.SpanID()
	copy(b[:], "00-")
	hex.Encode(b[3:], traceID[:])
	b[35] = '-'
	hex.Encode(b[36:], spanID[:])
	copy(b[52:], "-00")
	if c.IsSampled() {
		b[54] = '1'
	}
	return string(b[:])
}

// traceParentLength is that of all that Append and TraceParent write, and of all that parse takes.
const traceParentLength = 55

// parse reads a `traceparent` (W3C Trace Context §3.2); one that is not well formed is none.
func parse(text string) trace.SpanContext {
	if len(text) != traceParentLength || text[2] != '-' || text[35] != '-' || text[52] != '-' || text[:2] == "ff" {
		return trace.SpanContext{}
	}
	var version, flags [1]byte
	var traceID trace.TraceID
	var spanID trace.SpanID
	for _, part := range []struct {
		to   []byte
		text string
	}{{version[:], text[:2]}, {traceID[:], text[3:35]}, {spanID[:], text[36:52]}, {flags[:], text[53:]}} {
		if strings.ContainsAny(part.text, "ABCDEF") {
			return trace.SpanContext{}
		}
		if _, err := hex.Decode(part.to, []byte(part.text)); err != nil {
			return trace.SpanContext{}
		}
	}
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.TraceFlags(flags[0]) & trace.FlagsSampled, Remote: true})
}

// maxFollowed is how many deliveries a send has at most that are followed each by itself, to the player and back. Of a larger one its trace has the request
// and what was done for many at once.
const maxFollowed = 100

// Followed is the traceparent for one of a number of deliveries: that of what they belong to, and of a large send one by which nothing more is recorded.
func Followed(traceParent string, total int) string {
	if total <= maxFollowed {
		return traceParent
	}
	return Unfollowed(traceParent)
}

// Unfollowed is a traceparent by which nothing more is recorded of its trace.
func Unfollowed(traceParent string) string { return format(parse(traceParent).WithTraceFlags(0)) }
