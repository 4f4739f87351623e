package commands

import (
	"context"
	"errors"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
)

// AbandonBroadcast gives up a large broadcast whose writer died before it was closed. Nobody was told that it was accepted.
type AbandonBroadcast struct {
	SendID string
}

// AbandonBroadcastHandler carries out AbandonBroadcast.
type AbandonBroadcastHandler struct{ *tools }

// Handle abandons the broadcast if it is still open and old enough; abandoned says whether it did.
func (h AbandonBroadcastHandler) Handle(ctx context.Context, cmd AbandonBroadcast) (abandoned bool, err error) {
	ctx, span := telemetry.Start(ctx, "command AbandonBroadcast")
	defer span.End()
	history, err := h.Store.Load(ctx, send.Stream(cmd.SendID))
	if err != nil || len(history) == 0 {
		return false, err
	}
	s, err := send.Load(history)
	if err != nil || !s.Open || h.now().Sub(history[len(history)-1].Metadata.Time) <= abandonAfter {
		return false, err
	}
	_, err = h.abandon(ctx, cmd.SendID, history)
	if errors.Is(err, eventstore.ErrConflict) { // its writer lives, or another was faster
		return false, nil
	}
	return err == nil, err
}

// abandon ends an open broadcast. A writer that lives after all fails at its next part, since the stream is not where it left it.
func (t *tools) abandon(ctx context.Context, sendID string, history []event.Recorded) (event.Position, error) {
	meta := history[0].Metadata
	meta.Actor, meta.Time = "worker:cleanup", t.now()
	return t.Store.Append(ctx, send.Stream(sendID), eventstore.ExpectedAfter(history), propose(meta, send.BroadcastAbandoned{SendID: sendID})...)
}
