package commands

import (
	"context"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

// CancelDelivery ends a delivery that was not played yet.
type CancelDelivery struct {
	Caller Caller
	Ref    delivery.Ref
	Reason string
}

// CancelDeliveryHandler carries out CancelDelivery.
type CancelDeliveryHandler struct{ *tools }

// Handle cancels the delivery; one that has ended stays as it is.
func (h CancelDeliveryHandler) Handle(ctx context.Context, cmd CancelDelivery) error {
	ctx, span := telemetry.Start(ctx, "command CancelDelivery")
	defer span.End()
	_, err := h.changeDelivery(ctx, cmd.Caller, cmd.Ref, func(d delivery.Delivery) ([]event.Payload, error) {
		return d.Cancel(cmd.Ref, h.now(), cmd.Reason), nil
	})
	return err
}

func (t *tools) changeDelivery(ctx context.Context, c Caller, ref delivery.Ref, decide func(delivery.Delivery) ([]event.Payload, error)) (event.Position, error) {
	return t.change(ctx, delivery.Stream(ref.SendID, ref.UserID), t.metadata(c), func(history []event.Recorded) ([]event.Payload, error) {
		return decide(delivery.Load(history))
	})
}
