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
}

// ExpireDeliveryHandler carries out ExpireDelivery.
type ExpireDeliveryHandler struct{ *tools }

// Handle expires the delivery; one that has ended, or plays, stays as it is.
func (h ExpireDeliveryHandler) Handle(ctx context.Context, cmd ExpireDelivery) error {
	_, err := h.changeDelivery(ctx, cmd.Caller, cmd.Ref, func(d delivery.Delivery) ([]event.Payload, error) {
		return d.Expire(cmd.Ref, h.now()), nil
	})
	return err
}
