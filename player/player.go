// Package player is the reference player: it keeps a location's event stream open, fetches what it is told to play, checks the hash, obeys priority,
// repeat, volume and time, and reports what became of it. It survives restarts and networks that come and go: what it was told is on its disk before it
// acts, and each delivery is played once.
package player

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/playback"
)

const (
	// maxPause is the longest that the player does nothing: then it looks whether the time has come for something.
	maxPause = time.Hour
	// noteEvery is how often it is noted how far a sound has come: a player that is killed goes on from there.
	noteEvery = 5 * time.Second
	// sayEvery is how often it is said that something still fails.
	sayEvery = time.Hour
	// recheckAfter is how long audio that was checked is believed to be what it was, and recheckAhead how long before its time it is checked again, so that
	// there is time to fetch it once more.
	recheckAfter = time.Hour
	recheckAhead = 30 * time.Second
)

// Options say what a player plays, where and how.
type Options struct {
	// Server is the Partner API's address, `https://host:port`.
	Server string
	// DeviceToken is the `dev_…` token of the location's device.
	DeviceToken string
	// StateDir keeps what the player was told, what it still has to report, and the audio. It is made if it is not there.
	StateDir string
	// CacheBytes bounds the audio in StateDir. Default: DefaultCacheBytes.
	CacheBytes int64
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
	state, err := openState(o.StateDir, o.Server, o.DeviceToken, o.Log)
	if err != nil {
		return err
	}
	defer state.close()
	needed := func() []Audio {
		now, _ := server.clock.now()
		return state.needed(now)
	}
	cache, err := openCache(o.StateDir, server, cmp.Or(o.CacheBytes, DefaultCacheBytes), needed)
	if err != nil {
		return err
	}
	p := &player{
		Options: o, state: state, server: server, cache: cache,
		told: make(chan event), fetched: make(chan fetched), checked: make(chan checked), ended: make(chan ended), jobs: map[string]*job{},
	}
	group.Go(func() error { return p.listen(ctx) })
	group.Go(func() error { return p.sendReports(ctx) })
	group.Go(func() error { return p.keepState(ctx) })
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
	checked chan checked
	ended   chan ended
	beside  sync.WaitGroup // downloads, checks and runs of the backend
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
	checked  time.Time
	begun    bool
	failures int // of the download or the backend, one after another
	retryAt  time.Time
	said     time.Time // when it was said last that it fails
}

// fetched is the end of a download.
type fetched struct {
	order Order
	file  string
	err   error
}

// checked is the end of another check of what was fetched.
type checked struct {
	order Order
	good  bool
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
	noted   time.Time // when it was noted how far it has come
}

// at is how far the sound has come.
func (r *playing) at(length time.Duration) time.Duration {
	return min(r.from+time.Since(r.started), length)
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
		p.settle(ctx)
		select {
		case e := <-p.told:
			p.take(e)
		case f := <-p.fetched:
			p.arrived(f)
		case c := <-p.checked:
			p.believe(c)
		case e := <-p.ended:
			p.over(e)
		case <-p.due.C:
		case <-ctx.Done():
			p.interrupt()
			return ctx.Err()
		}
	}
}

// keepState writes the state when the disk that took nothing takes something again. Its own audio may be what fills it.
func (p *player) keepState(ctx context.Context) error {
	for {
		select {
		case <-p.state.behind:
		case <-ctx.Done():
			return ctx.Err()
		}
		for failures := 0; ; failures++ {
			err := p.state.catchUp()
			if err == nil {
				p.Log.Warn("the player's state is written again", "dir", p.StateDir)
				break
			}
			if errors.Is(err, syscall.ENOSPC) {
				err = errors.Join(err, p.cache.shrink())
			}
			p.Log.Debug("the player's state cannot be written", "error", err)
			if pause(ctx, backoff(retryMin, failures)); ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
}

// take does what the server said.
func (p *player) take(e event) {
	switch e.kind {
	case kindDeliver:
		order, err := parseOrder(e.data, p.now())
		if err = errors.Join(e.err, err); err != nil {
			p.refuse(e.id, order.DeliveryID, err)
			return
		}
		if p.state.accept(e.id, order) {
			p.say("↓ %s arrives (%s)", order.title(), order.Priority)
		}
	case kindCancel:
		id := parseDeliveryID(e.data)
		if t, known := p.state.task(id); known {
			p.say("✗ %s is cancelled", t.title())
		}
		if p.playing != nil && p.playing.id == id {
			p.interrupt()
		}
		p.queue.Remove(id)
		delete(p.jobs, id)
		p.state.drop(e.id, id)
	default: // of a later version of the server
		if e.id != "" {
			p.state.seen(e.id)
		}
	}
}

// refuse passes over an order that makes no sense, so that it is not in the way of those after it.
func (p *player) refuse(eventID, deliveryID string, why error) {
	p.Log.Error("an order of the server makes no sense to this player", "event", eventID, "delivery", deliveryID, "error", why)
	if _, known := p.state.task(deliveryID); known || deliveryID == "" {
		p.state.seen(eventID)
		return
	}
	p.state.drop(eventID, deliveryID, p.word(deliveryID, "failed", why.Error()))
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
func (p *player) arrived(f fetched) {
	p.fetching[f.order.priority()] = false
	t, known := p.state.task(f.order.DeliveryID)
	if !known {
		return // cancelled meanwhile
	}
	if f.err != nil {
		p.failed(t, "the audio could not be fetched", f.err)
		return
	}
	j := p.job(t.DeliveryID)
	j.file, j.checked = f.file, time.Now()
	if !t.Done.Delivered {
		t.Done.Delivered = true
		p.state.advance(t.DeliveryID, t.Done, p.word(t.DeliveryID, "delivered", ""))
	}
}

// check looks whether audio that has waited for long is still what it was.
func (p *player) check(ctx context.Context, o Order) {
	p.job(o.DeliveryID).checked = time.Now()
	p.beside.Go(func() {
		_, good := p.cache.has(o.Audio)
		select {
		case p.checked <- checked{o, good}:
		case <-ctx.Done():
		}
	})
}

// believe takes the end of a check.
func (p *player) believe(c checked) {
	id := c.order.DeliveryID
	if _, known := p.state.task(id); !known || c.good || p.job(id).begun {
		return
	}
	p.Log.Warn("audio on the disk is not what it was; fetching it again", "delivery", id, "sha256", c.order.Audio.SHA256)
	p.job(id).file = ""
	p.queue.Remove(id)
}

// failed lets what failed be tried again after a while, or gives it up if it would have expired by then.
func (p *player) failed(t task, what string, err error) {
	j := p.job(t.DeliveryID)
	wait := backoff(retryMin, j.failures)
	j.failures++
	j.retryAt = time.Now().Add(wait)
	p.queue.Remove(t.DeliveryID)
	if p.now().Add(wait).Before(t.ExpiresAt) {
		level := slog.LevelDebug
		if j.said.IsZero() || time.Since(j.said) >= sayEvery {
			level, j.said = slog.LevelWarn, time.Now()
		}
		p.Log.Log(context.Background(), level, what+"; trying again", "delivery", t.DeliveryID, "in", wait, "error", err)
		return
	}
	p.say("✗ %s: %s: %v", t.title(), what, err)
	p.finish(t.DeliveryID, p.word(t.DeliveryID, "failed", what+": "+err.Error()))
}

// settle queues what is due, drops what expired, and makes what should play now play.
func (p *player) settle(ctx context.Context) {
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
			if sure { // or else perhaps it is only the clock
				p.expired(t)
			}
			continue
		}
		next = min(next, t.ExpiresAt.Sub(now))
		if wait := time.Until(j.retryAt); wait > 0 {
			next = min(next, wait)
			continue
		}
		wait := time.Duration(0)
		if t.PlayAt != nil {
			wait = max(t.PlayAt.Sub(now), 0)
		}
		if j.file != "" && time.Since(j.checked) >= recheckAfter {
			if wait <= recheckAhead {
				p.check(ctx, t.Order)
			} else {
				next = min(next, wait-recheckAhead)
			}
		}
		switch {
		case j.file == "" || queued:
		case wait > 0:
			next = min(next, wait)
		default:
			p.queue.Add(playback.Item{ID: id, Priority: t.priority()})
		}
	}
	item, some := p.queue.Current()
	switch {
	case p.playing == nil && some:
		p.begin(ctx, item.ID)
	case p.playing != nil && (!some || item.ID != p.playing.id):
		p.interrupt() // the next begins when this one has ended
	}
	switch {
	case p.playing == nil && some:
		next = 0 // what should play is not there: it is fetched again
	case p.playing != nil && !p.playing.stopped:
		p.note()
		next = min(next, noteEvery)
	}
	p.due.Reset(next)
}

// note notes how far the sound has come.
func (p *player) note() {
	run := p.playing
	if time.Since(run.noted) < noteEvery {
		return
	}
	run.noted = time.Now()
	if t, known := p.state.task(run.id); known {
		t.Done.Offset = run.at(t.length())
		p.state.note(run.id, t.Done)
	}
}

// expired ends a delivery whose time is over. The server sees that by itself, but for what was begun: that is the player's.
func (p *player) expired(t task) {
	p.queue.Remove(t.DeliveryID)
	if t.Done.Playing {
		p.say("✗ %s expired before it had played to its end", t.title())
		p.finish(t.DeliveryID, p.word(t.DeliveryID, "failed", "it expired before it had played to its end"))
		return
	}
	p.say("✗ %s expired before it could play", t.title())
	p.finish(t.DeliveryID)
}

// begin starts the backend on a delivery, where it was left.
func (p *player) begin(ctx context.Context, id string) {
	t, known := p.state.task(id)
	j := p.job(id)
	if _, err := os.Stat(j.file); err != nil || !known { // something took it; it is fetched again
		p.queue.Remove(id)
		j.file = ""
		return
	}
	j.begun = true
	if !t.Done.Playing {
		t.Done.Playing = true
		p.state.advance(id, t.Done, p.word(id, "playing", ""))
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
	now := time.Now()
	run := &playing{id: id, stop: stop, started: now, from: t.Done.Offset, noted: now}
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
}

// interrupt stops what plays and remembers where.
func (p *player) interrupt() {
	run := p.playing
	if run == nil || run.stopped {
		return
	}
	run.stopped = true
	run.stop()
	if t, known := p.state.task(run.id); known {
		t.Done.Offset = run.at(t.length())
		p.state.advance(run.id, t.Done)
	}
}

// over takes the end of a run: the next round, the end of the delivery, or another attempt.
func (p *player) over(e ended) {
	p.playing = nil
	id := e.run.id
	t, known := p.state.task(id)
	switch {
	case !known: // cancelled
		return
	case e.err != nil && e.run.stopped: // it resumes
		return
	case e.err != nil:
		p.job(id).file = "" // perhaps it is broken: its hash is checked once more
		t.Done.Offset = 0
		p.state.advance(id, t.Done)
		p.failed(t, "it could not be played", e.err)
		return
	}
	t.Done.Offset = 0
	if t.Done.Rounds++; t.Done.Rounds < t.Repeat {
		p.job(id).failures = 0
		p.state.advance(id, t.Done)
		return
	}
	p.queue.Remove(id)
	p.finish(id, p.word(id, "played", ""))
	p.say("✓ played %s", t.title())
}

// finish forgets a delivery, with the last reports on it.
func (p *player) finish(id string, last ...report) {
	delete(p.jobs, id)
	p.state.drop("", id, last...)
}

func (p *player) job(id string) *job {
	if p.jobs[id] == nil {
		p.jobs[id] = &job{}
	}
	return p.jobs[id]
}

// word is a report of this moment.
func (p *player) word(id, status, reason string) report {
	of, _ := p.state.task(id) // what makes no sense is no task
	return report{DeliveryID: id, Status: status, At: p.now().UTC(), Reason: clip(reason, maxReasonBytes), TraceParent: of.TraceParent}
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
