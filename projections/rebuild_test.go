package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/usagelogs"
)

// status waits until the status of a projection is as told.
func status(t testing.TB, pool *pgxpool.Pool, store *eventstore.Store, name string, as func(Status) bool) (found Status) {
	t.Helper()
	for deadline := time.Now().Add(2 * patience); ; <-time.After(10 * time.Millisecond) {
		all, err := Statuses(t.Context(), pool, store)
		require.NoError(t, err)
		found = all[slices.IndexFunc(all, func(s Status) bool { return s.Name == name })]
		if as(found) {
			return found
		}
		require.True(t, time.Now().Before(deadline), "%+v %+v", found, found.Rebuild)
	}
}

func rebuilt(times int64) func(Status) bool {
	return func(s Status) bool { return s.Rebuilds >= times && s.Rebuild == nil }
}

// schemas lists what is there of a projection.
func schemas(t testing.TB, pool *pgxpool.Pool, name string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT nspname FROM pg_namespace WHERE nspname LIKE $1 ORDER BY nspname`, name+"%")
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

func kill(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'musique projection %'`)
	require.NoError(t, err)
}

// Every read model is rebuilt while events come in, two processes want to build it and connections die; and it has the rows of one that never was.
func TestARebuildGivesTheRowsOfTheVersionThatServes(t *testing.T) {
	t.Parallel()
	store, pool, other := newStore(t), database(t), database(t)
	positions, others := listen(t, pool), listen(t, other)
	events := rapid.Custom(func(t *rapid.T) []event.Recorded {
		w := &world{t: t, locations: map[int64]bool{}}
		steps := []func(){w.tokenStep, w.locationStep, w.deviceStep, w.audioStep, w.audioStep, w.sendStep, w.sendStep, w.partStep, w.startStep, w.cancelStep, w.changeStep, w.deliveryStep, w.deliveryStep, w.usageStep}
		for range 60 {
			for _, step := range steps {
				step()
			}
		}
		return recorded(w.entries)
	}).Example(7)
	appended := func(events []event.Recorded) (last event.Position) {
		for i, e := range events {
			last = add(t, store, streamOf(i, e), raw{e.Type, e.Data})
		}
		return last
	}
	half := len(events) / 2
	last := appended(events[:half])
	run(t, store, pool)
	run(t, store, pool)
	run(t, store, other)
	for _, p := range All() {
		reach(t, positions, last, p.Name)
		require.NoError(t, StartRebuild(t.Context(), pool, p.Name, false))
	}
	for rest := range slices.Chunk(events[half:], max(1, (len(events)-half)/5)) {
		appended(rest)
		kill(t, pool)
	}
	for _, p := range All() {
		status(t, pool, store, p.Name, rebuilt(1))
	}
	last = appended([]event.Recorded{{Type: audio.Uploaded{}.EventType(), Data: []byte(`{"audioId": "aud_last"}`)}, {Type: usage.ApiRequestServed{}.EventType(), Data: []byte(`{"requestId": "req_last", "timestamp": "2026-05-01T12:00:00Z"}`)}})
	for _, p := range All() {
		reach(t, positions, last, p.Name)
		reach(t, others, last, p.Name)
		require.Equal(t, postgrestest.Dump(t, other, p.Name), postgrestest.Dump(t, pool, p.Name), p.Name)
		require.Contains(t, postgrestest.Dump(t, pool, p.Name), "co_one", p.Name)
		require.Eventually(t, func() bool { return len(schemas(t, pool, p.Name)) == 1 }, patience, 10*time.Millisecond, "nothing is left behind")
	}
}

// While versions change places, readers find no error, and what they wait for.
func TestReadersDoNotNoticeARebuild(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	run(t, store, pool)
	run(t, store, pool)
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var reads, writes atomic.Int64
	failed := make(chan error, 100)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	for range 3 {
		readers.Go(func() {
			for ctx.Err() == nil {
				_, _, err := audiolibrary.List(t.Context(), pool, "co_one", event.Live, audiolibrary.Filter{Query: "aud"}, "", 20)
				if err != nil {
					fail(err)
				}
				reads.Add(1)
			}
		})
	}
	for w := range 3 {
		readers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprint("aud_", w, "_", i)
				position, err := store.Append(t.Context(), "audio-"+id, eventstore.Any,
					event.Proposed{ID: uuid.New(), Payload: upload(id), Metadata: event.Metadata{CompanyID: "co_one", Environment: event.Live, Time: epoch}})
				if err == nil {
					err = positions.WaitFor(t.Context(), position, Audio)
				}
				for ; errors.Is(err, ErrBehind) && t.Context().Err() == nil; err = positions.WaitFor(t.Context(), position, Audio) {
					continue // a busy machine
				}
				if err == nil {
					_, err = audiolibrary.Get(t.Context(), pool, "co_one", event.Live, id)
				}
				if err != nil {
					fail(fmt.Errorf("%s: %w", id, err))
				}
				writes.Add(1)
			}
		})
	}
	for times := range int64(4) {
		before := writes.Load()
		require.NoError(t, StartRebuild(t.Context(), pool, Audio, false))
		status(t, pool, store, Audio, rebuilt(times+1))
		require.Eventually(t, func() bool { return writes.Load() > before+10 }, patience, time.Millisecond, "writes are read after it")
	}
	cancel()
	readers.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	require.Positive(t, reads.Load())
	var rows int64
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM audio.item`).Scan(&rows))
	require.Equal(t, writes.Load(), rows)
}

// A version goes on from where it was built to, whoever dies; an event that it cannot apply stops it, until an operator has it skipped.
func TestARebuildStopsAtAnEventAndGoesOn(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	listen(t, pool)
	const each = 1500
	many := func(from int) {
		payloads := make([]event.Payload, each)
		for i := range payloads {
			payloads[i] = upload(fmt.Sprint("aud_", from+i))
		}
		add(t, store, "audio-many", payloads...)
	}
	many(0)
	add(t, store, "audio-bad", raw{audio.Uploaded{}.EventType(), []byte(`{"audioId": 5}`)})
	many(each)
	stop := run(t, store, pool)
	require.NoError(t, StartRebuild(t.Context(), pool, Audio, false))
	s := status(t, pool, store, Audio, func(s Status) bool {
		return s.FailingEvent != nil && s.Rebuild != nil && s.Rebuild.FailingEvent != nil
	})
	require.Equal(t, StateStopped, s.State)
	require.Equal(t, StateStopped, s.Rebuild.State)
	require.Equal(t, FailingEvent{s.FailingEvent.ID, audio.Uploaded{}.EventType(), "audio-bad", 0}, *s.FailingEvent)
	require.Equal(t, s.FailingEvent, s.Rebuild.FailingEvent)
	require.EqualValues(t, each, s.Rebuild.Events)
	require.Positive(t, s.LagSeconds)
	stopped, err := Stopped(t.Context(), pool)
	require.NoError(t, err)
	require.Contains(t, stopped, Audio)
	require.Subset(t, []string{Audio, Audit}, stopped, "which follows the event, too")

	stop()
	require.Equal(t, s.Rebuild.Position, status(t, pool, store, Audio, func(s Status) bool { return s.Rebuild != nil }).Rebuild.Position)
	run(t, store, pool)
	kill(t, pool)
	_, err = Skip(t.Context(), pool, Audio, uuid.New(), "somebody", "")
	require.Equal(t, fault.Conflict, fault.CodeOf(err), "the event that it stands at is named, and no other")
	_, err = Skip(t.Context(), pool, "nothing", uuid.MustParse(s.FailingEvent.ID), "somebody", "")
	require.Equal(t, fault.NotFound, fault.CodeOf(err))
	skipped, err := Skip(t.Context(), pool, Audio, uuid.MustParse(s.FailingEvent.ID), "somebody", "its client was broken")
	require.NoError(t, err)
	require.Equal(t, *s.FailingEvent, skipped.FailingEvent)
	s = status(t, pool, store, Audio, func(s Status) bool { return rebuilt(1)(s) && s.State == StateLive && s.Lag == 0 })
	require.EqualValues(t, 2*each, s.Events, "each was applied once")
	require.Len(t, s.Skipped, 1)
	require.Equal(t, "somebody", s.Skipped[0].SkippedBy)
	require.Equal(t, "its client was broken", s.Skipped[0].Reason)
	require.Nil(t, s.Skipped[0].AppliedAt)
	require.Nil(t, s.FailingEvent)
	var rows int
	require.NoError(t, pool.QueryRow(t.Context(), `SELECT count(*) FROM audio.item`).Scan(&rows))
	require.Equal(t, 2*each, rows)
}

// What was skipped because the program could not apply it comes in with a rebuild by one that can.
func TestARebuildTriesSkippedEventsAgain(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	var broken atomic.Bool
	broken.Store(true)
	p := named(Audio)
	apply := p.Apply
	p.Apply = func(batch *pgx.Batch, events []event.Recorded) error {
		if broken.Load() && slices.ContainsFunc(events, func(e event.Recorded) bool { return e.Stream == "audio-2" }) {
			return errors.New("not understood")
		}
		return apply(batch, events)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- NewRunner(RunnerConfig{Store: store, Pool: pool, Projections: []Projection{p}, Log: quiet}).Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	add(t, store, "audio-1", upload("aud_1"))
	add(t, store, "audio-2", upload("aud_2"))
	last := add(t, store, "audio-3", upload("aud_3"))
	s := status(t, pool, store, Audio, func(s Status) bool { return s.FailingEvent != nil })
	require.Contains(t, s.Error, "not understood")
	_, err := Skip(t.Context(), pool, Audio, uuid.MustParse(s.FailingEvent.ID), "somebody", "")
	require.NoError(t, err)
	reach(t, positions, last, Audio)
	_, err = audiolibrary.Get(t.Context(), pool, "co_one", event.Live, "aud_2")
	require.Equal(t, fault.NotFound, fault.CodeOf(err))

	broken.Store(false)
	require.NoError(t, StartRebuild(t.Context(), pool, Audio, false))
	s = status(t, pool, store, Audio, rebuilt(1))
	require.Len(t, s.Skipped, 1)
	require.NotNil(t, s.Skipped[0].AppliedAt)
	_, err = audiolibrary.Get(t.Context(), pool, "co_one", event.Live, "aud_2")
	require.NoError(t, err)
}

// What is paused stays as it is, and what is begun afresh begins with the first event.
func TestARebuildIsPausedAndBegunAfresh(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	add(t, store, "audio-1", upload("aud_1"))
	bad := add(t, store, "audio-2", raw{audio.Uploaded{}.EventType(), []byte(`{"audioId": 5}`)})
	run(t, store, pool)
	require.Equal(t, fault.NotFound, fault.CodeOf(StartRebuild(t.Context(), pool, "nothing", false)))
	require.NoError(t, StartRebuild(t.Context(), pool, Audio, false))
	standing := func(s Status) bool { return s.Rebuild != nil && s.Rebuild.FailingEvent != nil }
	s := status(t, pool, store, Audio, standing)
	require.Less(t, s.Rebuild.Position, bad.Commit)
	require.NoError(t, PauseRebuild(t.Context(), pool, Audio))
	require.Equal(t, StatePaused, status(t, pool, store, Audio, standing).Rebuild.State)
	_, err := pool.Exec(t.Context(), `UPDATE audio_next.item SET name = 'of before'`)
	require.NoError(t, err)
	require.NoError(t, StartRebuild(t.Context(), pool, Audio, true))
	require.Eventually(t, func() bool {
		var name string
		err := pool.QueryRow(t.Context(), `SELECT name FROM audio_next.item`).Scan(&name)
		return err == nil && name == "aud_1"
	}, patience, 10*time.Millisecond)
	require.EqualValues(t, 1, status(t, pool, store, Audio, standing).Rebuild.Events)
}

// A rebuild that took the place of the tables at the very position that a lead is at must not leave that lead writing.
func TestALeadOfAnotherGenerationWritesNothing(t *testing.T) {
	t.Parallel()
	pool := database(t)
	w := open(t, pool, named(Audio))
	events := recorded([]entry{{upload("aud_1"), "co_one", event.Live}, {upload("aud_2"), "co_one", event.Live}})
	w.project(t, events[:1], nil)
	_, err := pool.Exec(t.Context(), `UPDATE projections.checkpoint SET generation = generation + 1 WHERE projection = $1`, Audio)
	require.NoError(t, err)
	require.ErrorIs(t, w.lead.write(t.Context(), eventstore.Page{Events: events[1:], Through: events[1].Position}), errMoved)
	require.True(t, w.lead.conn.IsClosed())
	_, err = audiolibrary.Get(t.Context(), pool, "co_one", event.Live, "aud_2")
	require.Equal(t, fault.NotFound, fault.CodeOf(err))

	again := open(t, pool, named(Audio))
	_, err = pool.Exec(t.Context(), `UPDATE projections.checkpoint SET generation = generation + 1 WHERE projection = $1`, Audio)
	require.NoError(t, err)
	again.lead.check(t.Context())
	require.True(t, again.lead.conn.IsClosed(), "it notices even while nothing comes")
}

// A rebuild does not bring back what was dropped by its age.
func TestARebuildKeepsOutWhatWasDropped(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	run(t, store, pool)
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	var last event.Position
	for day := range 200 {
		last = add(t, store, usage.StreamPrefix+"any", usage.ApiRequestServed{RequestID: fmt.Sprint("req_", day), Timestamp: now.AddDate(0, 0, -day)})
	}
	reach(t, positions, last, Usage)
	require.Eventually(t, func() bool {
		err := usagelogs.DropExpired(t.Context(), pool, now)
		require.True(t, err == nil || errors.Is(err, usagelogs.ErrNotYet), err)
		return err == nil
	}, patience, 10*time.Millisecond)
	before := postgrestest.Dump(t, pool, Usage)
	require.NotContains(t, before, "req_199")
	require.NoError(t, StartRebuild(t.Context(), pool, Usage, false))
	status(t, pool, store, Usage, rebuilt(1))
	require.Equal(t, before, postgrestest.Dump(t, pool, Usage))
	require.NoError(t, usagelogs.DropExpired(t.Context(), pool, now.AddDate(0, 0, 30)), "and dropping goes on")
	require.NotContains(t, postgrestest.Dump(t, pool, Usage), "req_110")
	late := add(t, store, usage.StreamPrefix+"any", usage.ApiRequestServed{RequestID: "req_late", Timestamp: now.Add(time.Hour)})
	reach(t, positions, late, Usage)
	require.Contains(t, postgrestest.Dump(t, pool, Usage), "req_late")
}

// The counts that status tells are those of the events that were applied.
func TestStatusCountsEvents(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	run(t, store, pool)
	add(t, store, "audio-1", upload("aud_1"))
	last := add(t, store, "delivery-1", delivery.Played{Ref: delivery.Ref{SendID: "snd_1", UserID: 1, AudioID: "aud_1"}, At: epoch})
	s := status(t, pool, store, Audio, func(s Status) bool { return s.State == StateLive && s.Lag == 0 })
	require.GreaterOrEqual(t, s.Position, last.Commit)
	require.EqualValues(t, 2, s.Events)
	require.Zero(t, s.LagSeconds)
	require.EqualValues(t, 2, s.Version)
}
