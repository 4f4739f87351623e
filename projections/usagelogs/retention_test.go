package usagelogs_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/projections/usagelogs"
)

const (
	day       = 24 * time.Hour
	companyID = "co_one"
)

// today is a Friday: a week began a day and a half ago.
var today = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return today.Add(-d) }

// world is a company's usage logs, with the projection at work on them.
type world struct {
	store *eventstore.Store
	pool  *pgxpool.Pool
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{commandstest.Store(t), postgrestest.New(t)}
	require.NoError(t, projections.Migrate(t.Context(), w.pool))
	w.project(t)
	return w
}

func (w world) project(t *testing.T) {
	t.Helper()
	all := projections.All()
	only := slices.IndexFunc(all, func(p projections.Projection) bool { return p.Name == projections.Usage })
	commandstest.Run(t, projections.NewRunner(projections.RunnerConfig{Store: w.store, Pool: w.pool, Projections: all[only : only+1], Log: commandstest.Quiet}).Run)
}

// serve records requests of these times, in this order, and gives their IDs.
func (w world) serve(t *testing.T, times ...time.Time) (requestIDs []string) {
	t.Helper()
	var events []event.Proposed
	for _, at := range times {
		id := uuid.New()
		requestIDs = append(requestIDs, id.String())
		events = append(events, event.Proposed{
			ID: id, Payload: usage.ApiRequestServed{RequestID: id.String(), Timestamp: at, Method: "GET", Status: 200},
			Metadata: event.Metadata{CompanyID: companyID, Environment: event.Live, Time: at},
		})
	}
	_, err := w.store.Append(t.Context(), usage.Stream(companyID, event.Live, today), eventstore.Any, events...)
	require.NoError(t, err)
	return requestIDs
}

// log is serve, and waits until the projection has passed the requests. One more, of today, tells that it has. A session may see what another committed
// before it knows of the partitions that this one made; so it is another transaction that tells.
func (w world) log(t *testing.T, times ...time.Time) (requestIDs []string) {
	t.Helper()
	ids := w.serve(t, append(slices.Clone(times), today)...)
	w.shown(t, ids[len(times)])
	w.shown(t, w.serve(t, today)[0])
	w.runs(t)
	return ids[:len(times)]
}

// shown waits until a request is.
func (w world) shown(t *testing.T, requestID string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(w.list(t, today, usagelogs.Filter{RequestID: requestID})) == 1 }, commandstest.Patience, 5*time.Millisecond)
}

// runs checks that the projection does not stand still.
func (w world) runs(t *testing.T) {
	t.Helper()
	statuses, err := projections.Statuses(t.Context(), w.pool, w.store)
	require.NoError(t, err)
	for _, s := range statuses {
		require.Empty(t, s.Error, s.Name)
	}
}

// list is the IDs of what the company is shown.
func (w world) list(t *testing.T, now time.Time, f usagelogs.Filter) (requestIDs []string) {
	t.Helper()
	for cursor := ""; ; {
		page, next, err := usagelogs.List(t.Context(), w.pool, companyID, event.Live, f, cursor, 100, now)
		require.NoError(t, err)
		for _, r := range page {
			requestIDs = append(requestIDs, r.RequestID)
		}
		if next == "" {
			return requestIDs
		}
		cursor = next
	}
}

// weeks is the tables that hold requests, attached or not.
func (w world) weeks(t *testing.T) []string {
	t.Helper()
	rows, err := w.pool.Query(t.Context(), `SELECT relname FROM pg_class WHERE relnamespace = 'usage'::regnamespace AND relkind = 'r' AND relname LIKE 'request\_%' ORDER BY 1`)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

// week is the table of a time's week.
func week(at time.Time) string {
	return time.Unix(at.Unix()/604_800*604_800, 0).UTC().Format("request_20060102")
}

func (w world) ask(t *testing.T, query string, args ...any) (answer bool) {
	t.Helper()
	require.NoError(t, w.pool.QueryRow(t.Context(), query, args...).Scan(&answer))
	return answer
}

func (w world) pending(t *testing.T, table string) bool {
	t.Helper()
	return w.ask(t, `SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('usage.' || $1) AND inhdetachpending)`, table)
}

// drop drops what is over as the cleanup does: again, as long as somebody is in its way.
func (w world) drop(t *testing.T, now time.Time) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := usagelogs.DropExpired(context.Background(), w.pool, now)
		if err != nil && !errors.Is(err, usagelogs.ErrNotYet) {
			t.Error(err)
		}
		return err == nil
	}, commandstest.Patience, time.Millisecond)
}

// read begins a transaction that has read all requests, and may still read any of them.
func (w world) read(t *testing.T) (end func()) {
	t.Helper()
	tx, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	end = func() { _ = tx.Rollback(context.Background()) } // twice is once
	t.Cleanup(end)
	_, err = tx.Exec(t.Context(), `SELECT count(*) FROM usage.request`)
	require.NoError(t, err)
	return end
}

// dropping runs DropExpired until what it returned is asked for.
func (w world) dropping() (result <-chan error) {
	done := make(chan error, 1)
	go func() { done <- usagelogs.DropExpired(context.Background(), w.pool, today) }()
	return done
}

// waits waits until who drops waits for somebody itself, and gives the server process; 0 if it returned before.
func (w world) waits(t *testing.T, dropping <-chan error) (pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := w.pool.QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'musique usage logs' AND wait_event_type = 'Lock'`).Scan(&pid)
		if errors.Is(err, pgx.ErrNoRows) {
			return len(dropping) == 1
		}
		require.NoError(t, err)
		return true
	}, commandstest.Patience, time.Millisecond)
	return pid
}

// While somebody reads for long, weeks that are over wait for that reader, and nobody waits for them: not the projection, even where it makes a new week,
// and not other readers. They go when the reader has.
func TestWeeksThatAreOverStandInNobodysWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.log(t, ago(120*day), ago(105*day), ago(50*day))
	end := w.read(t)
	others := false
	for round := 1; !others && round <= 10; round++ { // on a slow machine it takes more than one
		next := today.Add(time.Duration(round) * 7 * day)
		dropping := w.dropping()
		if w.waits(t, dropping) != 0 {
			w.log(t, ago(time.Minute), next)
			require.NotEmpty(t, w.list(t, today, usagelogs.Filter{}))
			require.Contains(t, w.weeks(t), week(next))
			others = len(dropping) == 0
		}
		require.ErrorIs(t, <-dropping, usagelogs.ErrNotYet)
	}
	require.True(t, others, "others go on while who drops waits")
	require.True(t, w.pending(t, week(ago(120*day))), "the first is on its way out")

	t.Run("requests that come late for them stop nothing", func(t *testing.T) {
		before := len(w.list(t, today, usagelogs.Filter{}))
		w.log(t, ago(120*day), ago(105*day), ago(2*time.Minute))
		require.Len(t, w.list(t, today, usagelogs.Filter{}), before+3)
	})
	end()
	w.drop(t, today)
	require.NotContains(t, w.weeks(t), week(ago(120*day)))
	require.NotContains(t, w.weeks(t), week(ago(105*day)))
	require.Contains(t, w.weeks(t), week(ago(50*day)))
	t.Run("nor do they bring them back", func(t *testing.T) {
		before := w.weeks(t)
		w.log(t, ago(120*day), ago(105*day), ago(3*time.Minute))
		require.Equal(t, before, w.weeks(t))
	})
}

// Whoever drops can die at any moment; another finishes.
func TestWhatWasBegunIsFinished(t *testing.T) {
	t.Parallel()
	t.Run("a detachment", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log(t, ago(120*day), ago(105*day))
		end := w.read(t)
		for died := false; !died; { // until it is met while it waits
			dropping := w.dropping()
			if pid := w.waits(t, dropping); pid != 0 {
				died = w.ask(t, `SELECT pg_terminate_backend($1)`, pid)
			}
			err := <-dropping
			require.Error(t, err)
		}
		require.True(t, w.pending(t, week(ago(120*day))))
		require.ErrorIs(t, usagelogs.DropExpired(t.Context(), w.pool, today), usagelogs.ErrNotYet)
		require.True(t, w.pending(t, week(ago(120*day))), "the reader may still see it")
		end()
		w.drop(t, today)
		require.Equal(t, []string{week(today)}, w.weeks(t))
	})
	t.Run("a table that was detached", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.log(t, ago(120*day), ago(105*day), ago(day))
		_, err := w.pool.Exec(t.Context(), `ALTER TABLE usage.request DETACH PARTITION usage.`+week(ago(105*day))+` CONCURRENTLY`)
		require.NoError(t, err)
		w.drop(t, today)
		require.Equal(t, []string{week(today)}, w.weeks(t))
	})
	t.Run("beside requests of its time", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		kept := w.log(t, ago(30*day), ago(10*day))
		table := week(ago(30 * day))
		_, err := w.pool.Exec(t.Context(), `ALTER TABLE usage.request DETACH PARTITION usage.`+table+` CONCURRENTLY`)
		require.NoError(t, err)
		tx, err := w.pool.Begin(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
		_, err = tx.Exec(t.Context(), `LOCK TABLE usage.`+table+` IN ACCESS SHARE MODE`)
		require.NoError(t, err)
		// A clock that was ahead had it dropped, and is right again.
		require.ErrorIs(t, usagelogs.DropExpired(t.Context(), w.pool, today), usagelogs.ErrNotYet)
		late := w.log(t, ago(30*day), ago(9*day))
		require.Equal(t, []string{late[1], kept[1]}, w.list(t, today, usagelogs.Filter{})[4:], "only those of that week have no place")
		require.NoError(t, tx.Rollback(t.Context()))
		w.drop(t, today)
		again := w.log(t, ago(30*day))
		require.Contains(t, w.list(t, today, usagelogs.Filter{}), again[0])
	})
	t.Run("by a clock that was wrong", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		kept := w.log(t, ago(30*day), ago(10*day))
		end := w.read(t)
		require.ErrorIs(t, usagelogs.DropExpired(t.Context(), w.pool, today.AddDate(1, 0, 0)), usagelogs.ErrNotYet)
		require.True(t, w.pending(t, week(ago(30*day))))
		end()
		w.drop(t, today)
		require.Equal(t, kept[1:], w.list(t, today, usagelogs.Filter{})[2:], "what was not on its way out stays")
		again := w.log(t, ago(30*day))
		require.Contains(t, w.list(t, today, usagelogs.Filter{}), again[0], "requests of that time are logged again")
	})
}

// What is about to be written of a week that is over is written, and dropped with it.
func TestWhoDropsWaitsForWhoWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.log(t, ago(105*day))
	tx, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	_, err = tx.Exec(t.Context(), `SET LOCAL search_path TO usage`)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT make_weeks(ARRAY[$1::timestamptz])`, ago(105*day))
	require.NoError(t, err)
	dropping := w.dropping()
	require.NotZero(t, w.waits(t, dropping))
	_, err = tx.Exec(t.Context(), `INSERT INTO request SELECT gen_random_uuid(), company_id, environment, at, request_id, method, path, endpoint, status, duration_ms, external_id, token_id, ip, user_agent, error_code
		FROM request WHERE at = $1`, ago(105*day))
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	if err := <-dropping; !errors.Is(err, usagelogs.ErrNotYet) {
		require.NoError(t, err)
	}
	w.drop(t, today)
	require.Equal(t, []string{week(today)}, w.weeks(t))
}

// The next to drop need not wait for the server to have noticed that the one before is gone.
func TestWhoHasDroppedIsInNobodysWay(t *testing.T) {
	t.Parallel()
	w := world{pool: postgrestest.New(t)}
	require.NoError(t, projections.Migrate(t.Context(), w.pool))
	for range 30 {
		_, err := w.pool.Exec(t.Context(), `CREATE TABLE usage.request_20200102 ()`)
		require.NoError(t, err)
		require.NoError(t, usagelogs.DropExpired(t.Context(), w.pool, today))
		require.True(t, w.ask(t, `SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`))
	}
}

func TestManyMayDropAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var times []time.Time
	for age := 30 * day; age < 150*day; age += 3 * day {
		times = append(times, ago(age))
	}
	w.log(t, times...)
	var all errgroup.Group
	for range 8 {
		all.Go(func() error {
			if err := usagelogs.DropExpired(t.Context(), w.pool, today); !errors.Is(err, usagelogs.ErrNotYet) {
				return err
			}
			return nil // another is at it
		})
	}
	require.NoError(t, all.Wait())
	w.drop(t, today)
	require.Equal(t, week(ago(90*day)), w.weeks(t)[0])
	w.runs(t)
}

// A request is shown as long as it is not older than 90 days, to the microsecond, and what is dropped was not shown any more.
func TestRequestsAreShownFor90Days(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	edge := time.Date(2026, 1, 29, 0, 0, 0, 0, time.UTC) // a Thursday, where one week ends and the next begins
	const µs = time.Microsecond
	var times, clock []time.Time
	for _, at := range []time.Time{edge, edge.Add(day), edge.Add(7 * day)} {
		times = append(times, at.Add(-µs), at, at.Add(µs))
	}
	for _, at := range times {
		last := at.Add(90 * day) // when it is shown for the last time
		clock = append(clock, last.Add(-µs), last.Add(-1), last, last.Add(1), last.Add(µs-1), last.Add(µs))
	}
	slices.SortFunc(clock, time.Time.Compare)
	ids := w.log(t, times...)
	for _, now := range clock {
		shown := w.list(t, now, usagelogs.Filter{})
		for i, at := range times {
			require.Equal(t, now.Sub(at) <= 90*day, slices.Contains(shown, ids[i]), "a request of %v, at %v", at, now)
		}
		w.drop(t, now)
		require.Equal(t, shown, w.list(t, now, usagelogs.Filter{}))
	}
	require.Equal(t, []string{week(edge.Add(7 * day)), week(today)}, w.weeks(t), "a week goes when the last of its requests is too old, and not before")
	w.drop(t, edge.Add(14*day+90*day-1))
	require.Contains(t, w.weeks(t), week(edge.Add(7*day)))
	w.drop(t, edge.Add(14*day+90*day))
	require.NotContains(t, w.weeks(t), week(edge.Add(7*day)))
}

// A filter's ends are exact too, where they say more than the database can hold.
func TestTheEndsOfAFilterAreExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := ago(day)
	id := w.log(t, at)[0]
	between := func(start, end time.Time) []string {
		return w.list(t, today, usagelogs.Filter{Start: &start, End: &end})
	}
	require.Equal(t, []string{id}, between(at, at.Add(1)))
	require.Empty(t, between(at.Add(1), at.Add(time.Second)))
	require.Empty(t, between(at.Add(-time.Second), at))
}

// The same event twice in the store, which a repeated append can bring about, is one request.
func TestARequestIsLoggedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := event.Proposed{
		ID: uuid.New(), Payload: usage.ApiRequestServed{RequestID: "twice", Timestamp: ago(time.Hour)}, Metadata: event.Metadata{CompanyID: companyID, Environment: event.Live},
	}
	for _, stream := range []string{"usage-a", "usage-b"} { // in one stream, our own store would see it
		_, err := w.store.Append(t.Context(), stream, eventstore.Any, e)
		require.NoError(t, err)
	}
	w.log(t)
	require.Len(t, w.list(t, today, usagelogs.Filter{RequestID: "twice"}), 1)
}

// A database of the version before, in use and with requests that are over, is brought up to date and goes on.
func TestADatabaseOfTheVersionBefore(t *testing.T) {
	t.Parallel()
	w := world{commandstest.Store(t), postgrestest.New(t)}
	older := fstest.MapFS{}
	require.NoError(t, fs.WalkDir(usagelogs.Migrations, "migrations", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path > "migrations/00003" {
			return err
		}
		data, err := usagelogs.Migrations.ReadFile(path)
		older[strings.TrimPrefix(path, "migrations/")] = &fstest.MapFile{Data: data}
		return err
	}))
	require.Len(t, older, 2)
	_, err := w.pool.Exec(t.Context(), `CREATE SCHEMA usage`)
	require.NoError(t, err)
	config := w.pool.Config()
	config.ConnConfig.RuntimeParams["search_path"] = "usage"
	inSchema, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(inSchema.Close)
	require.NoError(t, postgres.Migrate(t.Context(), inSchema, older, "usage.migrations"))

	logged := func(id string, at time.Time, times int) {
		t.Helper()
		_, err := inSchema.Exec(t.Context(), `SELECT turn_weeks(ARRAY[$1::timestamptz])`, at)
		require.NoError(t, err)
		_, err = inSchema.Exec(t.Context(), `INSERT INTO request SELECT $1, $2, 'live', $3, $4, 'GET', '/', '/', 200, 1, '', '', '', '', '' FROM generate_series(1, $5)`, uuid.New(), companyID, at, id, times)
		require.NoError(t, err)
	}
	logged("over", ago(100*day), 1)
	logged("twice", ago(10*day), 2)
	logged("newest", ago(day), 1)

	require.NoError(t, projections.Migrate(t.Context(), w.pool))
	require.Equal(t, []string{"newest", "twice"}, w.list(t, today, usagelogs.Filter{}))
	w.project(t)
	new := w.log(t, ago(20*day), ago(time.Hour))
	shown := w.list(t, today, usagelogs.Filter{})
	require.Equal(t, []string{new[1], "newest", "twice", new[0]}, shown[2:])
	w.drop(t, today)
	require.Equal(t, shown, w.list(t, today, usagelogs.Filter{}))
	require.Equal(t, []string{week(ago(20 * day)), week(ago(10 * day)), week(today)}, w.weeks(t))
	require.True(t, w.ask(t, `SELECT count(*) = 3 * 2 FROM pg_indexes WHERE schemaname = 'usage' AND tablename LIKE 'request\_%'`), "each week has both indexes")
}
