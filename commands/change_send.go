package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
)

// ChangeSend changes when and how a scheduled send is played.
type ChangeSend struct {
	Caller Caller
	SendID string
	Change send.Change
}

// ChangeSendHandler carries out ChangeSend.
type ChangeSendHandler struct{ *tools }

// Handle changes the send. Of a change, a cancellation and the start at the same moment the one that is recorded first decides what becomes of the others: they
// are appended at the revision that they were decided on.
func (h ChangeSendHandler) Handle(ctx context.Context, cmd ChangeSend) error {
	ctx, span := telemetry.Start(ctx, "command ChangeSend")
	defer span.End()
	if err := h.callersSend(ctx, cmd.Caller, cmd.SendID); err != nil {
		return err
	}
	ended, err := h.Reads.SendEnded(ctx, cmd.SendID)
	if err != nil {
		return err
	}
	position, err := h.change(ctx, send.Stream(cmd.SendID), h.metadata(cmd.Caller), func(history []event.Recorded) ([]event.Payload, error) {
		s, err := send.Load(history)
		if err != nil {
			return nil, err
		}
		if s.Open {
			s = send.Send{} // not accepted yet
		}
		return s.Reschedule(cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.Change, ended, h.now())
	})
	if err != nil {
		return err
	}
	h.settle(ctx, position, Sends)
	return nil
}

// callersSend finds out whether a send may be the caller's by its first event. A large send takes long to load. That of another company is not loaded: it takes no
// longer than one that never was.
func (t *tools) callersSend(ctx context.Context, c Caller, sendID string) error {
	first, err := t.Store.Page(ctx, send.Stream(sendID), 0, 1)
	if err != nil {
		return err
	}
	if len(first) == 0 || first[0].Metadata.CompanyID != c.CompanyID || first[0].Metadata.Environment != c.Environment {
		return send.NotFound()
	}
	return nil
}
