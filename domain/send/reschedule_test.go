package send_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
)

// withoutZones is a send as it was recorded before time zones were.
func withoutZones(s send.Scheduled) send.Scheduled {
	for i := range s.Destinations {
		s.Destinations[i].Timezone = ""
	}
	return s
}

// fixed is a send to both locations at the same moment.
func fixed() send.Scheduled {
	return send.Scheduled{SendID: "snd_one", Terms: terms, ScheduleAt: due, Total: 2, Destinations: []send.ScheduledDestination{destination(first, due), destination(second, due)}}
}

func TestReschedule(t *testing.T) {
	t.Parallel()
	at := func(ahead time.Duration) *time.Time { at := now.Add(ahead).In(time.FixedZone("", 7200)); return &at }
	number, seconds := func(n int) *int { return &n }, func(n int64) *int64 { return &n }
	louder := terms
	louder.Volume = 100
	zones := []send.ZoneTime{{Timezone: "Europe/Berlin", PlayAt: time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)}, {Timezone: "UTC", PlayAt: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)}}
	morning := send.Rescheduled{SendID: "snd_one", Terms: terms, ScheduleAt: zones[0].PlayAt, LocalTime: "2026-03-02T09:00", Times: zones}
	later := send.Rescheduled{SendID: "snd_one", Terms: terms, ScheduleAt: now.Add(5 * time.Hour)}
	for name, c := range map[string]struct {
		given   []event.Payload
		change  send.Change
		company string
		env     event.Environment
		now     time.Time
		ended   bool
		want    []event.Payload
		code    fault.Code
		param   string
	}{
		"nothing":                           {given: []event.Payload{scheduled()}},
		"everything as it is":               {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(time.Hour), Priority: "high", Repeat: number(2), Volume: number(80), ExpiresIn: seconds(600)}},
		"the clock time as it is":           {given: []event.Payload{scheduled()}, change: send.Change{LocalTime: "2026-03-01T11:00"}},
		"as it is, when it is too near":     {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(time.Hour)}, now: due.Add(-time.Second)},
		"the clock time, when it is near":   {given: []event.Payload{scheduled()}, change: send.Change{LocalTime: "2026-03-01T11:00"}, now: due.Add(-time.Second)},
		"another time":                      {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, want: []event.Payload{later}},
		"a time instead of a clock time":    {given: []event.Payload{scheduled()}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, want: []event.Payload{later}},
		"the first location's time for all": {given: []event.Payload{scheduled()}, change: send.Change{ScheduleAt: at(time.Hour)}, want: []event.Payload{send.Rescheduled{SendID: "snd_one", Terms: terms, ScheduleAt: due}}},
		"another clock time":                {given: []event.Payload{scheduled()}, change: send.Change{LocalTime: "2026-03-02T09:00"}, want: []event.Payload{morning}},
		"a clock time instead of a time":    {given: []event.Payload{fixed()}, change: send.Change{LocalTime: "2026-03-02T09:00"}, want: []event.Payload{morning}},
		"the same again":                    {given: []event.Payload{fixed(), morning}, change: send.Change{LocalTime: "2026-03-02T09:00"}},
		"and back":                          {given: []event.Payload{fixed(), morning}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, want: []event.Payload{later}},
		"louder":                            {given: []event.Payload{fixed()}, change: send.Change{Volume: number(100)}, want: []event.Payload{send.Rescheduled{SendID: "snd_one", Terms: louder, ScheduleAt: due}}},
		"louder at the same clock time":     {given: []event.Payload{scheduled()}, change: send.Change{Volume: number(100)}, want: []event.Payload{send.Rescheduled{SendID: "snd_one", Terms: louder, ScheduleAt: due, LocalTime: "2026-03-01T11:00"}}},
		"silent": {given: []event.Payload{fixed()}, change: send.Change{Priority: "low", Repeat: number(1), Volume: number(0), ExpiresIn: seconds(1)}, want: []event.Payload{send.Rescheduled{
			SendID: "snd_one", Terms: send.Terms{AudioID: "aud_one", Priority: "low", Repeat: 1, Volume: 0, ExpiresIn: 1}, ScheduleAt: due}}},
		"one that was sealed":                    {given: append(unsealed(fixed()), sealed), change: send.Change{ScheduleAt: at(5 * time.Hour)}, want: []event.Payload{later}},
		"one of before, to a time":               {given: []event.Payload{withoutZones(scheduled())}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, want: []event.Payload{later}},
		"one of before, to another clock time":   {given: []event.Payload{withoutZones(scheduled())}, change: send.Change{LocalTime: "2026-03-02T09:00"}, code: fault.Conflict},
		"one of before, to its clock time":       {given: []event.Payload{withoutZones(scheduled())}, change: send.Change{LocalTime: "2026-03-01T11:00"}},
		"one that went out":                      {given: []event.Payload{fixed(), plannedTo(first, 2, due)}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, code: fault.Conflict},
		"nothing of one that went out":           {given: []event.Payload{fixed(), plannedTo(first, 2, due)}, code: fault.Conflict},
		"one that was for now":                   {given: []event.Payload{sentTo(first, 1)}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, code: fault.Conflict},
		"a cancelled one":                        {given: []event.Payload{fixed(), cancelled}, change: send.Change{ScheduleAt: at(5 * time.Hour)}, code: fault.Conflict},
		"one whose locations are gone":           {given: []event.Payload{fixed()}, ended: true, change: send.Change{ScheduleAt: at(5 * time.Hour)}, code: fault.Conflict},
		"one that there is not":                  {change: send.Change{ScheduleAt: at(5 * time.Hour)}, code: fault.NotFound},
		"another company's":                      {given: []event.Payload{fixed(), cancelled}, company: "co_two", change: send.Change{Priority: "x"}, code: fault.NotFound},
		"one of the other environment":           {given: []event.Payload{fixed()}, env: event.Test, code: fault.NotFound},
		"two times":                              {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(5 * time.Hour), LocalTime: "2026-03-02T09:00"}, code: fault.InvalidFormat, param: "localTime"},
		"two times as they are":                  {given: []event.Payload{scheduled()}, change: send.Change{ScheduleAt: at(time.Hour), LocalTime: "2026-03-01T11:00"}, code: fault.InvalidFormat, param: "localTime"},
		"a time that is too near":                {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(time.Second)}, code: fault.OutOfRange, param: "scheduleAt"},
		"a time that is too far":                 {given: []event.Payload{fixed()}, change: send.Change{ScheduleAt: at(send.MaxAhead + 1)}, code: fault.OutOfRange, param: "scheduleAt"},
		"a clock time that is over at one place": {given: []event.Payload{fixed()}, change: send.Change{LocalTime: "2026-03-01T09:30"}, code: fault.OutOfRange, param: "localTime"},
		"no clock time":                          {given: []event.Payload{fixed()}, change: send.Change{LocalTime: "9:00"}, code: fault.InvalidFormat, param: "localTime"},
		"no priority":                            {given: []event.Payload{fixed()}, change: send.Change{Priority: "loud"}, code: fault.InvalidFormat, param: "priority"},
		"never":                                  {given: []event.Payload{fixed()}, change: send.Change{Repeat: number(0)}, code: fault.OutOfRange, param: "repeat"},
		"too loud":                               {given: []event.Payload{fixed()}, change: send.Change{Volume: number(101)}, code: fault.OutOfRange, param: "volume"},
		"expired at once":                        {given: []event.Payload{fixed()}, change: send.Change{ExpiresIn: seconds(0)}, code: fault.OutOfRange, param: "expiresIn"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			company, env, clock := c.company, c.env, c.now
			if company == "" {
				company = eventtest.Company
			}
			if env == "" {
				env = event.Live
			}
			if clock.IsZero() {
				clock = now
			}
			got, err := load(t, c.given...).Reschedule(company, env, c.change, c.ended, clock)
			require.Equal(t, c.want, got)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.code, c.param)
		})
	}
}

// What was changed is what goes out, and a repeated request for the send still gets what was accepted.
func TestAChangedSendStartsAsItWasChanged(t *testing.T) {
	t.Parallel()
	quiet := terms
	quiet.Volume, quiet.ExpiresIn = 10, 60
	monday := send.Rescheduled{SendID: "snd_one", Terms: quiet, ScheduleAt: due.Add(22 * time.Hour), LocalTime: "2026-03-02T09:00", Times: []send.ZoneTime{{Timezone: "Europe/Berlin", PlayAt: due.Add(22 * time.Hour)}, {Timezone: "UTC", PlayAt: due.Add(23 * time.Hour)}}}
	s := load(t, scheduled(), monday)
	require.Equal(t, quiet, s.Terms)
	require.Empty(t, s.Start(due.Add(2*time.Hour)), "not when it was due before")
	next, more := s.NextDue()
	require.True(t, more)
	require.Equal(t, monday.ScheduleAt.Add(-send.Lead), next)
	started := s.Start(monday.ScheduleAt)
	require.Len(t, started, 1)
	sent := started[0].(send.AudioSent)
	require.Equal(t, "store_002", sent.ExternalID)
	require.Equal(t, 10, sent.Volume)
	require.Equal(t, monday.ScheduleAt.Add(time.Minute), sent.ExpiresAt)
	require.Len(t, s.Start(due.Add(23*time.Hour)), 2)

	again := monday
	again.Times, again.Terms = nil, terms
	require.Equal(t, s.Planned, load(t, scheduled(), monday, again).Planned, "of a change without times all stay as they were")
	moved := load(t, scheduled(), monday, send.Rescheduled{SendID: "snd_one", Terms: quiet, ScheduleAt: due})
	require.Empty(t, moved.LocalTime)
	require.Len(t, moved.Start(due), 2)

	history := eventtest.History(scheduled(), monday)
	accepted, err := send.LoadAccepted(history)
	require.NoError(t, err)
	require.EqualExportedValues(t, load(t, scheduled()), accepted)
	require.Len(t, history, 2)
	history[1].Data = []byte(`{"times": 1}`)
	_, err = send.Load(history)
	require.ErrorContains(t, err, "SendRescheduled of test")
}

// A change to a clock time is one small event, however many locations there are.
func TestTheLargestSendIsChangedByOneSmallEvent(t *testing.T) {
	t.Parallel()
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Asia/Kolkata"}
	to := make([]send.Location, send.MaxDestinations)
	for i := range to {
		to[i] = send.Location{ExternalID: fmt.Sprintf("store_%06d", i), UserID: int64(i + 1), Timezone: zones[i%len(zones)]}
	}
	parts, err := send.Plan("snd_one", terms, send.Request{ScheduleAt: &due}, to, now)
	require.NoError(t, err)
	for _, part := range eventtest.History(parts...) {
		require.Less(t, len(part.Data), 1<<19)
	}
	changed, err := load(t, parts...).Reschedule(eventtest.Company, event.Live, send.Change{LocalTime: "2026-03-03T09:00"}, false, now)
	require.NoError(t, err)
	require.Len(t, changed, 1)
	data, err := json.Marshal(changed[0])
	require.NoError(t, err)
	require.Less(t, len(data), 1<<10)
	s := load(t, append(parts, changed...)...)
	require.Len(t, s.Start(now.AddDate(1, 0, 0)), send.MaxDestinations)
	for _, d := range s.Planned {
		zone, err := time.LoadLocation(d.Timezone)
		require.NoError(t, err)
		require.Equal(t, "2026-03-03T09:00", d.PlayAt.In(zone).Format("2006-01-02T15:04"))
	}
}

// A send that is changed is, from then on, the send that would have been planned so; changing it the same way again decides nothing.
func TestAChangedSendIsOneThatWasPlannedSo(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		to, r := drawn(t)
		if r.ScheduleAt == nil && r.LocalTime == "" {
			r.ScheduleAt = &due
		}
		history, err := send.Plan("snd_one", r.Terms("aud_one"), r, to, now)
		require.NoError(t, err)
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			_, other := drawn(t)
			c := send.Change{ScheduleAt: other.ScheduleAt, LocalTime: other.LocalTime}
			if c.ScheduleAt != nil || c.LocalTime != "" {
				r.ScheduleAt, r.LocalTime = c.ScheduleAt, c.LocalTime
			}
			if rapid.Bool().Draw(t, "volume") {
				volume := rapid.IntRange(0, send.MaxVolume).Draw(t, "percent")
				c.Volume, r.Volume = &volume, &volume
			}
			if rapid.Bool().Draw(t, "priority") {
				c.Priority = rapid.SampledFrom(send.Priorities).Draw(t, "name")
				r.Priority = c.Priority
			}
			changed, err := load(t, history...).Reschedule(eventtest.Company, event.Live, c, false, now)
			require.NoError(t, err)
			history = append(history, changed...)
			again, err := load(t, history...).Reschedule(eventtest.Company, event.Live, c, false, now)
			require.NoError(t, err)
			require.Empty(t, again)
			planned, err := send.Plan("snd_one", r.Terms("aud_one"), r, to, now)
			require.NoError(t, err)
			require.EqualExportedValues(t, load(t, planned...), load(t, history...))
		}
	})
}
