package projections

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/audit"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/readmodel"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/tokens"
	"github.com/musique/musique/projections/usagelogs"
)

// PostgreSQL stops planning a statement for its parameters after a few times. What a list reads must not depend on that, nor on how far its pages were
// walked already.
func TestAPageReadsLittleMoreThanItShows(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), database(t)
	for _, statement := range []string{
		"INSERT INTO audio.item SELECT 'aud_' || i, 'co_one', 'live', 'x', '', 'announcement', 'mp3', 'audio/mpeg', 1, 1, 'x', 'x', $1::timestamptz, i FROM generate_series(1, 20000) i",
		"INSERT INTO locations.location SELECT 'co_one', 'live', i, 's' || i, 'x', 'UTC', '{}', 'player', '', $1::timestamptz, i FROM generate_series(1, 20000) i",
		`INSERT INTO sends.send (send_id, company_id, environment, audio_id, priority, repeat, volume, expires_in, single, local_time, total, created_at, sealed, position, schedule_at, cancelled_at)
			SELECT 'snd_' || i, 'co_one', 'live', 'aud_' || i % 5000, 'normal', 1, 100, 1, false, '', 20000, $1::timestamptz + i * interval '1 second', true, i,
				CASE WHEN i % 2 = 0 THEN $1::timestamptz + (i * 7919 % 20000) * interval '1 minute' END, CASE WHEN i % 400 = 1 THEN $1::timestamptz END
			FROM generate_series(1, 20000) i`,
		"INSERT INTO sends.delivery (send_id, user_id, external_id, status, rank) SELECT 'snd_1', i, 's' || i, 'queued', 1 FROM generate_series(1, 20000) i WHERE $1::timestamptz IS NOT NULL",
		`INSERT INTO audit.entry (company_id, environment, occurred_at, position, event_id, type, actor, resource_type, resource_id, send_id, audio_id, external_id, details)
			SELECT 'co_one', 'live', $1::timestamptz + i * interval '1 second', i, gen_random_uuid(), CASE WHEN i % 400 = 1 THEN 'AudioDeleted' ELSE 'AudioPlayed' END, 'dvc_' || i % 200,
				CASE WHEN i % 400 = 1 THEN 'audio' ELSE 'delivery' END, 'x_' || i, CASE WHEN i % 400 <> 1 THEN 'snd_' || i % 7 END, 'aud_' || i % 10, CASE WHEN i % 400 <> 1 THEN 's' || i END, '{}'
			FROM generate_series(1, 20000) i`,
		"INSERT INTO tokens.token SELECT 'tok_' || i, 'co_one', 'live', 'x', 1, '', '{}', 'hash ' || i, NULL, NULL, $1::timestamptz, i FROM generate_series(1, 20000) i",
	} {
		_, err := pool.Exec(ctx, statement, epoch)
		require.NoError(t, err)
	}
	require.NoError(t, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SET LOCAL search_path = usage")
		require.NoError(t, err)
		_, err = tx.Exec(ctx, "SELECT make_weeks(ARRAY(SELECT $1::timestamptz - i * interval '1 day' FROM generate_series(0, 60) i))", epoch)
		require.NoError(t, err)
		_, err = tx.Exec(ctx, `INSERT INTO request SELECT gen_random_uuid(), 'co_one', 'live', $1::timestamptz - i * interval '4 minutes', 'req_' || i, 'GET', '/', '/', 200, 1, 's1', 'tok_1', '', '', ''
			FROM generate_series(1, 20000) i`, epoch)
		return err
	}))
	_, err := pool.Exec(ctx, "ANALYZE")
	require.NoError(t, err)

	generic := pool.Config()
	generic.MaxConns = 1
	generic.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	reader, err := pgxpool.NewWithConfig(ctx, generic)
	require.NoError(t, err)
	t.Cleanup(reader.Close)
	const shown = 20
	at := func(list byte, keys ...uint64) string { return readmodel.Cursor{List: list, Keys: keys}.String() }
	daysAgo := func(n int) *time.Time {
		then := epoch.AddDate(0, 0, -n)
		return &then
	}
	after := func(d time.Duration) *time.Time {
		then := epoch.Add(d)
		return &then
	}
	second := func(n int) uint64 { return uint64(epoch.Add(time.Duration(n) * time.Second).UnixMicro()) }
	sent := func(f sends.Filter, cursor string) func() (int, error) {
		return func() (int, error) {
			items, _, err := sends.List(ctx, reader, "co_one", event.Live, f, cursor, shown)
			return len(items), err
		}
	}
	told := func(f audit.Filter, cursor string) func() (int, error) {
		return func() (int, error) {
			items, _, err := audit.List(ctx, reader, "co_one", event.Live, f, cursor, shown)
			return len(items), err
		}
	}
	for name, page := range map[string]func() (int, error){
		"the trail":             told(audit.Filter{}, at('x', second(500), 500)),
		"what a device did":     told(audit.Filter{Actor: "dvc_7"}, at('x', second(15_000), 15_000)),
		"a type of event":       told(audit.Filter{Type: "AudioDeleted"}, at('x', second(15_000), 15_000)),
		"a type of resource":    told(audit.Filter{ResourceType: audit.Audio}, at('x', second(15_000), 15_000)),
		"an early moment":       told(audit.Filter{To: after(time.Hour)}, ""),
		"all of a send":         told(audit.Filter{ResourceType: audit.Send, ResourceID: "snd_3"}, at('x', second(15_000), 15_000)),
		"all of a location":     told(audit.Filter{ResourceType: audit.Location, ResourceID: "s700"}, ""),
		"all of audio":          told(audit.Filter{ResourceType: audit.Audio, ResourceID: "aud_1"}, at('x', second(15_000), 15_000)),
		"what became of a file": told(audit.Filter{ResourceType: audit.Audio, ResourceID: "aud_1", Actor: "dvc_1"}, ""),
		"audio": func() (int, error) {
			items, _, err := audiolibrary.List(ctx, reader, "co_one", event.Live, audiolibrary.Filter{}, at('a', 500), shown)
			return len(items), err
		},
		"locations": func() (int, error) {
			items, _, err := locations.List(ctx, reader, "co_one", event.Live, locations.Filter{}, at('l', 500), shown, epoch)
			return len(items), err
		},
		"sends":              sent(sends.Filter{}, at('s', second(500), 500)),
		"sends of audio":     sent(sends.Filter{AudioID: "aud_7"}, at('s', second(15_000), 15_000)),
		"cancelled sends":    sent(sends.Filter{Status: "cancelled"}, at('s', second(15_000), 15_000)),
		"sends of an hour":   sent(sends.Filter{CreatedAfter: after(2 * time.Hour), CreatedBefore: after(3 * time.Hour)}, ""),
		"early sends":        sent(sends.Filter{CreatedBefore: after(time.Hour)}, ""),
		"early cancelled":    sent(sends.Filter{Status: "cancelled", CreatedBefore: after(3 * time.Hour)}, ""),
		"early ones of some": sent(sends.Filter{AudioID: "aud_7", CreatedBefore: after(3 * time.Hour)}, ""),
		"a day's schedule":   sent(sends.Filter{ScheduledAfter: after(120 * time.Hour), ScheduledBefore: after(144 * time.Hour)}, ""),
		"the early schedule": sent(sends.Filter{ScheduledBefore: after(120 * time.Hour)}, ""),
		"the late schedule":  sent(sends.Filter{Status: "scheduled", ScheduledAfter: after(120 * time.Hour)}, at('c', second(12_000*60), 0)),
		"deliveries": func() (int, error) {
			items, _, err := sends.Deliveries(ctx, reader, "co_one", event.Live, "snd_1", "", at('d', 19_500), shown)
			return len(items), err
		},
		"tokens": func() (int, error) {
			items, _, err := tokens.List(ctx, reader, "co_one", event.Live, at('t', 500), shown)
			return len(items), err
		},
		"requests": func() (int, error) {
			items, _, err := usagelogs.List(ctx, reader, "co_one", event.Live, usagelogs.Filter{}, at('u', uint64(daysAgo(50).UnixMicro()), 0, 0), shown, epoch)
			return len(items), err
		},
		"requests of a day": func() (int, error) {
			items, _, err := usagelogs.List(ctx, reader, "co_one", event.Live, usagelogs.Filter{Start: daysAgo(50), End: daysAgo(49)}, "", shown, epoch)
			return len(items), err
		},
		"a request by its ID": func() (int, error) {
			items, _, err := usagelogs.List(ctx, reader, "co_one", event.Live, usagelogs.Filter{RequestID: "req_15000"}, "", shown, epoch)
			return len(items), err
		},
	} {
		before := rowsRead(t, reader)
		items, err := page()
		require.NoError(t, err, name)
		require.NotZero(t, items, name)
		require.Less(t, rowsRead(t, reader)-before, 10*shown, name)
	}
}

// rowsRead is how many rows the scans of the read models' tables have read, on the one connection of a pool.
func rowsRead(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	ctx := context.Background()
	_, err := pool.Exec(ctx, "SELECT pg_stat_force_next_flush()")
	require.NoError(t, err)
	require.NoError(t, pool.QueryRow(ctx, `SELECT
		(SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE schemaname IN ('audio', 'audit', 'locations', 'sends', 'tokens', 'usage'))
		+ (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE schemaname IN ('audio', 'audit', 'locations', 'sends', 'tokens', 'usage'))`).Scan(&n))
	return n
}
