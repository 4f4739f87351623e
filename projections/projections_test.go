package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// database makes a database with all tables.
func database(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := postgrestest.New(t)
	require.NoError(t, Migrate(t.Context(), pool))
	return pool
}

func named(name string) Projection {
	return All()[slices.IndexFunc(All(), func(p Projection) bool { return p.Name == name })]
}

// workshop applies events to a projection without a store, again and again.
type workshop struct {
	pool       *pgxpool.Pool
	projection Projection
	lead       *lead
}

func open(t testing.TB, pool *pgxpool.Pool, p Projection) *workshop {
	t.Helper()
	l, err := takeLead(t.Context(), pool, p)
	require.NoError(t, err)
	t.Cleanup(l.close)
	return &workshop{pool, p, l}
}

// empty takes the projection back to where it was before its first event.
func (w *workshop) empty(t require.TestingT) {
	var statements strings.Builder
	for _, table := range postgrestest.Tables(t, w.pool, w.projection.Name) {
		fmt.Fprintf(&statements, "DELETE FROM %s; ", table)
	}
	if w.projection.Name == Usage {
		statements.WriteString(`INSERT INTO kept VALUES ('-infinity'); DO $$ DECLARE p regclass; BEGIN
			FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'request'::regclass LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$; `)
	}
	fmt.Fprintf(&statements, "UPDATE projections.checkpoint SET commit_position = 0, prepare_position = 0 WHERE projection = '%s'", w.projection.Name)
	_, err := w.lead.conn.PgConn().Exec(context.Background(), statements.String()).ReadAll()
	require.NoError(t, err)
	w.lead.position = event.Position{}
}

// project applies events in pages that begin at the given places.
func (w *workshop) project(t require.TestingT, events []event.Recorded, cuts []int) {
	var mine []event.Recorded
	for _, e := range events {
		if slices.Contains(w.projection.Types, e.Type) {
			mine = append(mine, e)
		}
	}
	from := 0
	for _, to := range append(slices.Clone(cuts), len(mine)) {
		if to = min(to, len(mine)); to > from {
			page := mine[from:to]
			require.NoError(t, w.lead.write(context.Background(), eventstore.Page{Events: page, Through: page[len(page)-1].Position}))
			from = to
		}
	}
}

// However the same events come in pages, the rows are the same; so a replay gives what there was, and a crash between pages costs nothing.
func TestPagesDoNotShowInTheRows(t *testing.T) {
	pool := database(t)
	var all []*workshop
	for _, p := range All() {
		all = append(all, open(t, pool, p))
	}
	rapid.Check(t, func(t *rapid.T) {
		events := history(t)
		cuts := rapid.SliceOfNDistinct(rapid.IntRange(1, len(events)), 0, 8, rapid.ID).Draw(t, "cuts")
		slices.Sort(cuts)
		single := make([]int, len(events))
		for i := range single {
			single[i] = i + 1
		}
		for _, w := range all {
			name := w.projection.Name
			w.empty(t)
			w.project(t, events, single)
			want := postgrestest.Dump(t, pool, name)
			w.empty(t)
			w.project(t, events, cuts)
			require.Equal(t, want, postgrestest.Dump(t, pool, name), name)
		}
	})
}

// What is kept incrementally is what counting would give.
func TestCountsAreTheDeliveries(t *testing.T) {
	pool := database(t)
	w := open(t, pool, named(Sends))
	rapid.Check(t, func(t *rapid.T) {
		w.empty(t)
		w.project(t, history(t), []int{rapid.IntRange(1, 30).Draw(t, "cut")})
		const counted = `
			SELECT count(*) FROM sends.send s
			JOIN LATERAL (SELECT
				count(*) FILTER (WHERE status = 'scheduled') AS scheduled, count(*) FILTER (WHERE status = 'queued') AS queued,
				count(*) FILTER (WHERE status = 'delivered') AS delivered, count(*) FILTER (WHERE status = 'playing') AS playing,
				count(*) FILTER (WHERE status = 'played') AS played, count(*) FILTER (WHERE status = 'failed') AS failed,
				count(*) FILTER (WHERE status = 'expired') AS expired, count(*) FILTER (WHERE status = 'cancelled') AS cancelled
				FROM sends.delivery d WHERE d.send_id = s.send_id) d
			ON (s.scheduled, s.queued, s.delivered, s.playing, s.played, s.failed, s.expired, s.cancelled)
				= (d.scheduled, d.queued, d.delivered, d.playing, d.played, d.failed, d.expired, d.cancelled)`
		var all, right int
		require.NoError(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM sends.send").Scan(&all))
		require.NoError(t, pool.QueryRow(context.Background(), counted).Scan(&right))
		require.Equal(t, all, right)
		const located = `
			SELECT user_id, company_id, environment, played, failed, expired, cancelled FROM sends.location WHERE played + failed + expired + cancelled > 0
			EXCEPT
			SELECT d.user_id, s.company_id, s.environment,
				count(*) FILTER (WHERE d.status = 'played'), count(*) FILTER (WHERE d.status = 'failed'),
				count(*) FILTER (WHERE d.status = 'expired'), count(*) FILTER (WHERE d.status = 'cancelled')
			FROM sends.delivery d JOIN sends.send s ON s.send_id = d.send_id WHERE d.rank = 4 GROUP BY 1, 2, 3` // by an event of its own
		var wrong, counts, ended int
		require.NoError(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM ("+located+") w").Scan(&wrong))
		require.NoError(t, pool.QueryRow(context.Background(), "SELECT coalesce(sum(played + failed + expired + cancelled), 0) FROM sends.location").Scan(&counts))
		require.NoError(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM sends.delivery WHERE rank = 4").Scan(&ended))
		require.Zero(t, wrong)
		require.Equal(t, ended, counts)
		var undated int
		require.NoError(t, pool.QueryRow(context.Background(), "SELECT count(*) FROM sends.location WHERE played > 0 AND last_played_at IS NULL").Scan(&undated))
		require.Zero(t, undated)
	})
}

// A version of a read model can be built in another schema while the first one stays as it is.
func TestAReadModelCanBeBuiltBesideItself(t *testing.T) {
	pool := database(t)
	events := longHistory(t)
	for _, p := range All() {
		open(t, pool, p).project(t, events, nil)
		want := postgrestest.Dump(t, pool, p.Name)
		next := p
		next.Name = p.Name + "_next"
		require.NoError(t, migrateSchema(t.Context(), pool, next.Name, next.Migrations))
		open(t, pool, next).project(t, events, nil)
		require.Equal(t, want, postgrestest.Dump(t, pool, next.Name), p.Name)
		require.Equal(t, want, postgrestest.Dump(t, pool, p.Name), p.Name)
	}
}

// longHistory is a history with all kinds of events.
func longHistory(t *testing.T) []event.Recorded {
	t.Helper()
	return rapid.Custom(func(t *rapid.T) []event.Recorded {
		var all []entry
		w := &world{t: t, locations: map[int64]bool{}}
		for _, step := range []func(){w.tokenStep, w.locationStep, w.deviceStep, w.audioStep, w.audioStep, w.sendStep, w.sendStep, w.changeStep, w.deliveryStep, w.usageStep} {
			for range 5 {
				step()
			}
		}
		all = append(all, w.entries...)
		return recorded(all)
	}).Example(1)
}

func TestMigrateCanBeRepeatedAndRaced(t *testing.T) {
	pool := postgrestest.New(t)
	done := make(chan error)
	for range 3 {
		go func() { done <- Migrate(t.Context(), pool) }()
	}
	for range 3 {
		require.NoError(t, <-done)
	}
	require.NoError(t, Migrate(t.Context(), pool))
}
