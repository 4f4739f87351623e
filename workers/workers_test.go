package workers_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/workers"
)

// follows is a follower that counts events in a table of the test's own.
func (w *world) follows(t *testing.T) (follow func(context.Context) error) {
	t.Helper()
	_, err := w.Pool.Exec(t.Context(), "CREATE TABLE seen (place bigserial, id text, position bigint)")
	require.NoError(t, err)
	return func(ctx context.Context) error {
		return workers.Follow(ctx, w.deps, "test", []string{company.PlanChanged{}.EventType()}, func(_ context.Context, batch *pgx.Batch, events []event.Recorded) error {
			for _, e := range events {
				batch.Queue("INSERT INTO seen (id, position) VALUES ($1, $2)", e.ID.String(), int64(e.Position.Commit))
			}
			return nil
		})
	}
}

// seen are the positions that the follower counted, in the order that it did so.
func (w *world) seen(t testing.TB) []int64 {
	t.Helper()
	rows, err := w.Pool.Query(context.Background(), "SELECT position FROM seen ORDER BY place")
	require.NoError(t, err)
	positions, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return positions
}

func (w *world) change(t *testing.T, times int) (positions []int64) {
	t.Helper()
	for range times {
		position := w.append(t, event.Metadata{Time: w.now()}, "company-test", company.PlanChanged{CompanyID: "test", Plan: "plus"})
		positions = append(positions, int64(position.Commit))
	}
	return positions
}

// Instances come and go, and their connections are cut: each event has its effect once, in order.
func TestAFollowerDoesEachEventOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	follow := w.follows(t)
	commandstest.Run(t, follow)
	r := rand.New(rand.NewPCG(8, 9))
	var want []int64
	for round := range 12 {
		stop := commandstest.Run(t, follow, follow)
		want = append(want, w.change(t, 1+r.IntN(20))...)
		if round%3 == 0 {
			w.cut(t)
		}
		stop()
	}
	eventually(t, func() bool { return len(w.seen(t)) >= len(want) })
	require.Equal(t, want, w.seen(t))
}

// A database that crashed has lost its newest transactions, and the checkpoint with them; the follower lives on and must not go on from where it was.
func TestAFollowerGoesBackWithItsCheckpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	commandstest.Run(t, w.follows(t))
	kept := w.change(t, 3)
	eventually(t, func() bool { return len(w.seen(t)) == 3 })
	lost := w.change(t, 4)
	eventually(t, func() bool { return len(w.seen(t)) == 7 })
	require.NoError(t, pgx.BeginFunc(t.Context(), w.Pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "DELETE FROM seen WHERE position > $1", kept[2])
		_, err2 := tx.Exec(t.Context(), "UPDATE workers.checkpoint SET commit_position = $1, prepare_position = $1 WHERE follower = 'test'", kept[2])
		return errors.Join(err, err2)
	}))
	after := w.change(t, 2)
	want := append(append(kept, lost...), after...)
	eventually(t, func() bool { return len(w.seen(t)) == len(want) })
	require.Equal(t, want, w.seen(t))
}

// A page that fails comes again, and nothing of it stays.
func TestAPageThatFailsIsDoneWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_ = w.follows(t)
	var failures atomic.Int64
	commandstest.Run(t, func(ctx context.Context) error {
		return workers.Follow(ctx, w.deps, "test", []string{company.PlanChanged{}.EventType()}, func(_ context.Context, batch *pgx.Batch, events []event.Recorded) error {
			for _, e := range events {
				batch.Queue("INSERT INTO seen (id, position) VALUES ($1, $2)", e.ID.String(), int64(e.Position.Commit))
			}
			switch failures.Add(1) % 3 {
			case 1:
				return errors.New("it cannot be done")
			case 2:
				batch.Queue("SELECT 1 / 0")
			}
			return nil
		})
	})
	want := w.change(t, 10)
	eventually(t, func() bool { return len(w.seen(t)) >= len(want) })
	require.Equal(t, want, w.seen(t))
	require.GreaterOrEqual(t, failures.Load(), int64(3))
}

// One instance has the lead as long as it lives and its connection does; then another one has it.
func TestOneInstanceLeads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var leading, leads, most atomic.Int64
	work := func(ctx context.Context) error {
		most.Store(max(most.Load(), leading.Add(1)))
		leads.Add(1)
		<-ctx.Done()
		leading.Add(-1)
		return ctx.Err()
	}
	lead := func(ctx context.Context) error { return workers.Lead(ctx, w.deps, "test", work) }
	var stops []func()
	for range 4 {
		stops = append(stops, commandstest.Run(t, lead))
	}
	eventually(t, func() bool { return leading.Load() == 1 })
	for _, stop := range stops[:3] { // the leader is one of them or is not
		stop()
		eventually(t, func() bool { return leading.Load() == 1 })
	}
	require.EqualValues(t, 1, most.Load())
	before := leads.Load()
	w.cut(t)
	eventually(t, func() bool { return leads.Load() > before && leading.Load() == 1 }, "the lock went with the connection")
	require.EqualValues(t, 1, most.Load())
}

// Work that fails is begun again; what ends well is too, until it is told to end.
func TestWorkThatEndsIsBegunAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var began atomic.Int64
	stop := commandstest.Run(t, func(ctx context.Context) error {
		return workers.Lead(ctx, w.deps, "test", func(context.Context) error {
			if began.Add(1)%2 == 0 {
				return nil
			}
			return errors.New("it cannot be done")
		})
	})
	eventually(t, func() bool { return began.Load() >= 3 })
	stopped := time.Now()
	stop()
	require.Less(t, time.Since(stopped), commandstest.Patience)
}
