package simulation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/playback"
)

// temper is what a player is like.
type temper int

const (
	steady   temper = iota // stays connected as long as it can
	restless               // comes, goes, and starts anew
	failing                // often cannot play
	leaving                // goes amid the run and never comes back
	absent                 // never comes
)

func (t temper) String() string {
	return [...]string{"steady", "restless", "failing", "leaving", "absent"}[t]
}

const (
	// Players keep their hands still for so long at most, with something in hand and without.
	busyPause = 250 * time.Millisecond
	idlePause = 3 * time.Second
	// How long a restless player stays and keeps away, on average.
	meanStay  = 3 * time.Second
	meanAway  = 700 * time.Millisecond
	meanDelay = 500 * time.Millisecond
	// clockTolerance is how far a player's clock may be from the server's and still be used, as the reference player has it.
	clockTolerance = 5 * time.Second
	// reportTimeout is long, since players share a few connections.
	reportTimeout = time.Minute
)

// order is what a player was told to play, and how far it has come with it.
type order struct {
	DeliveryID string `json:"deliveryId"`
	SendID     string `json:"sendId"`
	Audio      struct {
		URL      string  `json:"url"`
		SHA256   string  `json:"sha256"`
		Duration float64 `json:"duration"`
	} `json:"audio"`
	Priority  string     `json:"priority"`
	Repeat    int        `json:"repeat"`
	PlayAt    *time.Time `json:"playAt"`
	ExpiresAt time.Time  `json:"expiresAt"`

	priority playback.Priority
	left     time.Duration // to be played
	fetched  bool
	fails    bool
	begun    bool
}

// report is a player's word on a delivery.
type report struct {
	DeliveryID string    `json:"-"`
	Status     string    `json:"status"`
	At         time.Time `json:"at"`
	Reason     string    `json:"reason,omitempty"`
}

// disk is what a player has after a restart.
type disk struct {
	lastEventID string
	orders      []*order // in the order of arrival
	finished    map[string]bool
	reports     []report // without an answer yet, in order
}

// deed is something that a player did or that was done to it.
type deed string

const (
	connected deed = "connected"
	broken    deed = "lost its connection"
	restarted deed = "restarted"
	signedOut deed = "was signed out"
	left      deed = "left for good"
	toldOrder deed = "was told to play"
	toldAgain deed = "was told to play again"
	toldOff   deed = "was told not to play"
	begun     deed = "began to play"
	paused    deed = "paused"
	resumed   deed = "went on playing"
	ended     deed = "played to the end"
	failed    deed = "failed"
	expired   deed = "let expire"
	answered  deed = "had an answer to its report"
	unknown   deed = "reported what the server does not know"
	gone      deed = "found the audio gone"
)

// entry is a line of a player's log.
type entry struct {
	at         time.Time // by the simulated time
	believed   time.Time // by the player's
	deed       deed
	deliveryID string
	seq        int64           // of what it was told
	report     delivery.Status // that was answered
	answer     delivery.Status // with this status of the delivery
}

func (e entry) String() string {
	text := fmt.Sprintf("%s (its clock: %s) %s", e.at.UTC().Format("15:04:05.000"), e.believed.UTC().Format("15:04:05.000"), e.deed)
	if e.seq > 0 {
		text += fmt.Sprintf(" (event %d)", e.seq)
	}
	if e.report != "" {
		text += fmt.Sprintf(": %s → %s", e.report, e.answer)
	}
	return text
}

// player is a simulated device. One goroutine does everything that it does.
type player struct {
	run        *run
	name       string
	partner    *partner
	externalID string
	deviceID   string
	token      string
	temper     temper
	random     *rand.Rand
	leavesIn   time.Duration
	log        []entry
	// out says that it will not play any more: it was signed out or left. Busy says that it has something to play or to report.
	out, busy atomic.Bool

	disk disk

	// What is gone after a restart:
	queue   playback.Queue
	playing *playing
	begun   map[string]bool // in this life
	told    time.Time       // the server's time at the last contact
	contact time.Time       // the same moment by the player's own clock; zero before the first contact

	skew     time.Duration
	stream   *stream
	comesAt  time.Time // when it connects again
	goesAt   time.Time // when it closes its stream; zero is never
	speaksAt time.Time // when it reports again
	failures int
	said     []report
}

// playing is what a player plays.
type playing struct {
	order *order
	since time.Time
}

// live is the player's life.
func (p *player) live(ctx context.Context) {
	p.disk.finished, p.begun = map[string]bool{}, map[string]bool{}
	leaves := time.Now().Add(p.leavesIn)
	p.comesAt = time.Now().Add(time.Duration(p.random.Int64N(int64(2 * time.Second))))
	defer func() {
		if p.stream != nil {
			p.stream.close()
		}
	}()
	for ctx.Err() == nil && !p.out.Load() {
		if p.temper == leaving && time.Now().After(leaves) {
			p.note(left, "")
			p.out.Store(true)
			return
		}
		p.settle()
		p.speak(ctx)
		p.busy.Store(len(p.disk.orders)+len(p.disk.reports) > 0)
		p.listen(ctx)
	}
}

func (p *player) note(what deed, deliveryID string) *entry {
	believed, _ := p.now()
	p.log = append(p.log, entry{at: p.run.clock.now(), believed: believed, deed: what, deliveryID: deliveryID})
	return &p.log[len(p.log)-1]
}

// chance is true once in n times.
func (p *player) chance(n int) bool { return p.random.IntN(n) == 0 }

// about is a random time around a mean.
func (p *player) about(mean time.Duration) time.Duration {
	return time.Duration(p.random.ExpFloat64() * float64(mean))
}

// machine is the player's own clock.
func (p *player) machine() time.Time { return p.run.clock.now().Add(p.skew) }

// heard takes the time from an answer of the server.
func (p *player) heard(h http.Header) {
	now := p.machine()
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil || at.Sub(now).Abs() <= clockTolerance {
		at = now
	}
	p.told, p.contact = at, now
}

// now is the server's time as far as the player knows it; sure says that it was told by the server.
func (p *player) now() (now time.Time, sure bool) {
	if p.contact.IsZero() {
		return p.machine(), false
	}
	return p.told.Add(p.machine().Sub(p.contact)), true
}

// settle ends what is over, drops what expired, queues what is due, and plays what should play now.
func (p *player) settle() {
	if p.playing != nil && time.Since(p.playing.since) >= p.playing.order.left {
		o := p.playing.order
		p.playing = nil
		p.note(ended, o.DeliveryID)
		p.finish(o.DeliveryID, delivery.StatusPlayed, "")
	}
	now, sure := p.now()
	for _, o := range slices.Clone(p.disk.orders) {
		id := o.DeliveryID
		queued := p.queue.Has(id)
		switch {
		case queued && p.begun[id]: // it is let finish
		case !now.Before(o.ExpiresAt):
			switch {
			case !sure: // perhaps it is only the clock
			case o.begun:
				p.note(expired, id)
				p.finish(id, delivery.StatusFailed, "it expired before it had played to its end")
			default:
				p.note(expired, id)
				p.finish(id, "", "")
			}
		case queued || !o.fetched || o.PlayAt != nil && now.Before(*o.PlayAt):
		case o.fails:
			p.note(failed, id)
			p.finish(id, delivery.StatusFailed, "the loudspeaker is broken")
		default:
			p.queue.Add(playback.Item{ID: id, Priority: o.priority})
		}
	}
	item, some := p.queue.Current()
	if p.playing != nil && (!some || item.ID != p.playing.order.DeliveryID) {
		p.pause()
	}
	if p.playing == nil && some {
		p.begin(p.find(item.ID))
	}
}

func (p *player) pause() {
	o := p.playing.order
	o.left -= min(time.Since(p.playing.since), o.left)
	p.playing = nil
	p.note(paused, o.DeliveryID)
}

func (p *player) begin(o *order) {
	p.begun[o.DeliveryID] = true
	if o.begun {
		p.note(resumed, o.DeliveryID)
	} else {
		o.begun = true
		p.note(begun, o.DeliveryID)
		p.report(o.DeliveryID, delivery.StatusPlaying, "")
	}
	p.playing = &playing{o, time.Now()}
}

func (p *player) find(id string) *order {
	for _, o := range p.disk.orders {
		if o.DeliveryID == id {
			return o
		}
	}
	return nil
}

// finish is done with a delivery, with a last report unless the status is empty.
func (p *player) finish(id string, status delivery.Status, reason string) {
	if p.playing != nil && p.playing.order.DeliveryID == id {
		p.pause()
	}
	p.queue.Remove(id)
	p.disk.orders = slices.DeleteFunc(p.disk.orders, func(o *order) bool { return o.DeliveryID == id })
	p.disk.finished[id] = true
	if status != "" {
		p.report(id, status, reason)
	}
}

func (p *player) report(id string, status delivery.Status, reason string) {
	now, _ := p.now()
	p.disk.reports = append(p.disk.reports, report{id, string(status), now.UTC(), reason})
	if p.chance(12) {
		p.speaksAt = time.Now().Add(p.about(meanDelay))
	}
}

// speak sends the next report if it is time, and fetches audio now and then.
func (p *player) speak(ctx context.Context) {
	for _, o := range p.disk.orders {
		if !o.fetched {
			p.fetch(ctx, o)
			if o.fetched {
				p.report(o.DeliveryID, delivery.StatusDelivered, "")
			}
			break
		}
	}
	if len(p.disk.reports) == 0 || time.Now().Before(p.speaksAt) {
		return
	}
	r := p.disk.reports[0]
	askCtx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	if p.chance(25) { // the network breaks, perhaps after the server has it
		time.AfterFunc(time.Duration(p.random.Int64N(int64(20*time.Millisecond))), cancel)
	}
	status, err := p.post(askCtx, r)
	var refused refusedError
	switch {
	case err == nil:
		e := p.note(answered, r.DeliveryID)
		e.report, e.answer = delivery.Status(r.Status), status
		p.said = append(p.said, r)
	case errors.As(err, &refused) && refused.status == http.StatusUnauthorized:
		p.signOut()
		return
	case errors.As(err, &refused) && refused.status < http.StatusInternalServerError:
		p.note(unknown, r.DeliveryID)
	default:
		p.failures++
		p.speaksAt = time.Now().Add(p.about(min(20*time.Millisecond<<min(p.failures, 6), time.Second)))
		return
	}
	p.failures = 0
	if p.chance(20) {
		return // it says that once more
	}
	p.disk.reports = p.disk.reports[1:]
	if p.chance(30) && len(p.said) > 0 { // something from long ago comes once more
		p.disk.reports = append(p.disk.reports, p.said[p.random.IntN(len(p.said))])
	}
}

func (p *player) signOut() {
	p.note(signedOut, "")
	p.out.Store(true)
}

// post sends a report and gives the delivery's status by the answer.
func (p *player) post(ctx context.Context, r report) (delivery.Status, error) {
	raw, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.run.address(p.random)+"/api/player/v1/deliveries/"+r.DeliveryID, bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+p.token)
	request.Header.Set("Content-Type", "application/json")
	response, err := p.run.radio.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	raw, err = io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", refusedError{response.StatusCode}
	}
	var answer struct {
		Data struct{ Status delivery.Status }
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", err
	}
	p.heard(response.Header)
	return answer.Data.Status, nil
}

// fetch gets the bytes of one in a few orders; the others are taken to be known already.
func (p *player) fetch(ctx context.Context, o *order) {
	if !p.chance(10) {
		o.fetched = true
		return
	}
	at, err := url.Parse(o.Audio.URL)
	if err != nil {
		p.run.fail("%s: the URL of audio is %q", p.name, o.Audio.URL)
		return
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.run.address(p.random)+at.RequestURI(), nil)
	if err != nil {
		return
	}
	response, err := p.run.radio.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	switch sum := sha256.Sum256(content); {
	case err != nil || response.StatusCode >= http.StatusInternalServerError:
	case response.StatusCode == http.StatusNotFound:
		p.note(gone, o.DeliveryID)
		p.finish(o.DeliveryID, delivery.StatusFailed, "the audio is gone")
	case response.StatusCode != http.StatusOK || hex.EncodeToString(sum[:]) != o.Audio.SHA256:
		p.run.fail("%s: the audio of %s answers %d with %d bytes of other content", p.name, o.DeliveryID, response.StatusCode, len(content))
	default:
		o.fetched = true
	}
}

// listen takes what the stream brings until there is something else to do. Without a stream it only waits.
func (p *player) listen(ctx context.Context) {
	until := time.Now().Add(idlePause)
	sooner := func(t time.Time) {
		if t.Before(until) {
			until = t
		}
	}
	if len(p.disk.orders) > 0 {
		sooner(time.Now().Add(busyPause))
	}
	if p.playing != nil {
		sooner(p.playing.since.Add(p.playing.order.left))
	}
	if len(p.disk.reports) > 0 {
		sooner(p.speaksAt)
	}
	if now := time.Now(); until.Before(now) {
		until = now // the zero time would be none
	}
	if p.stream == nil {
		p.wait(ctx, until)
		return
	}
	if !p.goesAt.IsZero() && !p.run.calm.Load() {
		if time.Now().After(p.goesAt) {
			p.leave()
			return
		}
		sooner(p.goesAt)
	}
	events, err := p.stream.read(until)
	for _, e := range events {
		p.take(e)
	}
	if err != nil {
		p.lose(p.about(50 * time.Millisecond))
	}
}

// wait connects when it is time to, or lets the time pass.
func (p *player) wait(ctx context.Context, until time.Time) {
	if p.comesAt.Before(until) {
		until = p.comesAt
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return
	}
	if time.Now().Before(p.comesAt) {
		return
	}
	opened, header, err := openStream(ctx, p.run.address(p.random), p.token, p.disk.lastEventID)
	var refused refusedError
	switch {
	case errors.As(err, &refused) && refused.status == http.StatusUnauthorized:
		p.signOut()
		return
	case errors.As(err, &refused) && refused.status < http.StatusInternalServerError:
		p.run.fail("%s: its stream is refused: %v", p.name, err)
	}
	if err != nil {
		p.comesAt = time.Now().Add(p.about(100 * time.Millisecond))
		return
	}
	p.stream = opened
	p.heard(header)
	p.note(connected, "")
	if p.goesAt = (time.Time{}); p.temper == restless {
		p.goesAt = time.Now().Add(p.about(meanStay))
	}
}

// lose is without a stream for a while.
func (p *player) lose(away time.Duration) {
	p.note(broken, "")
	p.stream.close()
	p.stream, p.comesAt = nil, time.Now().Add(away)
}

// leave closes the stream, and sometimes loses all that is not on the disk.
func (p *player) leave() {
	p.lose(p.about(meanAway))
	if !p.chance(3) {
		return
	}
	p.note(restarted, "")
	p.queue, p.playing, p.begun, p.contact = playback.Queue{}, nil, map[string]bool{}, time.Time{}
}

// take does what the server says.
func (p *player) take(e told) {
	p.run.events.Add(1)
	p.busy.Store(true)
	var o order
	if err := json.Unmarshal(e.data, &o); err != nil || o.DeliveryID == "" {
		p.run.fail("%s: event %d makes no sense: %s", p.name, e.seq, e.data)
		return
	}
	if last, _ := strconv.ParseInt(p.disk.lastEventID, 10, 64); e.seq <= last {
		p.run.fail("%s: event %d comes after %d", p.name, e.seq, last)
	}
	switch e.kind {
	case "deliver":
		what := toldOrder
		if p.disk.finished[o.DeliveryID] || p.find(o.DeliveryID) != nil {
			what = toldAgain
		} else {
			o.priority, _ = playback.ParsePriority(o.Priority)
			o.left = time.Duration(o.Audio.Duration*float64(time.Second)) * time.Duration(o.Repeat)
			o.fails = p.temper == failing && p.chance(2)
			p.disk.orders = append(p.disk.orders, &o)
		}
		p.note(what, o.DeliveryID).seq = e.seq
	case "cancel":
		p.note(toldOff, o.DeliveryID).seq = e.seq
		if !p.disk.finished[o.DeliveryID] {
			p.finish(o.DeliveryID, "", "")
		}
	default:
		p.run.fail("%s: an event is %q", p.name, e.kind)
	}
	p.disk.lastEventID = strconv.FormatInt(e.seq, 10)
}

// story is what its log says of a delivery.
func (p *player) story(deliveryID string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, at %s, clock %+v:\n", p.name, p.temper, p.externalID, p.skew)
	for _, e := range p.log {
		if e.deliveryID == deliveryID || e.deliveryID == "" {
			fmt.Fprintf(&b, "    %s\n", e)
		}
	}
	return b.String()
}
