package commands

import (
	"context"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

// ExpireDelivery ends a delivery whose time is over.
type ExpireDelivery struct {
	Caller Caller
	Ref    delivery.Ref
	// Final ends even one that plays: its player is taken to have died amid it.
	Final bool
	// Reason is why the delivery could not be handed over, where that was tried. It ends as failed with it then.
	Reason string
}

// ExpireDeliveryHandler carries out ExpireDelivery.
type ExpireDeliveryHandler struct{ *tools }

// Handle expires the delivery; one that has ended stays as it is, and so does one that plays, unless this is final.
func (h ExpireDeliveryHandler) Handle(ctx context.Context, cmd ExpireDelivery) error {
	ctx, span := telemetry.Start(ctx, "command ExpireDelivery")
	defer span.End()
	_, err := h.changeDelivery(ctx, cmd.Caller, cmd.Ref, func(d delivery.Delivery) ([]event.Payload, error) {
		if cmd.Reason != "" {
			if failed := d.GiveUp(cmd.Ref, h.now(), cmd.Reason); failed != nil {
				return failed, nil
			}
		}
		return d.Expire(cmd.Ref, h.now(), cmd.Final), nil
	})
	return err
}
