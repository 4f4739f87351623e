package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
)

// history is an event store of its own, and how to ask for it.
type history struct {
	store *eventstore.Store
	flag  string
}

func newHistory(t *testing.T) history {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	store, err := eventstore.Open(node.ConnectionString(), quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return history{store, "--eventstore=" + node.ConnectionString()}
}

// add records events, an append each.
func (h history) add(t *testing.T, n int) (last event.Position) {
	t.Helper()
	for i := range n {
		var payload event.Payload = audio.Uploaded{AudioID: fmt.Sprint("aud_", i), Name: "=1+1, \"quoted\"\r\n<&>"}
		stream, env := fmt.Sprint("audio-", i%3), event.Live
		if i%4 == 3 {
			payload, stream, env = token.Revoked{TokenID: "tok_1"}, "token-tok_1", event.Test
		}
		var err error
		last, err = h.store.Append(t.Context(), stream, eventstore.Any, event.Proposed{ID: uuid.New(), Payload: payload,
			Metadata: event.Metadata{CompanyID: fmt.Sprint("co_", i%2), Environment: env, Actor: "tok_1", RequestID: "req_1", Time: time.Now()}})
		require.NoError(t, err)
	}
	return last
}

// program runs a command in this process.
func program(ctx context.Context, out, told io.Writer, args ...string) error {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(told)
	return root.ExecuteContext(ctx)
}

// export gives what an export writes, and what it tells.
func (h history) export(t require.TestingT, args ...string) (written, told string) {
	var out, words bytes.Buffer
	require.NoError(t, program(context.Background(), &out, &words, append([]string{"events", "export", h.flag}, args...)...))
	return out.String(), words.String()
}

type exported struct {
	Position                   uint64
	ID, Recorded, Type, Stream string
	Revision                   uint64
	Data                       object
	Metadata                   struct{ Company, Environment, Actor string }
}

func exportedLines(t require.TestingT, text string) (all []exported) {
	for line := range strings.Lines(text) {
		var e exported
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		all = append(all, e)
	}
	return all
}

// Whatever is asked for, what is written is the events of the store that it fits, in order, and the same bytes each time, however much is recorded meanwhile.
func TestAnExportIsTheSameEachTime(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.add(t, 40)
	whole, told := h.export(t)
	all := exportedLines(t, whole)
	require.Len(t, all, 40)
	require.Contains(t, told, "40 events, ")
	stored, err := h.store.Load(t.Context(), all[0].Stream)
	require.NoError(t, err)
	require.Contains(t, whole, `"data":`+string(stored[0].Data)+`,`, "what is stored is not written another way")
	again := func(told string) []string {
		flags := regexp.MustCompile(`(?m)the same again: (.*)$`).FindStringSubmatch(told)[1]
		return strings.Fields(strings.ReplaceAll(flags, "'", ""))
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := rapid.IntRange(0, 39).Draw(t, "from"), rapid.IntRange(0, 39).Draw(t, "to")
		from, to = min(from, to), max(from, to)
		var args []string
		keep := func(exported) bool { return true }
		switch rapid.IntRange(0, 4).Draw(t, "filter") {
		case 1:
			args, keep = []string{"--company", "co_1", "--environment", "prod"}, func(e exported) bool { return e.Metadata.Company == "co_1" && e.Metadata.Environment == "live" }
		case 2:
			args, keep = []string{"--type", "TokenRevoked"}, func(e exported) bool { return e.Type == "TokenRevoked" }
		case 3:
			args, keep = []string{"--stream", "audio-*"}, func(e exported) bool { return strings.HasPrefix(e.Stream, "audio-") }
		case 4:
			args, keep = []string{"--stream", "audio-1,audio-2", "--environment", "live"}, func(e exported) bool { return e.Stream == "audio-1" || e.Stream == "audio-2" }
		}
		first, last := all[from], all[to]
		var want []exported
		if rapid.Bool().Draw(t, "by time") {
			args = append(args, "--since", first.Recorded, "--until", last.Recorded)
			for _, e := range all {
				if e.Recorded >= first.Recorded && e.Recorded <= last.Recorded && keep(e) {
					want = append(want, e)
				}
			}
		} else {
			args = append(args, "--after", fmt.Sprint(first.Position), "--through", fmt.Sprint(last.Position))
			for _, e := range all[from+1 : max(to, from)+1] {
				if keep(e) {
					want = append(want, e)
				}
			}
		}
		for _, format := range []string{"ndjson", "csv"} {
			args := append([]string{"--format", format}, args...)
			once, told := h.export(t, args...)
			twice, _ := h.export(t, args...)
			require.Equal(t, once, twice)
			toldAgain, _ := h.export(t, append([]string{"--format", format}, again(told)...)...)
			require.Equal(t, once, toldAgain, told)
			if format == "ndjson" {
				require.Equal(t, want, exportedLines(t, once))
				continue
			}
			rows, err := csv.NewReader(strings.NewReader(once)).ReadAll()
			require.NoError(t, err)
			require.Equal(t, eventColumns, rows[0])
			require.Len(t, rows, len(want)+1)
			for i, row := range rows[1:] {
				require.Equal(t, []string{fmt.Sprint(want[i].Position), want[i].ID, want[i].Recorded, want[i].Type, want[i].Stream, fmt.Sprint(want[i].Revision)}, row[:6])
				require.Equal(t, want[i].Metadata.Company, row[6])
				require.True(t, json.Valid([]byte(row[10])))
			}
		}
	})
	h.add(t, 5)
	repeated, _ := h.export(t, again(told)...)
	require.Equal(t, whole, repeated, "what came later is not in it")
	rest, _ := h.export(t, "--after", fmt.Sprint(all[39].Position))
	require.Len(t, exportedLines(t, rest), 5, "and the next export goes on")
}

func TestAnExportInAFileIsWholeOrNotThere(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.add(t, 10)
	dir := t.TempDir()
	file := filepath.Join(dir, "all.csv")
	whole, _ := h.export(t, "--format", "csv")
	_, told := h.export(t, "--format", "csv", "--file", file)
	raw, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, whole, string(raw))
	require.Contains(t, told, fmt.Sprint(len(raw), " bytes"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	interrupted := program(ctx, io.Discard, io.Discard, "events", "export", h.flag, "--file", filepath.Join(dir, "other"))
	require.Error(t, interrupted)
	require.NotErrorIs(t, interrupted, context.Canceled, "which the program would take for success")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing half is left")
}

// Events are shown as they are recorded, with those of before where they are asked for.
func TestTailShowsEventsAsTheyCome(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.add(t, 8)
	var early, live transcript
	var running sync.WaitGroup
	running.Go(func() {
		assertNoError(t, program(t.Context(), &early, io.Discard, "events", "tail", h.flag, "--since", "1h", "--output", "json", "--type", "TokenRevoked", "--limit", "4"))
	})
	ctx, stop := context.WithCancel(t.Context())
	running.Go(func() {
		err := program(ctx, &live, io.Discard, "events", "tail", h.flag, "--company", "co_1")
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(patience); live.String() == "" && time.Now().Before(deadline); {
		h.add(t, 8) // until it listens
	}
	stop()
	running.Wait()
	require.Regexp(t, `^\S+Z \d+ \w+ \d+@\S+ co_1 (live|test) tok_1\n`, live.String())
	require.NotContains(t, live.String(), "co_0")
	shown := exportedLines(t, early.String())
	require.Len(t, shown, 4)
	whole, _ := h.export(t, "--type", "TokenRevoked") // the live tail begins amid what is added
	require.True(t, strings.HasPrefix(whole, early.String()), "as an export has them")
}

func assertNoError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeShownIsRefused(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	last := h.add(t, 2)
	// With the last position said, no time is one of which more is to come.
	today, _ := h.export(t, "--until", time.Now().UTC().Format(time.DateOnly))
	repeated, _ := h.export(t, "--until", time.Now().Add(time.Hour).Format(time.RFC3339), "--through", formatPosition(last))
	require.Equal(t, today, repeated)
	for want, args := range map[string][]string{
		"is in the future":          {"export", "--until", time.Now().Add(time.Hour).Format(time.RFC3339)},
		"later than the newest":     {"export", "--through", formatPosition(event.Position{Commit: last.Commit + 1, Prepare: last.Commit + 1})},
		"--through is a position":   {"export", "--through", "-1"},
		"--after is a position":     {"tail", "--after", "x"},
		"--since is a time":         {"export", "--since", "yesterday"},
		"--until is before --since": {"export", "--since", "1h", "--until", "2h"},
		"--environment is live":     {"tail", "--environment", "staging"},
		"--format is ndjson or csv": {"export", "--format", "xml"},
		"--output is text or json":  {"tail", "--output", "xml"},
		"--limit is 0 or more":      {"tail", "--limit", "-1"},
		"unknown command":           {"export", "x"},
	} {
		require.ErrorContains(t, program(t.Context(), io.Discard, io.Discard, append([]string{"events", args[0], h.flag}, args[1:]...)...), want)
	}
	require.ErrorContains(t, program(t.Context(), io.Discard, io.Discard, "events", "export", "--eventstore=esdb://127.0.0.1:1?tls=false"), "does not answer")
}

func FuzzTimes(f *testing.F) {
	now := time.Date(2026, 11, 24, 20, 0, 0, 0, time.UTC)
	for _, text := range []string{"", "2026-11-24", "2026-11-24T09:00:00+02:00", "90m", "-1h", "9999999h", "1e9s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		from, err := parseTime("since", text, false, now)
		to, errTo := parseTime("until", text, true, now)
		require.Equal(t, err == nil, errTo == nil)
		if err != nil {
			require.ErrorContains(t, err, "--since")
			return
		}
		require.False(t, to.Before(from), "from it to it is something")
		again, err := parseTime("since", from.Format(time.RFC3339Nano), false, now.Add(time.Hour))
		if from.Year() >= 0 && from.Year() <= 9999 {
			require.NoError(t, err)
			require.True(t, from.Equal(again), "what it became is the same later")
		}
	})
}

func FuzzPositions(f *testing.F) {
	f.Add("0")
	f.Add("12/7")
	f.Add("7/12")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePosition("after", text)
		if err != nil {
			require.ErrorContains(t, err, "--after")
			return
		}
		again, err := parsePosition("after", formatPosition(p))
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}
