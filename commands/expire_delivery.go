package commands

import (
	"context"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
)

// ExpireDelivery ends a delivery whose time is over.
type ExpireDelivery struct {
	Caller Caller
	Ref    delivery.Ref
	// Final ends even one that plays: its player is taken to have died amid it.
	Final bool
}

// ExpireDeliveryHandler carries out ExpireDelivery.
type ExpireDeliveryHandler struct{ *tools }

// Handle expires the delivery; one that has ended stays as it is, and so does one that plays, unless this is final.
func (h ExpireDeliveryHandler) Handle(ctx context.Context, cmd ExpireDelivery) error {
	_, err := h.changeDelivery(ctx, cmd.Caller, cmd.Ref, func(d delivery.Delivery) ([]event.Payload, error) {
		return d.Expire(cmd.Ref, h.now(), cmd.Final), nil
	})
	return err
}
