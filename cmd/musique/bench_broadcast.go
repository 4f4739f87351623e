package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/workers/inbox"
)

const (
	// broadcastRounds is how often the whole is measured, each time with its baselines.
	broadcastRounds = 3
	// broadcastPatience bounds one broadcast, until it is in all inboxes.
	broadcastPatience = 3 * time.Minute
	// perLocations is how many locations a broadcast's times are told for.
	perLocations = 10_000
)

// broadcasts measures sends to all of a company's locations at once.
func (b *bench) broadcasts(ctx context.Context) (figures []benchFigure, err error) {
	node, err := startBareNode(b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	s, err := openBenchSystem(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.populate(ctx, 0, b.locations); err != nil {
		return nil, err
	}
	bare, err := openBareBroadcast(ctx, s, node)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()

	var accepted, reached, appended, copied []time.Duration
	var before, peak, after memory
	err = b.profiled("broadcast", func() error {
		for range broadcastRounds {
			quiet := settledMemory()
			stop := watchMemory()
			one, err := s.broadcast(ctx, b.locations)
			highest := stop()
			if err != nil {
				return err
			}
			if highest.heap > peak.heap {
				before, peak, after = quiet, highest, settledMemory()
			}
			appending, copying, err := bare.repeat(ctx, one)
			if err != nil {
				return err
			}
			accepted, reached = append(accepted, one.accepted), append(reached, one.reached)
			appended, copied = append(appended, appending), append(copied, appending+copying)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	name := func(what string) string { return fmt.Sprintf("broadcast to %d, %s", b.locations, what) }
	each := func(samples []time.Duration) float64 {
		return percentile(samples, 50) * perLocations / float64(b.locations)
	}
	inTime := fmt.Sprintf("p50 of %d, per %d", broadcastRounds, perLocations)
	figures = []benchFigure{
		newFigure(name("request to 202, "+inTime), "ms", each(accepted), each(appended), "the same events in the same appends, by the bare client"),
		newFigure(name("request to all inboxes, "+inTime), "ms", each(reached), each(copied), "the same appends, then one COPY of the rows into a like table"),
		newFigure(name("heap at its peak"), "MB", mib(peak.heap), mib(before.heap), "the heap before, collected"),
		newFigure(name("heap afterwards, collected"), "MB", mib(after.heap), mib(before.heap), "the heap before, collected"),
	}
	if peak.resident > 0 {
		figures = append(figures, newFigure(name("resident at its peak"), "MB", mib(peak.resident), mib(before.resident), "resident before, free memory given back"))
	}
	return figures, nil
}

// broadcast is one send to all, and how long after its request it was accepted and in all inboxes.
type broadcast struct {
	sendID            string
	from              int64 // the inboxes' last seq before it
	accepted, reached time.Duration
}

func (s *benchSystem) broadcast(ctx context.Context, locations int) (done broadcast, err error) {
	ctx, cancel := context.WithTimeout(ctx, broadcastPatience)
	defer cancel()
	wake, stop := s.hub.SubscribeAll()
	defer stop()
	if done.from, err = inbox.Last(ctx, s.parts.pool); err != nil {
		return done, err
	}
	began := time.Now()
	type answer struct {
		sendID string
		took   time.Duration
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		sendID, err := s.sendToAll(ctx, locations)
		answers <- answer{sendID, time.Since(began), err}
	}()
	for there := 0; there < locations || done.sendID == ""; { // each transaction that puts something wakes
		select {
		case <-wake:
		case a := <-answers:
			if a.err != nil {
				return done, a.err
			}
			done.sendID, done.accepted = a.sendID, a.took
			continue
		case <-ctx.Done():
			return done, fmt.Errorf("%d of %d locations have the broadcast in their inboxes: %w", there, locations, ctx.Err())
		}
		if err := s.parts.pool.QueryRow(ctx, "SELECT count(*) FROM workers.inbox WHERE seq > $1", done.from).Scan(&there); err != nil {
			return done, err
		}
		if done.reached == 0 && there >= locations {
			done.reached = time.Since(began)
		}
	}
	return done, nil
}

// sendToAll sends to all locations, which have to be so many.
func (s *benchSystem) sendToAll(ctx context.Context, locations int) (sendID string, err error) {
	resp, err := s.call(ctx, http.MethodPost, s.sendPath, "X-API-Key", s.token, `{"all": true}`)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var accepted struct {
		Data struct {
			SendID            string
			TotalDestinations int
		}
	}
	if err := json.Unmarshal(raw, &accepted); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusAccepted || accepted.Data.TotalDestinations != locations {
		return "", fmt.Errorf("a send to %d locations was answered with %s: %.500s", locations, resp.Status, raw)
	}
	return accepted.Data.SendID, nil
}

// bareBroadcast does what a broadcast cannot do without: it appends the events, and it writes the rows.
type bareBroadcast struct {
	system *benchSystem
	events *esdb.Client // of the system's own store
	node   *bareNode
}

func openBareBroadcast(ctx context.Context, s *benchSystem, node *bareNode) (*bareBroadcast, error) {
	if _, err := s.parts.pool.Exec(ctx, "CREATE TABLE public.bench_inbox (LIKE workers.inbox INCLUDING ALL)"); err != nil {
		return nil, err
	}
	events, err := bareClient(s.parts.eventStoreURL)
	return &bareBroadcast{s, events, node}, err
}

func (b *bareBroadcast) close() error { return b.events.Close() }

// repeat does the bare part of a broadcast again, with its own events and rows.
func (b *bareBroadcast) repeat(ctx context.Context, of broadcast) (appending, copying time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, broadcastPatience)
	defer cancel()
	parts, err := b.appends(ctx, of.sendID)
	if err != nil {
		return 0, 0, err
	}
	const columns = "company_id, environment, user_id, external_id, kind, delivery_id, play_at, expires_at, payload"
	rows, err := b.system.parts.pool.Query(ctx, "SELECT "+columns+" FROM workers.inbox WHERE seq > $1 ORDER BY seq", of.from)
	if err != nil {
		return 0, 0, err
	}
	type row struct {
		CompanyID, Environment string
		UserID                 int64
		ExternalID, Kind       string
		DeliveryID             string
		PlayAt                 *time.Time
		ExpiresAt              time.Time
		Payload                []byte
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	stream, expected := "send-"+uuid.NewString(), esdb.ExpectedRevision(esdb.NoStream{})
	for _, part := range parts {
		written, err := b.node.client.AppendToStream(ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: expected}, part...)
		if err != nil {
			return 0, 0, err
		}
		expected = esdb.Revision(written.NextExpectedVersion)
	}
	appending = time.Since(began)
	began = time.Now()
	names := []string{"company_id", "environment", "user_id", "external_id", "kind", "delivery_id", "play_at", "expires_at", "payload"}
	_, err = b.system.parts.pool.CopyFrom(ctx, pgx.Identifier{"public", "bench_inbox"}, names, pgx.CopyFromSlice(len(all), func(i int) ([]any, error) {
		r := all[i]
		return []any{r.CompanyID, r.Environment, r.UserID, r.ExternalID, r.Kind, r.DeliveryID, r.PlayAt, r.ExpiresAt, r.Payload}, nil
	}))
	return appending, time.Since(began), err
}

// appends are a send's events as they were appended: as many at once as fit, and what closes them by itself.
func (b *bareBroadcast) appends(ctx context.Context, sendID string) (parts [][]esdb.EventData, err error) {
	read, err := b.events.ReadStream(ctx, send.Stream(sendID), esdb.ReadStreamOptions{Direction: esdb.Forwards, From: esdb.Start{}}, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	defer read.Close()
	size := eventstore.MaxAppendBytes + 1
	for {
		resolved, err := read.Recv()
		if errors.Is(err, io.EOF) {
			return parts, nil
		}
		if err != nil {
			return nil, err
		}
		e := resolved.OriginalEvent()
		n := len(e.Data) + len(e.UserMetadata) + 2*len(e.EventType)
		if size+n > eventstore.MaxAppendBytes || e.EventType == (send.BroadcastSealed{}).EventType() {
			parts, size = append(parts, nil), 0
		}
		size += n
		last := len(parts) - 1
		parts[last] = append(parts[last], esdb.EventData{EventID: uuid.New(), EventType: e.EventType, ContentType: esdb.ContentTypeJson, Data: e.Data, Metadata: e.UserMetadata})
	}
}
