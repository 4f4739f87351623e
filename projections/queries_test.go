package projections

import (
	"fmt"
	"math"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/readmodel"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/usagelogs"
)

// walk reads a list to its end in pages of two.
func walk[T any](t *testing.T, page func(cursor string, limit int) ([]T, string, error)) []T {
	t.Helper()
	var all []T
	for cursor := ""; ; {
		items, next, err := page(cursor, 2)
		require.NoError(t, err)
		require.LessOrEqual(t, len(items), 2)
		all = append(all, items...)
		if next == "" {
			return all
		}
		require.Len(t, items, 2)
		cursor = next
	}
}

func names[T any](items []T, name func(T) string) []string {
	out := []string{}
	for _, i := range items {
		out = append(out, name(i))
	}
	return out
}

func TestTheAudioLibrary(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	var history []event.Payload
	for i := range 5 {
		u := upload(fmt.Sprint("aud_", i))
		u.Name = fmt.Sprintf("Sale 10%% off_%d", i)
		if i%2 == 1 {
			u.Category, u.Format = "promotion", "wav"
		}
		history = append(history, u)
	}
	ref := delivery.Ref{SendID: "snd_1", UserID: 1, AudioID: "aud_1"}
	terms := send.Terms{AudioID: "aud_1", Priority: "normal"}
	history = append(history, audio.Deleted{AudioID: "aud_2"},
		send.AudioSent{SendID: "snd_1", Terms: terms, Destination: send.Destination{UserID: 1}, Total: 1, ExpiresAt: epoch},
		send.AudioSent{SendID: "snd_2", Terms: terms, Destination: send.Destination{UserID: 1}, Total: 2, ExpiresAt: epoch, Unsealed: true},
		send.AudioSent{SendID: "snd_2", Terms: terms, Destination: send.Destination{UserID: 2}, Total: 2, ExpiresAt: epoch, Unsealed: true},
		send.AudioSent{SendID: "snd_3", Terms: terms, Destination: send.Destination{UserID: 3}, Total: 2, ExpiresAt: epoch, Unsealed: true},
		send.BroadcastSealed{SendID: "snd_2", Total: 2},
		delivery.Played{Ref: ref, At: epoch.Add(time.Minute)}, delivery.Played{Ref: ref, At: epoch})
	apply(t, pool, entries(history...))

	list := func(f audiolibrary.Filter) []string {
		return names(walk(t, func(cursor string, limit int) ([]audiolibrary.Item, string, error) {
			return audiolibrary.List(ctx, pool, "co_one", event.Live, f, cursor, limit)
		}), func(i audiolibrary.Item) string { return i.AudioID })
	}
	after, before := epoch.Add(time.Hour), epoch.Add(4*time.Hour)
	require.Equal(t, []string{"aud_4", "aud_3", "aud_1", "aud_0"}, list(audiolibrary.Filter{}))
	require.Equal(t, []string{"aud_3", "aud_1"}, list(audiolibrary.Filter{Category: "promotion"}))
	require.Equal(t, []string{"aud_4", "aud_0"}, list(audiolibrary.Filter{Format: "mp3"}))
	require.Equal(t, []string{"aud_3"}, list(audiolibrary.Filter{Query: "10% OFF_3"}))
	require.Empty(t, list(audiolibrary.Filter{Query: "_0%"}), "wildcards are characters")
	require.Equal(t, []string{"aud_3"}, list(audiolibrary.Filter{CreatedAfter: &after, CreatedBefore: &before}))

	item, err := audiolibrary.Get(ctx, pool, "co_one", event.Live, "aud_1")
	require.NoError(t, err)
	require.EqualValues(t, 2, item.Stats.TimesPlayed)
	require.EqualValues(t, 3, item.Stats.TotalRecipients, "one of a send, two of a sealed one, none of an unsealed one")
	require.Equal(t, epoch.Add(time.Minute), item.Stats.LastPlayedAt.UTC())
	for _, other := range [][2]string{{"co_two", "aud_1"}, {"co_one", "aud_2"}, {"co_one", "none"}} {
		_, err = audiolibrary.Get(ctx, pool, other[0], event.Live, other[1])
		require.Equal(t, fault.NotFound, fault.CodeOf(err))
	}
	_, err = audiolibrary.Get(ctx, pool, "co_one", event.Test, "aud_1")
	require.Equal(t, fault.NotFound, fault.CodeOf(err))

	used, err := NewReads(pool, NewPositions(pool, quiet)).Quota(ctx, "co_one", event.Live, epoch)
	require.NoError(t, err)
	require.Equal(t, commands.Used{Sends: 2, Uploads: 5, StorageBytes: 40}, used)
	used, err = NewReads(pool, NewPositions(pool, quiet)).Quota(ctx, "co_one", event.Live, epoch.AddDate(0, 1, 0))
	require.NoError(t, err)
	require.Equal(t, commands.Used{StorageBytes: 40}, used, "what is stored stays, what is counted begins anew")
}

func TestLocationsAndWhoIsThere(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	register := func(user int64, tags ...string) location.Registered {
		return location.Registered{CompanyID: "co_one", ExternalID: fmt.Sprint("store_", user), UserID: user, Name: fmt.Sprint("Shop ", user), Timezone: "Europe/Berlin", Tags: tags, Channel: location.Channel{Type: "player"}}
	}
	apply(t, pool, entries(register(1, "north", `odd "tag", \ {}`), register(2, "south"), register(3, "north", "south"), register(4), location.Removed{CompanyID: "co_one", ExternalID: "store_4", UserID: 4},
		location.Changed{CompanyID: "co_one", ExternalID: "store_2", UserID: 2, Name: "Kiosk", Timezone: "UTC", Tags: []string{}, Channel: location.Channel{Type: "http", URL: "https://x"}},
		location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "store_1", UserID: 1, DeviceID: "dvc_1", Name: "bar", Hash: "h"}))
	now := epoch
	yes, no := true, false
	list := func(f locations.Filter) []string {
		return names(walk(t, func(cursor string, limit int) ([]locations.Location, string, error) {
			return locations.List(ctx, pool, "co_one", event.Live, f, cursor, limit, now)
		}), func(l locations.Location) string { return l.ExternalID })
	}
	require.Equal(t, []string{"store_3", "store_2", "store_1"}, list(locations.Filter{}))
	require.Equal(t, []string{"store_3", "store_1"}, list(locations.Filter{Tag: "north"}))
	require.Equal(t, []string{"store_2"}, list(locations.Filter{Query: "kIOs"}))
	require.Equal(t, []string{"store_1"}, list(locations.Filter{Query: "store_1"}))
	l, err := locations.Get(ctx, pool, "co_one", event.Live, "store_1", now)
	require.NoError(t, err)
	require.Equal(t, []string{"north", `odd "tag", \ {}`}, l.Tags)
	require.False(t, l.Online)
	require.Nil(t, l.LastSeenAt)
	_, err = locations.Get(ctx, pool, "co_one", event.Live, "store_4", now)
	require.Equal(t, fault.NotFound, fault.CodeOf(err))

	one, two := locations.Stream{ID: "s1", CompanyID: "co_one", Environment: event.Live, UserID: 1}, locations.Stream{ID: "s2", CompanyID: "co_one", Environment: event.Live, UserID: 1}
	require.NoError(t, locations.Beat(ctx, pool, nil, now))
	require.NoError(t, locations.Beat(ctx, pool, []locations.Stream{one, two, one}, now))
	require.Equal(t, []string{"store_1"}, list(locations.Filter{Online: &yes}))
	require.Equal(t, []string{"store_3", "store_2"}, list(locations.Filter{Online: &no}))
	now = now.Add(5 * time.Second)
	require.NoError(t, locations.Leave(ctx, pool, one, now))
	require.Equal(t, []string{"store_1"}, list(locations.Filter{Online: &yes}), "its other player is there")
	require.NoError(t, locations.Leave(ctx, pool, two, now))
	require.Empty(t, list(locations.Filter{Online: &yes}))
	l, err = locations.Get(ctx, pool, "co_one", event.Live, "store_1", now)
	require.NoError(t, err)
	require.Equal(t, now, l.LastSeenAt.UTC())
	require.NoError(t, locations.Beat(ctx, pool, []locations.Stream{one}, now))
	now = now.Add(4 * locations.BeatEvery)
	require.Empty(t, list(locations.Filter{Online: &yes}), "the process that held its stream died")
	now = now.Add(2 * time.Hour)
	require.NoError(t, locations.Beat(ctx, pool, []locations.Stream{two}, now))
	var streams int
	require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM presence.stream").Scan(&streams))
	require.Equal(t, 1, streams, "the dead stream is forgotten")

	devices, err := locations.Devices(ctx, pool, "co_one", event.Live, "store_1")
	require.NoError(t, err)
	require.Equal(t, []string{"bar"}, names(devices, func(d locations.Device) string { return d.Name }))
	devices, err = locations.Devices(ctx, pool, "co_one", event.Live, "store_2")
	require.NoError(t, err)
	require.Empty(t, devices)
	_, err = locations.Devices(ctx, pool, "co_one", event.Live, "store_4")
	require.Equal(t, fault.NotFound, fault.CodeOf(err))

	reads := NewReads(pool, NewPositions(pool, quiet))
	to := func(targets send.Targets) ([]string, []string) {
		found, unknown, err := reads.Destinations(ctx, "co_one", event.Live, targets)
		require.NoError(t, err)
		return names(found, func(l send.Location) string { return fmt.Sprint(l.ExternalID, " ", l.UserID, " ", l.Timezone) }), unknown
	}
	found, unknown := to(send.Targets{ExternalIDs: []string{"store_3", "b", "store_1", "b", "store_3", "a"}})
	require.Equal(t, []string{"store_1 1 Europe/Berlin", "store_3 3 Europe/Berlin"}, found)
	require.Equal(t, []string{"b", "a"}, unknown)
	found, unknown = to(send.Targets{All: true})
	require.Equal(t, []string{"store_1 1 Europe/Berlin", "store_2 2 UTC", "store_3 3 Europe/Berlin"}, found)
	require.Empty(t, unknown)
	found, _ = to(send.Targets{Tags: []string{"south", "nowhere"}})
	require.Equal(t, []string{"store_3 3 Europe/Berlin"}, found)
}

func TestSendsAndTheirDeliveries(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	terms := send.Terms{AudioID: "aud_1", Priority: "high", Repeat: 2, Volume: 50, ExpiresIn: 60}
	sent := func(sendID string, user int64, total int, unsealed bool) send.AudioSent {
		return send.AudioSent{SendID: sendID, DeliveryID: delivery.ID(sendID, user), Terms: terms, Destination: send.Destination{ExternalID: fmt.Sprint("store_", user), UserID: user}, Total: total, ExpiresAt: epoch.Add(time.Hour), Unsealed: unsealed}
	}
	ref := func(sendID string, user int64) delivery.Ref {
		return delivery.Ref{DeliveryID: delivery.ID(sendID, user), SendID: sendID, AudioID: "aud_1", ExternalID: fmt.Sprint("store_", user), UserID: user}
	}
	scheduled := func(sendID string) send.Scheduled {
		return send.Scheduled{SendID: sendID, Terms: terms, ScheduleAt: epoch, Total: 1, Destinations: []send.ScheduledDestination{{Destination: send.Destination{ExternalID: "store_1", UserID: 1}, PlayAt: epoch}}}
	}
	apply(t, pool, entries(
		sent("snd_half", 1, 2, false), sent("snd_half", 2, 2, false), delivery.Delivered{Ref: ref("snd_half", 1), At: epoch}, delivery.Played{Ref: ref("snd_half", 1), At: epoch.Add(2 * time.Second)},
		delivery.PlaybackStarted{Ref: ref("snd_half", 1), At: epoch.Add(time.Second)},
		sent("snd_done", 1, 2, false), sent("snd_done", 2, 2, false), delivery.Played{Ref: ref("snd_done", 1), At: epoch}, delivery.Failed{Ref: ref("snd_done", 2), At: epoch, Reason: "no speaker"},
		sent("snd_lost", 1, 1, false), delivery.Expired{Ref: ref("snd_lost", 1), At: epoch}, delivery.Delivered{Ref: ref("snd_lost", 1), At: epoch},
		sent("snd_gone", 1, 1, false), delivery.Cancelled{Ref: ref("snd_gone", 1), At: epoch, Reason: "the location was removed"},
		scheduled("snd_later"), scheduled("snd_off"), send.Cancelled{SendID: "snd_off"},
		sent("snd_parts", 1, 2, true),
		sent("snd_refused", 1, 1, false), send.Cancelled{SendID: "snd_refused", Refused: true}, delivery.Cancelled{Ref: ref("snd_refused", 1), At: epoch},
	))
	list := func(f sends.Filter) []string {
		return names(walk(t, func(cursor string, limit int) ([]sends.Send, string, error) {
			return sends.List(ctx, pool, "co_one", event.Live, f, cursor, limit)
		}), func(s sends.Send) string { return s.SendID + " " + s.Status })
	}
	require.Equal(t, []string{"snd_off cancelled", "snd_later scheduled", "snd_gone cancelled", "snd_lost failed", "snd_done sent", "snd_half queued"}, list(sends.Filter{}), "the one in parts was not accepted, and the refused one neither")
	used, err := NewReads(pool, NewPositions(pool, quiet)).Quota(ctx, "co_one", event.Live, epoch)
	require.NoError(t, err)
	require.EqualValues(t, 6, used.Sends)
	require.Equal(t, []string{"snd_lost failed"}, list(sends.Filter{Status: "failed"}))
	require.Empty(t, list(sends.Filter{AudioID: "aud_2"}))
	half, err := sends.Get(ctx, pool, "co_one", event.Live, "snd_half")
	require.NoError(t, err)
	require.Equal(t, terms, half.Terms)
	require.Equal(t, sends.Counts{Queued: 1, Played: 1}, half.Counts)
	for _, other := range [][2]string{{"co_two", "snd_half"}, {"co_one", "snd_parts"}, {"co_one", "snd_refused"}} {
		_, err = sends.Get(ctx, pool, other[0], event.Live, other[1])
		require.Equal(t, fault.NotFound, fault.CodeOf(err))
		_, _, err = sends.Deliveries(ctx, pool, other[0], event.Live, other[1], "", "", 10)
		require.Equal(t, fault.NotFound, fault.CodeOf(err))
	}

	deliveries, next, err := sends.Deliveries(ctx, pool, "co_one", event.Live, "snd_half", "", "", 1)
	require.NoError(t, err)
	require.Equal(t, "played", deliveries[0].Status, "a late report does not move it back")
	require.Equal(t, epoch.Add(time.Second), deliveries[0].PlayingAt.UTC(), "and what it says is kept")
	deliveries, next, err = sends.Deliveries(ctx, pool, "co_one", event.Live, "snd_half", "", next, 1)
	require.NoError(t, err)
	require.Empty(t, next)
	require.Equal(t, "dlv_half_2", deliveries[0].DeliveryID())
	deliveries, _, err = sends.Deliveries(ctx, pool, "co_one", event.Live, "snd_half", "queued", "", 10)
	require.NoError(t, err)
	require.Len(t, deliveries, 1)

	got, d, found, err := sends.FindDelivery(ctx, pool, "co_one", event.Live, "dlv_done_2")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, ref("snd_done", 2), got)
	require.Equal(t, "no speaker", *d.Reason)
	for _, id := range []string{"dlv_parts_1", "dlv_done_9", "dlv_refused_1", "nonsense"} {
		_, _, found, err = sends.FindDelivery(ctx, pool, "co_one", event.Live, id)
		require.NoError(t, err)
		require.False(t, found, id)
	}

	reads := NewReads(pool, NewPositions(pool, quiet))
	ever := event.Position{Commit: math.MaxInt64}
	pending, err := reads.PendingSends(ctx, "co_one", event.Live, "aud_1", ever)
	require.NoError(t, err)
	require.Equal(t, []string{"snd_half", "snd_later", "snd_parts"}, pending)
	var later event.Position
	require.NoError(t, pool.QueryRow(ctx, "SELECT position FROM sends.send WHERE send_id = 'snd_later'").Scan(&later.Commit))
	pending, err = reads.PendingSends(ctx, "co_one", event.Live, "aud_1", later)
	require.NoError(t, err)
	require.Equal(t, []string{"snd_half"}, pending)
	for id, want := range map[string]bool{"snd_half": false, "snd_done": true, "snd_off": true, "none": false} {
		ended, err := reads.SendEnded(ctx, id)
		require.NoError(t, err)
		require.Equal(t, want, ended, id)
	}
	open, err := reads.OpenDeliveries(ctx, "co_one", event.Live, 1, ever)
	require.NoError(t, err)
	require.Equal(t, []delivery.Ref{ref("snd_later", 1), ref("snd_parts", 1)}, open)
	open, err = reads.OpenDeliveries(ctx, "co_one", event.Live, 1, later)
	require.NoError(t, err)
	require.Empty(t, open)
}

// A change moves what is still to come, whichever way its times are told, and nothing else.
func TestAChangedSend(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	terms := send.Terms{AudioID: "aud_1", Priority: "high", Repeat: 2, Volume: 50, ExpiresIn: 60}
	other := send.Terms{AudioID: "aud_1", Priority: "low", Repeat: 1, Volume: 0, ExpiresIn: 30}
	to := func(user int64, zone string) send.ScheduledDestination {
		return send.ScheduledDestination{Destination: send.Destination{ExternalID: fmt.Sprint("store_", user), UserID: user}, PlayAt: epoch.Add(time.Hour), Timezone: zone}
	}
	var history []event.Payload
	for _, id := range []string{"snd_time", "snd_clock", "snd_terms", "snd_not"} {
		history = append(history, send.Scheduled{SendID: id, Terms: terms, ScheduleAt: epoch.Add(time.Hour), LocalTime: "2026-03-01T11:00", Total: 3,
			Destinations: []send.ScheduledDestination{to(1, "UTC"), to(2, "Europe/Berlin"), to(3, "UTC")}})
		history = append(history, delivery.Cancelled{Ref: delivery.Ref{SendID: id, UserID: 3}, At: epoch, Reason: "the location was removed"})
	}
	later := func(hours int) time.Time { return epoch.Add(time.Duration(hours) * time.Hour) }
	history = append(history,
		send.Rescheduled{SendID: "snd_time", Terms: other, ScheduleAt: later(5)},
		send.Rescheduled{SendID: "snd_clock", Terms: other, ScheduleAt: later(6), LocalTime: "2026-03-01T16:00", Times: []send.ZoneTime{{Timezone: "Europe/Berlin", PlayAt: later(6)}, {Timezone: "UTC", PlayAt: later(7)}}},
		send.Rescheduled{SendID: "snd_terms", Terms: other, ScheduleAt: later(1), LocalTime: "2026-03-01T11:00"})
	apply(t, pool, entries(history...))
	for id, want := range map[string]struct {
		terms     send.Terms
		at        time.Time
		localTime string
		playAt    [3]time.Time
	}{
		"snd_time":  {other, later(5), "", [3]time.Time{later(5), later(5), later(1)}},
		"snd_clock": {other, later(6), "2026-03-01T16:00", [3]time.Time{later(7), later(6), later(1)}},
		"snd_terms": {other, later(1), "2026-03-01T11:00", [3]time.Time{later(1), later(1), later(1)}},
		"snd_not":   {terms, later(1), "2026-03-01T11:00", [3]time.Time{later(1), later(1), later(1)}},
	} {
		s, err := sends.Get(ctx, pool, "co_one", event.Live, id)
		require.NoError(t, err)
		require.Equal(t, want.terms, s.Terms, id)
		require.Equal(t, want.at, s.ScheduleAt.UTC(), id)
		require.Equal(t, want.localTime, s.LocalTime, id)
		require.Equal(t, "scheduled", s.Status, id)
		deliveries, _, err := sends.Deliveries(ctx, pool, "co_one", event.Live, id, "", "", 10)
		require.NoError(t, err)
		for i, d := range deliveries {
			require.Equal(t, want.playAt[i], d.PlayAt.UTC(), "%s %d", id, i)
		}
	}
}

func TestSendsByTime(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	var history []event.Payload
	for i := range 6 { // made an hour after each other; those of an even number are scheduled, the later the earlier
		terms := send.Terms{AudioID: fmt.Sprint("aud_", i%3), Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 60}
		to := send.Destination{ExternalID: "store_1", UserID: 1}
		id := fmt.Sprint("snd_", i)
		if i%2 == 1 {
			history = append(history, send.AudioSent{SendID: id, Terms: terms, Destination: to, Total: 1, ExpiresAt: epoch})
			continue
		}
		at := epoch.Add(time.Duration(100-i) * time.Hour)
		history = append(history, send.Scheduled{SendID: id, Terms: terms, ScheduleAt: at, Total: 1, Destinations: []send.ScheduledDestination{{Destination: to, PlayAt: at}}})
	}
	history = append(history, send.Cancelled{SendID: "snd_2"})
	apply(t, pool, entries(history...))
	hour := func(n int) *time.Time {
		at := epoch.Add(time.Duration(n) * time.Hour)
		return &at
	}
	for name, c := range map[string]struct {
		filter sends.Filter
		want   []string
	}{
		"all":                              {want: []string{"snd_5", "snd_4", "snd_3", "snd_2", "snd_1", "snd_0"}},
		"made after one":                   {sends.Filter{CreatedAfter: hour(2)}, []string{"snd_5", "snd_4", "snd_3"}},
		"made before one":                  {sends.Filter{CreatedBefore: hour(2)}, []string{"snd_1", "snd_0"}},
		"made between":                     {sends.Filter{CreatedAfter: hour(0), CreatedBefore: hour(4)}, []string{"snd_3", "snd_2", "snd_1"}},
		"scheduled, the latest first":      {sends.Filter{ScheduledAfter: hour(0)}, []string{"snd_0", "snd_2", "snd_4"}},
		"scheduled before one":             {sends.Filter{ScheduledBefore: hour(98)}, []string{"snd_4"}},
		"scheduled between":                {sends.Filter{ScheduledAfter: hour(96), ScheduledBefore: hour(100)}, []string{"snd_2"}},
		"scheduled and made":               {sends.Filter{ScheduledAfter: hour(0), CreatedAfter: hour(0)}, []string{"snd_2", "snd_4"}},
		"scheduled and not cancelled":      {sends.Filter{ScheduledAfter: hour(0), Status: "scheduled"}, []string{"snd_0", "snd_4"}},
		"queued, of one sound, early":      {sends.Filter{Status: "queued", AudioID: "aud_1", CreatedBefore: hour(5)}, []string{"snd_1"}},
		"scheduled at a time that is over": {sends.Filter{ScheduledBefore: hour(0)}, []string{}},
	} {
		got := names(walk(t, func(cursor string, _ int) ([]sends.Send, string, error) {
			return sends.List(ctx, pool, "co_one", event.Live, c.filter, cursor, 2)
		}), func(s sends.Send) string { return s.SendID })
		require.Equal(t, c.want, got, name)
	}
	_, bySchedule, err := sends.List(ctx, pool, "co_one", event.Live, sends.Filter{ScheduledAfter: hour(0)}, "", 1)
	require.NoError(t, err)
	for _, cursor := range []string{bySchedule, readmodel.Cursor{List: 's', Keys: []uint64{math.MaxUint64, 1}}.String(), readmodel.Cursor{List: 's', Keys: []uint64{math.MaxInt64, 1}}.String(), readmodel.Cursor{List: 's', Keys: []uint64{1}}.String()} {
		_, _, err = sends.List(ctx, pool, "co_one", event.Live, sends.Filter{}, cursor, 1)
		require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
	}
}

// The counts of a location are its company's and its environment's, whoever else has its user ID.
func TestWhatBecameOfTheSendsToALocation(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	terms := send.Terms{AudioID: "aud_1", Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 60}
	var all []entry
	add := func(company string, env event.Environment, payloads ...event.Payload) {
		for _, p := range payloads {
			all = append(all, entry{p, company, env})
		}
	}
	ref := func(id string) delivery.Ref { return delivery.Ref{SendID: id, AudioID: "aud_1", UserID: 1} }
	sent := func(id string, total int) send.AudioSent {
		return send.AudioSent{SendID: id, Terms: terms, Destination: send.Destination{ExternalID: "store_1", UserID: 1}, Total: total, ExpiresAt: epoch, Unsealed: total > 1}
	}
	later := func(id string) send.Scheduled {
		return send.Scheduled{SendID: id, Terms: terms, ScheduleAt: epoch, Total: 1, Destinations: []send.ScheduledDestination{{Destination: send.Destination{ExternalID: "store_1", UserID: 1}, PlayAt: epoch}}}
	}
	add("co_one", event.Live,
		sent("snd_1", 1), delivery.Played{Ref: ref("snd_1"), At: epoch.Add(time.Hour)}, delivery.Played{Ref: ref("snd_1"), At: epoch.Add(5 * time.Hour)},
		sent("snd_2", 1), delivery.Played{Ref: ref("snd_2"), At: epoch},
		sent("snd_3", 1), delivery.Failed{Ref: ref("snd_3"), At: epoch.Add(9 * time.Hour), Reason: "no speaker"}, delivery.Played{Ref: ref("snd_3"), At: epoch.Add(10 * time.Hour)},
		sent("snd_4", 1), delivery.Expired{Ref: ref("snd_4"), At: epoch},
		sent("snd_5", 1), delivery.Delivered{Ref: ref("snd_5"), At: epoch},
		sent("snd_6", 1), delivery.PlaybackStarted{Ref: ref("snd_6"), At: epoch},
		sent("snd_7", 1), later("snd_8"), later("snd_9"), send.Cancelled{SendID: "snd_9"},
		sent("snd_parts", 2),
		sent("snd_refused", 1), delivery.Played{Ref: ref("snd_refused"), At: epoch}, send.Cancelled{SendID: "snd_refused", Refused: true},
	)
	add("co_one", event.Test, sent("snd_test", 1), delivery.Played{Ref: ref("snd_test"), At: epoch.Add(20 * time.Hour)})
	add("co_two", event.Live, sent("snd_theirs", 1), sent("snd_theirs_2", 1), delivery.Failed{Ref: ref("snd_theirs"), At: epoch})
	apply(t, pool, recorded(all))
	at := func(company string, env event.Environment, user int64) sends.Stats {
		stats, err := sends.At(ctx, pool, company, env, user)
		require.NoError(t, err)
		if stats.LastPlayedAt != nil {
			*stats.LastPlayedAt = stats.LastPlayedAt.UTC()
		}
		return stats
	}
	last, lastTest := epoch.Add(time.Hour), epoch.Add(20*time.Hour)
	require.Equal(t, sends.Stats{Counts: sends.Counts{Scheduled: 1, Queued: 1, Delivered: 1, Playing: 1, Played: 2, Failed: 1, Expired: 1, Cancelled: 1}, LastPlayedAt: &last}, at("co_one", event.Live, 1))
	require.Equal(t, sends.Stats{Counts: sends.Counts{Played: 1}, LastPlayedAt: &lastTest}, at("co_one", event.Test, 1))
	require.Equal(t, sends.Stats{Counts: sends.Counts{Queued: 1, Failed: 1}}, at("co_two", event.Live, 1))
	require.Zero(t, at("co_one", event.Live, 2))
}

func TestUsageLogs(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	at := func(d time.Duration) time.Time { return epoch.Add(d) }
	request := func(id string, when time.Time, endpoint, method string, status int, externalID string) usage.ApiRequestServed {
		return usage.ApiRequestServed{RequestID: id, Timestamp: when, Method: method, Path: endpoint, Endpoint: endpoint, Status: status, DurationMs: 3, ExternalID: externalID, TokenID: "tok_1", IP: "192.0.2.1", UserAgent: "x"}
	}
	const day = 24 * time.Hour
	apply(t, pool, entries(
		request("r1", at(0), "/a", "GET", 200, "s1"), request("r2", at(time.Second), "/b", "POST", 404, "s1"), request("r3", at(time.Second), "/a", "GET", 422, "s2"),
		request("r4", at(200*day), "/a", "GET", 500, "s1"), request("r5", at(50*day), "/a", "GET", 200, "s1"), request("r6", at(150*day), "/a", "GET", 200, "s1"),
		request("r7", at(199*day), "/b", "DELETE", 404, "s3"), request("r8", at(199*day), "/b", "DELETE", 400, "s1"), request("r9", at(199*day), "/c", "GET", 200, "s1"),
	))
	now := at(200*day + time.Hour)
	list := func(f usagelogs.Filter) []string {
		return names(walk(t, func(cursor string, limit int) ([]usagelogs.Request, string, error) {
			return usagelogs.List(ctx, pool, "co_one", event.Live, f, cursor, limit, now)
		}), func(r usagelogs.Request) string { return r.RequestID })
	}
	all := list(usagelogs.Filter{})
	require.Len(t, all, 5)
	require.Equal(t, "r4", all[0])
	require.ElementsMatch(t, []string{"r7", "r8", "r9"}, all[1:4], "of the same moment, each once")
	require.Equal(t, "r6", all[4])
	require.Equal(t, []string{"r7"}, list(usagelogs.Filter{StatusFrom: 404, StatusTo: 404}))
	require.ElementsMatch(t, []string{"r7", "r8"}, list(usagelogs.Filter{StatusFrom: 400, StatusTo: 499}))
	require.Equal(t, []string{"r9"}, list(usagelogs.Filter{Endpoint: "/c"}))
	require.ElementsMatch(t, []string{"r7", "r8"}, list(usagelogs.Filter{Method: "DELETE"}))
	require.Equal(t, []string{"r7"}, list(usagelogs.Filter{ExternalID: "s3"}))
	require.Equal(t, []string{"r6"}, list(usagelogs.Filter{RequestID: "r6"}))
	start, end := at(150*day), at(199*day)
	require.Equal(t, []string{"r6"}, list(usagelogs.Filter{Start: &start, End: &end}))
	require.Eventually(t, func() bool { return usagelogs.DropExpired(ctx, pool, now) == nil }, time.Minute, time.Millisecond)
	var rows int
	require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM usage.request").Scan(&rows))
	require.Equal(t, 5, rows, "what is older than 90 days is not there any more")
	_, _, err := usagelogs.List(ctx, pool, "co_one", event.Live, usagelogs.Filter{}, "YQ", 2, now)
	require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
	for _, moment := range []uint64{0, 1, math.MaxInt64, 1 << 63, math.MaxUint64 - 300_000_000_000_000_000, math.MaxUint64} { // of which PostgreSQL has no year for some
		cursor := readmodel.Cursor{List: 'u', Keys: []uint64{moment, 0, 0}}
		_, _, err := usagelogs.List(ctx, pool, "co_one", event.Live, usagelogs.Filter{}, cursor.String(), 2, now)
		if moment > math.MaxInt64 {
			require.Equal(t, fault.InvalidFormat, fault.CodeOf(err), moment)
		} else {
			require.NoError(t, err, moment)
		}
	}
}

// Locations that were there before names were folded are found too.
func TestOlderLocationsAreFound(t *testing.T) {
	t.Parallel()
	pool := postgrestest.New(t)
	first, err := locations.Migrations.ReadFile("migrations/00001_locations.sql")
	require.NoError(t, err)
	require.NoError(t, migrateSchema(t.Context(), pool, "locations", fstest.MapFS{"migrations/00001_locations.sql": {Data: first}}))
	_, err = pool.Exec(t.Context(), "INSERT INTO locations.location VALUES ('co_one', 'live', 7, 's7', 'Main HALL', 'UTC', '{}', 'player', '', now(), 1)")
	require.NoError(t, err)
	require.NoError(t, Migrate(t.Context(), pool))
	found, _, err := locations.List(t.Context(), pool, "co_one", event.Live, locations.Filter{Query: "mAin hall"}, "", 10, time.Now())
	require.NoError(t, err)
	require.Equal(t, []string{"s7"}, names(found, func(l locations.Location) string { return l.ExternalID }))
}
