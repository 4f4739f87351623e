package workers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/projections/locations"
)

const (
	// lookEvery is how often the installation is looked at, lookTimeout what one look may take.
	lookEvery   = 10 * time.Second
	lookTimeout = 30 * time.Second
	// seenFor is how long what was seen is shown; older it says more of the past than of now, and is not shown.
	seenFor = time.Minute
	// maxCounted bounds what is counted of rows that may be millions: what is more shows as this.
	maxCounted = 100_000
	// overdueAfter is how long after its time a scheduled send is overdue.
	overdueAfter = 30 * time.Second
)

// Monitor looks at the installation as a whole, whichever processes do its work, and shows what it sees as metrics: how far what follows the event store is
// behind, and what waits. Each process shows the same.
type Monitor struct {
	Deps
	gauges []prometheus.Collector
	up     prometheus.Gauge

	projectionLag, projectionBehind, projectionRate, projectionStopped, projectionRunning, projectionSkipped *prometheus.GaugeVec
	followerLag, followerBehind                                                                              *prometheus.GaugeVec
	open, sends                                                                                              *prometheus.GaugeVec
	inbox, players, endpointsDue, endpointRetries, overdue, unclosed                                         prometheus.Gauge

	mu    sync.Mutex
	seen  time.Time
	waits map[string]waiting
}

// waiting is up to where a follower had something to do when it was looked at, and when that was.
type waiting struct {
	head  event.Position
	since time.Time
}

// NewMonitor makes a monitor; Run makes it look.
func NewMonitor(d Deps) *Monitor {
	m := &Monitor{Deps: d, waits: map[string]waiting{}, up: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "musique_monitor_up", Help: "1 if the last look at the installation as a whole succeeded; metrics of what this process cannot see for a minute are left out.",
	})}
	vec := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help + " Of the installation as a whole; each process shows the same."}, labels)
		m.gauges = append(m.gauges, g)
		return g
	}
	one := func(name, help string) prometheus.Gauge { return vec(name, help).WithLabelValues() }
	m.projectionLag = vec("musique_projection_lag_seconds", "How long ago the first event happened that the projection has not passed.", "projection")
	m.projectionBehind = vec("musique_projection_lag_positions", "How far the newest event that the projection is sent is ahead of it, in the event store's own unit.", "projection")
	m.projectionRate = vec("musique_projection_rate", "Events a second that the projection applied in the last seconds.", "projection")
	m.projectionStopped = vec("musique_projection_halted", "1 where the projection stands at an event that it cannot apply.", "projection")
	m.projectionRunning = vec("musique_projection_running", "1 where a process runs the projection.", "projection")
	m.projectionSkipped = vec("musique_projection_skipped_events", "Events that an operator had the projection pass, and that its rows lack: dead letters.", "projection")
	m.followerLag = vec("musique_follower_lag_seconds", "For how long at least a follower of the event store has had something to do without having done it.", "follower")
	m.followerBehind = vec("musique_follower_lag_positions", "How far the newest event that a follower is sent is ahead of it, in the event store's own unit.", "follower")
	m.open = vec("musique_deliveries_open", "Deliveries that have not ended, by state.", "state")
	m.sends = vec("musique_sends_open", "Sends with deliveries that have not ended, by status.", "status")
	m.inbox = one("musique_inbox_items", fmt.Sprintf("Deliveries in the inboxes of players and endpoints; %d is that many or more.", maxCounted))
	m.players = one("musique_players_connected", "Players whose streams are open.")
	m.endpointsDue = one("musique_endpoints_due", fmt.Sprintf("Endpoints of locations that there is something to tell now; %d is that many or more.", maxCounted))
	m.endpointRetries = one("musique_endpoint_retries_waiting", fmt.Sprintf("Deliveries to endpoints whose last attempt failed and that are tried again; %d is that many or more.", maxCounted))
	m.overdue = one("musique_sends_overdue", fmt.Sprintf("Scheduled sends whose time came more than %v ago and that were not started.", overdueAfter))
	m.unclosed = one("musique_broadcasts_unclosed", "Large broadcasts of which parts are recorded and the end is not, for more than a minute.")
	return m
}

// Describe implements prometheus.Collector.
func (m *Monitor) Describe(to chan<- *prometheus.Desc) {
	m.up.Describe(to)
	for _, g := range m.gauges {
		g.Describe(to)
	}
}

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(to chan<- prometheus.Metric) {
	m.up.Collect(to)
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.seen) > seenFor {
		return
	}
	for _, g := range m.gauges {
		g.Collect(to)
	}
}

// Run looks until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	for failing := false; ; {
		err := m.look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if failed := err != nil; failed != failing {
			if failing = failed; failing {
				m.Log.Warn("the installation cannot be looked at for metrics", "error", err)
			}
		}
		m.up.Set(map[bool]float64{true: 1}[err == nil])
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// look asks all parts, and then shows what it saw.
func (m *Monitor) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	statuses, err := projections.Statuses(ctx, m.Pool, m.Store)
	if err != nil {
		return err
	}
	followers, err := m.followers(ctx)
	if err != nil {
		return err
	}
	c, err := m.count(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = time.Now()
	flag := map[bool]float64{true: 1}
	for _, s := range statuses {
		m.projectionLag.WithLabelValues(s.Name).Set(s.LagSeconds)
		m.projectionBehind.WithLabelValues(s.Name).Set(float64(s.Lag))
		m.projectionRate.WithLabelValues(s.Name).Set(s.Rate)
		m.projectionStopped.WithLabelValues(s.Name).Set(flag[s.State == projections.StateStopped])
		m.projectionRunning.WithLabelValues(s.Name).Set(flag[s.State != projections.StateNotRunning])
		lacking := 0
		for _, e := range s.Skipped {
			if e.AppliedAt == nil {
				lacking++
			}
		}
		m.projectionSkipped.WithLabelValues(s.Name).Set(float64(lacking))
	}
	for name, f := range followers {
		m.followerLag.WithLabelValues(name).Set(m.late(name, f, m.seen).Seconds())
		behind := 0.0
		if f.at.Before(f.head) {
			behind = float64(f.head.Commit - f.at.Commit)
		}
		m.followerBehind.WithLabelValues(name).Set(behind)
	}
	for state, n := range c.deliveries {
		m.open.WithLabelValues(state).Set(float64(n))
	}
	for status, n := range c.sends {
		m.sends.WithLabelValues(status).Set(float64(n))
	}
	m.inbox.Set(float64(c.inbox))
	m.players.Set(float64(c.players))
	m.endpointsDue.Set(float64(c.endpointsDue))
	m.endpointRetries.Set(float64(c.endpointRetries))
	m.overdue.Set(float64(c.overdue))
	m.unclosed.Set(float64(c.unclosed))
	return nil
}

// place is where a follower is, and where the newest event for it is.
type place struct{ at, head event.Position }

// late is for how long a follower has had something to do, as far as that was seen: a follower's checkpoint passes only now and then what is not for it, so the
// age of what comes after it says nothing.
func (m *Monitor) late(name string, f place, now time.Time) time.Duration {
	before, waited := m.waits[name]
	switch {
	case !f.at.Before(f.head):
		delete(m.waits, name)
		return 0
	case !waited || !f.at.Before(before.head):
		before = waiting{f.head, now}
		m.waits[name] = before
	}
	return now.Sub(before.since)
}

// followers finds where the followers of the event store are. The heads come before the positions: a lag is never made up by reading in the other order.
func (m *Monitor) followers(ctx context.Context) (map[string]place, error) {
	found := map[string]place{}
	types := map[string][]string{"publisher": publishedTypes()}
	for name, of := range followedTypes {
		types[name] = of
	}
	for name, of := range types {
		head, err := m.Store.HeadFor(ctx, eventstore.SubscriberConfig{Types: of})
		if err != nil {
			return nil, err
		}
		found[name] = place{head: head}
	}
	rows, _ := m.Pool.Query(ctx, `SELECT follower, commit_position, prepare_position FROM workers.checkpoint`) // an error shows in rows
	var name string
	var at event.Position
	_, err := pgx.ForEachRow(rows, []any{&name, &at.Commit, &at.Prepare}, func() error {
		if f, known := found[name]; known {
			f.at = at
			found[name] = f
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the followers' checkpoints: %w", err)
	}
	published, err := publisherPosition(ctx, m.Brokers)
	if errors.Is(err, kafka.ErrUnavailable) || ctx.Err() != nil {
		return nil, err
	}
	if err != nil { // there is no topic of it: no process has had its role yet
		delete(found, "publisher")
		return found, nil //nolint:nilerr // as said
	}
	f := found["publisher"]
	f.at = published
	found["publisher"] = f
	return found, nil
}

// counts are what waits.
type counts struct {
	deliveries, sends                                                int64Map
	inbox, players, endpointsDue, endpointRetries, overdue, unclosed int64
}

type int64Map map[string]int64

// count counts what waits, in one round trip.
func (m *Monitor) count(ctx context.Context) (counts, error) {
	c := counts{deliveries: int64Map{}, sends: int64Map{}}
	now := m.Now()
	batch := &pgx.Batch{}
	batch.Queue(`SELECT coalesce(sum(scheduled), 0), coalesce(sum(queued), 0), coalesce(sum(delivered), 0), coalesce(sum(playing), 0),
		count(*) FILTER (WHERE status = 'scheduled'), count(*) FILTER (WHERE status = 'queued')
		FROM sends.send WHERE status IN ('scheduled', 'queued')`).QueryRow(func(row pgx.Row) error {
		var d [4]int64
		var s [2]int64
		err := row.Scan(&d[0], &d[1], &d[2], &d[3], &s[0], &s[1])
		c.deliveries = int64Map{"scheduled": d[0], "queued": d[1], "delivered": d[2], "playing": d[3]}
		c.sends = int64Map{"scheduled": s[0], "queued": s[1]}
		return err
	})
	one := func(to *int64, query string, args ...any) {
		batch.Queue(query, args...).QueryRow(func(row pgx.Row) error { return row.Scan(to) })
	}
	one(&c.inbox, `SELECT count(*) FROM (SELECT FROM workers.inbox WHERE kind = 'deliver' LIMIT $1) i`, maxCounted)
	one(&c.players, `SELECT count(*) FROM presence.stream WHERE beat_at > $1`, now.Add(-locations.BeatsCountFor))
	one(&c.endpointsDue, `SELECT count(*) FROM (SELECT FROM workers.endpoint WHERE due_at <= $1 LIMIT $2) e`, now, maxCounted)
	one(&c.endpointRetries, `SELECT count(*) FROM (SELECT FROM workers.endpoint_attempt WHERE state = 'trying' AND attempts > 0 LIMIT $1) a`, maxCounted)
	one(&c.overdue, `SELECT count(*) FROM workers.schedule WHERE sealed AND due_at <= $1`, now.Add(-overdueAfter))
	one(&c.unclosed, `SELECT count(*) FROM workers.open_broadcast WHERE since < $1`, now.Add(-openTooLong))
	if err := m.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return counts{}, fmt.Errorf("count what waits: %w", err)
	}
	return c, nil
}
