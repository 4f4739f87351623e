package commands

import (
	"context"
	"fmt"
	"time"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
)

// deletionBudget bounds a deletion, well inside the time that its mark keeps sends away.
const deletionBudget = audio.DeletionPatience / 2

// maxNamedSends bounds the pending sends that a refusal names.
const maxNamedSends = 100

// DeleteAudio takes audio out of the library, with its bytes.
type DeleteAudio struct {
	Caller  Caller
	AudioID string
}

// DeleteAudioHandler carries out DeleteAudio.
type DeleteAudioHandler struct{ *tools }

// Handle marks the deletion, looks for pending sends, and finishes or abandons it. A send looks for the mark after it was recorded. So of a deletion and
// a send at the same moment the one that was recorded first goes on, and the other one sees it.
func (h DeleteAudioHandler) Handle(ctx context.Context, cmd DeleteAudio) error {
	ctx, span := telemetry.Start(ctx, "command DeleteAudio")
	defer span.End()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deletionBudget)
	defer cancel()
	stream, meta := audio.Stream(cmd.AudioID), h.metadata(cmd.Caller)
	marked, err := h.change(ctx, stream, meta, func(history []event.Recorded) ([]event.Payload, error) {
		a, err := audio.Load(history)
		if err != nil {
			return nil, err
		}
		started, err := a.StartDeletion(cmd.Caller.CompanyID, cmd.Caller.Environment, h.now())
		return []event.Payload{started}, err
	})
	if err != nil {
		return err
	}
	pending, err := h.pendingSends(ctx, cmd, marked)
	if err != nil {
		h.abandon(ctx, stream, meta, marked)
		return err
	}
	blob := ""
	position, err := h.change(ctx, stream, meta, func(history []event.Recorded) ([]event.Payload, error) {
		a, err := audio.Load(history)
		if err != nil {
			return nil, err
		}
		if history[len(history)-1].Position != marked {
			return nil, fault.New(fault.Conflict, "The audio is being deleted by another request; try again if it is still there then.")
		}
		blob = a.BlobKey
		return []event.Payload{a.FinishDeletion(pending)}, nil
	})
	if err != nil {
		return err
	}
	h.settle(ctx, position, Library)
	if len(pending) > 0 {
		refused := fault.New(fault.Conflict, "The audio has sends that are scheduled or queued; cancel them or wait for their end.")
		refused.Details = map[string]any{"sendIds": pending[:min(len(pending), maxNamedSends)]}
		return refused
	}
	h.removeBlob(ctx, blob)
	return nil
}

// pendingSends asks the read model, when it has passed the mark, for the sends before it. Those after it see it, and take themselves back.
func (h DeleteAudioHandler) pendingSends(ctx context.Context, cmd DeleteAudio, marked event.Position) ([]string, error) {
	if err := h.waitFor(ctx, marked, Sends); err != nil {
		return nil, fmt.Errorf("look for pending sends: %w", &fault.Error{Code: fault.ServiceUnavailable, Message: "It could not be found out whether sends of the audio are pending; try again.", RetryAfter: retryAfter})
	}
	return h.Reads.PendingSends(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.AudioID, marked)
}

// abandon lifts the mark of a deletion that could not be decided. If that fails too, the mark is void after audio.DeletionPatience.
func (h DeleteAudioHandler) abandon(ctx context.Context, stream string, meta event.Metadata, marked event.Position) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := h.change(ctx, stream, meta, func(history []event.Recorded) ([]event.Payload, error) {
		a, err := audio.Load(history)
		if err != nil || len(history) == 0 || history[len(history)-1].Position != marked {
			return nil, err
		}
		return []event.Payload{audio.DeletionAbandoned{AudioID: a.AudioID}}, nil
	})
	if err != nil {
		h.Log.WarnContext(ctx, "the mark of a deletion could not be lifted", "stream", stream, "error", err)
	}
}
