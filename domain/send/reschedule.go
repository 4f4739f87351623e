package send

import (
	"maps"
	"slices"
	"time"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

// Change is what a partner wants to be different about a send that is still to come. What is nil or empty stays as it is; of ScheduleAt and LocalTime the one
// that is given takes the place of the other.
type Change struct {
	ScheduleAt *time.Time
	LocalTime  string
	Priority   string
	Repeat     *int
	Volume     *int
	ExpiresIn  *int64
}

// Check notes what is wrong with the change.
func (c Change) Check(now time.Time, fields *fault.Fields) { c.request().checkHow(now, fields) }

func (c Change) request() Request {
	return Request{ScheduleAt: c.ScheduleAt, LocalTime: c.LocalTime, Priority: c.Priority, Repeat: c.Repeat, Volume: c.Volume, ExpiresIn: c.ExpiresIn}
}

// Reschedule changes the send, as long as nothing of it has gone out; nothing is decided where it is so already. Ended tells whether every delivery of it has
// ended, which the caller knows from the deliveries.
func (s Send) Reschedule(companyID string, env event.Environment, c Change, ended bool, now time.Time) ([]event.Payload, error) {
	switch {
	case !s.BelongsTo(companyID, env):
		return nil, NotFound()
	case s.Cancelled:
		return nil, fault.New(fault.Conflict, "The send is cancelled and cannot be changed.")
	case len(s.Sent) > 0 || !s.Scheduled():
		return nil, fault.New(fault.Conflict, "The audio is on its way already, and the send cannot be changed.")
	case ended:
		return nil, fault.New(fault.Conflict, "The send is finished and cannot be changed.")
	}
	// A change that is asked for again may come when its time is too near to be asked for.
	if c.ScheduleAt != nil && c.LocalTime == "" && s.LocalTime == "" && c.ScheduleAt.Equal(s.ScheduleAt) {
		c.ScheduleAt = nil
	}
	if c.ScheduleAt == nil && c.LocalTime == s.LocalTime {
		c.LocalTime = ""
	}
	var fields fault.Fields
	c.Check(now, &fields)
	if err := fields.Err(); err != nil {
		return nil, err
	}
	changed := Rescheduled{SendID: s.ID, Terms: c.onto(s.Terms), ScheduleAt: s.ScheduleAt, LocalTime: s.LocalTime}
	switch {
	case c.ScheduleAt != nil:
		changed.ScheduleAt, changed.LocalTime = c.ScheduleAt.UTC(), ""
	case c.LocalTime != "":
		var err error
		if changed.Times, err = s.timesAt(c, now); err != nil {
			return nil, err
		}
		changed.ScheduleAt = slices.MinFunc(changed.Times, func(a, b ZoneTime) int { return a.PlayAt.Compare(b.PlayAt) }).PlayAt
		changed.LocalTime = c.LocalTime
	case changed.Terms == s.Terms:
		return nil, nil
	}
	return []event.Payload{changed}, nil
}

// onto gives terms with the change's in place of theirs.
func (c Change) onto(t Terms) Terms {
	if c.Priority != "" {
		t.Priority = c.Priority
	}
	if c.Repeat != nil {
		t.Repeat = *c.Repeat
	}
	if c.Volume != nil {
		t.Volume = *c.Volume
	}
	if c.ExpiresIn != nil {
		t.ExpiresIn = *c.ExpiresIn
	}
	return t
}

// timesAt is when a clock time is in each time zone of the send, in the order of the zones' names.
func (s Send) timesAt(c Change, now time.Time) ([]ZoneTime, error) {
	to := make([]Location, len(s.Planned))
	for i, d := range s.Planned {
		if d.Timezone == "" {
			return nil, fault.New(fault.Conflict, "The send was made before the time zones of its locations were recorded with it: change scheduleAt, or cancel it and send anew.")
		}
		to[i] = Location{d.ExternalID, d.UserID, d.Timezone}
	}
	at, err := playTimes(c.request(), to, now)
	if err != nil {
		return nil, err
	}
	var times []ZoneTime
	for _, zone := range slices.Sorted(maps.Keys(at)) {
		times = append(times, ZoneTime{zone, at[zone]})
	}
	return times, nil
}

// KeepsTimes reports whether the audio stays due at each location when it was due before.
func (r Rescheduled) KeepsTimes() bool { return r.LocalTime != "" && len(r.Times) == 0 }

// planned gives the destinations with their new times.
func (r Rescheduled) planned(before []ScheduledDestination) []ScheduledDestination {
	if r.KeepsTimes() {
		return before
	}
	at := make(map[string]time.Time, len(r.Times))
	for _, t := range r.Times {
		at[t.Timezone] = t.PlayAt
	}
	after := slices.Clone(before)
	for i := range after {
		after[i].PlayAt = r.ScheduleAt
		if r.LocalTime != "" {
			after[i].PlayAt = at[after[i].Timezone]
		}
	}
	return after
}
