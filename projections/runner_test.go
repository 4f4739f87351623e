package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections/audiolibrary"
)

const patience = 30 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// newStore is a store with a node of its own, so that nobody else's events are in it.
func newStore(t testing.TB) *eventstore.Store {
	t.Helper()
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: quiet})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	store, err := eventstore.Open(node.ConnectionString(), quiet)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store
}

// run starts a runner that the test, or the returned function, ends.
func run(t testing.TB, store *eventstore.Store, pool *pgxpool.Pool) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewRunner(RunnerConfig{Store: store, Pool: pool, Log: quiet}).Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

// listen starts positions.
func listen(t testing.TB, pool *pgxpool.Pool) *Positions {
	t.Helper()
	positions := NewPositions(pool, quiet)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- positions.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
	return positions
}

func add(t testing.TB, store *eventstore.Store, stream string, payloads ...event.Payload) event.Position {
	t.Helper()
	proposed := make([]event.Proposed, len(payloads))
	for i, p := range payloads {
		proposed[i] = event.Proposed{ID: uuid.New(), Payload: p, Metadata: event.Metadata{CompanyID: "co_one", Environment: event.Live, Time: epoch}}
	}
	position, err := store.Append(t.Context(), stream, eventstore.Any, proposed...)
	require.NoError(t, err)
	return position
}

func upload(id string) audio.Uploaded {
	return audio.Uploaded{AudioID: id, Name: id, Category: "announcement", Format: "mp3", DurationMs: 1000, Size: 10, BlobKey: id}
}

// reach waits, over as many waits as it takes, until projections have passed a position.
func reach(t testing.TB, positions *Positions, position event.Position, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := positions.WaitFor(ctx, position, names...)
		if err == nil {
			return
		}
		require.NoError(t, ctx.Err(), err)
	}
}

func TestAWriteIsReadAtOnce(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	run(t, store, pool)
	for i := range 20 {
		id := fmt.Sprint("aud_", i)
		reach(t, positions, add(t, store, "audio-"+id, upload(id)), Audio)
		item, err := audiolibrary.Get(t.Context(), pool, "co_one", event.Live, id)
		require.NoError(t, err)
		require.Equal(t, time.Second, item.Duration)
	}
}

func TestAReplayGivesTheSameRows(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	stop := run(t, store, pool)
	var last event.Position
	for i, e := range longHistory(t) {
		decoded := raw{e.Type, e.Data}
		last = add(t, store, streamOf(i, e), decoded)
	}
	add(t, store, "end", raw{company.Suspended{}.EventType(), []byte(`{"companyId": "none"}`)})
	for _, p := range All() {
		reach(t, positions, last, p.Name)
	}
	stop()
	before := map[string]string{}
	for _, p := range All() {
		before[p.Name] = postgrestest.Dump(t, pool, p.Name)
		require.Contains(t, before[p.Name], "co_one", p.Name)
		open(t, pool, p).empty(t)
		require.NotEqual(t, before[p.Name], postgrestest.Dump(t, pool, p.Name), p.Name)
	}
	again := listen(t, pool)
	_, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'musique projection %'") // the workshops' leads
	require.NoError(t, err)
	run(t, store, pool)
	for _, p := range All() {
		reach(t, again, last, p.Name)
		require.Equal(t, before[p.Name], postgrestest.Dump(t, pool, p.Name), p.Name)
	}
}

// raw is an event as it stands in the store, whatever its type means.
type raw struct {
	kind string
	data []byte
}

func (r raw) EventType() string            { return r.kind }
func (r raw) MarshalJSON() ([]byte, error) { return r.data, nil }

// Database connections die at any moment, two processes want to run the same projections, and still each event is applied once.
func TestEachEventIsAppliedOnceWhateverDies(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	run(t, store, pool)
	run(t, store, pool)
	const audios, plays = 5, 40
	for a := range audios {
		add(t, store, fmt.Sprint("audio-", a), upload(fmt.Sprint("aud_", a)))
	}
	var last event.Position
	for i := range plays {
		for a := range audios {
			ref := delivery.Ref{SendID: fmt.Sprint("snd_", i), UserID: 1, AudioID: fmt.Sprint("aud_", a)}
			last = add(t, store, fmt.Sprint("delivery-", i, a), delivery.Played{Ref: ref, At: epoch.Add(time.Duration(i) * time.Second)})
		}
		if i%8 == 7 { // whoever leads and whoever listens loses its connection
			_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND pid <> pg_backend_pid() AND (application_name LIKE 'musique projection %' OR query = 'LISTEN projection')`)
			require.NoError(t, err)
		}
	}
	reach(t, positions, last, Audio)
	for a := range audios {
		item, err := audiolibrary.Get(t.Context(), pool, "co_one", event.Live, fmt.Sprint("aud_", a))
		require.NoError(t, err)
		require.EqualValues(t, plays, item.Stats.TimesPlayed)
		require.Equal(t, epoch.Add((plays-1)*time.Second), item.Stats.LastPlayedAt.UTC())
	}
}

func TestAnEventThatCannotBeAppliedStopsItsProjectionAlone(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	good := add(t, store, "audio-1", upload("aud_1"))
	bad := add(t, store, "audio-2", raw{audio.Uploaded{}.EventType(), []byte(`{"audioId": 5}`)})
	late := add(t, store, "audio-3", upload("aud_3"))
	other := add(t, store, "company-1", company.Registered{CompanyID: "co_one", Name: "One", Plan: "standard", Prefix: "msk", TokenHash: "h"})
	run(t, store, pool)
	reach(t, positions, other, Tokens)
	reach(t, positions, good, Audio)

	stands := func() Status {
		all, err := Statuses(t.Context(), pool, store)
		require.NoError(t, err)
		require.Len(t, all, len(All()))
		require.Equal(t, Audio, all[2].Name)
		require.Empty(t, all[0].Error)
		return all[2]
	}
	require.Eventually(t, func() bool { return stands().Error != "" }, patience, 10*time.Millisecond)
	s := stands()
	require.Contains(t, s.Error, "AudioUploaded 0@audio-2", "an operator finds the event")
	require.NotNil(t, s.FailingSince)
	require.Equal(t, good.Commit, s.Position, "what stands before it is applied, and nothing after it")
	require.Positive(t, s.Lag)
	require.False(t, s.CaughtUp)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, positions.WaitFor(ctx, bad, Audio), ErrBehind)
	_, err := audiolibrary.Get(t.Context(), pool, "co_one", event.Live, "aud_3")
	require.Error(t, err)
	require.True(t, good.Before(late))
}

func TestStatusTellsThatAllIsWell(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	last := add(t, store, "audio-1", upload("aud_1"))
	run(t, store, pool)
	reach(t, positions, last, Tokens, Locations, Audio, Sends, Usage) // those that do not follow it pass it too
	require.Eventually(t, func() bool {
		all, err := Statuses(t.Context(), pool, store)
		require.NoError(t, err)
		for _, s := range all {
			if !s.CaughtUp || s.Lag > 0 || s.Error != "" {
				return false
			}
		}
		return true
	}, patience, 10*time.Millisecond)
}

func TestAWaitIsBounded(t *testing.T) {
	t.Parallel()
	pool := database(t)
	positions := listen(t, pool)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := positions.WaitFor(ctx, event.Position{Commit: 1, Prepare: 1}, Audio)
	require.ErrorIs(t, err, ErrBehind)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, positions.WaitFor(ctx, event.Position{}, Audio), "everything has passed the beginning")
}

// A second writer, which the advisory lock keeps away, could not write either.
func TestACheckpointThatMovedRefusesThePage(t *testing.T) {
	t.Parallel()
	pool := database(t)
	w := open(t, pool, named(Audio))
	events := recorded([]entry{{upload("aud_1"), "co_one", event.Live}, {upload("aud_2"), "co_one", event.Live}})
	w.project(t, events[:1], nil)
	w.lead.position = event.Position{}
	require.Error(t, w.lead.write(t.Context(), eventstore.Page{Events: events[1:], Through: events[1].Position}))
	require.True(t, w.lead.conn.IsClosed(), "it begins again from where the checkpoint is")
	_, err := audiolibrary.Get(t.Context(), pool, "co_one", event.Live, "aud_2")
	require.Error(t, err)
	require.False(t, errors.Is(err, context.Canceled))
}

// What a projection is not sent is no lag, though it does not pass it.
func TestALagEnds(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	run(t, store, pool)
	served := raw{usage.ApiRequestServed{}.EventType(), []byte(`{"timestamp": "2026-05-01T12:00:00Z"}`)}
	for _, others := range []int{20, 600} { // more than two of the windows after which the store says how far it looked
		for _, last := range []string{"audio-", usage.StreamPrefix} {
			for _, stream := range []string{"audio-", usage.StreamPrefix, last} {
				payloads := make([]event.Payload, others)
				for i := range payloads {
					payloads[i] = upload(uuid.NewString())
					if stream == usage.StreamPrefix {
						payloads[i] = served
					}
				}
				add(t, store, stream+"any", payloads...)
			}
			require.Eventually(t, func() bool {
				statuses, err := Statuses(t.Context(), pool, store)
				require.NoError(t, err)
				return !slices.ContainsFunc(statuses, func(s Status) bool { return s.Lag > 0 || s.Position == 0 })
			}, patience, 10*time.Millisecond)
		}
	}
}

// Who is let in by a read model is not shut out, or let in again, by a crash of the database: what admits is on the disk before it is seen.
func TestWhatAdmitsIsOnTheDiskBeforeItIsSeen(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	const note = `
		CREATE TABLE public.seen (made text, waits text);
		CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO public.seen VALUES (TG_TABLE_SCHEMA, current_setting('synchronous_commit')); RETURN NULL; END $$;
		CREATE TRIGGER note AFTER INSERT ON tokens.company FOR EACH ROW EXECUTE FUNCTION public.note();
		CREATE TRIGGER note AFTER INSERT ON locations.location FOR EACH ROW EXECUTE FUNCTION public.note();
		CREATE TRIGGER note AFTER INSERT ON audio.item FOR EACH ROW EXECUTE FUNCTION public.note();`
	_, err := pool.Exec(t.Context(), note)
	require.NoError(t, err)
	positions := listen(t, pool)
	run(t, store, pool)
	add(t, store, "company-co_one", company.Registered{CompanyID: "co_one", Name: "One", Plan: "standard", Prefix: "msk", TokenHash: "hash"})
	add(t, store, "location-co_one-1", location.Registered{CompanyID: "co_one", UserID: 1, ExternalID: "one", Name: "One", Timezone: "UTC"})
	reach(t, positions, add(t, store, "audio-aud_1", upload("aud_1")), Tokens, Locations, Audio)
	rows, _ := pool.Query(t.Context(), "SELECT DISTINCT made || ' ' || waits FROM public.seen ORDER BY 1") // an error shows in rows
	seen, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{"audio off", "locations on", "tokens on"}, seen)
}
