package workers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

const (
	// historyPage bounds the events of one write.
	historyPage = 4_096
	// historyPause is the pause after a failure, a history that was changed among them: it stays so until somebody mends it.
	historyPause = 10 * time.Second
)

// HistoryConfig says where the heads of the event history are kept.
type HistoryConfig struct {
	Dir     string // folder of the heads; processes that may take over from each other share it
	KeyFile string // of the signing key
	// Every is how often the new events are covered, and a head of them signed.
	Every    time.Duration
	Registry prometheus.Registerer // may be nil
}

// History makes the event history tamper-evident: it takes the events in their order into a Merkle tree and signs its heads (docs/tamper-evidence.md). It
// reads the new events in large pages when it is time for a head, so that it costs the rest of the system nothing in between.
type History struct {
	Deps
	config            HistoryConfig
	covered, signedAt prometheus.Gauge
	refused           prometheus.Gauge
}

// NewHistory makes the worker.
func NewHistory(d Deps, config HistoryConfig) *History {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "musique", Subsystem: "history", Name: name, Help: help})
	}
	w := &History{
		Deps: d, config: config,
		covered:  gauge("signed_events", "Events that the newest signed head of the event history covers; 0 where another process signs."),
		signedAt: gauge("signed_at_seconds", "When this process signed the newest head of the event history, Unix time."),
		refused:  gauge("changed", "1 while the event history is not the one that was signed, and nothing is signed any more."),
	}
	if config.Registry != nil {
		config.Registry.MustRegister(w.covered, w.signedAt, w.refused)
	}
	return w
}

// Run covers the history until ctx ends.
func (w *History) Run(ctx context.Context) error {
	return w.lead(ctx, "history", func(ctx context.Context) error {
		defer w.refused.Set(0) // whoever leads next tells
		for {
			err := w.follow(ctx)
			w.covered.Set(0)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			switch {
			case errors.Is(err, translog.ErrChanged):
				w.refused.Set(1)
				w.Log.Error("the event history was changed; nothing is signed until it is as it was: see 'musique events verify'", "error", err)
			case errors.Is(err, translog.ErrInUse):
				w.Log.Warn("the heads of the event history wait for another process", "error", err)
			default:
				w.Log.Error("a worker failed and tries again", "worker", "history", "error", err)
			}
			select {
			case <-time.After(historyPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// follow has the folder open until ctx ends or something fails.
func (w *History) follow(ctx context.Context) (err error) {
	key, err := translog.OpenKey(w.config.KeyFile)
	if err != nil {
		return err
	}
	log, err := translog.Open(w.config.Dir, key, w.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	w.Log.Info("the event history is signed", "key", key.Public[len(key.Public)-1], "folder", w.config.Dir, "events", log.Size())
	last, _ := log.Last()
	at := newest{last.Position, last.ID}
	for {
		if at, err = w.cover(ctx, log, at); err != nil {
			return err
		}
		if awaited := log.Awaits(); awaited > 0 {
			return fmt.Errorf("%w: a head of %d events is kept, and the store has %d", translog.ErrChanged, awaited, log.Size())
		}
		w.refused.Set(0)
		head, signed, err := log.Sign(w.Now())
		if err != nil {
			return err
		}
		if signed {
			w.covered.Set(float64(head.Size))
			w.signedAt.SetToCurrentTime()
		}
		select {
		case <-time.After(w.config.Every):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// newest is an event up to which the store was read; it may be one of the store's own.
type newest struct {
	position event.Position
	id       uuid.UUID
}

// cover takes in what is in the store after an event, and gives the newest. The newest event of the tree is read once more, and must still be as
// it was.
func (w *History) cover(ctx context.Context, log *translog.Log, at newest) (newest, error) {
	if last, _ := log.Last(); at.position != last.Position { // it has come further, over the store's own
		events, _, err := w.Store.History(ctx, at.position, 1)
		if err != nil {
			return at, err
		}
		if len(events) == 0 || (newest{events[0].Position, events[0].ID}) != at {
			at = newest{last.Position, last.ID} // the store removed it, or was put back: other events may stand there by now
		} else if err := w.stillThere(ctx, log); err != nil {
			return at, err
		}
	}
	for {
		events, done, err := w.Store.History(ctx, at.position, historyPage)
		if err != nil {
			return at, err
		}
		if last, ok := log.Last(); ok && at.position == last.Position {
			if err := w.there(last, events); err != nil {
				return at, err
			}
		}
		var entries []translog.Entry
		for _, e := range events {
			if at.position.Before(e.Position) && !e.OfTheStore() {
				entries = append(entries, translog.NewEntry(e))
			}
		}
		if err := log.Append(entries...); err != nil {
			return at, err
		}
		if len(events) > 0 {
			last := events[len(events)-1]
			at = newest{last.Position, last.ID}
		}
		if done {
			return at, nil
		}
	}
}

// stillThere reads the newest event of the tree once more.
func (w *History) stillThere(ctx context.Context, log *translog.Log) error {
	last, ok := log.Last()
	if !ok {
		return nil
	}
	events, _, err := w.Store.History(ctx, last.Position, 1)
	if err != nil {
		return err
	}
	return w.there(last, events)
}

// there fails where events do not begin with the newest of the tree, unless the store may have forgotten that.
func (w *History) there(last translog.Entry, events []eventstore.Raw) error {
	is := translog.Retained{Prefix: usage.StreamPrefix, Age: commands.UsageAge}.Has(last, w.Now())
	if len(events) > 0 && events[0].Position == last.Position {
		is = translog.NewEntry(events[0]) == last
	}
	if is {
		return nil
	}
	return fmt.Errorf("%w: %d@%s, position %d, is not in the store any more as it was", translog.ErrChanged, last.Revision, last.Stream, last.Position.Commit)
}
