package send_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/send"
)

const clockLayout = "2006-01-02T15:04"

// playAt is when a clock time is due in a zone, for a send that is made some days before.
func playAt(t require.TestingT, zone, local string) time.Time {
	clock, err := time.Parse(clockLayout, local)
	require.NoError(t, err)
	got, err := send.Plan("snd_one", terms, send.Request{LocalTime: local}, []send.Location{{ExternalID: "a", UserID: 1, Timezone: zone}}, clock.AddDate(0, 0, -10))
	require.NoError(t, err)
	return got[0].(send.Scheduled).Destinations[0].PlayAt
}

// Zones whose clocks change in uncommon ways, or changed the rules for it, by the IANA time zone database.
func TestClockTimesInUncommonZones(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, local, utc string }{
		{"Australia/Lord_Howe", "2026-10-04T01:59", "2026-10-03T15:29:00Z"},
		{"Australia/Lord_Howe", "2026-10-04T02:00", "2026-10-03T15:30:00Z"}, // skipped: 02:30
		{"Australia/Lord_Howe", "2026-10-04T02:30", "2026-10-03T15:30:00Z"},
		{"Australia/Lord_Howe", "2026-04-05T01:29", "2026-04-04T14:29:00Z"},
		{"Australia/Lord_Howe", "2026-04-05T01:30", "2026-04-04T14:30:00Z"}, // twice
		{"Australia/Lord_Howe", "2026-04-05T02:00", "2026-04-04T15:30:00Z"},
		{"Pacific/Chatham", "2026-09-27T02:45", "2026-09-26T14:00:00Z"}, // skipped: 03:45, at offsets of 12:45 and 13:45
		{"Pacific/Chatham", "2026-09-27T03:45", "2026-09-26T14:00:00Z"},
		{"Pacific/Chatham", "2026-04-05T03:00", "2026-04-04T13:15:00Z"},  // twice
		{"America/St_Johns", "2026-03-08T02:30", "2026-03-08T06:00:00Z"}, // skipped: 03:30
		{"America/St_Johns", "2026-11-01T01:15", "2026-11-01T03:45:00Z"}, // twice
		{"Antarctica/Troll", "2026-03-29T02:00", "2026-03-29T02:00:00Z"}, // two hours are skipped: 04:00
		{"Antarctica/Troll", "2026-10-25T02:00", "2026-10-25T00:00:00Z"}, // two hours are there twice
		{"America/Asuncion", "2023-10-01T00:30", "2023-10-01T04:30:00Z"}, // skipped at midnight: 01:30
		{"America/Asuncion", "2025-10-05T00:30", "2025-10-05T03:30:00Z"}, // the clocks are not changed any more
		{"America/Havana", "2026-11-01T00:30", "2026-11-01T04:30:00Z"},   // twice, at midnight
		{"Pacific/Auckland", "2026-09-27T02:30", "2026-09-26T14:30:00Z"}, // skipped: 03:30
		{"Pacific/Auckland", "2026-04-05T02:30", "2026-04-04T13:30:00Z"}, // twice
		{"Pacific/Kiritimati", "2026-12-31T23:59", "2026-12-31T09:59:00Z"},
		{"Pacific/Pago_Pago", "2026-12-31T23:59", "2027-01-01T10:59:00Z"},
		{"Pacific/Apia", "2011-12-29T23:59", "2011-12-30T09:59:00Z"},
		{"Pacific/Apia", "2011-12-30T09:00", "2011-12-30T19:00:00Z"}, // a whole day is skipped, when the date line was moved: the 31st
		{"Pacific/Apia", "2011-12-31T00:00", "2011-12-30T10:00:00Z"},
		{"Pacific/Kwajalein", "1993-08-20T12:00", "1993-08-21T00:00:00Z"},
		{"Pacific/Kwajalein", "1993-08-21T12:00", "1993-08-22T00:00:00Z"}, // a whole day is skipped: the 22nd
		{"Pacific/Kwajalein", "1993-08-22T12:00", "1993-08-22T00:00:00Z"},
		{"America/Sao_Paulo", "2018-11-04T00:30", "2018-11-04T03:30:00Z"}, // skipped: 01:30
		{"America/Sao_Paulo", "2026-11-01T00:30", "2026-11-01T03:30:00Z"}, // no summer time since 2019
		{"America/Mexico_City", "2022-04-03T02:30", "2022-04-03T08:30:00Z"},
		{"America/Mexico_City", "2026-04-05T02:30", "2026-04-05T08:30:00Z"}, // none since 2022
		{"Africa/Cairo", "2026-04-24T00:30", "2026-04-23T22:30:00Z"},        // again since 2023; skipped: 01:30
		{"Africa/Cairo", "2022-04-29T00:30", "2022-04-28T22:30:00Z"},
		{"Europe/Istanbul", "2026-10-25T03:30", "2026-10-25T00:30:00Z"},   // summer time for good since 2016
		{"Asia/Pyongyang", "2018-05-04T23:45", "2018-05-04T15:15:00Z"},    // half an hour was skipped once: 00:15 of the next day
		{"Asia/Almaty", "2024-02-29T23:30", "2024-02-29T17:30:00Z"},       // put back once, for good: twice
		{"Africa/Casablanca", "2026-02-15T02:30", "2026-02-15T01:30:00Z"}, // Ramadan begins: twice
		{"Europe/Dublin", "2026-03-29T01:30", "2026-03-29T01:30:00Z"},     // skipped: 02:30; the database has winter time as the exception
		{"Asia/Tehran", "2026-03-22T00:30", "2026-03-21T21:00:00Z"},
		{"Asia/Kathmandu", "2026-03-29T02:30", "2026-03-28T20:45:00Z"},
	} {
		t.Run(c.zone+" "+c.local, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, c.utc, playAt(t, c.zone, c.local).Format(time.RFC3339))
		})
	}
}

// Around a change of the clocks, in any of many zones: the clock on the wall shows the time that was asked for, and for the first time; or it is in a gap, and shows a
// time that is later by the length of the gap.
func TestTheWallClockAroundAChange(t *testing.T) {
	t.Parallel()
	zones := []string{
		"Europe/Berlin", "Europe/Dublin", "Europe/Lisbon", "America/New_York", "America/St_Johns", "America/Havana", "America/Santiago", "America/Asuncion", "America/Sao_Paulo", "America/Nuuk",
		"America/Mexico_City", "Africa/Cairo", "Africa/Casablanca", "Africa/El_Aaiun", "Asia/Beirut", "Asia/Gaza", "Asia/Jerusalem", "Asia/Almaty", "Asia/Pyongyang", "Asia/Tehran", "Asia/Amman",
		"Antarctica/Troll", "Antarctica/Casey", "Australia/Lord_Howe", "Australia/Sydney", "Australia/Adelaide", "Pacific/Auckland", "Pacific/Chatham", "Pacific/Apia", "Pacific/Fiji", "Pacific/Norfolk",
		"Pacific/Easter", "Pacific/Kiritimati", "Pacific/Pago_Pago",
	}
	rapid.Check(t, func(t *rapid.T) {
		zone, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
		require.NoError(t, err)
		moment := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, rapid.IntRange(0, 25*365).Draw(t, "day")).In(zone)
		if _, change := moment.ZoneBounds(); !change.IsZero() {
			moment = change.Add(time.Duration(rapid.IntRange(-26*60, 26*60).Draw(t, "minutes")) * time.Minute)
		}
		_, offset := moment.In(zone).Zone()
		wall := moment.UTC().Add(time.Duration(offset+60*rapid.IntRange(-90, 90).Draw(t, "shift")) * time.Second).Truncate(time.Minute)
		local := wall.Format(clockLayout)
		at := playAt(t, zone.String(), local)
		if shows := at.In(zone).Format(clockLayout); shows == local {
			for earlier := at.Add(-4 * time.Hour); earlier.Before(at); earlier = earlier.Add(time.Minute) {
				require.NotEqual(t, local, earlier.In(zone).Format(clockLayout), "it was there before")
			}
			return
		}
		before, _ := at.In(zone).ZoneBounds()
		_, was := before.Add(-time.Second).In(zone).Zone()
		_, is := before.In(zone).Zone()
		require.Greater(t, is, was, "the clocks were put forward")
		require.Equal(t, wall.Add(time.Duration(is-was)*time.Second).Format(clockLayout), at.In(zone).Format(clockLayout))
		gapBegins := before.UTC().Add(time.Duration(was) * time.Second)
		require.False(t, wall.Before(gapBegins) || !wall.Before(gapBegins.Add(time.Duration(is-was)*time.Second)), "%s is in no gap", local)
	})
}
