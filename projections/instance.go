package projections

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
)

// leadCheckEvery is how often an idle lead asks whether its connection still lives.
const leadCheckEvery = 5 * time.Second

// instance runs one projection in this process. It is the message.Subscriber of its own handler: it gives out pages as long as it has the lead.
type instance struct {
	runner     *Runner
	projection Projection
	log        *slog.Logger

	wait sync.WaitGroup
}

type leadKey struct{}

// Subscribe implements message.Subscriber.
func (i *instance) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	i.wait.Go(func() {
		defer close(out)
		for failures := 0; ctx.Err() == nil; failures++ {
			began := time.Now()
			err := i.lead(ctx, out)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > leadCheckEvery {
				failures = 0
			}
			i.log.Warn("the projection lost its database; starting again", "error", err)
			pause(ctx, failures)
		}
	})
	return out, nil
}

// Close implements message.Subscriber. The router ends the subscription's context; this waits for it.
func (i *instance) Close() error {
	i.wait.Wait()
	return nil
}

// lead waits for the lead, then gives out pages until the lead is lost or ctx ends.
func (i *instance) lead(ctx context.Context, out chan<- *message.Message) error {
	lead, err := takeLead(ctx, i.runner.config.Pool, i.projection)
	if err != nil {
		return err
	}
	defer lead.close()
	lead.passed = i.passed
	leading := i.runner.metrics.leading.WithLabelValues(i.projection.Name)
	leading.Set(1)
	defer leading.Set(0)
	defer i.runner.metrics.stopped.WithLabelValues(i.projection.Name).Set(0) // whoever leads next tells
	i.runner.metrics.position.WithLabelValues(i.projection.Name).Set(float64(lead.at().Commit))
	i.log.Debug("the projection leads", "position", lead.at().Commit)

	config := i.projection.events()
	config.Log, config.Hold = i.log, send.IsUnsealed
	config.Checkpoint = func(context.Context) (event.Position, error) { return lead.at(), nil }
	config.OnCaughtUp = func() {
		if err := lead.caughtUp(ctx); err != nil {
			i.log.Warn("that the projection caught up could not be noted", "error", err)
		}
	}
	subscriber := eventstore.NewSubscriber(i.runner.config.Store, config)
	defer func() { _ = subscriber.Close() }() // it always returns nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pages, err := subscriber.Subscribe(ctx, i.projection.Name)
	if err != nil {
		return err
	}
	check := time.NewTicker(leadCheckEvery)
	defer check.Stop()
	for {
		select {
		case page, open := <-pages:
			if !open {
				return errors.New("the subscription ended")
			}
			page.SetContext(context.WithValue(page.Context(), leadKey{}, lead))
			select {
			case out <- page:
			case <-lead.lost:
				return errLeadLost
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-check.C:
			lead.check(ctx)
		case <-lead.lost:
			return errLeadLost
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// events is which events the projection is sent. Others wait until it has passed any position that a command wrote, that of an event which it does not follow
// too. Such events move the checkpoint soon and not at once: it would be a transaction more for each event and projection, just when others wait for
// theirs. Usage is no command's, an event for each request: a projection passes it only now and then, unless it follows it. Who waits for all that
// is there waits for Head.
func (p Projection) events() eventstore.SubscriberConfig {
	if p.Beside {
		return eventstore.SubscriberConfig{Types: p.Types}
	}
	return eventstore.SubscriberConfig{Types: p.Types, FilterHere: true, SkipStreams: usage.StreamPrefix}
}

// Head is a position that each projection which is not beside the others passes as soon as it has all that there is for it; the usage of the API that came
// last may stand after it. Errors: eventstore.ErrUnavailable.
func Head(ctx context.Context, store *eventstore.Store) (event.Position, error) {
	return store.HeadFor(ctx, Projection{}.events())
}

// passed tells of an event that an operator had skipped.
func (i *instance) passed(e event.Recorded, err error) {
	i.runner.metrics.skipped.WithLabelValues(i.projection.Name).Inc()
	i.log.Warn("the projection passed an event that an operator had skipped", "event", e.ID, "type", e.Type, "stream", e.Stream, "revision", e.Revision, "error", err)
}

// handle applies the page of a message. An error makes the router refuse the message, and the subscription gives the page out again after a pause.
func (i *instance) handle(msg *message.Message) error {
	page := eventstore.PageOf(msg)
	lead, ok := msg.Context().Value(leadKey{}).(*lead)
	if !ok {
		return errors.New("a message without a lead")
	}
	name, m := i.projection.Name, i.runner.metrics
	began := time.Now()
	ctx, traced := telemetry.OnEvents(msg.Context(), "project "+name, page.Events)
	applied, err := lead.apply(ctx, page)
	traced.End(err)
	m.events.WithLabelValues(name).Add(float64(applied))
	m.position.WithLabelValues(name).Set(float64(lead.at().Commit))
	switch {
	case errors.Is(err, errMoved):
		i.log.Info("the projection begins again: its checkpoint moved, by a rebuild if an operator asked for one", "error", err)
		return err
	case err != nil:
		if msg.Context().Err() == nil {
			m.failures.WithLabelValues(name).Inc()
			m.stopped.WithLabelValues(name).Set(1)
			i.log.Error("the projection stands still: its next events cannot be applied", "error", err)
		}
		return err
	}
	m.stopped.WithLabelValues(name).Set(0)
	m.seconds.WithLabelValues(name).Observe(time.Since(began).Seconds())
	return nil
}
