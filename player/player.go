// Package player is the reference player: it keeps a location's event stream open, fetches what it is told to play, checks the hash, obeys priority,
// repeat, volume and time, and reports what became of it. It survives restarts and networks that come and go: what it was told is on its disk before it
// acts, and each delivery is played once.
package player

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/playback"
)

// maxPlayAttempts is how often a delivery is begun again after its player program failed.
const maxPlayAttempts = 3

// Options say what a player plays, where and how.
type Options struct {
	// Server is the Partner API's address, `https://host:port`.
	Server string
	// DeviceToken is the `dev_…` token of the location's device.
	DeviceToken string
	// StateDir keeps what the player was told, what it still has to report, and the audio. It is made if it is not there.
	StateDir string
	// Backend makes the sound.
	Backend Backend
	// Output gets a line for people whenever something happens.
	Output io.Writer
	Log    *slog.Logger
}

// ErrSignedOut says that the server does not accept the device token (any more).
var ErrSignedOut = errors.New("the device token is not accepted; make a new one for the location")

// Run plays until ctx ends, or until the device is signed out. What it was told and did not play yet is played by the next run.
func Run(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("player: %w", err)
	}
	state, err := openState(o.StateDir)
	if err != nil {
		return err
	}
	defer state.close()
	server, err := newServer(o.Server, o.DeviceToken)
	if err != nil {
		return err
	}
	cache, err := openCache(o.StateDir, server)
	if err != nil {
		return err
	}
	p := &player{Options: o, state: state, server: server, cache: cache, told: make(chan told), fetched: make(chan fetched), ended: make(chan ended)}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.listen(ctx) })
	group.Go(func() error { return p.sendReports(ctx) })
	group.Go(func() error { return p.play(ctx) })
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// player is one run. The goroutine of play owns the queue and what plays; the others reach it by channels.
type player struct {
	Options
	state   *state
	server  *server
	cache   *cache
	told    chan told
	fetched chan fetched
	ended   chan ended

	queue    playback.Queue
	playing  *playing
	files    map[string]string // of the deliveries that were fetched
	progress map[string]*progress
	fetching bool
	failures map[string]int
	due      *time.Timer
}

// told is an event of the stream. It is taken once what it says is on the disk.
type told struct {
	id    string
	kind  string
	order Order
}

// fetched is the end of a download.
type fetched struct {
	order Order
	file  string
	err   error
}

// ended is the end of a run of the backend.
type ended struct {
	run *playing
	err error
}

// playing is a run of the backend.
type playing struct {
	id      string
	stop    context.CancelFunc
	started time.Time
	from    time.Duration
}

// progress is how far a delivery was played: after an interruption it goes on from there.
type progress struct {
	rounds   int
	offset   time.Duration
	reported bool
	attempts int
}

// play is the player's own loop.
func (p *player) play(ctx context.Context) error {
	p.files, p.progress, p.failures = map[string]string{}, map[string]*progress{}, map[string]int{}
	p.due = time.NewTimer(0)
	defer p.due.Stop()
	fetchAgain := time.NewTicker(fetchRetry)
	defer fetchAgain.Stop()
	for {
		p.fetchNext(ctx)
		if err := p.settle(ctx); err != nil {
			return err
		}
		select {
		case t := <-p.told:
			if err := p.take(t); err != nil {
				return err
			}
		case f := <-p.fetched:
			if err := p.arrived(f); err != nil {
				return err
			}
		case e := <-p.ended:
			if err := p.over(e); err != nil {
				return err
			}
		case <-p.due.C:
		case <-fetchAgain.C:
		case <-ctx.Done():
			p.interrupt()
			return ctx.Err()
		}
	}
}

// take does what the server said.
func (p *player) take(t told) error {
	switch t.kind {
	case "deliver":
		news, err := p.state.accept(t.id, t.order)
		if err != nil {
			return err
		}
		if news {
			p.say("↓ %s arrives (%s)", t.order.title(), t.order.Priority)
		}
	case "cancel":
		if p.playing != nil && p.playing.id == t.order.DeliveryID {
			p.interrupt()
		}
		p.queue.Remove(t.order.DeliveryID)
		order, known := p.state.order(t.order.DeliveryID)
		if known {
			p.say("✗ %s is cancelled", order.title())
		}
		return p.state.drop(t.id, t.order.DeliveryID)
	}
	return nil
}

// fetchNext begins the next download: the most pressing one first, in the order of arrival.
func (p *player) fetchNext(ctx context.Context) {
	if p.fetching {
		return
	}
	order, ok := p.state.next(func(o Order) bool { return p.files[o.DeliveryID] == "" && p.failures[o.DeliveryID] == 0 })
	if !ok {
		if order, ok = p.state.next(func(o Order) bool { return p.files[o.DeliveryID] == "" }); !ok {
			return
		}
	}
	p.fetching = true
	go func() {
		file, err := p.cache.fetch(ctx, order.Audio)
		select {
		case p.fetched <- fetched{order, file, err}:
		case <-ctx.Done():
		}
	}()
}

// arrived puts what was fetched into the queue, or lets it be tried again until it expires.
func (p *player) arrived(f fetched) error {
	p.fetching = false
	id := f.order.DeliveryID
	if _, known := p.state.order(id); !known {
		return nil // cancelled meanwhile
	}
	if f.err == nil {
		p.files[id] = f.file
		delete(p.failures, id)
		return p.state.report(report{DeliveryID: id, Status: "delivered", At: time.Now().UTC()})
	}
	p.failures[id]++
	p.Log.Warn("audio cannot be fetched; trying again", "delivery", id, "error", f.err)
	if time.Now().Before(f.order.ExpiresAt) {
		return nil
	}
	p.say("✗ %s could not be fetched", f.order.title())
	return p.finish(id, report{DeliveryID: id, Status: "failed", At: time.Now().UTC(), Reason: "the audio could not be fetched: " + f.err.Error()})
}

// settle queues what is due, drops what expired, and makes what should play now play.
func (p *player) settle(ctx context.Context) error {
	now := time.Now()
	next := time.Hour
	for _, order := range p.state.orders() {
		id := order.DeliveryID
		switch {
		case p.queue.Has(id) && p.progress[id] != nil:
		case now.After(order.ExpiresAt) && !order.ExpiresAt.IsZero():
			p.queue.Remove(id)
			p.say("✗ %s expired before it could play", order.title())
			if err := p.finish(id); err != nil {
				return err
			}
		case p.files[id] == "" || p.queue.Has(id):
		case order.PlayAt != nil && now.Before(*order.PlayAt):
			next = min(next, order.PlayAt.Sub(now))
		default:
			priority, _ := playback.ParsePriority(order.Priority)
			p.queue.Add(playback.Item{ID: id, Priority: priority})
		}
	}
	p.due.Reset(next)
	item, any := p.queue.Current()
	if p.playing != nil {
		if any && item.ID == p.playing.id {
			return nil
		}
		p.interrupt()
	}
	if !any {
		return nil
	}
	return p.begin(ctx, item.ID)
}

// begin starts the backend on a delivery, where it was left.
func (p *player) begin(ctx context.Context, id string) error {
	order, known := p.state.order(id)
	if !known {
		p.queue.Remove(id)
		return nil
	}
	if p.progress[id] == nil {
		p.progress[id] = &progress{}
	}
	done := p.progress[id]
	if !done.reported {
		done.reported = true
		if err := p.state.report(report{DeliveryID: id, Status: "playing", At: time.Now().UTC()}); err != nil {
			return err
		}
	}
	switch {
	case done.offset > 0:
		p.say("▶ %s resumes at %s", order.title(), done.offset.Round(100*time.Millisecond))
	case order.Repeat > 1:
		p.say("▶ playing %s (%s, volume %d %%, %d of %d)", order.title(), order.Priority, order.Volume, done.rounds+1, order.Repeat)
	default:
		p.say("▶ playing %s (%s, volume %d %%)", order.title(), order.Priority, order.Volume)
	}
	playCtx, stop := context.WithCancel(ctx)
	run := &playing{id: id, stop: stop, started: time.Now(), from: done.offset}
	p.playing = run
	sound := Sound{File: p.files[id], Format: order.Audio.Format, Duration: order.length(), Volume: order.Volume, From: done.offset}
	go func() {
		err := p.Backend.Play(playCtx, sound)
		stop()
		select {
		case p.ended <- ended{run, err}:
		case <-ctx.Done():
		}
	}()
	return nil
}

// interrupt stops what plays and remembers where.
func (p *player) interrupt() {
	if p.playing == nil {
		return
	}
	p.playing.stop()
	if done := p.progress[p.playing.id]; done != nil {
		done.offset = p.playing.from + time.Since(p.playing.started)
	}
	p.playing = nil
}

// over takes the end of a run: the next round, the end of the delivery, or another attempt.
func (p *player) over(e ended) error {
	if p.playing != e.run {
		return nil // it was interrupted
	}
	id := e.run.id
	p.playing = nil
	order, known := p.state.order(id)
	done := p.progress[id]
	if !known || done == nil {
		p.queue.Remove(id)
		return nil
	}
	done.offset = 0
	if e.err != nil {
		p.Log.Warn("playing failed", "delivery", id, "error", e.err)
		if done.attempts++; done.attempts < maxPlayAttempts {
			return nil // settle begins it again
		}
		p.queue.Finish()
		p.say("✗ %s could not be played: %v", order.title(), e.err)
		return p.finish(id, report{DeliveryID: id, Status: "failed", At: time.Now().UTC(), Reason: e.err.Error()})
	}
	if done.rounds++; done.rounds < order.Repeat {
		return nil
	}
	p.queue.Finish()
	p.say("✓ played %s", order.title())
	return p.finish(id, report{DeliveryID: id, Status: "played", At: time.Now().UTC()})
}

// finish forgets a delivery, with the last reports on it.
func (p *player) finish(id string, last ...report) error {
	delete(p.files, id)
	delete(p.progress, id)
	delete(p.failures, id)
	return p.state.finish(id, last...)
}

func (p *player) say(format string, args ...any) {
	fmt.Fprintf(p.Output, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
