package simulation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/musique/musique/domain/send"
)

// act is what somebody does in a step of the script.
type act int

const (
	sendAudio act = iota
	cancelSend
	uploadAudio
	deleteAudio
	removeLocation
	makeLocation // one that was removed before, if there is one

	killProcess
	cutDatabase // all connections of a process
	cutLeads    // those on which the projections are led
	jumpAhead
)

// step is a line of the script. What it picks from is known when it is its turn.
type step struct {
	after time.Duration // the step before
	act   act
	pick  int
	plan  plan
	// Of a jump, how far; of a kill, how long the process is away.
	length time.Duration
}

// target is who gets a send.
type target int

const (
	oneLocation target = iota
	someLocations
	byTag
	everyLocation
	strangers // one location that there is, and one that there never was
)

// plan is a send.
type plan struct {
	target    target
	locations []int
	tag       string
	audio     int
	priority  string
	repeat    int
	expiresIn int64
	ahead     time.Duration // 0 is now
	local     bool          // by the clock of the locations
}

const (
	// callersPerPartner send at the same time, each one thing after the other.
	callersPerPartner = 2
	stepsPerRound     = 5
	meanStep          = 350 * time.Millisecond
	troublesPerRound  = 4
	meanTrouble       = 500 * time.Millisecond
	maxJump           = 15 * time.Second
	// maxAhead is how far ahead sends are scheduled at most.
	maxAhead = send.MinAhead + 2*time.Minute
	longLife = 6 * time.Hour
)

var tags = []string{"north", "south", "east", "west", "mall", "station", "airport", "old", "new", "large", "small", "harbour"}

// callerScript is what a caller does in a run.
func callerScript(r *rand.Rand, rounds, locations int) []step {
	steps := make([]step, rounds*stepsPerRound)
	for i := range steps {
		s := &steps[i]
		s.after, s.pick = time.Duration(r.ExpFloat64()*float64(meanStep)), r.IntN(1000)
		switch n := r.IntN(100); {
		case n < 74:
			s.act, s.plan = sendAudio, randomPlan(r, locations)
		case n < 86:
			s.act = cancelSend
		case n < 90:
			s.act = uploadAudio
		case n < 95:
			s.act = deleteAudio
		case n < 98:
			s.act = removeLocation
		default:
			s.act = makeLocation
		}
	}
	return steps
}

func randomPlan(r *rand.Rand, locations int) plan {
	p := plan{audio: r.IntN(1000), priority: send.Priorities[r.IntN(len(send.Priorities))], repeat: 1, expiresIn: int64(longLife / time.Second)}
	p.locations = []int{r.IntN(locations)}
	switch n := r.IntN(100); {
	case n < 50:
	case n < 77:
		p.target = someLocations
		for range r.IntN(10) {
			p.locations = append(p.locations, r.IntN(locations))
		}
	case n < 85:
		p.target, p.tag = byTag, tags[r.IntN(len(tags))]
	case n < 87:
		p.target = everyLocation
	case n < 90:
		p.target = strangers
	}
	if r.IntN(4) == 0 {
		p.repeat = 1 + r.IntN(send.MaxRepeat)
	}
	if r.IntN(4) == 0 {
		p.expiresIn = 1 + r.Int64N(30)
	}
	if r.IntN(5) == 0 {
		p.ahead = send.MinAhead + time.Second + time.Duration(r.Int64N(int64(30*time.Second)))
		p.local = r.IntN(4) == 0
	}
	return p
}

// troubleScript is what the world does to the processes and to the time.
func troubleScript(r *rand.Rand, rounds int) []step {
	steps := make([]step, rounds*troublesPerRound)
	for i := range steps {
		s := &steps[i]
		s.after, s.pick = time.Duration(r.ExpFloat64()*float64(meanTrouble)), r.IntN(1000)
		s.length = time.Duration(r.Int64N(int64(time.Second)))
		switch n := r.IntN(100); {
		case n < 18:
			s.act = killProcess
		case n < 30:
			s.act = cutDatabase
		case n < 36:
			s.act = cutLeads
		default:
			s.act, s.length = jumpAhead, time.Duration(r.Int64N(int64(maxJump)))
		}
	}
	return steps
}

// partner is a company with its audio and locations, and what it knows of its sends.
type partner struct {
	run         *run
	number      int
	id, token   string
	locations   []string
	mu          sync.Mutex
	audio       []string // that can be sent
	sends       []*accepted
	refused     int
	removed     []int // locations that are not there, by their place in locations
	everRemoved map[string]bool
}

// accepted is a send that the API accepted.
type accepted struct {
	id, audioID string
	plan        plan
	total       int
	to          []string // external IDs; the first thousand
}

type object = map[string]any

// perform carries a step of a caller out.
func (c *partner) perform(ctx context.Context, s step, key string) error {
	switch s.act {
	case sendAudio:
		return c.send(ctx, s.plan, key)
	case cancelSend:
		return c.cancel(ctx, s.pick)
	case uploadAudio:
		return c.upload(ctx, key)
	case deleteAudio:
		return c.deleteAudio(ctx, s.pick)
	case removeLocation:
		return c.removeLocation(ctx, s.pick)
	case makeLocation:
		return c.makeLocation(ctx, key)
	}
	return fmt.Errorf("a caller does not do %d", s.act)
}

// errAnswer is an answer that a caller must not get.
func errAnswer(what string, got answer) error {
	return fmt.Errorf("%s: %d %s", what, got.status, got.body)
}

func (c *partner) send(ctx context.Context, p plan, key string) error {
	c.mu.Lock()
	audioID := c.audio[p.audio%len(c.audio)]
	c.mu.Unlock()
	body := object{"priority": p.priority, "repeat": p.repeat, "expiresIn": p.expiresIn}
	switch p.target {
	case byTag:
		body["tags"] = []string{p.tag}
	case everyLocation:
		body["all"] = true
	default:
		var ids []string
		for _, at := range p.locations {
			ids = append(ids, c.locations[at])
		}
		if p.target == strangers {
			ids = append(ids, "nowhere")
		}
		body["externalIds"] = ids
	}
	if at := c.run.clock.now().Add(p.ahead).UTC(); p.local {
		body["localTime"] = at.Add(time.Minute).Format("2006-01-02T15:04") // whole minutes
	} else if p.ahead > 0 {
		body["scheduleAt"] = at.Format(time.RFC3339Nano)
	}
	got, err := c.ask(ctx, http.MethodPost, "/audio/"+audioID+"/send", key, body)
	if err != nil {
		return err
	}
	switch {
	case got.status == http.StatusAccepted:
		var data struct {
			SendID, AudioID   string
			TotalDestinations int
			Destinations      []struct{ ExternalID string }
		}
		if err := got.decode(&data); err != nil {
			return err
		}
		a := &accepted{id: data.SendID, audioID: data.AudioID, plan: p, total: data.TotalDestinations}
		for _, d := range data.Destinations {
			a.to = append(a.to, d.ExternalID)
		}
		c.mu.Lock()
		c.sends = append(c.sends, a)
		c.mu.Unlock()
		if a.audioID != audioID {
			return errAnswer("a send of "+audioID, got)
		}
		return c.checkTargets(a)
	case slices.Contains([]int{http.StatusNotFound, http.StatusConflict}, got.status), p.ahead > 0 && got.status == http.StatusBadRequest: // the clock jumped meanwhile
		c.mu.Lock()
		c.refused++
		c.mu.Unlock()
		return nil
	}
	return errAnswer("a send", got)
}

// checkTargets compares the locations of a send with those that were asked for.
func (c *partner) checkTargets(a *accepted) error {
	if a.total != len(a.to) {
		return fmt.Errorf("%s: %d destinations are listed of %d", a.id, len(a.to), a.total)
	}
	if a.plan.target == byTag || a.plan.target == everyLocation {
		for _, id := range a.to {
			at := slices.Index(c.locations, id)
			if at < 0 || a.plan.target == byTag && !slices.Contains(tagsOf(at), a.plan.tag) {
				return fmt.Errorf("%s went to %s, which it was not for", a.id, id)
			}
		}
		return nil
	}
	var want []string
	for _, at := range a.plan.locations {
		want = append(want, c.locations[at])
	}
	slices.Sort(want)
	if want = slices.Compact(want); a.plan.target == strangers || !slices.Equal(want, slices.Sorted(slices.Values(a.to))) {
		return fmt.Errorf("%s goes to %v and not to %v", a.id, a.to, want)
	}
	return nil
}

// tagsOf are the tags of a location, by its place in the list.
func tagsOf(at int) []string {
	if at%3 == 0 {
		return []string{tags[at%len(tags)], tags[(at/3+1)%len(tags)]}
	}
	return []string{tags[at%len(tags)]}
}

// cancel calls off one of the last sends.
func (c *partner) cancel(ctx context.Context, pick int) error {
	c.mu.Lock()
	if len(c.sends) == 0 {
		c.mu.Unlock()
		return nil
	}
	a := c.sends[len(c.sends)-1-pick%min(len(c.sends), 8)]
	c.mu.Unlock()
	got, err := c.ask(ctx, http.MethodDelete, "/sends/"+a.id, "", nil)
	if err == nil && got.status != http.StatusOK && got.status != http.StatusConflict { // it is over, or was called off
		err = errAnswer("to call off "+a.id, got)
	}
	return err
}

func (c *partner) upload(ctx context.Context, key string) error {
	contentType, body := uploadForm(key)
	got, err := c.askAs(ctx, http.MethodPost, "/audio", contentType, key, body)
	if err != nil {
		return err
	}
	var data struct{ AudioID string }
	if got.status != http.StatusCreated {
		return errAnswer("an upload", got)
	}
	if err := got.decode(&data); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.audio = append(c.audio, data.AudioID)
	return nil
}

func (c *partner) deleteAudio(ctx context.Context, pick int) error {
	c.mu.Lock()
	audioID := c.audio[pick%len(c.audio)]
	c.mu.Unlock()
	// A deletion's mark is void after some time, and a jump would make the time pass amid the deletion.
	c.run.jumping.RLock()
	got, err := c.ask(ctx, http.MethodDelete, "/audio/"+audioID, "", nil)
	c.run.jumping.RUnlock()
	if err != nil {
		return err
	}
	switch got.status {
	case http.StatusConflict: // it is pending somewhere, or another deletion that was cut off has not lost its mark yet
		return nil
	case http.StatusOK, http.StatusNotFound: // perhaps it was gone before
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.audio) > 1 { // the last one is sent all the same, and refused
			c.audio = slices.DeleteFunc(c.audio, func(id string) bool { return id == audioID })
		}
		return nil
	}
	return errAnswer("to delete "+audioID, got)
}

func (c *partner) removeLocation(ctx context.Context, pick int) error {
	at := pick % len(c.locations)
	c.mu.Lock()
	c.everRemoved[c.locations[at]] = true
	c.mu.Unlock()
	got, err := c.ask(ctx, http.MethodDelete, "/locations/"+c.locations[at], "", nil)
	if err != nil {
		return err
	}
	if got.status != http.StatusOK && got.status != http.StatusNotFound {
		return errAnswer("to remove "+c.locations[at], got)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.removed, at) {
		c.removed = append(c.removed, at)
	}
	return nil
}

// makeLocation makes a location again that was removed, with a new player.
func (c *partner) makeLocation(ctx context.Context, key string) error {
	c.mu.Lock()
	if len(c.removed) == 0 {
		c.mu.Unlock()
		return nil
	}
	at := c.removed[0]
	c.removed = c.removed[1:]
	c.mu.Unlock()
	id := c.locations[at]
	got, err := c.ask(ctx, http.MethodPost, "/locations", key, object{"externalId": id, "name": id, "tags": tagsOf(at)})
	if err != nil {
		return err
	}
	if got.status != http.StatusCreated {
		return errAnswer("to make "+id+" again", got)
	}
	p, err := c.enrol(ctx, id, key, steady)
	if err == nil && p != nil {
		c.run.join(p)
	}
	return err
}

// enrol makes a device of a location, and the player that has it. There is none if the location was removed meanwhile.
func (c *partner) enrol(ctx context.Context, externalID, key string, t temper) (*player, error) {
	got, err := c.ask(ctx, http.MethodPost, "/locations/"+externalID+"/devices", key, object{"name": "player"})
	if err != nil {
		return nil, err
	}
	var data struct{ DeviceID, Token string }
	switch got.status {
	case http.StatusNotFound:
		return nil, nil //nolint:nilnil // as said above
	case http.StatusCreated:
	default:
		return nil, errAnswer("a device", got)
	}
	if err := got.decode(&data); err != nil {
		return nil, err
	}
	return &player{run: c.run, name: "player " + key, partner: c, externalID: externalID, deviceID: data.DeviceID, token: data.Token, temper: t}, nil
}

// answer is what a caller is told.
type answer struct {
	status int
	body   []byte
}

func (a answer) decode(data any) error {
	var envelope struct{ Data json.RawMessage }
	if err := json.Unmarshal(a.body, &envelope); err != nil {
		return err
	}
	return json.Unmarshal(envelope.Data, data)
}

func (c *partner) ask(ctx context.Context, method, path, key string, body any) (answer, error) {
	var raw []byte
	kind := ""
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return answer{}, err
		}
		kind = "application/json"
	}
	return c.askAs(ctx, method, path, kind, key, raw)
}

// askAs asks until there is an answer, one process after the other.
func (c *partner) askAs(ctx context.Context, method, path, contentType, key string, body []byte) (answer, error) {
	headers := map[string]string{"X-API-Key": c.token}
	if contentType != "" {
		headers["Content-Type"] = contentType
	}
	if key != "" {
		headers["Idempotency-Key"] = key
	}
	for attempt := 0; ; attempt++ {
		got, err := c.run.try(ctx, method, c.run.addressOf(attempt+c.number)+"/api/v1/integration"+path, headers, body)
		if err == nil && got.status < http.StatusInternalServerError {
			return got, nil
		}
		if ctx.Err() != nil {
			return answer{}, fmt.Errorf("no answer to %s %s after %d attempts: %w", method, path, attempt, errors.Join(err, errors.New(strconv.Itoa(got.status)+" "+string(got.body))))
		}
		if got.status == http.StatusInternalServerError {
			return answer{}, errAnswer(method+" "+path, got)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
