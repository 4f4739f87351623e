package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
)

// CancelSend calls off a send that is scheduled or queued, for all who have not played it.
type CancelSend struct {
	Caller Caller
	SendID string
}

// CancelSendHandler carries out CancelSend.
type CancelSendHandler struct{ *tools }

// Handle cancels the send; the deliveries that it went out in are cancelled by a worker, one by one, each unless it has ended by then.
func (h CancelSendHandler) Handle(ctx context.Context, cmd CancelSend) error {
	ctx, span := telemetry.Start(ctx, "command CancelSend")
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
		return s.Cancel(cmd.Caller.CompanyID, cmd.Caller.Environment, ended)
	})
	if err != nil {
		return err
	}
	h.settle(ctx, position, Sends)
	return nil
}
