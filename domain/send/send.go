package send

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

const (
	// MaxDestinations bounds one send.
	MaxDestinations = 100_000
	// MaxRepeat and MaxVolume (percent) bound how a send is played.
	MaxRepeat = 10
	MaxVolume = 100
	// DefaultExpiresIn and MaxExpiresIn bound how long a delivery waits for its player, in seconds.
	DefaultExpiresIn = 86_400
	MaxExpiresIn     = 30 * 86_400
	// MinAhead and MaxAhead are how far ahead a send can be scheduled.
	MinAhead = time.Minute
	MaxAhead = 366 * 24 * time.Hour
	// Lead is how long before its time scheduled audio goes to the players, so that all of them have it when it is due.
	Lead = 15 * time.Second

	localTimeLayout = "2006-01-02T15:04"
)

// Priorities in rising order; DefaultPriority is used where none is given.
var Priorities = []string{"low", "normal", "high", "urgent"}

// DefaultPriority is the priority of a send that names none.
const DefaultPriority = "normal"

// Stream names the stream of a send.
func Stream(sendID string) string { return "send-" + sendID }

// Location is a location that a send may go to.
type Location struct {
	ExternalID string
	UserID     int64
	Timezone   string
}

// Targets say where a send goes: exactly one of the three.
type Targets struct {
	ExternalIDs []string
	All         bool
	Tags        []string
}

// Check notes what is wrong with the targets.
func (t Targets) Check(fields *fault.Fields) {
	given := 0
	for _, g := range []bool{t.ExternalIDs != nil, t.All, t.Tags != nil} {
		if g {
			given++
		}
	}
	switch {
	case given == 0:
		fields.Add("externalIds", fault.MissingField, "Say where to send: externalIds, all or tags.")
	case given > 1:
		fields.Add("externalIds", fault.InvalidFormat, "Give exactly one of externalIds, all and tags.")
	case t.ExternalIDs != nil && len(t.ExternalIDs) == 0:
		fields.Add("externalIds", fault.OutOfRange, "externalIds names one location at least.")
	case len(t.ExternalIDs) > MaxDestinations:
		fields.Add("externalIds", fault.OutOfRange, "A send goes to at most %d locations.", MaxDestinations)
	case t.Tags != nil && len(t.Tags) == 0:
		fields.Add("tags", fault.OutOfRange, "tags names one tag at least.")
	}
}

// Request is what a partner asks for.
type Request struct {
	Targets    Targets
	ScheduleAt *time.Time
	LocalTime  string
	Priority   string
	Repeat     *int
	Volume     *int
	ExpiresIn  *int64
}

// Check notes what is wrong with the request.
func (r Request) Check(now time.Time, fields *fault.Fields) {
	r.Targets.Check(fields)
	r.checkHow(now, fields)
}

// checkHow notes what is wrong with all but the targets.
func (r Request) checkHow(now time.Time, fields *fault.Fields) {
	if r.Priority != "" && !slices.Contains(Priorities, r.Priority) {
		fields.Add("priority", fault.InvalidFormat, "The priority is one of %s.", strings.Join(Priorities, ", "))
	}
	if r.Repeat != nil && (*r.Repeat < 1 || *r.Repeat > MaxRepeat) {
		fields.Add("repeat", fault.OutOfRange, "repeat is 1 to %d.", MaxRepeat)
	}
	if r.Volume != nil && (*r.Volume < 0 || *r.Volume > MaxVolume) {
		fields.Add("volume", fault.OutOfRange, "volume is 0 to %d.", MaxVolume)
	}
	if r.ExpiresIn != nil && (*r.ExpiresIn < 1 || *r.ExpiresIn > MaxExpiresIn) {
		fields.Add("expiresIn", fault.OutOfRange, "expiresIn is 1 to %d seconds.", MaxExpiresIn)
	}
	if r.ScheduleAt != nil && r.LocalTime != "" {
		fields.Add("localTime", fault.InvalidFormat, "Give scheduleAt or localTime, not both.")
	}
	if r.ScheduleAt != nil && (r.ScheduleAt.Before(now.Add(MinAhead)) || r.ScheduleAt.After(now.Add(MaxAhead))) {
		fields.Add("scheduleAt", fault.OutOfRange, "scheduleAt is between 1 minute and 1 year ahead.")
	}
	if r.LocalTime != "" {
		if _, ok := parseClock(r.LocalTime); !ok {
			fields.Add("localTime", fault.InvalidFormat, "localTime is a clock time such as 2026-12-24T09:00, without an offset.")
		}
	}
}

// Normal is the request without what goes without saying, so that requests which ask for the same are the same.
func (r Request) Normal() Request {
	without := r.Terms("")
	usual := Request{}.Terms("")
	if without.Priority == usual.Priority {
		r.Priority = ""
	}
	if without.Repeat == usual.Repeat {
		r.Repeat = nil
	}
	if without.Volume == usual.Volume {
		r.Volume = nil
	}
	if without.ExpiresIn == usual.ExpiresIn {
		r.ExpiresIn = nil
	}
	if r.ScheduleAt != nil {
		at := r.ScheduleAt.UTC()
		r.ScheduleAt = &at
	}
	return r
}

// Terms are the request's terms with the defaults filled in.
func (r Request) Terms(audioID string) Terms {
	t := Terms{AudioID: audioID, Priority: r.Priority, Repeat: 1, Volume: MaxVolume, ExpiresIn: DefaultExpiresIn}
	if t.Priority == "" {
		t.Priority = DefaultPriority
	}
	if r.Repeat != nil {
		t.Repeat = *r.Repeat
	}
	if r.Volume != nil {
		t.Volume = *r.Volume
	}
	if r.ExpiresIn != nil {
		t.ExpiresIn = *r.ExpiresIn
	}
	return t
}

// Plan decides a send to these locations: the events of one now, or of one for later. They are in the locations' order.
func Plan(sendID string, terms Terms, r Request, to []Location, now time.Time) ([]event.Payload, error) {
	terms.Single = len(to) == 1
	switch {
	case len(to) == 0:
		return nil, fault.New(fault.NotFound, "No location matches, and nothing was sent; register one, or choose other targets.")
	case len(to) > MaxDestinations:
		return nil, fault.New(fault.OutOfRange, "A send goes to at most %d locations, and this one would go to %d; split it.", MaxDestinations, len(to))
	case r.ScheduleAt == nil && r.LocalTime == "":
		events := make([]event.Payload, len(to))
		for i, l := range to {
			events[i] = audioSent(sendID, terms, Destination{l.ExternalID, l.UserID}, len(to), now, nil)
		}
		return events, nil
	}
	scheduled := Scheduled{SendID: sendID, Terms: terms, LocalTime: r.LocalTime, Total: len(to)}
	times, err := playTimes(r, to, now)
	if err != nil {
		return nil, err
	}
	for _, l := range to {
		playAt := times[l.Timezone]
		if scheduled.ScheduleAt.IsZero() || playAt.Before(scheduled.ScheduleAt) {
			scheduled.ScheduleAt = playAt
		}
		scheduled.Destinations = append(scheduled.Destinations, ScheduledDestination{Destination{l.ExternalID, l.UserID}, playAt, l.Timezone})
	}
	return scheduled.parts(), nil
}

// playTimes are when the audio is due in each time zone of the locations.
func playTimes(r Request, to []Location, now time.Time) (map[string]time.Time, error) {
	times := map[string]time.Time{}
	for _, l := range to {
		if _, known := times[l.Timezone]; known {
			continue
		}
		playAt, err := playTime(r, l, now)
		if err != nil {
			return nil, err
		}
		times[l.Timezone] = playAt
	}
	return times, nil
}

// playTime is when the audio is due at a location.
func playTime(r Request, l Location, now time.Time) (time.Time, error) {
	if r.ScheduleAt != nil {
		return r.ScheduleAt.UTC(), nil
	}
	zone, err := time.LoadLocation(l.Timezone)
	if err != nil {
		return time.Time{}, fmt.Errorf("time zone of %s: %w", l.ExternalID, err)
	}
	clock, ok := parseClock(r.LocalTime)
	if !ok {
		return time.Time{}, fault.ForField("localTime", fault.InvalidFormat, "localTime is a clock time such as 2026-12-24T09:00, without an offset.")
	}
	at := inZone(clock, zone)
	if at.Before(now.Add(MinAhead)) || at.After(now.Add(MaxAhead)) {
		return time.Time{}, fault.ForField("localTime", fault.OutOfRange, "localTime is between 1 minute and 1 year ahead at each location; at %s (%s) it is not.", l.ExternalID, l.Timezone)
	}
	return at, nil
}

// parseClock reads a clock time, as if it were UTC. time.Parse alone would take an hour of one digit too.
func parseClock(text string) (clock time.Time, ok bool) {
	clock, err := time.Parse(localTimeLayout, text)
	return clock, err == nil && clock.Format(localTimeLayout) == text
}

// inZone is the moment that a zone's clocks show a time. A time that they show twice is the first of the two; one that they skip is counted from the
// offset before the gap, and so comes after it (RFC 5545 §3.3.5). time.Date promises neither, and chooses differently east and west of Greenwich.
func inZone(clock time.Time, zone *time.Location) time.Time {
	const day = 24 * time.Hour // more than any zone's offset, less than between two changes of one
	withOffsetAt := func(t time.Time) time.Time {
		_, seconds := t.In(zone).Zone()
		return clock.Add(-time.Duration(seconds) * time.Second)
	}
	before, after := withOffsetAt(clock.Add(-day)), withOffsetAt(clock.Add(day))
	if !withOffsetAt(before).Equal(before) && withOffsetAt(after).Equal(after) {
		return after
	}
	return before
}

// destinationsPerPart bounds one SendScheduled event, so that it stays far below the limit of an append.
const destinationsPerPart = 2_000

// parts splits a large schedule over several events.
func (s Scheduled) parts() []event.Payload {
	all := s.Destinations
	var parts []event.Payload
	for chunk := range slices.Chunk(all, destinationsPerPart) {
		part := s
		part.Destinations = chunk
		parts = append(parts, part)
	}
	return parts
}

func audioSent(sendID string, terms Terms, to Destination, total int, due time.Time, playAt *time.Time) AudioSent {
	return AudioSent{
		SendID: sendID, DeliveryID: delivery.ID(sendID, to.UserID), Terms: terms, Destination: to, Total: total,
		PlayAt: playAt, ExpiresAt: due.Add(time.Duration(terms.ExpiresIn) * time.Second),
	}
}

// Send is the state of a send.
type Send struct {
	ID          string
	CompanyID   string
	Environment event.Environment
	AcceptedAt  time.Time
	Terms       Terms
	Total       int
	ScheduleAt  time.Time
	LocalTime   string
	// Planned are the destinations of a scheduled send, Sent those that the audio went to.
	Planned   []ScheduledDestination
	Sent      []AudioSent
	Cancelled bool
	// Refused says that it was cancelled because it was never accepted.
	Refused bool
	// Open says that parts of a large send are still missing.
	Open bool

	recorded event.Position
}

// Load folds a history into the state; the zero Send is one that does not exist.
func Load(history []event.Recorded) (Send, error) {
	var s Send
	for _, e := range history {
		if err := s.apply(e); err != nil {
			return Send{}, fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
		}
	}
	return s, nil
}

// LoadAccepted is Load of the send as it was when it was accepted, whatever was changed of it since.
func LoadAccepted(history []event.Recorded) (Send, error) {
	return Load(slices.DeleteFunc(slices.Clone(history), func(e event.Recorded) bool { return e.Type == Rescheduled{}.EventType() }))
}

func (s *Send) begin(e event.Recorded, id string, terms Terms, total int) {
	if s.ID != "" {
		return
	}
	s.ID, s.Terms, s.Total, s.recorded = id, terms, total, e.Position
	s.CompanyID, s.Environment, s.AcceptedAt = e.Metadata.CompanyID, e.Metadata.Environment, e.Metadata.Time
}

func (s *Send) apply(e event.Recorded) error {
	switch e.Type {
	case Scheduled{}.EventType():
		var p Scheduled
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return err
		}
		s.begin(e, p.SendID, p.Terms, p.Total)
		s.ScheduleAt, s.LocalTime = p.ScheduleAt, p.LocalTime
		s.Planned = append(s.Planned, p.Destinations...)
		s.Open = s.Open || p.Unsealed
	case Rescheduled{}.EventType():
		var p Rescheduled
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return err
		}
		s.Terms, s.ScheduleAt, s.LocalTime, s.Planned = p.Terms, p.ScheduleAt, p.LocalTime, p.planned(s.Planned)
	case AudioSent{}.EventType():
		var p AudioSent
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return err
		}
		s.begin(e, p.SendID, p.Terms, p.Total)
		s.Sent = append(s.Sent, p)
		s.Open = s.Open || p.Unsealed
	case BroadcastSealed{}.EventType():
		s.Open = false
	case BroadcastAbandoned{}.EventType():
		*s = Send{} // what follows, if anything, is the send from its beginning
	case Cancelled{}.EventType():
		var p Cancelled
		if err := json.Unmarshal(e.Data, &p); err != nil {
			return err
		}
		s.Cancelled, s.Refused = true, s.Refused || p.Refused
	}
	return nil
}

// Exists reports whether the send was accepted.
func (s Send) Exists() bool { return s.ID != "" }

// Recorded is where the store has the first event of the send.
func (s Send) Recorded() event.Position { return s.recorded }

// SentAt is when the audio went to one of the locations, at the earliest: what is due later goes out ahead of that.
func (s Send) SentAt(sent AudioSent) time.Time {
	if sent.PlayAt == nil {
		return s.AcceptedAt
	}
	if ahead := sent.PlayAt.Add(-Lead); ahead.After(s.AcceptedAt) {
		return ahead
	}
	return s.AcceptedAt
}

// BelongsTo reports whether the send is this company's.
func (s Send) BelongsTo(companyID string, env event.Environment) bool {
	return s.Exists() && s.CompanyID == companyID && s.Environment == env
}

// Scheduled reports whether the send was for later.
func (s Send) Scheduled() bool { return len(s.Planned) > 0 }

// Unseal marks the events of a new send as parts of one that is too large for one append; a BroadcastSealed has to follow them.
func Unseal(events []event.Payload) {
	for i, e := range events {
		switch p := e.(type) {
		case AudioSent:
			p.Unsealed = true
			events[i] = p
		case Scheduled:
			p.Unsealed = true
			events[i] = p
		}
	}
}

// Start decides which of a scheduled send's locations get their audio now: those that are due within Lead and did not yet.
func (s Send) Start(now time.Time) []event.Payload {
	if s.Cancelled || s.Open {
		return nil
	}
	gone := make(map[int64]bool, len(s.Sent))
	for _, sent := range s.Sent {
		gone[sent.UserID] = true
	}
	var events []event.Payload
	for _, to := range s.Planned {
		if gone[to.UserID] || to.PlayAt.After(now.Add(Lead)) {
			continue
		}
		playAt := to.PlayAt
		events = append(events, audioSent(s.ID, s.Terms, to.Destination, s.Total, playAt, &playAt))
	}
	return events
}

// NextDue is when the next of the locations that did not get their audio yet is to get it; ok is false if there is none.
func (s Send) NextDue() (at time.Time, ok bool) {
	if s.Cancelled {
		return time.Time{}, false
	}
	gone := make(map[int64]bool, len(s.Sent))
	for _, sent := range s.Sent {
		gone[sent.UserID] = true
	}
	for _, to := range s.Planned {
		if due := to.PlayAt.Add(-Lead); !gone[to.UserID] && (!ok || due.Before(at)) {
			at, ok = due, true
		}
	}
	return at, ok
}

// Cancel calls the send off. Ended tells whether every delivery of it has ended, which the caller knows from the deliveries.
func (s Send) Cancel(companyID string, env event.Environment, ended bool) ([]event.Payload, error) {
	switch {
	case !s.BelongsTo(companyID, env):
		return nil, NotFound()
	case s.Cancelled:
		return nil, fault.New(fault.Conflict, "The send is cancelled already, and nothing is left to do.")
	case ended:
		return nil, fault.New(fault.Conflict, "The send is finished, and nothing is left to cancel.")
	}
	return []event.Payload{Cancelled{SendID: s.ID}}, nil
}

// NotFound is the answer for a send that is not there, or not the caller's.
func NotFound() error {
	return fault.New(fault.NotFound, "There is no such send; find its ID in the list of sends.")
}
