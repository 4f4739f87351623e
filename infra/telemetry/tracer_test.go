package telemetry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

const (
	traceID  = "4bf92f3577b34da6a3ce929d0e0e4736"
	theirs   = "00-" + traceID + "-00f067aa0ba902b7-01"
	unmarked = "00-" + traceID + "-00f067aa0ba902b7-00"
)

func recording(t *testing.T) (*telemetry.Tracer, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	tracer := telemetry.NewTracer(recorder)
	t.Cleanup(func() { require.NoError(t, tracer.Close(context.Background())) })
	return tracer, recorder
}

func names(spans []sdktrace.ReadOnlySpan) (all []string) {
	for _, s := range spans {
		all = append(all, s.Name())
	}
	slices.Sort(all)
	return all
}

// What comes from outside is gone on with where it is well formed, and the place in the trace flows on with and without a tracer.
func TestAccept(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"", "nonsense", "00-" + traceID + "-00f067aa0ba902b7", "ff-" + traceID + "-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-" + traceID + "-0000000000000000-01", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", theirs + "-more", "00-" + traceID + "-00f067aa0ba902b7-0g",
	} {
		ctx, span := (*telemetry.Tracer)(nil).Accept(t.Context(), bad, "request", false)
		require.Empty(t, telemetry.TraceParent(ctx), bad)
		require.False(t, span.IsRecording())
	}
	ctx, _ := (*telemetry.Tracer)(nil).Accept(t.Context(), theirs, "request", false)
	require.Equal(t, unmarked, telemetry.TraceParent(ctx), "who records nothing hands on no claim that something is recorded")

	tracer, recorder := recording(t)
	for _, incoming := range []string{theirs, unmarked, ""} {
		ctx, span := tracer.Accept(t.Context(), incoming, "request", false)
		require.True(t, span.IsRecording(), "their flag decides nothing")
		require.Equal(t, incoming != "", telemetry.TraceParent(ctx)[3:35] == traceID)
		require.Equal(t, "-01", telemetry.TraceParent(ctx)[52:])
		span.End()
	}
	ctx, span := tracer.Accept(t.Context(), unmarked, "report", true)
	require.False(t, span.IsRecording(), "what was given out not to be recorded is not")
	require.Equal(t, traceID, telemetry.TraceParent(ctx)[3:35])
	span.End()
	require.Len(t, recorder.Ended(), 3)
}

// Whether a trace is recorded follows from our share and from chance, whatever ID a caller chooses for it: the usual sampler goes by the ID.
func TestACallerCannotChooseToBeRecorded(t *testing.T) {
	for name, sampler := range map[string]string{"": "always_off", "parent": "parentbased_always_off", "ratio": "traceidratio"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_TRACES_SAMPLER", sampler)
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
			tracer, err := telemetry.Open(t.Context(), telemetry.Config{Endpoint: "http://127.0.0.1:9", Log: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			recorded := 0
			const requests = 400
			for range requests {
				_, span := tracer.Accept(t.Context(), "00-00000000000000000000000000000001-00f067aa0ba902b7-01", "request", false)
				if span.IsRecording() {
					recorded++
				}
			}
			if sampler != "traceidratio" {
				require.Zero(t, recorded)
				return
			}
			require.InDelta(t, requests/2, recorded, requests/5) // ten standard deviations are a quarter
		})
	}
}

// Where nothing asks for traces there is no tracer, and what cannot be is said at the start.
func TestOpen(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"} {
		t.Setenv(name, "")
	}
	open := func(endpoint string) (*telemetry.Tracer, error) {
		return telemetry.Open(t.Context(), telemetry.Config{Endpoint: endpoint, Log: slog.New(slog.DiscardHandler)})
	}
	tracer, err := open("")
	require.NoError(t, err)
	require.Nil(t, tracer)
	require.NoError(t, tracer.Close(t.Context()))
	for _, bad := range []string{"collector:4318", "ftp://collector", "http://user:secret@collector", "http://collector/?key=secret", "http://"} {
		_, err = open(bad)
		require.Error(t, err, bad)
		require.NotContains(t, err.Error(), "secret")
	}
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
	tracer, err = open("")
	require.NoError(t, err)
	require.NotNil(t, tracer)
	t.Setenv("OTEL_TRACES_SAMPLER", "sometimes")
	_, err = open("")
	require.ErrorContains(t, err, "OTEL_TRACES_SAMPLER")
	t.Setenv("OTEL_SDK_DISABLED", "true")
	tracer, err = open("http://127.0.0.1:9")
	require.NoError(t, err)
	require.Nil(t, tracer)
}

// A page with the events of several sends has a span in each of their traces, however many events it has of them; and none in those that are over.
func TestOnEvents(t *testing.T) {
	t.Parallel()
	tracer, recorder := recording(t)
	ctx := tracer.In(t.Context())
	var events []event.Recorded
	add := func(traceParent string, times int, at time.Time) {
		for range times {
			events = append(events, event.Recorded{Metadata: event.Metadata{TraceParent: traceParent, Time: at}})
		}
	}
	const other, unwanted, old = "00-11111111111111111111111111111111-00f067aa0ba902b7-01", "00-22222222222222222222222222222222-00f067aa0ba902b7-00", "00-33333333333333333333333333333333-00f067aa0ba902b7-01"
	add(theirs, 1000, time.Now())
	add(other, 1, time.Now())
	add("", 1, time.Now())
	add(unwanted, 1, time.Now())
	add(theirs, 10, time.Now())
	add(old, 1, time.Now().Add(-time.Hour))
	ctx, work := telemetry.OnEvents(ctx, "project", events)
	next := telemetry.Next(ctx, theirs)
	require.Equal(t, theirs[:35], next[:35])
	require.NotEqual(t, theirs, next)
	for _, same := range []string{"", unwanted, old} {
		require.Equal(t, same, telemetry.Next(ctx, same))
	}
	work.End(errors.New("a secret"))
	spans := recorder.Ended()
	require.Len(t, spans, 2)
	for _, s := range spans {
		require.Equal(t, "00f067aa0ba902b7", s.Parent().SpanID().String())
		require.Empty(t, s.Status().Description)
		require.Empty(t, s.Events())
		for _, a := range s.Attributes() {
			if a.Key == "musique.events" {
				require.Equal(t, map[bool]int64{true: 1010, false: 1}[s.SpanContext().TraceID().String() == traceID], a.Value.AsInt64())
			}
		}
	}
}

// A broadcast's deliveries are not followed each by itself.
func TestFollowed(t *testing.T) {
	t.Parallel()
	require.Equal(t, theirs, telemetry.Followed(theirs, 100))
	require.Equal(t, unmarked, telemetry.Followed(theirs, 101))
	require.Empty(t, telemetry.Followed("", 101))
	tracer, recorder := recording(t)
	ctx, span := telemetry.Continue(tracer.In(t.Context()), telemetry.Followed(theirs, 100_000), "tell player")
	require.Equal(t, unmarked, telemetry.TraceParent(ctx), "its place is known all the same, for log lines and events")
	span.End()
	require.Empty(t, recorder.Ended())
}

// Work for a send goes on in the send's trace, and says from where it was done.
func TestContinue(t *testing.T) {
	t.Parallel()
	tracer, recorder := recording(t)
	ctx, request := tracer.Accept(t.Context(), "", "request", false)
	in, work := telemetry.Continue(ctx, theirs, "work")
	_, below := telemetry.Start(in, "below")
	_, again := telemetry.Continue(in, theirs, "again")
	below.End()
	again.End()
	work.End()
	request.End()
	spans := recorder.Ended()
	require.Equal(t, []string{"again", "below", "request", "work"}, names(spans))
	for _, s := range spans {
		switch s.Name() {
		case "work":
			require.Equal(t, "00f067aa0ba902b7", s.Parent().SpanID().String())
			require.Len(t, s.Links(), 1)
			require.Equal(t, request.SpanContext().SpanID(), s.Links()[0].SpanContext.SpanID())
		case "below", "again":
			require.Equal(t, work.SpanContext().SpanID(), s.Parent().SpanID())
			require.Empty(t, s.Links())
		}
	}
}

// Lines say which request and trace they concern, once.
func TestLogHandler(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(telemetry.LogHandler(slog.NewJSONHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})))
	ctx, _ := (*telemetry.Tracer)(nil).Accept(telemetry.WithRequest(t.Context(), "req_1"), theirs, "request", false)
	log.InfoContext(ctx, "one", "n", 1)
	log.With("worker", "w").InfoContext(ctx, "two", "requestId", "req_1")
	log.Info("three")
	require.Equal(t, `{"msg":"one","n":1,"requestId":"req_1","traceId":"`+traceID+`"}
{"msg":"two","worker":"w","requestId":"req_1","traceId":"`+traceID+`"}
{"msg":"three"}
`, out.String())
}

// Without a tracer none of it costs an allocation, but where a traceparent comes in and has to be handed on.
func TestNothingIsSpentWithoutATracer(t *testing.T) {
	ctx, events := context.Background(), make([]event.Recorded, 100)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		ctx, span := (*telemetry.Tracer)(nil).Accept(ctx, "", "request", false)
		ctx, below := telemetry.Start(ctx, "below")
		telemetry.Attribute(below, "key", "value")
		ctx, work := telemetry.OnEvents(ctx, "work", events)
		_, more := telemetry.Continue(ctx, telemetry.Next(ctx, ""), "more")
		more.End()
		work.End(nil)
		below.End()
		span.End()
	}))
}

func BenchmarkTracing(b *testing.B) {
	off := func(*testing.B) *telemetry.Tracer { return nil }
	on := func(b *testing.B) *telemetry.Tracer {
		tracer := telemetry.NewTracer(sdktrace.NewBatchSpanProcessor(tracetest.NewNoopExporter()))
		b.Cleanup(func() { require.NoError(b, tracer.Close(context.Background())) })
		return tracer
	}
	for name, make := range map[string]func(*testing.B) *telemetry.Tracer{"off": off, "on": on} {
		b.Run(name, func(b *testing.B) {
			tracer := make(b)
			b.ReportAllocs()
			for b.Loop() { // what a request that appends once does
				ctx, request := tracer.Accept(telemetry.WithRequest(context.Background(), "req_1"), "", "request", false)
				ctx, command := telemetry.Start(ctx, "command")
				_, appending := telemetry.Start(ctx, "append")
				appending.End()
				command.End()
				request.End()
			}
		})
	}
}
