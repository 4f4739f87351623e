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
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/playback"
)

// maxPause is the longest that the player does nothing: then it looks whether the time has come for something.
const maxPause = time.Hour

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
	// HTTP reaches the server. Default: a client with the limits that a player needs. It must not limit the time of a whole request, since a stream has no end.
	HTTP *http.Client
}

// ErrSignedOut says that the server does not accept the device token (any more).
var ErrSignedOut = errors.New("the device token is not accepted; make a new one for the location")

// Run plays until ctx ends, or until the device is signed out. What it was told and did not play yet is played by the next run.
func Run(ctx context.Context, o Options) error {
	server, err := newServer(o.Server, o.DeviceToken, o.HTTP)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return fmt.Errorf("player: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	state, err := openState(ctx, o.StateDir, o.Server, o.DeviceToken, o.Log)
	if err != nil {
		return err
	}
	defer state.close()
	cache, err := openCache(o.StateDir, server, state.audio)
	if err != nil {
		return err
	}
	p := &player{
		Options: o, state: state, server: server, cache: cache,
		told: make(chan event), fetched: make(chan fetched), ended: make(chan ended), jobs: map[string]*job{},
	}
	group.Go(func() error { return p.listen(ctx) })
	group.Go(func() error { return p.sendReports(ctx) })
	group.Go(func() error { return p.play(ctx) })
	err = group.Wait()
	p.beside.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// player is one run. The goroutine of play owns the queue, the jobs and what plays; the others reach it by channels.
type player struct {
	Options
	state   *state
	server  *server
	cache   *cache
	told    chan event
	fetched chan fetched
	ended   chan ended
	beside  sync.WaitGroup // downloads and runs of the backend
	saying  sync.Mutex

	queue    playback.Queue
	playing  *playing
	jobs     map[string]*job
	fetching [playback.Urgent + 1]bool // one download of each priority, so that nothing urgent waits for a long one
	due      *time.Timer
}

// job is what this run knows of a delivery that is open.
type job struct {
	file     string // "" until it was fetched
	begun    bool
	failures int // of the download or the backend, one after another
	retryAt  time.Time
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
	stopped bool // it was told to end and is about to
	started time.Time
	from    time.Duration
}

// The kinds of the stream's events.
const (
	kindDeliver = "deliver"
	kindCancel  = "cancel"
)

// play is the player's own loop.
func (p *player) play(ctx context.Context) error {
	p.due = time.NewTimer(0)
	defer p.due.Stop()
	for {
		p.fetchNext(ctx)
		if err := p.settle(ctx); err != nil {
			return err
		}
		var err error
		select {
		case e := <-p.told:
			err = p.take(e)
		case f := <-p.fetched:
			err = p.arrived(f)
		case e := <-p.ended:
			err = p.over(e)
		case <-p.due.C:
		case <-ctx.Done():
			if err := p.interrupt(); err != nil {
				p.Log.Warn("it is not kept how far the sound came", "error", err)
			}
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// take does what the server said.
func (p *player) take(e event) error {
	switch e.kind {
	case kindDeliver:
		order, err := parseOrder(e.data, p.now())
		if err = errors.Join(e.err, err); err != nil {
			return p.refuse(e.id, order.DeliveryID, err)
		}
		news, err := p.state.accept(e.id, order)
		if news {
			p.say("↓ %s arrives (%s)", order.title(), order.Priority)
		}
		return err
	case kindCancel:
		id := parseDeliveryID(e.data)
		if t, known := p.state.task(id); known {
			p.say("✗ %s is cancelled", t.title())
		}
		if p.playing != nil && p.playing.id == id {
			if err := p.interrupt(); err != nil {
				return err
			}
		}
		p.queue.Remove(id)
		delete(p.jobs, id)
		return p.state.drop(e.id, id)
	default: // of a later version of the server
		if e.id == "" {
			return nil
		}
		return p.state.seen(e.id)
	}
}

// refuse passes over an order that makes no sense, so that it is not in the way of those after it.
func (p *player) refuse(eventID, deliveryID string, why error) error {
	p.Log.Error("an order of the server makes no sense to this player", "event", eventID, "delivery", deliveryID, "error", why)
	if _, known := p.state.task(deliveryID); known || deliveryID == "" {
		return p.state.seen(eventID)
	}
	return p.state.drop(eventID, deliveryID, p.word(deliveryID, "failed", why.Error()))
}

// fetchNext begins the downloads that are due: of each priority the one that arrived first, but for those that failed just now.
func (p *player) fetchNext(ctx context.Context) {
	now := time.Now()
	for priority := range p.fetching {
		if p.fetching[priority] {
			continue
		}
		order, some := p.state.next(playback.Priority(priority), func(o Order) bool {
			j := p.job(o.DeliveryID)
			return j.file == "" && !now.Before(j.retryAt)
		})
		if !some {
			continue
		}
		p.fetching[priority] = true
		p.beside.Go(func() {
			file, err := p.cache.fetch(ctx, order.Audio)
			if r := (refusal{}); errors.As(err, &r) { // perhaps the URL is not valid any more
				if err := p.renew(ctx, order.DeliveryID); err != nil {
					p.Log.Debug("an order is not told anew", "delivery", order.DeliveryID, "error", err)
				}
			}
			select {
			case p.fetched <- fetched{order, file, err}:
			case <-ctx.Done():
			}
		})
	}
}

// arrived takes the end of a download.
func (p *player) arrived(f fetched) error {
	p.fetching[f.order.priority()] = false
	t, known := p.state.task(f.order.DeliveryID)
	if !known {
		return nil // cancelled meanwhile
	}
	if f.err != nil {
		return p.failed(t, "the audio could not be fetched", f.err)
	}
	p.job(t.DeliveryID).file = f.file
	if t.Done.Delivered {
		return nil
	}
	t.Done.Delivered = true
	return p.state.advance(t.DeliveryID, t.Done, p.word(t.DeliveryID, "delivered", ""))
}

// failed lets what failed be tried again after a while, or gives it up if it would have expired by then.
func (p *player) failed(t task, what string, err error) error {
	j := p.job(t.DeliveryID)
	wait := backoff(retryMin, j.failures)
	j.failures++
	j.retryAt = time.Now().Add(wait)
	p.queue.Remove(t.DeliveryID)
	if p.now().Add(wait).Before(t.ExpiresAt) {
		p.Log.Warn(what+"; trying again", "delivery", t.DeliveryID, "in", wait, "error", err)
		return nil
	}
	p.say("✗ %s: %s: %v", t.title(), what, err)
	return p.finish(t.DeliveryID, p.word(t.DeliveryID, "failed", what+": "+err.Error()))
}

// settle queues what is due, drops what expired, and makes what should play now play.
func (p *player) settle(ctx context.Context) error {
	now, sure := p.server.clock.now()
	next := maxPause
	for _, t := range p.state.tasks() {
		id := t.DeliveryID
		j := p.job(id)
		queued := p.queue.Has(id)
		if queued && j.begun {
			continue // it is let finish
		}
		if !now.Before(t.ExpiresAt) {
			if !sure {
				continue // perhaps it is only the clock
			}
			if err := p.expired(t); err != nil {
				return err
			}
			continue
		}
		next = min(next, t.ExpiresAt.Sub(now))
		if wait := time.Until(j.retryAt); wait > 0 {
			next = min(next, wait)
			continue
		}
		switch {
		case j.file == "" || queued:
		case t.PlayAt != nil && now.Before(*t.PlayAt):
			next = min(next, t.PlayAt.Sub(now))
		default:
			p.queue.Add(playback.Item{ID: id, Priority: t.priority()})
		}
	}
	p.due.Reset(next)
	item, some := p.queue.Current()
	switch {
	case p.playing == nil && some:
		return p.begin(ctx, item.ID)
	case p.playing != nil && (!some || item.ID != p.playing.id):
		return p.interrupt() // the next begins when this one has ended
	}
	return nil
}

// expired ends a delivery whose time is over. The server sees that by itself, but for what was begun: that is the player's.
func (p *player) expired(t task) error {
	p.queue.Remove(t.DeliveryID)
	if t.Done.Playing {
		p.say("✗ %s expired before it had played to its end", t.title())
		return p.finish(t.DeliveryID, p.word(t.DeliveryID, "failed", "it expired before it had played to its end"))
	}
	p.say("✗ %s expired before it could play", t.title())
	return p.finish(t.DeliveryID)
}

// begin starts the backend on a delivery, where it was left.
func (p *player) begin(ctx context.Context, id string) error {
	t, known := p.state.task(id)
	if !known {
		return fmt.Errorf("player: %s is queued and not known", id)
	}
	j := p.job(id)
	if _, err := os.Stat(j.file); errors.Is(err, os.ErrNotExist) { // something else needed the room; it is fetched again
		p.queue.Remove(id)
		j.file = ""
		p.due.Reset(0)
		return nil
	}
	j.begun = true
	if !t.Done.Playing {
		t.Done.Playing = true
		if err := p.state.advance(id, t.Done, p.word(id, "playing", "")); err != nil {
			return err
		}
	}
	switch {
	case t.Done.Offset > 0:
		p.say("▶ %s resumes at %s", t.title(), t.Done.Offset.Round(100*time.Millisecond))
	case t.Repeat > 1:
		p.say("▶ playing %s (%s, volume %d %%, %d of %d)", t.title(), t.Priority, t.Volume, t.Done.Rounds+1, t.Repeat)
	default:
		p.say("▶ playing %s (%s, volume %d %%)", t.title(), t.Priority, t.Volume)
	}
	playCtx, stop := context.WithCancel(ctx)
	run := &playing{id: id, stop: stop, started: time.Now(), from: t.Done.Offset}
	p.playing = run
	sound := Sound{File: j.file, Format: t.Audio.Format, Duration: t.length(), Volume: t.Volume, From: t.Done.Offset}
	p.beside.Go(func() {
		err := p.Backend.Play(playCtx, sound)
		stop()
		select {
		case p.ended <- ended{run, err}:
		case <-ctx.Done():
		}
	})
	return nil
}

// interrupt stops what plays and remembers where.
func (p *player) interrupt() error {
	run := p.playing
	if run == nil || run.stopped {
		return nil
	}
	run.stopped = true
	run.stop()
	t, known := p.state.task(run.id)
	if !known {
		return nil
	}
	t.Done.Offset = min(run.from+time.Since(run.started), t.length())
	return p.state.advance(run.id, t.Done)
}

// over takes the end of a run: the next round, the end of the delivery, or another attempt.
func (p *player) over(e ended) error {
	p.playing = nil
	id := e.run.id
	t, known := p.state.task(id)
	switch {
	case !known: // cancelled
		return nil
	case e.err != nil && e.run.stopped: // it resumes
		return nil
	case e.err != nil:
		p.job(id).file = "" // perhaps it is broken: its hash is checked once more
		t.Done.Offset = 0
		return errors.Join(p.state.advance(id, t.Done), p.failed(t, "it could not be played", e.err))
	}
	t.Done.Offset = 0
	if t.Done.Rounds++; t.Done.Rounds < t.Repeat {
		p.job(id).failures = 0
		return p.state.advance(id, t.Done)
	}
	p.queue.Remove(id)
	p.say("✓ played %s", t.title())
	return p.finish(id, p.word(id, "played", ""))
}

// finish forgets a delivery, with the last reports on it.
func (p *player) finish(id string, last ...report) error {
	delete(p.jobs, id)
	return p.state.drop("", id, last...)
}

func (p *player) job(id string) *job {
	if p.jobs[id] == nil {
		p.jobs[id] = &job{}
	}
	return p.jobs[id]
}

// word is a report of this moment.
func (p *player) word(id, status, reason string) report {
	return report{DeliveryID: id, Status: status, At: p.now().UTC(), Reason: clip(reason, maxReasonBytes)}
}

func (p *player) now() time.Time {
	now, _ := p.server.clock.now()
	return now
}

func (p *player) say(format string, args ...any) {
	p.saying.Lock()
	defer p.saying.Unlock()
	fmt.Fprintf(p.Output, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
