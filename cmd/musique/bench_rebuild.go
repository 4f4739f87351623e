package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/projections"
)

const (
	// rebuildEvents is how many sends to one location are in the store, one event each.
	rebuildEvents = 20_000
	// rebuildPatience bounds one rebuild.
	rebuildPatience = 5 * time.Minute
)

// rebuilds measures how fast read models are built from the events.
func (b *bench) rebuilds(ctx context.Context) (figures []benchFigure, err error) {
	parts, err := openParts(ctx, benchParts(b.dir), newLogger("text", "warn"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, parts.close()) }()
	client, err := bareClient(parts.eventStoreURL)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	if err := appendSends(ctx, client, b.events, false); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	running, ctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		err = errors.Join(err, running.Wait())
	}()
	runner := projections.NewRunner(projections.RunnerConfig{Store: parts.store, Pool: parts.pool, Log: slog.New(slog.DiscardHandler)})
	running.Go(func() error { return runner.Run(ctx) })
	if _, err := awaitProjection(ctx, parts, projections.Sends, func(s projections.Status) bool { return s.State == projections.StateLive && s.Lag == 0 }); err != nil {
		return nil, err
	}
	read, err := readAll(ctx, client)
	if err != nil {
		return nil, err
	}
	copied, err := copySends(ctx, parts, b.events)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := projections.StartRebuild(ctx, parts.pool, projections.Sends, false); err != nil {
		return nil, err
	}
	done, err := awaitProjection(ctx, parts, projections.Sends, func(s projections.Status) bool { return s.Rebuilds == 1 })
	if err != nil {
		return nil, err
	}
	rebuilt := tally{int(done.Events), time.Since(began)}
	name := fmt.Sprintf("rebuild of the sends, %d events", done.Events)
	return []benchFigure{
		newFigure(name, "/s", rebuilt.perSecond(), read.perSecond(), "$all read by the official client, and nothing done"),
		newFigure(name, "/s", rebuilt.perSecond(), copied.perSecond(), "COPY of the same sends and deliveries into like tables, by event"),
	}, nil
}

// awaitProjection waits until a projection is as told.
func awaitProjection(ctx context.Context, p *parts, name string, as func(projections.Status) bool) (projections.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, rebuildPatience)
	defer cancel()
	tick := time.NewTicker(watchEvery / 10)
	defer tick.Stop()
	for {
		all, err := projections.Statuses(ctx, p.pool, p.store)
		if err != nil {
			return projections.Status{}, err
		}
		for _, s := range all {
			if s.Name == name && as(s) {
				return s, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return projections.Status{}, ctx.Err()
		}
	}
}

// readAll reads all events once.
func readAll(ctx context.Context, client *esdb.Client) (t tally, err error) {
	began := time.Now()
	all, err := client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Forwards, From: esdb.Start{}}, ^uint64(0)>>1)
	if err != nil {
		return t, err
	}
	defer all.Close()
	for {
		if _, err := all.Recv(); errors.Is(err, io.EOF) {
			return tally{t.count, time.Since(began)}, nil
		} else if err != nil {
			return t, err
		}
		t.count++
	}
}

// copySends copies the rows that the projection made, an event each, into tables like theirs, indexes included.
func copySends(ctx context.Context, p *parts, events int) (tally, error) {
	var took time.Duration
	for _, table := range []string{"send", "delivery"} {
		to := pgx.Identifier{"public", "bench_" + table}
		if _, err := p.pool.Exec(ctx, "CREATE TABLE "+to.Sanitize()+" (LIKE sends."+table+" INCLUDING ALL)"); err != nil {
			return tally{}, err
		}
		const list = `SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`
		rows, _ := p.pool.Query(ctx, list, "sends."+table) // an error shows in rows
		columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return tally{}, err
		}
		var names string
		for i, column := range columns {
			if i > 0 {
				names += ", "
			}
			names += pgx.Identifier{column}.Sanitize()
		}
		rows, _ = p.pool.Query(ctx, "SELECT "+names+" FROM sends."+table)
		all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
		if err != nil {
			return tally{}, err
		}
		began := time.Now()
		if _, err := p.pool.CopyFrom(ctx, to, columns, pgx.CopyFromRows(all)); err != nil {
			return tally{}, err
		}
		took += time.Since(began)
	}
	return tally{events, took}, nil
}
