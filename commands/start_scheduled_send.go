package commands

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
)

// StartScheduledSend sends the audio of a scheduled send to those of its locations where it is due.
type StartScheduledSend struct {
	SendID string
}

// StartScheduledSendHandler carries out StartScheduledSend.
type StartScheduledSendHandler struct{ *tools }

// Handle starts what is due, and says when to come again; more is false if nothing is left. However many processes try, each location gets its audio
// once: the stream is appended to at the revision that the decision was made on. A large send goes out in several appends; a process that dies
// between them leaves the rest to the next.
func (h StartScheduledSendHandler) Handle(ctx context.Context, cmd StartScheduledSend) (next time.Time, more bool, err error) {
	stream, began := send.Stream(cmd.SendID), false
	for range maxDecisions {
		history, err := h.Store.Load(ctx, stream)
		if err != nil {
			return time.Time{}, false, err
		}
		s, err := send.Load(history)
		if err != nil {
			return time.Time{}, false, err
		}
		due := s.Start(h.now())
		if len(due) == 0 {
			next, more = s.NextDue()
			return next, more, nil
		}
		meta := history[0].Metadata
		if !began { // what the request asked for goes on in its trace
			var span trace.Span
			ctx, span = telemetry.Continue(telemetry.WithRequest(ctx, meta.RequestID), meta.TraceParent, "command StartScheduledSend")
			defer span.End()
			began = true
		}
		meta.Actor, meta.Time, meta.Fingerprint, meta.Idempotency = "worker:scheduler", h.now(), "", ""
		meta.CausationID = history[0].ID.String()
		err = h.sendDue(ctx, stream, history[len(history)-1].Revision, meta, due)
		if err != nil && !errors.Is(err, eventstore.ErrConflict) {
			return time.Time{}, false, err
		}
	}
	return h.now().Add(time.Second), true, nil
}

func (h StartScheduledSendHandler) sendDue(ctx context.Context, stream string, revision uint64, meta event.Metadata, due []event.Payload) error {
	for _, part := range appends(meta, due) {
		if _, err := h.Store.Append(ctx, stream, eventstore.Exact(revision), part...); err != nil {
			return err
		}
		revision += uint64(len(part))
	}
	return nil
}
