package projections

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// rows is every row of every read model.
func rows(t testing.TB, pool *pgxpool.Pool) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, p := range All() {
		all[p.Name] = postgrestest.Dump(t, pool, p.Name)
	}
	return all
}

// replayed makes a replay, which the test drops.
func replayed(t testing.TB, store *eventstore.Store, serving *pgxpool.Pool, asOf time.Time) *pgxpool.Pool {
	t.Helper()
	pool := emptyReplay(t, serving, asOf)
	_, err := Replay(t.Context(), ReplayConfig{Store: store, Pool: pool, AsOf: asOf, Log: quiet})
	require.NoError(t, err)
	return pool
}

func emptyReplay(t testing.TB, serving *pgxpool.Pool, asOf time.Time) *pgxpool.Pool {
	t.Helper()
	info, pool, err := CreateReplay(t.Context(), serving, ReplayName(asOf), asOf, time.Now())
	require.NoError(t, err)
	t.Cleanup(func() {
		pool.Close()
		require.NoError(t, DropReplay(context.Background(), serving, info.Name))
	})
	return pool
}

// What the read models showed at a time is what a replay as of then shows, row by row, whatever has happened since.
func TestAReplayShowsWhatWasShownThen(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	positions := listen(t, pool)
	stop := run(t, store, pool)
	before := time.Now()
	type moment struct {
		at   time.Time
		rows map[string]string
	}
	moments := []moment{{before, rows(t, pool)}}
	events := rapid.Custom(func(t *rapid.T) []event.Recorded {
		w := &world{t: t, locations: map[int64]bool{}}
		for range 40 {
			for _, step := range []func(){w.companyStep, w.tokenStep, w.locationStep, w.deviceStep, w.audioStep, w.sendStep, w.sendStep, w.partStep, w.startStep, w.cancelStep, w.changeStep, w.deliveryStep, w.deliveryStep, w.usageStep} {
				step()
			}
		}
		return recorded(w.entries)
	}).Example(3)
	for i, e := range events {
		add(t, store, streamOf(i, e), raw{e.Type, e.Data})
		if (i+1)%(len(events)/4) != 0 {
			continue
		}
		add(t, store, "uploads", upload(fmt.Sprint("aud_", i)))
		last := add(t, store, "usage-x", usage.ApiRequestServed{RequestID: fmt.Sprint("req_", i), Timestamp: epoch})
		for _, p := range All() {
			position := last
			if !p.Beside { // which passes usage only now and then
				position = add(t, store, "uploads", upload(fmt.Sprint("aud_", i, p.Name)))
			}
			reach(t, positions, position, p.Name)
		}
		head, err := Head(t.Context(), store)
		require.NoError(t, err)
		for _, p := range All() {
			if !p.Beside {
				reach(t, positions, head, p.Name)
			}
		}
		moments = append(moments, moment{time.Now(), rows(t, pool)})
	}
	require.Len(t, moments, 5)
	stop()
	last := rows(t, pool)
	for _, m := range moments {
		replay := replayed(t, store, pool, m.at)
		for _, p := range All() {
			require.Equal(t, m.rows[p.Name], postgrestest.Dump(t, replay, p.Name), "%s as of %s", p.Name, m.at)
		}
	}
	require.Equal(t, last, rows(t, pool), "what serves is as it was")
	all, err := Replays(t.Context(), pool)
	require.NoError(t, err)
	require.Len(t, all, 5)
}

func TestAReplayOfNothingIsEmpty(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	first := time.Now()
	require.Equal(t, rows(t, pool), rows(t, replayed(t, store, pool, first)), "of an empty store")
	add(t, store, "audio-1", upload("aud_1"))
	earlier := first.Add(-time.Hour)
	require.Equal(t, rows(t, pool), rows(t, replayed(t, store, pool, earlier)), "from before the first event")
	_, _, err := CreateReplay(t.Context(), pool, "later", time.Now().Add(time.Hour), time.Now())
	require.ErrorIs(t, err, ErrFuture)
}

// A replay that broke off goes on, and one that is there already is not made again.
func TestAReplayGoesOn(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	const each, times = 1000, 5
	for n := range times {
		payloads := make([]event.Payload, each)
		for i := range payloads {
			payloads[i] = upload(fmt.Sprint("aud_", n, "_", i))
		}
		add(t, store, fmt.Sprint("audio-", n), payloads...)
	}
	asOf := time.Now()
	replay := emptyReplay(t, pool, asOf)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Replay(ctx, ReplayConfig{Store: store, Pool: replay, AsOf: asOf, Log: quiet, Progress: func(Replayed) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
	count := func() (n int) {
		require.NoError(t, replay.QueryRow(t.Context(), `SELECT count(*) FROM audio.item`).Scan(&n))
		return n
	}
	require.Equal(t, replayPage, count(), "a page is there")
	done, err := Replay(t.Context(), ReplayConfig{Store: store, Pool: replay, AsOf: asOf, Log: quiet})
	require.NoError(t, err)
	require.EqualValues(t, each*times-replayPage, done.Events, "it went on")
	require.Equal(t, each*times, count())

	name := ReplayName(asOf)
	info, again, err := CreateReplay(t.Context(), pool, name, asOf, time.Now())
	require.NoError(t, err)
	again.Close()
	require.Nil(t, info.FinishedAt)
	_, err = FinishReplay(t.Context(), pool, info, done.Through, time.Now())
	require.NoError(t, err)
	info, opened, err := OpenReplay(t.Context(), pool, name)
	require.NoError(t, err)
	opened.Close()
	require.NotNil(t, info.FinishedAt)
	require.Equal(t, done.Through, info.Through)
	require.True(t, asOf.Equal(info.AsOf))
	_, _, err = CreateReplay(t.Context(), pool, name, asOf.Add(-time.Second), time.Now())
	require.ErrorIs(t, err, ErrReplayTaken)
	_, _, err = OpenReplay(t.Context(), pool, "none")
	require.ErrorIs(t, err, ErrNoReplay)
	require.ErrorIs(t, DropReplay(t.Context(), pool, "none"), ErrNoReplay)
	_, _, err = CreateReplay(t.Context(), pool, `x"; DROP`, asOf, time.Now())
	require.ErrorContains(t, err, "a-z")
}

// An event that cannot be applied ends a replay, by its name, unless it is to be passed.
func TestAReplayStopsAtAnEvent(t *testing.T) {
	t.Parallel()
	store, pool := newStore(t), database(t)
	add(t, store, "audio-1", upload("aud_1"))
	add(t, store, "audio-bad", raw{audio.Uploaded{}.EventType(), []byte(`{"audioId": 5}`)})
	add(t, store, "audio-2", upload("aud_2"))
	bad, err := store.Load(t.Context(), "audio-bad")
	require.NoError(t, err)
	asOf := time.Now()
	replay := emptyReplay(t, pool, asOf)
	_, err = Replay(t.Context(), ReplayConfig{Store: store, Pool: replay, AsOf: asOf, Log: quiet})
	require.ErrorContains(t, err, bad[0].ID.String())
	require.False(t, errors.Is(err, context.Canceled))
	_, err = Replay(t.Context(), ReplayConfig{Store: store, Pool: replay, AsOf: asOf, Log: quiet, Skip: []uuid.UUID{bad[0].ID}})
	require.NoError(t, err)
	var n int
	require.NoError(t, replay.QueryRow(t.Context(), `SELECT count(*) FROM audio.item`).Scan(&n))
	require.Equal(t, 2, n)
}
