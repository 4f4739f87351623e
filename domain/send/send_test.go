package send_test

import (
	"fmt"
	"testing"
	"time"
	_ "time/tzdata" // as the program has it

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/playback"
	"github.com/musique/musique/domain/send"
)

var (
	now   = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	due   = now.Add(time.Hour)
	terms = send.Terms{AudioID: "aud_one", Priority: "high", Repeat: 2, Volume: 80, ExpiresIn: 600}

	first  = send.Location{ExternalID: "store_001", UserID: 1, Timezone: "UTC"}
	second = send.Location{ExternalID: "store_002", UserID: 2, Timezone: "Europe/Berlin"}
)

// sentTo is the event of a send now; plannedTo that of a scheduled one.
func sentTo(l send.Location, total int) send.AudioSent {
	t := terms
	t.Single = total == 1
	return send.AudioSent{
		SendID: "snd_one", DeliveryID: fmt.Sprintf("dlv_one_%d", l.UserID), Terms: t, Destination: send.Destination{ExternalID: l.ExternalID, UserID: l.UserID},
		Total: total, ExpiresAt: now.Add(10 * time.Minute),
	}
}

func plannedTo(l send.Location, total int, playAt time.Time) send.AudioSent {
	sent := sentTo(l, total)
	sent.PlayAt, sent.ExpiresAt = &playAt, playAt.Add(10*time.Minute)
	return sent
}

func destination(l send.Location, playAt time.Time) send.ScheduledDestination {
	return send.ScheduledDestination{Destination: send.Destination{ExternalID: l.ExternalID, UserID: l.UserID}, PlayAt: playAt, Timezone: l.Timezone}
}

// scheduled is a send to both locations, an hour apart.
func scheduled() send.Scheduled {
	return send.Scheduled{
		SendID: "snd_one", Terms: terms, ScheduleAt: due, LocalTime: "2026-03-01T11:00", Total: 2,
		Destinations: []send.ScheduledDestination{destination(second, due), destination(first, due.Add(time.Hour))},
	}
}

func unsealed(events ...event.Payload) []event.Payload {
	send.Unseal(events)
	return events
}

var (
	sealed    = send.BroadcastSealed{SendID: "snd_one", Total: 2}
	abandoned = send.BroadcastAbandoned{SendID: "snd_one"}
	cancelled = send.Cancelled{SendID: "snd_one"}
)

func load(t require.TestingT, given ...event.Payload) send.Send {
	s, err := send.Load(eventtest.History(given...))
	require.NoError(t, err)
	return s
}

func TestPlanNow(t *testing.T) {
	t.Parallel()
	got, err := send.Plan("snd_one", terms, send.Request{}, []send.Location{first}, now)
	require.NoError(t, err)
	require.Equal(t, []event.Payload{sentTo(first, 1)}, got, "a single send")

	got, err = send.Plan("snd_one", terms, send.Request{}, []send.Location{second, first}, now)
	require.NoError(t, err)
	require.Equal(t, []event.Payload{sentTo(second, 2), sentTo(first, 2)}, got, "a broadcast, in the locations' order")
}

func TestPlanForLater(t *testing.T) {
	t.Parallel()
	berlin := time.FixedZone("", 3600)
	at := due.In(berlin)
	got, err := send.Plan("snd_one", terms, send.Request{ScheduleAt: &at}, []send.Location{first, second}, now)
	require.NoError(t, err)
	require.Equal(t, []event.Payload{send.Scheduled{
		SendID: "snd_one", Terms: terms, ScheduleAt: due, Total: 2, Destinations: []send.ScheduledDestination{destination(first, due), destination(second, due)},
	}}, got)

	got, err = send.Plan("snd_one", terms, send.Request{ScheduleAt: &at}, []send.Location{first}, now)
	require.NoError(t, err)
	require.True(t, got[0].(send.Scheduled).Single)
}

func TestPlanAtAClockTime(t *testing.T) {
	t.Parallel()
	to := []send.Location{
		{ExternalID: "london", UserID: 1, Timezone: "Europe/London"}, {ExternalID: "kathmandu", UserID: 2, Timezone: "Asia/Kathmandu"}, {ExternalID: "honolulu", UserID: 3, Timezone: "Pacific/Honolulu"},
		{ExternalID: "kiritimati", UserID: 4, Timezone: "Pacific/Kiritimati"},
	}
	got, err := send.Plan("snd_one", terms, send.Request{LocalTime: "2026-12-24T09:00"}, to, now)
	require.NoError(t, err)
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 12, day, hour, minute, 0, 0, time.UTC) }
	require.Equal(t, []event.Payload{send.Scheduled{
		SendID: "snd_one", Terms: terms, ScheduleAt: at(23, 19, 0), LocalTime: "2026-12-24T09:00", Total: 4,
		Destinations: []send.ScheduledDestination{
			destination(to[0], at(24, 9, 0)), destination(to[1], at(24, 3, 15)), destination(to[2], at(24, 19, 0)), destination(to[3], at(23, 19, 0)),
		},
	}}, got, "it is due when it is due at the first of them")
}

// RFC 5545 §3.3.5: a clock time that occurs twice is the first of the two, one that does not occur is counted from the offset before the gap.
func TestClockTimesWhereTheClocksChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, local, utc string }{
		{"Europe/Berlin", "2026-03-29T01:59", "2026-03-29T00:59:00Z"},
		{"Europe/Berlin", "2026-03-29T02:00", "2026-03-29T01:00:00Z"}, // skipped: 03:00
		{"Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:30:00Z"}, // skipped: 03:30
		{"Europe/Berlin", "2026-03-29T03:00", "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", "2026-10-25T01:59", "2026-10-24T23:59:00Z"},
		{"Europe/Berlin", "2026-10-25T02:00", "2026-10-25T00:00:00Z"}, // twice
		{"Europe/Berlin", "2026-10-25T02:59", "2026-10-25T00:59:00Z"}, // twice
		{"Europe/Berlin", "2026-10-25T03:00", "2026-10-25T02:00:00Z"},
		{"America/New_York", "2026-03-08T01:59", "2026-03-08T06:59:00Z"},
		{"America/New_York", "2026-03-08T02:30", "2026-03-08T07:30:00Z"}, // skipped: 03:30
		{"America/New_York", "2026-03-08T03:00", "2026-03-08T07:00:00Z"},
		{"America/New_York", "2026-11-01T00:59", "2026-11-01T04:59:00Z"},
		{"America/New_York", "2026-11-01T01:30", "2026-11-01T05:30:00Z"}, // twice
		{"America/New_York", "2026-11-01T02:00", "2026-11-01T07:00:00Z"},
		{"America/Santiago", "2026-09-06T00:30", "2026-09-06T04:30:00Z"},    // skipped at midnight: 01:30 of the same day
		{"America/Santiago", "2026-04-04T23:30", "2026-04-05T02:30:00Z"},    // twice
		{"Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-03T15:45:00Z"}, // half an hour is skipped: 02:45
		{"Australia/Lord_Howe", "2026-04-05T01:45", "2026-04-04T14:45:00Z"}, // half an hour is there twice
		{"Australia/Sydney", "2026-04-05T02:30", "2026-04-04T15:30:00Z"},    // twice
		{"Africa/Casablanca", "2026-03-22T02:30", "2026-03-22T02:30:00Z"},   // the end of Ramadan: 03:30
		{"Asia/Kolkata", "2026-03-29T02:30", "2026-03-28T21:00:00Z"},        // no change
		{"UTC", "2026-03-29T02:30", "2026-03-29T02:30:00Z"},
	} {
		t.Run(c.zone+" "+c.local, func(t *testing.T) {
			t.Parallel()
			before := time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
			got, err := send.Plan("snd_one", terms, send.Request{LocalTime: c.local}, []send.Location{{ExternalID: "store_001", UserID: 1, Timezone: c.zone}}, before)
			require.NoError(t, err)
			require.Equal(t, c.utc, got[0].(send.Scheduled).ScheduleAt.Format(time.RFC3339))
		})
	}
}

// At any clock time in any zone: the clocks there show it, for the first time, or they never do and show a later one.
func TestTheClocksShowTheTime(t *testing.T) {
	t.Parallel()
	zones := []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Africa/Casablanca", "UTC"}
	const layout = "2006-01-02T15:04"
	rapid.Check(t, func(t *rapid.T) {
		zone, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		require.NoError(t, err)
		clock := now.AddDate(0, 0, 2).Add(time.Duration(rapid.IntRange(0, 360*24*4).Draw(t, "quarters")) * 15 * time.Minute)
		got, err := send.Plan("snd_one", terms, send.Request{LocalTime: clock.Format(layout)}, []send.Location{{ExternalID: "a", UserID: 1, Timezone: zone.String()}}, now)
		require.NoError(t, err)
		at := got[0].(send.Scheduled).Destinations[0].PlayAt
		require.Equal(t, time.UTC, at.Location())
		var shown []time.Time // each moment, a quarter of an hour apart, that the clocks show the time at
		for moment := clock.Add(-15 * time.Hour); moment.Before(clock.Add(15 * time.Hour)); moment = moment.Add(15 * time.Minute) {
			if moment.In(zone).Format(layout) == clock.Format(layout) {
				shown = append(shown, moment)
			}
		}
		if len(shown) > 0 {
			require.Equal(t, shown[0], at)
			return
		}
		require.Greater(t, at.In(zone).Format(layout), clock.Format(layout))
	})
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		request send.Request
		to      []send.Location
		want    fault.Code
		param   string
	}{
		"nobody":                          {want: fault.NotFound},
		"nobody, later":                   {request: send.Request{ScheduleAt: &due}, want: fault.NotFound},
		"too many":                        {to: make([]send.Location, send.MaxDestinations+1), want: fault.OutOfRange},
		"a time that is over at one":      {request: send.Request{LocalTime: "2026-03-01T09:30"}, to: []send.Location{first, second}, want: fault.OutOfRange, param: "localTime"},
		"a time that is a year off":       {request: send.Request{LocalTime: "2027-03-02T09:01"}, to: []send.Location{first}, want: fault.OutOfRange, param: "localTime"},
		"a time that is a year off there": {request: send.Request{LocalTime: "2027-03-02T08:30"}, to: []send.Location{first, {ExternalID: "honolulu", UserID: 3, Timezone: "Pacific/Honolulu"}}, want: fault.OutOfRange, param: "localTime"},
		"a time within the minute":        {request: send.Request{LocalTime: "2026-03-01T09:00"}, to: []send.Location{first}, want: fault.OutOfRange, param: "localTime"},
		"no time":                         {request: send.Request{LocalTime: "soon"}, to: []send.Location{first}, want: fault.InvalidFormat, param: "localTime"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := send.Plan("snd_one", terms, c.request, c.to, now)
			require.Empty(t, got)
			eventtest.Refused(t, err, c.want, c.param)
		})
	}
	_, err := send.Plan("snd_one", terms, send.Request{LocalTime: "2026-03-01T11:00"}, []send.Location{{ExternalID: "store_003", Timezone: "Nowhere"}}, now)
	require.ErrorContains(t, err, "time zone of store_003", "a location that was registered has a zone: the partner can do nothing about this")
	require.Equal(t, fault.Internal, fault.CodeOf(err))
}

func TestPlanAtTheLimitsOfTime(t *testing.T) {
	t.Parallel()
	for _, local := range []string{"2026-03-01T09:01", "2027-03-02T09:00"} {
		_, err := send.Plan("snd_one", terms, send.Request{LocalTime: local}, []send.Location{first}, now)
		require.NoError(t, err, local)
	}
}

// The largest broadcast has an event for each location, or is planned in parts that each fit an append.
func TestTheLargestBroadcast(t *testing.T) {
	t.Parallel()
	to := make([]send.Location, send.MaxDestinations)
	for i := range to {
		to[i] = send.Location{ExternalID: fmt.Sprintf("store_%06d", i), UserID: int64(i + 1), Timezone: "UTC"}
	}
	got, err := send.Plan("snd_one", terms, send.Request{}, to, now)
	require.NoError(t, err)
	require.Len(t, got, send.MaxDestinations)

	parts, err := send.Plan("snd_one", terms, send.Request{ScheduleAt: &due}, to, now)
	require.NoError(t, err)
	require.Len(t, parts, 50)
	history := eventtest.History(parts...)
	for _, e := range history {
		require.Less(t, len(e.Data), 1<<19)
	}
	s, err := send.Load(history)
	require.NoError(t, err)
	require.Len(t, s.Planned, send.MaxDestinations)
	require.Equal(t, send.MaxDestinations, s.Total)
	require.Equal(t, due, s.ScheduleAt)
	require.Len(t, s.Start(due), send.MaxDestinations)
}

// drawn makes a send to some locations, now or later, as it can be asked for.
func drawn(t *rapid.T) (to []send.Location, r send.Request) {
	zone := rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Asia/Kolkata"})
	for i := range rapid.IntRange(1, 12).Draw(t, "locations") {
		to = append(to, send.Location{ExternalID: fmt.Sprintf("store_%03d", i), UserID: int64(i + 1), Timezone: zone.Draw(t, "zone")})
	}
	switch rapid.IntRange(0, 2).Draw(t, "when") {
	case 1:
		at := now.Add(time.Duration(rapid.IntRange(60, 86_400).Draw(t, "ahead")) * time.Second)
		r.ScheduleAt = &at
	case 2:
		r.LocalTime = now.AddDate(0, 0, 2).Add(time.Duration(rapid.IntRange(0, 360*24*60).Draw(t, "minutes")) * time.Minute).Format("2006-01-02T15:04")
	}
	return to, r
}

// A plan names each location once, in order, with the total, now or later; what it says when loaded is what was asked for.
func TestAPlanNamesEachLocationOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		to, r := drawn(t)
		events, err := send.Plan("snd_one", terms, r, to, now)
		require.NoError(t, err)
		s := load(t, events...)
		require.Equal(t, len(to), s.Total)
		require.Equal(t, len(to) == 1, s.Terms.Single)
		require.True(t, s.BelongsTo(eventtest.Company, event.Live))
		require.False(t, s.Open)
		later := r.ScheduleAt != nil || r.LocalTime != ""
		require.Equal(t, later, s.Scheduled())
		if !later {
			require.Len(t, events, len(to))
			for i, sent := range s.Sent {
				require.Equal(t, sentTo(to[i], len(to)), sent)
			}
			require.Empty(t, s.Start(now.AddDate(2, 0, 0)), "a send that went out has nothing to start")
			return
		}
		require.Empty(t, s.Sent)
		require.Len(t, s.Planned, len(to))
		earliest := s.Planned[0].PlayAt
		for i, planned := range s.Planned {
			require.Equal(t, to[i].UserID, planned.UserID)
			require.Equal(t, to[i].ExternalID, planned.ExternalID)
			if planned.PlayAt.Before(earliest) {
				earliest = planned.PlayAt
			}
		}
		require.Equal(t, earliest, s.ScheduleAt)
	})
}

func TestStart(t *testing.T) {
	t.Parallel()
	atSecond, atFirst := plannedTo(second, 2, due), plannedTo(first, 2, due.Add(time.Hour))
	atSecond.Single, atFirst.Single = false, false
	for name, c := range map[string]struct {
		given []event.Payload
		now   time.Time
		want  []event.Payload
	}{
		"before its time":                       {given: []event.Payload{scheduled()}, now: due.Add(-send.Lead - 1)},
		"a lead before the first location's":    {given: []event.Payload{scheduled()}, now: due.Add(-send.Lead), want: []event.Payload{atSecond}},
		"when the first has it":                 {given: []event.Payload{scheduled(), atSecond}, now: due},
		"at the second location's time":         {given: []event.Payload{scheduled(), atSecond}, now: due.Add(time.Hour), want: []event.Payload{atFirst}},
		"long after, by a server that was away": {given: []event.Payload{scheduled()}, now: due.Add(24 * time.Hour), want: []event.Payload{atSecond, atFirst}},
		"when all have it":                      {given: []event.Payload{scheduled(), atSecond, atFirst}, now: due.Add(24 * time.Hour)},
		"when it is cancelled":                  {given: []event.Payload{scheduled(), cancelled}, now: due.Add(24 * time.Hour)},
		"when it is cancelled half way":         {given: []event.Payload{scheduled(), atSecond, cancelled}, now: due.Add(24 * time.Hour)},
		"before it is sealed":                   {given: unsealed(scheduled()), now: due.Add(24 * time.Hour)},
		"when it is sealed":                     {given: append(unsealed(scheduled()), sealed), now: due, want: []event.Payload{atSecond}},
		"when it is abandoned":                  {given: append(unsealed(scheduled()), abandoned), now: due.Add(24 * time.Hour)},
		"a send that was not scheduled":         {given: []event.Payload{sentTo(first, 1)}, now: due},
		"a send that there is not":              {now: due},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.want, load(t, c.given...).Start(c.now))
		})
	}
}

func TestNextDue(t *testing.T) {
	t.Parallel()
	atSecond, atFirst := plannedTo(second, 2, due), plannedTo(first, 2, due.Add(time.Hour))
	for name, c := range map[string]struct {
		given []event.Payload
		want  time.Time
	}{
		"at first":           {[]event.Payload{scheduled()}, due.Add(-send.Lead)},
		"then":               {[]event.Payload{scheduled(), atSecond}, due.Add(time.Hour - send.Lead)},
		"in another order":   {[]event.Payload{scheduled(), atFirst}, due.Add(-send.Lead)},
		"at last":            {given: []event.Payload{scheduled(), atSecond, atFirst}},
		"when cancelled":     {given: []event.Payload{scheduled(), cancelled}},
		"of one that is now": {given: []event.Payload{sentTo(first, 1)}},
		"of none":            {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at, ok := load(t, c.given...).NextDue()
			require.Equal(t, c.want, at)
			require.Equal(t, !c.want.IsZero(), ok)
		})
	}
}

// Whatever clocks the schedulers have, and wherever one dies: each planned location gets its audio once and not before its lead, a cancelled send no more of it, and
// NextDue never lets a scheduler come too late.
func TestEachLocationIsStartedOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		to, r := drawn(t)
		if r.ScheduleAt == nil && r.LocalTime == "" {
			r.ScheduleAt = &due
		}
		history, err := send.Plan("snd_one", terms, r, to, now)
		require.NoError(t, err)
		planned := load(t, history...).Planned
		got := map[int64]int{}
		stopped := false
		clock := rapid.Custom(func(t *rapid.T) time.Time {
			at := rapid.SampledFrom(planned).Draw(t, "around").PlayAt
			return at.Add(-send.Lead).Add(time.Duration(rapid.IntRange(-2, 2).Draw(t, "seconds")) * time.Second)
		})
		for range rapid.IntRange(1, 15).Draw(t, "looks") {
			at := clock.Draw(t, "clock")
			s := load(t, history...)
			events := s.Start(at)
			next, more := s.NextDue()
			require.Equal(t, len(events) > 0, more && !next.After(at), "there is something to start if the next is due")
			require.False(t, stopped && len(events) > 0, "after it was cancelled")
			part := events[:rapid.IntRange(0, len(events)).Draw(t, "appended")] // the scheduler dies between appends
			for _, e := range part {
				sent := e.(send.AudioSent)
				got[sent.UserID]++
				require.Equal(t, 1, got[sent.UserID])
				require.False(t, sent.PlayAt.After(at.Add(send.Lead)), "too early")
				require.Equal(t, sent.PlayAt.Add(10*time.Minute), sent.ExpiresAt, "the time to expiry counts from when it is due")
				require.Equal(t, len(to), sent.Total)
			}
			history = append(history, part...)
			if len(part) == len(events) {
				require.Empty(t, load(t, history...).Start(at), "decided twice")
			}
			if !stopped && rapid.IntRange(0, 9).Draw(t, "cancel") == 0 {
				called, err := load(t, history...).Cancel(eventtest.Company, event.Live, false)
				require.NoError(t, err)
				history, stopped = append(history, called...), true
			}
		}
		s := load(t, history...)
		history = append(history, s.Start(now.AddDate(2, 0, 0))...)
		if stopped {
			require.Len(t, load(t, history...).Sent, len(got))
			return
		}
		var sent, all []int64
		for _, one := range load(t, history...).Sent {
			sent = append(sent, one.UserID)
		}
		for _, l := range to {
			all = append(all, l.UserID)
		}
		require.ElementsMatch(t, all, sent)
		_, more := load(t, history...).NextDue()
		require.False(t, more)
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given   []event.Payload
		company string
		env     event.Environment
		ended   bool
		want    []event.Payload
		code    fault.Code
	}{
		"a scheduled send":                {given: []event.Payload{scheduled()}, want: []event.Payload{cancelled}},
		"a queued send":                   {given: []event.Payload{sentTo(first, 1)}, want: []event.Payload{cancelled}},
		"a sealed broadcast":              {given: append(unsealed(sentTo(first, 2), sentTo(second, 2)), sealed), want: []event.Payload{cancelled}},
		"a finished send":                 {given: []event.Payload{sentTo(first, 1)}, ended: true, code: fault.Conflict},
		"a cancelled send":                {given: []event.Payload{scheduled(), cancelled}, code: fault.Conflict},
		"a send that there is not":        {code: fault.NotFound},
		"an abandoned broadcast":          {given: append(unsealed(sentTo(first, 2)), abandoned), code: fault.NotFound},
		"another company's send":          {given: []event.Payload{scheduled()}, company: "co_two", code: fault.NotFound},
		"another company's ended send":    {given: []event.Payload{scheduled(), cancelled}, company: "co_two", ended: true, code: fault.NotFound},
		"a send of the other environment": {given: []event.Payload{scheduled()}, env: event.Test, code: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			company, env := c.company, c.env
			if company == "" {
				company = eventtest.Company
			}
			if env == "" {
				env = event.Live
			}
			got, err := load(t, c.given...).Cancel(company, env, c.ended)
			require.Equal(t, c.want, got)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.code, "")
		})
	}
}

func TestALargeBroadcastCountsWhenItIsSealed(t *testing.T) {
	t.Parallel()
	parts := unsealed(sentTo(first, 2), sentTo(second, 2))
	for _, p := range parts {
		require.True(t, p.(send.AudioSent).Unsealed)
	}
	require.True(t, load(t, parts[0]).Open)
	require.True(t, load(t, parts...).Open)
	s := load(t, append(parts, sealed)...)
	require.False(t, s.Open)
	require.Len(t, s.Sent, 2)
	require.Equal(t, 2, s.Total)

	plan := unsealed(scheduled())
	require.True(t, plan[0].(send.Scheduled).Unsealed)
	require.True(t, load(t, plan...).Open)
	require.False(t, load(t, append(plan, sealed)...).Open)
}

func TestWhatStandsBeforeAnAbandonmentCountsForNothing(t *testing.T) {
	t.Parallel()
	parts := unsealed(sentTo(first, 2), sentTo(second, 2))
	require.Equal(t, send.Send{}, load(t, parts[0], abandoned))

	history := eventtest.History(parts[0], abandoned, parts[0], parts[1], sealed)
	s, err := send.Load(history)
	require.NoError(t, err)
	require.False(t, s.Open)
	require.Len(t, s.Sent, 2)
	require.Equal(t, history[2].Metadata.Time, s.AcceptedAt, "a request that is repeated begins the send again")

	require.Len(t, load(t, append(unsealed(scheduled()), abandoned, scheduled())...).Planned, 2)
}

func TestUnsealMarksOnlyParts(t *testing.T) {
	t.Parallel()
	events := []event.Payload{sealed, abandoned, cancelled}
	require.Equal(t, []event.Payload{sealed, abandoned, cancelled}, unsealed(events...))
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.False(t, load(t).Exists())
	s := load(t, scheduled(), plannedTo(second, 2, due), cancelled)
	require.EqualExportedValues(t, send.Send{
		ID: "snd_one", CompanyID: eventtest.Company, Environment: event.Live, AcceptedAt: eventtest.Begin, Terms: terms, Total: 2, ScheduleAt: due, LocalTime: "2026-03-01T11:00",
		Planned: scheduled().Destinations, Sent: []send.AudioSent{plannedTo(second, 2, due)}, Cancelled: true,
	}, s)
	require.Equal(t, "send-snd_one", send.Stream("snd_one"))

	for _, p := range []event.Payload{scheduled(), sentTo(first, 1)} {
		history := eventtest.History(p)
		history[0].Data = []byte(`{"total": "two"}`)
		_, err := send.Load(history)
		require.ErrorContains(t, err, p.EventType()+" of test")
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	bad := func(param string, code fault.Code) []eventtest.Field {
		return []eventtest.Field{{Param: param, Code: code}}
	}
	for name, c := range map[string]struct {
		targets send.Targets
		want    []eventtest.Field
	}{
		"some":               {targets: send.Targets{ExternalIDs: []string{"store_001"}}},
		"all":                {targets: send.Targets{All: true}},
		"by tag":             {targets: send.Targets{Tags: []string{"north"}}},
		"100,000":            {targets: send.Targets{ExternalIDs: make([]string, send.MaxDestinations)}},
		"100,001":            {send.Targets{ExternalIDs: make([]string, send.MaxDestinations+1)}, bad("externalIds", fault.OutOfRange)},
		"none":               {send.Targets{}, bad("externalIds", fault.MissingField)},
		"no external ID":     {send.Targets{ExternalIDs: []string{}}, bad("externalIds", fault.OutOfRange)},
		"no tag":             {send.Targets{Tags: []string{}}, bad("tags", fault.OutOfRange)},
		"some and all":       {send.Targets{ExternalIDs: []string{"store_001"}, All: true}, bad("externalIds", fault.InvalidFormat)},
		"all and by tag":     {send.Targets{All: true, Tags: []string{"north"}}, bad("externalIds", fault.InvalidFormat)},
		"some and by no tag": {send.Targets{ExternalIDs: []string{"store_001"}, Tags: []string{}}, bad("externalIds", fault.InvalidFormat)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields fault.Fields
			c.targets.Check(&fields)
			eventtest.Failing(t, fields, c.want...)
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	bad := func(param string, code fault.Code) []eventtest.Field {
		return []eventtest.Field{{Param: param, Code: code}}
	}
	at := func(ahead time.Duration) *time.Time { at := now.Add(ahead); return &at }
	number, seconds := func(n int) *int { return &n }, func(n int64) *int64 { return &n }
	for name, c := range map[string]struct {
		request send.Request
		want    []eventtest.Field
	}{
		"nothing more":            {},
		"all of it":               {request: send.Request{ScheduleAt: at(time.Hour), Priority: "urgent", Repeat: number(10), Volume: number(0), ExpiresIn: seconds(1)}},
		"low":                     {request: send.Request{Priority: "low"}},
		"normal":                  {request: send.Request{Priority: "normal"}},
		"high":                    {request: send.Request{Priority: "high"}},
		"another priority":        {send.Request{Priority: "URGENT"}, bad("priority", fault.InvalidFormat)},
		"never":                   {send.Request{Repeat: number(0)}, bad("repeat", fault.OutOfRange)},
		"eleven times":            {send.Request{Repeat: number(11)}, bad("repeat", fault.OutOfRange)},
		"full volume":             {request: send.Request{Volume: number(100)}},
		"too loud":                {send.Request{Volume: number(101)}, bad("volume", fault.OutOfRange)},
		"less than silent":        {send.Request{Volume: number(-1)}, bad("volume", fault.OutOfRange)},
		"expired at once":         {send.Request{ExpiresIn: seconds(0)}, bad("expiresIn", fault.OutOfRange)},
		"the longest wait":        {request: send.Request{ExpiresIn: seconds(send.MaxExpiresIn)}},
		"too long a wait":         {send.Request{ExpiresIn: seconds(send.MaxExpiresIn + 1)}, bad("expiresIn", fault.OutOfRange)},
		"in a minute":             {request: send.Request{ScheduleAt: at(time.Minute)}},
		"in less than a minute":   {send.Request{ScheduleAt: at(time.Minute - 1)}, bad("scheduleAt", fault.OutOfRange)},
		"in the past":             {send.Request{ScheduleAt: at(-time.Hour)}, bad("scheduleAt", fault.OutOfRange)},
		"in a year":               {request: send.Request{ScheduleAt: at(366 * 24 * time.Hour)}},
		"in more than a year":     {send.Request{ScheduleAt: at(366*24*time.Hour + 1)}, bad("scheduleAt", fault.OutOfRange)},
		"at a clock time":         {request: send.Request{LocalTime: "2026-12-24T09:00"}},
		"at two times":            {send.Request{ScheduleAt: at(time.Hour), LocalTime: "2026-12-24T09:00"}, bad("localTime", fault.InvalidFormat)},
		"at an hour of one digit": {send.Request{LocalTime: "2026-12-24T9:00"}, bad("localTime", fault.InvalidFormat)},
		"at a second":             {send.Request{LocalTime: "2026-12-24T09:00:00"}, bad("localTime", fault.InvalidFormat)},
		"at an offset":            {send.Request{LocalTime: "2026-12-24T09:00Z"}, bad("localTime", fault.InvalidFormat)},
		"on a day that is not":    {send.Request{LocalTime: "2026-02-29T09:00"}, bad("localTime", fault.InvalidFormat)},
		"at an hour that is not":  {send.Request{LocalTime: "2026-12-24T24:00"}, bad("localTime", fault.InvalidFormat)},
		"on a day":                {send.Request{LocalTime: "2026-12-24"}, bad("localTime", fault.InvalidFormat)},
		"everything wrong": {send.Request{ScheduleAt: at(0), LocalTime: "soon", Priority: "x", Repeat: number(-1), Volume: number(1_000), ExpiresIn: seconds(-1)}, []eventtest.Field{
			{Param: "priority", Code: fault.InvalidFormat}, {Param: "repeat", Code: fault.OutOfRange}, {Param: "volume", Code: fault.OutOfRange}, {Param: "expiresIn", Code: fault.OutOfRange},
			{Param: "localTime", Code: fault.InvalidFormat}, {Param: "scheduleAt", Code: fault.OutOfRange}, {Param: "localTime", Code: fault.InvalidFormat}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.request.Targets.All = true
			var fields fault.Fields
			c.request.Check(now, &fields)
			eventtest.Failing(t, fields, c.want...)
		})
	}
	var fields fault.Fields
	send.Request{}.Check(now, &fields)
	eventtest.Failing(t, fields, eventtest.Field{Param: "externalIds", Code: fault.MissingField})
}

func TestTerms(t *testing.T) {
	t.Parallel()
	require.Equal(t, send.Terms{AudioID: "aud_one", Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 86_400}, send.Request{}.Terms("aud_one"), "the defaults of the contract")
	repeat, volume, wait := 3, 0, int64(60)
	require.Equal(t, send.Terms{AudioID: "aud_one", Priority: "low", Repeat: 3, Volume: 0, ExpiresIn: 60},
		send.Request{Priority: "low", Repeat: &repeat, Volume: &volume, ExpiresIn: &wait}.Terms("aud_one"))
}

// FuzzLocalTime: a clock time that is accepted is written as it will be shown, and is refused nowhere but for being too near or too far.
func FuzzLocalTime(f *testing.F) {
	for _, local := range []string{"2026-12-24T09:00", "2026-12-24T9:00", "2026-02-29T09:00", "2026-12-24T09:00Z", "2026-12-24T24:00", "0000-01-01T00:00", "9999-12-31T23:59", "", "2026-12-24T09:00\x00"} {
		f.Add(local)
	}
	var to []send.Location
	for i, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"} {
		to = append(to, send.Location{ExternalID: zone, UserID: int64(i + 1), Timezone: zone})
	}
	f.Fuzz(func(t *testing.T, local string) {
		if local == "" {
			return // not given
		}
		var fields fault.Fields
		r := send.Request{Targets: send.Targets{All: true}, LocalTime: local}
		r.Check(now, &fields)
		events, err := send.Plan("snd_one", terms, r, to, now)
		if len(fields) > 0 {
			eventtest.Refused(t, err, fault.InvalidFormat, "localTime")
			return
		}
		clock, parseErr := time.Parse("2006-01-02T15:04", local)
		require.NoError(t, parseErr)
		require.Equal(t, local, clock.Format("2006-01-02T15:04"))
		if err != nil {
			eventtest.Refused(t, err, fault.OutOfRange, "localTime")
			return
		}
		for _, d := range events[0].(send.Scheduled).Destinations {
			require.False(t, d.PlayAt.Before(now.Add(send.MinAhead)) || d.PlayAt.After(now.Add(send.MaxAhead)))
			require.InDelta(t, clock.Unix(), d.PlayAt.Unix(), (14 * time.Hour).Seconds())
		}
	})
}

// The priorities of a send are those that players know, in the same order.
func TestPriorities(t *testing.T) {
	t.Parallel()
	for i, name := range send.Priorities {
		p, ok := playback.ParsePriority(name)
		require.True(t, ok, name)
		require.Equal(t, playback.Priority(i), p)
	}
	require.Contains(t, send.Priorities, send.DefaultPriority)
}
