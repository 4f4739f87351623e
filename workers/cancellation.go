package workers

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
)

// Reads is what the workers ask the read models.
type Reads interface {
	commands.Reads
	// OpenDeliveries lists the deliveries at a location that have not ended.
	OpenDeliveries(ctx context.Context, companyID string, env event.Environment, userID int64) ([]delivery.Ref, error)
}

// Cancellation ends the deliveries of a send that was called off, and those of a location that was removed.
type Cancellation struct{ Deps }

// NewCancellation makes the worker.
func NewCancellation(d Deps) *Cancellation { return &Cancellation{d} }

// Run cancels deliveries until ctx ends.
func (w *Cancellation) Run(ctx context.Context) error {
	return follower{
		Deps: w.Deps, name: "cancellation",
		types:  []string{send.Cancelled{}.EventType(), location.Removed{}.EventType()},
		handle: w.handle,
	}.run(ctx)
}

func (w *Cancellation) handle(ctx context.Context, _ *pgx.Batch, events []event.Recorded) error {
	for _, e := range events {
		refs, reason, err := w.affected(ctx, e)
		if err != nil {
			return err
		}
		caller := commands.Caller{CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, Actor: "worker:cancellation", RequestID: e.Metadata.RequestID}
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(enders)
		for _, ref := range refs {
			group.Go(func() error {
				return w.Commands.CancelDelivery.Handle(groupCtx, commands.CancelDelivery{Caller: caller, Ref: ref, Reason: reason})
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	return nil
}

func (w *Cancellation) affected(ctx context.Context, e event.Recorded) (refs []delivery.Ref, reason string, err error) {
	if e.Type == (location.Removed{}).EventType() {
		var removed location.Removed
		if err := json.Unmarshal(e.Data, &removed); err != nil {
			return nil, "", fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		// Every send that was accepted before the location went must be in the read model when it is asked.
		if err := w.Reads.WaitFor(ctx, e.Position, commands.Sends); err != nil {
			return nil, "", err
		}
		refs, err := w.Reads.OpenDeliveries(ctx, e.Metadata.CompanyID, e.Metadata.Environment, removed.UserID)
		return refs, "the location was removed", err
	}
	history, err := w.Store.Load(ctx, e.Stream)
	if err != nil {
		return nil, "", err
	}
	s, err := send.Load(history)
	if err != nil {
		return nil, "", err
	}
	for _, sent := range s.Sent {
		refs = append(refs, delivery.Ref{DeliveryID: sent.DeliveryID, SendID: s.ID, AudioID: sent.AudioID, ExternalID: sent.ExternalID, UserID: sent.UserID})
	}
	return refs, "the send was cancelled", nil
}
