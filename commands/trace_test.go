package commands_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
)

// A scheduled send goes on in the trace of its request, whoever starts it and however much later.
func TestAScheduledSendGoesOnInItsTrace(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Import(t, "store_001", "store_002")
	recorder := tracetest.NewSpanRecorder()
	tracer := telemetry.NewTracer(recorder)
	t.Cleanup(func() { require.NoError(t, tracer.Close(context.Background())) })
	const incoming = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	audioID, due := p.Upload(t, p.Caller()), time.Now().Add(time.Hour)
	caller := p.Caller()
	caller.RequestID = "req_of_the_send"

	ctx, request := tracer.Accept(t.Context(), incoming, "request", false)
	made, err := p.Commands.SendAudio.Handle(ctx, commands.SendAudio{Caller: caller, AudioID: audioID, Request: send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due}})
	require.NoError(t, err)
	request.End()
	_, _, err = p.At(func() time.Time { return due }).StartScheduledSend.Handle(tracer.In(t.Context()), commands.StartScheduledSend{SendID: made.ID})
	require.NoError(t, err)

	appends := map[string]string{} // by what is above them
	for _, span := range recorder.Ended() {
		require.Equal(t, incoming[3:35], span.SpanContext().TraceID().String(), span.Name())
		if span.Name() != "append to send" {
			continue
		}
		for _, above := range recorder.Ended() {
			if above.SpanContext().SpanID() == span.Parent().SpanID() {
				appends[above.Name()] = span.SpanContext().SpanID().String()
			}
		}
	}
	history := p.History(t, send.Stream(made.ID))
	require.Len(t, history, 3)
	require.Equal(t, "00-"+incoming[3:35]+"-"+appends["command SendAudio"]+"-01", history[0].Metadata.TraceParent)
	for _, sent := range history[1:] {
		require.Equal(t, "00-"+incoming[3:35]+"-"+appends["command StartScheduledSend"]+"-01", sent.Metadata.TraceParent)
		require.Equal(t, "req_of_the_send", sent.Metadata.RequestID)
	}
}
