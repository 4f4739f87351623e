package projections

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/audit"
	"github.com/musique/musique/projections/readmodel"
)

// trail walks all pages of the audit trail.
func trail(t require.TestingT, w *workshop, f audit.Filter, limit int) (all []audit.Entry) {
	for cursor := ""; ; {
		page, next, err := audit.List(context.Background(), w.pool, "co_one", event.Live, f, cursor, limit)
		require.NoError(t, err)
		require.LessOrEqual(t, len(page), limit)
		all = append(all, page...)
		if next == "" {
			return all
		}
		require.Len(t, page, limit)
		cursor = next
	}
}

// auditable gives events actors, requests, and times of which many are the same and some go back.
func auditable(t *rapid.T, events []event.Recorded) []event.Recorded {
	actors := []string{"tok_1", "tok_2", "dvc_1", "operator", "worker:scheduler", "co_one", ""}
	for i := range events {
		m := &events[i].Metadata
		m.Actor = rapid.SampledFrom(actors).Draw(t, "actor")
		m.Time = epoch.Add(time.Duration(i/3-rapid.IntRange(0, 2).Draw(t, "clock")) * time.Minute)
	}
	return events
}

// However the trail is filtered, its pages give each entry that fits once, in order; and each event that is shown is in it.
func TestTheTrailIsWalkedWhole(t *testing.T) {
	pool := database(t)
	w, sends := open(t, pool, named(Audit)), open(t, pool, named(Sends))
	rapid.Check(t, func(t *rapid.T) {
		w.empty(t)
		sends.empty(t)
		events := auditable(t, history(t))
		w.project(t, events, []int{rapid.IntRange(1, 40).Draw(t, "cut")})
		sends.project(t, events, nil)
		all := trail(t, w, audit.Filter{}, 100)
		require.True(t, slices.IsSortedFunc(all, func(a, b audit.Entry) int { return b.At.Compare(a.At) }))
		shown := map[uuid.UUID]bool{}
		for _, e := range all {
			require.False(t, shown[e.EventID])
			shown[e.EventID] = true
			require.NotContains(t, e.Actor, "worker")
			require.NotContains(t, string(e.Details), "hash")
		}
		requireShown(t, events, shown)

		var f audit.Filter
		if rapid.Bool().Draw(t, "by actor") {
			f.Actor = rapid.SampledFrom([]string{"tok_1", "dvc_1", "operator", "system", "company"}).Draw(t, "of")
		}
		if rapid.Bool().Draw(t, "by type") {
			f.Type = rapid.SampledFrom(audit.Kinds).Draw(t, "type").Type
		}
		if rapid.Bool().Draw(t, "by resource") {
			f.ResourceType = rapid.SampledFrom(audit.Resources).Draw(t, "resource")
			if len(all) > 0 && rapid.Bool().Draw(t, "by ID") {
				some := rapid.SampledFrom(all).Draw(t, "entry")
				f.ResourceType, f.ResourceID = some.ResourceType, some.ResourceID
			}
		}
		at := func(name string) *time.Time {
			if !rapid.Bool().Draw(t, name) {
				return nil
			}
			then := epoch.Add(time.Duration(rapid.IntRange(-2, 40).Draw(t, name)) * time.Minute)
			return &then
		}
		f.From, f.To = at("from"), at("to")
		var want []audit.Entry
		for _, e := range all {
			if fits(f, e) {
				want = append(want, e)
			}
		}
		require.Equal(t, want, trail(t, w, f, rapid.IntRange(1, 4).Draw(t, "limit")), "%+v", f)
	})
}

// requireShown checks which events there have to be: of what a partner sees all, of sends to many the first of each moment.
func requireShown(t *rapid.T, events []event.Recorded, shown map[uuid.UUID]bool) {
	unsealed, sent := map[string]string{}, map[string]bool{} // the type of what is in parts, by send; the moments that something went out at
	for _, e := range events {
		if send.IsUnsealed(e) {
			p, err := readmodel.Decode[send.BroadcastSealed](e)
			require.NoError(t, err)
			unsealed[p.SendID] = e.Type
			require.False(t, shown[e.ID], "not before it is whole")
			continue
		}
		switch {
		case e.Type == send.BroadcastSealed{}.EventType():
			p, err := readmodel.Decode[send.BroadcastSealed](e)
			require.NoError(t, err)
			require.Equal(t, unsealed[p.SendID] != "", shown[e.ID], e.Type)
			if unsealed[p.SendID] == (send.AudioSent{}).EventType() {
				sent[fmt.Sprint(p.SendID, e.Metadata.Time)] = true
			}
		case e.Type == send.AudioSent{}.EventType():
			p, err := readmodel.Decode[send.AudioSent](e)
			require.NoError(t, err)
			moment := fmt.Sprint(p.SendID, e.Metadata.Time)
			require.Equal(t, !sent[moment], shown[e.ID], e.Type)
			sent[moment] = true
		case strings.HasPrefix(e.Type, "Company"):
			require.True(t, shown[e.ID] || !strings.Contains(string(e.Data), "co_one"), e.Type)
		default:
			known := slices.ContainsFunc(audit.Kinds, func(k audit.Kind) bool { return k.Type == e.Type })
			require.Equal(t, known, shown[e.ID], e.Type)
		}
	}
}

func fits(f audit.Filter, e audit.Entry) bool {
	is := func(id *string) bool { return id != nil && *id == f.ResourceID }
	about := f.ResourceType == "" || f.ResourceID == "" && e.ResourceType == f.ResourceType
	if f.ResourceID != "" {
		about = e.ResourceType == f.ResourceType && e.ResourceID == f.ResourceID ||
			f.ResourceType == audit.Send && is(e.SendID) || f.ResourceType == audit.Audio && e.ResourceType != audit.Delivery && is(e.AudioID) || f.ResourceType == audit.Location && is(e.ExternalID)
	}
	return about && (f.Actor == "" || e.Actor == f.Actor) && (f.Type == "" || e.Type == f.Type) && (f.From == nil || !e.At.Before(*f.From)) && (f.To == nil || e.At.Before(*f.To))
}

// A large send is in the trail when it is whole, by who asked for it; one that was abandoned never is; and one that goes out at several moments is there for each.
func TestALargeSendIsOneEntry(t *testing.T) {
	pool := database(t)
	w := open(t, pool, named(Audit))
	var entries []entry
	part := func(id string, user int64, unsealed bool) {
		entries = append(entries, entry{send.AudioSent{SendID: id, DeliveryID: delivery.ID(id, user), Terms: send.Terms{AudioID: "aud_1"}, Destination: send.Destination{ExternalID: "s", UserID: user}, Total: 3, Unsealed: unsealed}, "co_one", event.Live})
	}
	for user := range int64(3) {
		part("snd_whole", user+1, true)
		part("snd_gone", user+1, true)
	}
	entries = append(entries, entry{send.BroadcastSealed{SendID: "snd_whole", Total: 3}, "co_one", event.Live}, entry{send.BroadcastAbandoned{SendID: "snd_gone"}, "co_one", event.Live})
	for user := range int64(5) {
		part("snd_waves", user+1, false)
	}
	events := recorded(entries)
	for i := range events {
		events[i].Metadata.Actor, events[i].Metadata.Time = "tok_1", epoch.Add(time.Duration(i)*time.Second)
	}
	events[6].Metadata.Actor = "worker:cleanup"
	for i := 8; i < 13; i++ {
		events[i].Metadata.Time = epoch.Add(time.Duration(i/11) * time.Hour)
	}
	w.project(t, events[:6], nil)
	require.Empty(t, trail(t, w, audit.Filter{}, 10))
	w.project(t, events[6:], []int{4, 6}) // a wave in two pages
	all := trail(t, w, audit.Filter{}, 10)
	require.Len(t, all, 3)
	slices.SortFunc(all, func(a, b audit.Entry) int {
		return cmp.Or(strings.Compare(a.ResourceID, b.ResourceID), a.At.Compare(b.At))
	})
	for i, want := range []struct {
		id    string
		count int
	}{{"snd_waves", 3}, {"snd_waves", 2}, {"snd_whole", 3}} {
		require.Equal(t, want.id, all[i].ResourceID)
		require.Equal(t, want.count, *all[i].Locations)
		require.Equal(t, "tok_1", all[i].Actor)
		require.Equal(t, "AudioSent", all[i].Type)
	}
	require.Equal(t, events[6].ID, all[2].EventID)
}

func FuzzTrailCursors(f *testing.F) {
	f.Add("")
	f.Add("nonsense")
	f.Add(readmodel.Cursor{List: 'x', Keys: []uint64{1, 2}}.String())
	f.Add(readmodel.Cursor{List: 'x', Keys: []uint64{1 << 63, 1 << 63}}.String())
	pool := database(f)
	f.Fuzz(func(t *testing.T, cursor string) {
		_, _, err := audit.List(t.Context(), pool, "co_one", event.Live, audit.Filter{}, cursor, 1)
		if err != nil {
			require.Equal(t, fault.InvalidFormat, fault.CodeOf(err), "%v", err)
		}
	})
}

// A broadcast to 100,000 locations, with all that happens at each of them, is many events and few statements.
func BenchmarkAuditOfABroadcast(b *testing.B) {
	pool := database(b)
	w := open(b, pool, named(Audit))
	const locations = 100_000
	var entries []entry
	for user := range int64(locations) {
		entries = append(entries, entry{send.AudioSent{SendID: "snd_1", Terms: send.Terms{AudioID: "aud_1"}, Destination: send.Destination{ExternalID: fmt.Sprint("store_", user), UserID: user + 1}, Total: locations, Unsealed: true}, "co_one", event.Live})
	}
	entries = append(entries, entry{send.BroadcastSealed{SendID: "snd_1", Total: locations}, "co_one", event.Live})
	for user := range int64(locations) {
		ref := delivery.Ref{DeliveryID: delivery.ID("snd_1", user+1), SendID: "snd_1", AudioID: "aud_1", ExternalID: fmt.Sprint("store_", user), UserID: user + 1}
		entries = append(entries, entry{delivery.Delivered{Ref: ref, At: epoch}, "co_one", event.Live}, entry{delivery.PlaybackStarted{Ref: ref, At: epoch}, "co_one", event.Live}, entry{delivery.Played{Ref: ref, At: epoch}, "co_one", event.Live})
	}
	events := recorded(entries)
	var cuts []int
	for i := 2000; i < len(events); i += 2000 {
		cuts = append(cuts, i)
	}
	for b.Loop() {
		b.StopTimer()
		w.empty(b)
		_, err := w.lead.conn.Exec(b.Context(), "VACUUM audit.entry")
		require.NoError(b, err)
		b.StartTimer()
		began := time.Now()
		w.project(b, events[:locations+1], cuts[:locations/2000])
		sent := time.Since(began)
		w.project(b, events[locations+1:], cuts)
		b.ReportMetric(float64(locations)/sent.Seconds(), "sent/s")
		b.ReportMetric(float64(3*locations)/(time.Since(began)-sent).Seconds(), "reports/s")
	}
	var rows int
	require.NoError(b, pool.QueryRow(b.Context(), "SELECT count(*) FROM audit.entry").Scan(&rows))
	require.Equal(b, 3*locations+1, rows)
}
