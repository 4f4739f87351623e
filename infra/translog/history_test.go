package translog_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

var quiet = slog.New(slog.DiscardHandler)

// usage are streams that the store may forget the old events of.
var usage = translog.Retained{Prefix: "usage-", Age: 90 * 24 * time.Hour}

// began is when the tests' histories begin, today when they are verified: what is of the first days may be forgotten by then.
var (
	began = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	today = began.Add(usage.Age + 48*time.Hour)
)

// history is what a store has, in order.
type history []eventstore.Raw

// source reads it as the store does.
func (h history) source(_ context.Context, from event.Position, limit int) ([]eventstore.Raw, bool, error) {
	at, _ := slices.BinarySearchFunc(h, from, func(e eventstore.Raw, p event.Position) int {
		if e.Position.Before(p) {
			return -1
		}
		return 1
	})
	limit = min(limit, 100) // pages end where they end
	return h[at:min(len(h), at+limit)], len(h)-at <= limit, nil
}

// drawHistory makes a history of some streams, the store's own events among them.
func drawHistory(t *rapid.T, count int) history {
	var h history
	revisions := map[string]uint64{}
	position, at := uint64(0), began
	for i := range count {
		stream := rapid.SampledFrom([]string{"send-a", "send-b", "audio-1", "usage-co-live-2026-01-01", "$stats"}).Draw(t, "stream")
		position += uint64(rapid.IntRange(1, 3).Draw(t, "gap"))
		at = at.Add(time.Duration(rapid.IntRange(0, 3_600).Draw(t, "seconds")) * time.Second)
		kind := "AudioSent"
		if stream == "$stats" {
			kind = "$statsCollected"
		}
		h = append(h, eventstore.Raw{
			Position: event.Position{Commit: position, Prepare: position}, Stream: stream, Revision: revisions[stream], ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)),
			Type: kind, ContentType: "application/json", Recorded: at.UnixNano() / 100, Data: fmt.Appendf(nil, `{"n":%d}`, i), Metadata: []byte(`{"actor":"tok_1"}`),
		})
		revisions[stream]++
	}
	return h
}

// covered is the part that the tree covers.
func (h history) covered() (entries []translog.Entry) {
	for _, e := range h {
		if !e.OfTheStore() {
			entries = append(entries, translog.NewEntry(e))
		}
	}
	return entries
}

// folder is where a history is kept, and the key that signs it.
type folder struct {
	dir string
	key *translog.Key
}

func newFolder(t require.TestingT, under string) folder {
	dir, err := os.MkdirTemp(under, "")
	require.NoError(t, err)
	key, err := translog.OpenKey(filepath.Join(dir, "heads.key"))
	require.NoError(t, err)
	return folder{filepath.Join(dir, "heads"), key}
}

func (f folder) open(t require.TestingT) *translog.Log {
	log, err := translog.Open(f.dir, f.key, quiet)
	require.NoError(t, err)
	return log
}

// sign covers entries and signs a head of them.
func (f folder) sign(t require.TestingT, entries []translog.Entry) {
	log := f.open(t)
	require.NoError(t, log.Append(entries...))
	_, _, err := log.Sign(began)
	require.NoError(t, err)
	require.NoError(t, log.Close())
}

func (f folder) verify(t require.TestingT, h history, copies ...[]byte) translog.Report {
	report, err := translog.Verify(context.Background(), translog.VerifyConfig{
		Dir: f.dir, Keys: f.key.Public, Copies: copies, Source: h.source, Retained: []translog.Retained{usage}, Now: today,
	})
	require.NoError(t, err)
	return report
}

// What was not touched is verified, however it was covered: in pages of any size, with heads anywhere, through any restarts. What was touched is found, and
// named.
func TestEveryTamperingIsFoundAndNamed(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 700).Draw(t, "events")
		h := drawHistory(t, count)
		entries := h.covered()
		if len(entries) == 0 {
			return
		}
		f := newFolder(t, under)
		log := f.open(t)
		for rest := entries; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "page")
			require.NoError(t, log.Append(rest[:n]...))
			rest = rest[n:]
			if len(rest) == 0 || rapid.Bool().Draw(t, "sign") {
				_, signed, err := log.Sign(began)
				require.NoError(t, err)
				require.True(t, signed)
			}
			if rapid.Bool().Draw(t, "restart") {
				require.NoError(t, log.Close())
				log = f.open(t)
			}
		}
		require.NoError(t, log.Close())

		report := f.verify(t, h)
		require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
		require.Equal(t, uint64(len(entries)), report.Proven)
		require.Empty(t, report.Warnings)

		tampered, want := tamper(t, h)
		report = f.verify(t, tampered)
		if want.differences == nil && want.moved == nil { // the store may
			require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
			return
		}
		require.Equal(t, translog.Tampered, report.Verdict, "%+v", want)
		require.Zero(t, report.More)
		if want.moved != nil {
			require.NotEmpty(t, report.Differences)
			for _, d := range report.Differences {
				require.Contains(t, []string{translog.Reordered, translog.Shifted}, d.Kind)
				require.Contains(t, want.moved, d.Event.EventID)
			}
			return
		}
		var got []string
		for _, d := range report.Differences {
			got = append(got, told(d))
		}
		require.Equal(t, want.differences, got)
	})
}

// told is the essence of a difference.
func told(d translog.Difference) string {
	of := d.Event
	if of == nil {
		of = d.Found
	}
	return fmt.Sprint(d.Kind, " ", of.Type, " ", of.Revision, "@", of.Stream, " ", of.Position, " ", of.EventID, " ", d.Fields)
}

func toldOf(kind string, e eventstore.Raw, fields ...string) string {
	return fmt.Sprint(kind, " ", e.Type, " ", e.Revision, "@", e.Stream, " ", e.Position.Commit, " ", e.ID, " ", fields)
}

// finding is what a tampering is found by: these differences, or that one or all of these events stand elsewhere. Neither is nothing.
type finding struct {
	differences []string
	moved       []uuid.UUID
}

// tamper does something to a history, and says what is to be found of it.
func tamper(t *rapid.T, h history) (history, finding) {
	var places []int
	for i, e := range h {
		if !e.OfTheStore() {
			places = append(places, i)
		}
	}
	draw := func(label string) int { return rapid.SampledFrom(places).Draw(t, label) }
	after := slices.Clone(h)
	forgotten := func(e eventstore.Raw) bool {
		return e.Stream[:4] == "usag" && today.Sub(time.Unix(0, e.Recorded*100)) > usage.Age
	}
	at := draw("place")
	was := h[at]
	switch rapid.SampledFrom([]string{"data", "metadata", "type", "time", "id", "content type", "stream", "drop", "insert", "swap", "move", "truncate", "system"}).Draw(t, "tampering") {
	case "data":
		after[at].Data = []byte(`{"n":-1}`)
		return after, finding{differences: []string{toldOf(translog.Changed, was, "data")}}
	case "metadata":
		after[at].Metadata = append(slices.Clone(was.Metadata), ' ')
		return after, finding{differences: []string{toldOf(translog.Changed, was, "metadata")}}
	case "type":
		after[at].Type = "AudioCancelled"
		return after, finding{differences: []string{toldOf(translog.Changed, was, "type")}}
	case "time":
		after[at].Recorded++
		return after, finding{differences: []string{toldOf(translog.Changed, was, "recorded")}}
	case "id":
		after[at].ID = uuid.NewSHA1(uuid.NameSpaceURL, was.ID[:])
		return after, finding{differences: []string{toldOf(translog.Changed, was, "id")}}
	case "content type":
		after[at].ContentType = "application/octet-stream"
		return after, finding{differences: []string{toldOf(translog.Changed, was, "contentType")}}
	case "stream":
		after[at].Stream = "send-z"
		if forgotten(was) {
			return after, finding{differences: []string{toldOf(translog.Added, after[at])}}
		}
		return after, finding{differences: []string{toldOf(translog.Missing, was), toldOf(translog.Added, after[at])}}
	case "drop":
		after = slices.Delete(after, at, at+1)
		if forgotten(was) {
			return after, finding{}
		}
		return after, finding{differences: []string{toldOf(translog.Missing, was)}}
	case "insert":
		added := was
		added.Stream, added.ID = "send-y", uuid.Nil
		added.Position.Prepare-- // before what is there
		return slices.Insert(after, at, added), finding{differences: []string{toldOf(translog.Added, added)}}
	case "swap": // each has the other's place
		with := draw("with")
		if forgotten(was) || forgotten(h[with]) || at == with {
			return after, finding{}
		}
		after[at], after[with] = after[with], after[at]
		after[at].Position, after[with].Position = was.Position, h[with].Position
		return after, finding{moved: []uuid.UUID{was.ID, h[with].ID}}
	case "move": // right before another
		to := draw("to")
		if forgotten(was) || at == to {
			return after, finding{}
		}
		was.Position = event.Position{Commit: h[to].Position.Commit, Prepare: h[to].Position.Prepare - 1}
		if after = slices.Delete(after, at, at+1); to > at {
			to--
		}
		return slices.Insert(after, to, was), finding{moved: []uuid.UUID{was.ID}}
	case "truncate":
		after = after[:at]
		var want []string
		for _, e := range h[at:] {
			if !e.OfTheStore() && !forgotten(e) {
				want = append(want, toldOf(translog.Missing, e))
			}
		}
		return after, finding{differences: want}
	default: // what is the store's own is not covered
		return slices.DeleteFunc(after, eventstore.Raw.OfTheStore), finding{}
	}
}
