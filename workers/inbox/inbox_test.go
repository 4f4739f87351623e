package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

var (
	pool *pgxpool.Pool
	hub  *inbox.Hub
)

func TestMain(m *testing.M) {
	os.Exit(commandstest.Main(m, func(t testing.TB) {
		pool = postgrestest.New(t)
		require.NoError(t, projections.Migrate(t.Context(), pool))
		require.NoError(t, workers.Migrate(t.Context(), pool))
		hub = inbox.NewHub(pool, commandstest.Quiet)
		commandstest.Run(t, hub.Run)
	}))
}

func newLocation() inbox.Location {
	return inbox.Location{CompanyID: "co_" + uuid.NewString(), Environment: event.Live, UserID: 1 + rand.Int64N(1<<50)}
}

func delivery(l inbox.Location, id string) inbox.Entry {
	return inbox.Entry{Location: l, ExternalID: "hall", Delivery: inbox.Delivery{DeliveryID: id, SendID: "snd_" + id, ExpiresAt: time.Now().Add(time.Hour)}}
}

// written sends a batch that put, closed or cancelled something.
func written(ctx context.Context, queue func(*pgx.Batch) error) error {
	batch := &pgx.Batch{}
	if err := queue(batch); err != nil {
		return err
	}
	return pool.SendBatch(ctx, batch).Close()
}

func put(t testing.TB, entries ...inbox.Entry) {
	t.Helper()
	require.NoError(t, written(context.Background(), func(batch *pgx.Batch) error {
		inbox.Wake(batch, entries)
		return inbox.Put(batch, entries)
	}))
}

func end(t testing.TB, entries ...inbox.Entry) {
	t.Helper()
	require.NoError(t, written(context.Background(), func(batch *pgx.Batch) error {
		inbox.Close(batch, entries, slices.Repeat([]time.Time{time.Now()}, len(entries)))
		return nil
	}))
}

func callOff(t testing.TB, entries ...inbox.Entry) {
	t.Helper()
	require.NoError(t, written(context.Background(), func(batch *pgx.Batch) error {
		inbox.Wake(batch, entries)
		return inbox.PutCancels(batch, entries)
	}))
}

func after(t testing.TB, l inbox.Location, seq int64, limit int) (items []inbox.Item, ids []string) {
	t.Helper()
	items, err := hub.After(context.Background(), l, seq, limit)
	require.NoError(t, err)
	ids = []string{}
	for _, i := range items {
		ids = append(ids, i.Kind+" "+i.Delivery.DeliveryID)
	}
	return items, ids
}

func TestAReaderResumesWhereItWas(t *testing.T) {
	t.Parallel()
	l, other := newLocation(), newLocation()
	id := func(i int) string { return fmt.Sprint(l.CompanyID, i) }
	for i := range 5 {
		put(t, delivery(l, id(i)), delivery(other, "other"+id(i)))
	}
	sandbox := l
	sandbox.Environment = event.Test
	put(t, delivery(sandbox, "sandbox"+id(0)))
	all, ids := after(t, l, 0, 10)
	require.Equal(t, []string{"deliver " + id(0), "deliver " + id(1), "deliver " + id(2), "deliver " + id(3), "deliver " + id(4)}, ids)
	_, ids = after(t, l, 0, 2)
	require.Len(t, ids, 2)
	_, ids = after(t, l, all[2].Seq, 10)
	require.Equal(t, []string{"deliver " + id(3), "deliver " + id(4)}, ids)
	newest, err := inbox.Last(t.Context(), pool)
	require.NoError(t, err)
	require.GreaterOrEqual(t, newest, all[4].Seq)

	// What ended, expired or is overdue is told no more; what was called off is told to those who heard of it.
	end(t, delivery(l, id(3)))
	callOff(t, delivery(l, id(3)))
	_, err = pool.Exec(t.Context(), "UPDATE workers.inbox SET expires_at = now() WHERE delivery_id = $1", id(0))
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), "UPDATE workers.inbox SET overdue = true WHERE delivery_id = $1", id(1))
	require.NoError(t, err)
	_, ids = after(t, l, 0, 10)
	require.Equal(t, []string{"deliver " + id(2), "deliver " + id(4)}, ids)
	_, ids = after(t, l, all[0].Seq, 10)
	require.Equal(t, []string{"deliver " + id(2), "deliver " + id(4), "cancel " + id(3)}, ids)

	// Again, all of it.
	for i := range 5 {
		put(t, delivery(l, id(i)))
	}
	end(t, delivery(l, id(3)), delivery(l, id(3)))
	callOff(t, delivery(l, id(3)))
	_, ids = after(t, l, all[0].Seq, 10)
	require.Equal(t, []string{"deliver " + id(2), "deliver " + id(4), "cancel " + id(3)}, ids)
	put(t)
	end(t)
}

// From the moment that a send is cancelled nobody is told to play it, though its deliveries are cancelled one by one.
func TestACancelledSendIsToldToNobody(t *testing.T) {
	t.Parallel()
	l := newLocation()
	one, other := delivery(l, l.CompanyID+"one"), delivery(l, l.CompanyID+"other")
	put(t, one, other)
	const sent = `INSERT INTO sends.send (send_id, company_id, environment, audio_id, priority, repeat, volume, expires_in, single, local_time, total, created_at, sealed, position, cancelled_at)
		VALUES ($1, $2, 'live', 'aud_x', 'normal', 1, 100, 60, true, '', 1, now(), true, 1, $3)`
	_, err := pool.Exec(t.Context(), sent, one.Delivery.SendID, l.CompanyID, time.Now())
	require.NoError(t, err)
	_, err = pool.Exec(t.Context(), sent, other.Delivery.SendID, l.CompanyID, nil)
	require.NoError(t, err)
	_, ids := after(t, l, 0, 10)
	require.Equal(t, []string{"deliver " + other.Delivery.DeliveryID}, ids)
}

func TestOneBatchKeepsItsOrder(t *testing.T) {
	t.Parallel()
	l := newLocation()
	var entries []inbox.Entry
	var want []string
	for i := range 500 {
		id := fmt.Sprint(l.CompanyID, i)
		entries = append(entries, delivery(l, id), delivery(newLocation(), "beside"+id))
		want = append(want, "deliver "+id)
	}
	put(t, slices.Concat(entries, entries)...) // each is there twice
	_, ids := after(t, l, 0, 1000)
	require.Equal(t, want, ids)
}

// Of a delivery that is put and closed at the same moment nothing is left.
func TestADeliveryThatEndsWhileItComesIsGone(t *testing.T) {
	t.Parallel()
	l := newLocation()
	for round := range 150 {
		e := delivery(l, fmt.Sprint(l.CompanyID, round))
		var both errgroup.Group
		both.Go(func() error {
			return written(t.Context(), func(batch *pgx.Batch) error { return inbox.Put(batch, []inbox.Entry{e}) })
		})
		both.Go(func() error {
			return written(t.Context(), func(batch *pgx.Batch) error {
				inbox.Close(batch, []inbox.Entry{e}, []time.Time{time.Now()})
				return nil
			})
		})
		require.NoError(t, both.Wait())
	}
	var left int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM workers.inbox WHERE company_id = $1", l.CompanyID).Scan(&left))
	require.Zero(t, left)
}

func woken(t testing.TB, wake <-chan struct{}) {
	t.Helper()
	select {
	case <-wake:
	case <-time.After(commandstest.Patience):
		t.Fatal("nobody was woken")
	}
}

// listening waits until the hub listens: it wakes everyone then.
func listening(t testing.TB, h *inbox.Hub) {
	t.Helper()
	wake, stop := h.SubscribeAll()
	defer stop()
	l := newLocation()
	for {
		put(t, delivery(l, uuid.NewString()))
		select {
		case <-wake:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestThoseWhoWaitForALocationAreWoken(t *testing.T) {
	t.Parallel()
	listening(t, hub)
	// One batch, more locations than fit one notification.
	var entries []inbox.Entry
	var wakes []<-chan struct{}
	for range 300 {
		l := newLocation()
		entries = append(entries, delivery(l, uuid.NewString()))
		for range 3 {
			wake, stop := hub.Subscribe(l)
			defer stop()
			wakes = append(wakes, wake)
		}
	}
	all, stop := hub.SubscribeAll()
	defer stop()
	gone, stopGone := hub.Subscribe(entries[0].Location)
	stopGone()
	put(t, entries...)
	for _, wake := range append(wakes, all) {
		woken(t, wake)
	}
	require.Empty(t, gone)

	// Others are left alone; several signals are one.
	quiet, stopQuiet := hub.Subscribe(newLocation())
	defer stopQuiet()
	for range 5 {
		put(t, delivery(entries[0].Location, uuid.NewString()))
	}
	callOff(t, entries[1])
	woken(t, wakes[0])
	woken(t, wakes[3])
	require.Empty(t, quiet)
}

// Readers read, wait and read on while others write: each item of a location comes to its readers once, in order.
func TestNothingFallsBetweenReadingAndWaiting(t *testing.T) {
	t.Parallel()
	const locations, writers, rounds = 6, 4, 40
	all := make([]inbox.Location, locations)
	for i := range all {
		all[i] = newLocation()
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandstest.Patience)
	defer cancel()
	var mu sync.Mutex
	sent := map[inbox.Location]int{}
	var writing, reading errgroup.Group
	total := func(l inbox.Location) int {
		mu.Lock()
		defer mu.Unlock()
		return sent[l]
	}
	for writer := range writers {
		writing.Go(func() error {
			r := rand.New(rand.NewPCG(uint64(writer), 1))
			for range rounds {
				var entries []inbox.Entry
				for range 1 + r.IntN(5) {
					entries = append(entries, delivery(all[r.IntN(locations)], uuid.NewString()))
				}
				batch := &pgx.Batch{}
				if err := inbox.Put(batch, entries); err != nil {
					return err
				}
				inbox.Wake(batch, entries)
				if err := pool.SendBatch(ctx, batch).Close(); err != nil {
					return err
				}
				mu.Lock()
				for _, e := range entries {
					sent[e.Location]++
				}
				mu.Unlock()
			}
			return nil
		})
	}
	done := make(chan struct{})
	got := make([][]int64, 2*locations)
	for reader := range got {
		l := all[reader%locations]
		reading.Go(func() error {
			wake, stop := hub.Subscribe(l)
			defer stop()
			seq, over := int64(0), done
			for {
				items, err := hub.After(ctx, l, seq, 3)
				if err != nil {
					return err
				}
				for _, i := range items {
					got[reader] = append(got[reader], i.Seq)
					seq = i.Seq
				}
				if len(items) == 3 {
					continue
				}
				for waiting := true; waiting; {
					if over == nil && len(got[reader]) == total(l) {
						return nil
					}
					select {
					case <-wake:
						waiting = false
					case <-over:
						over = nil // that alone is no reason to look again
					case <-ctx.Done():
						return fmt.Errorf("%d of %d items came, and no wake: %w", len(got[reader]), total(l), ctx.Err())
					}
				}
			}
		})
	}
	require.NoError(t, writing.Wait())
	close(done)
	require.NoError(t, reading.Wait())
	for reader, seqs := range got {
		require.True(t, slices.IsSorted(seqs))
		require.Len(t, slices.Compact(seqs), total(all[reader%locations]))
	}
}

// Its connection breaks: it connects again and wakes everyone, since it may have missed something.
func TestAHubWhoseConnectionBreaksMissesNothing(t *testing.T) {
	t.Parallel()
	own := postgrestest.New(t)
	require.NoError(t, workers.Migrate(t.Context(), own))
	h := inbox.NewHub(own, commandstest.Quiet)
	commandstest.Run(t, h.Run)
	l := newLocation()
	wake, stop := h.Subscribe(l)
	defer stop()
	woken(t, wake) // it listens
	for range 3 {
		var cut int
		require.NoError(t, own.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND query = 'LISTEN inbox'`).Scan(&cut))
		require.Equal(t, 1, cut)
		woken(t, wake)
		batch := &pgx.Batch{}
		inbox.Wake(batch, []inbox.Entry{delivery(l, uuid.NewString())})
		require.NoError(t, own.SendBatch(t.Context(), batch).Close())
		woken(t, wake)
	}
}

// Last-Event-IDs outlive a database that is lost and made again from the events. What the new inbox tells is new to whoever has one of the old.
func TestAnInboxThatIsMadeAgainTellsEverything(t *testing.T) {
	t.Parallel()
	ctx, pool, l := t.Context(), postgrestest.New(t), newLocation()
	hub := inbox.NewHub(pool, commandstest.Quiet)
	told := func(after int64, ids ...string) (last int64) {
		items, err := hub.After(ctx, l, after, 100)
		require.NoError(t, err)
		require.Len(t, items, len(ids))
		for i, item := range items {
			require.Equal(t, ids[i], item.Delivery.DeliveryID)
			last = item.Seq
		}
		return last
	}
	fill := func(ids ...string) {
		require.NoError(t, projections.Migrate(ctx, pool))
		require.NoError(t, workers.Migrate(ctx, pool))
		batch := &pgx.Batch{}
		for _, id := range ids {
			require.NoError(t, inbox.Put(batch, []inbox.Entry{delivery(l, id)}))
		}
		require.NoError(t, pool.SendBatch(ctx, batch).Close())
	}
	fill("a", "b", "c")
	last := told(0, "a", "b", "c")
	told(last)
	_, err := pool.Exec(ctx, "DROP SCHEMA workers CASCADE; DROP TABLE workers_migrations")
	require.NoError(t, err)
	fill("c", "d", "e", "f", "g")
	told(last, "c", "d", "e", "f", "g")
}

// Many who read at the same moment each get what is theirs: from where they are, no more than they asked for. One who left gets nothing and holds up nobody.
func TestManyReadAtTheSameMoment(t *testing.T) {
	t.Parallel()
	const locations, each = 700, 3
	all := make([]inbox.Location, locations)
	var entries []inbox.Entry
	for i := range all {
		all[i] = newLocation()
		for n := range each {
			entries = append(entries, delivery(all[i], fmt.Sprint(all[i].CompanyID, n)))
		}
	}
	put(t, entries...)
	left, leave := context.WithCancel(t.Context())
	leave()
	var group errgroup.Group
	for i, l := range all {
		group.Go(func() error {
			if i%10 == 0 {
				if _, err := hub.After(left, l, 0, each); !errors.Is(err, context.Canceled) {
					return fmt.Errorf("one who left: %w", err)
				}
			}
			items, err := hub.After(t.Context(), l, 0, 1+i%each)
			if err != nil {
				return err
			}
			rest, err := hub.After(t.Context(), l, items[len(items)-1].Seq, each)
			if err != nil {
				return err
			}
			if len(items) != 1+i%each {
				return fmt.Errorf("%d items of %d", len(items), 1+i%each)
			}
			for n, item := range append(items, rest...) {
				if want := fmt.Sprint(l.CompanyID, n); item.Delivery.DeliveryID != want || item.Delivery.SendID != "snd_"+want {
					return fmt.Errorf("%+v instead of %s", item, want)
				}
			}
			if len(items)+len(rest) != each {
				return fmt.Errorf("%d of %d", len(items)+len(rest), each)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// While one round trip hangs, those who come later go another way.
func TestAReadThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	l, other := newLocation(), newLocation()
	put(t, delivery(l, l.CompanyID), delivery(other, other.CompanyID))
	own := postgrestest.New(t)
	require.NoError(t, projections.Migrate(t.Context(), own))
	require.NoError(t, workers.Migrate(t.Context(), own))
	alone := inbox.NewHub(own, commandstest.Quiet)
	tx, err := own.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "LOCK TABLE workers.inbox IN ACCESS EXCLUSIVE MODE")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var first, second error
	var both errgroup.Group
	both.Go(func() error { _, first = alone.After(ctx, l, 0, 1); return nil })
	both.Go(func() error { _, second = alone.After(ctx, other, 0, 1); return nil })
	require.NoError(t, both.Wait())
	require.ErrorIs(t, first, context.DeadlineExceeded)
	require.ErrorIs(t, second, context.DeadlineExceeded)
	// It was too late for them; whoever comes when the lock is gone is answered.
	require.NoError(t, tx.Rollback(t.Context()))
	items, err := alone.After(t.Context(), l, 0, 1)
	require.NoError(t, err)
	require.Empty(t, items) // it is another database
}
