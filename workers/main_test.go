package workers_test

import (
	"context"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// shared is the world of the tests that need no other: all workers run in it.
var shared *world

func TestMain(m *testing.M) {
	os.Exit(commandstest.Main(m, func(t testing.TB) {
		shared = newWorld(t)
		shared.start(t, everything...)
	}))
}

// partitions of the dispatch topic.
const partitions = 4

// world is all that workers work with, and a clock.
type world struct {
	*commandstest.World
	deps  workers.Deps
	inbox *inbox.Hub    // for the test itself, on connections that cut leaves alone
	ahead *atomic.Int64 // of the real time, in nanoseconds
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{World: commandstest.New(t, commandstest.Store(t)), ahead: &atomic.Int64{}}
	w.Now, w.Endpoints = w.now, private
	w.Commands = commands.New(w.Deps)
	w.inbox = inbox.NewHub(w.Pool, commandstest.Quiet)
	require.NoError(t, workers.Migrate(t.Context(), w.Pool))
	brokers := kafkatest.OwnBrokers(t)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: workers.DispatchTopic, Partitions: partitions}))
	address, err := url.Parse(w.Pool.Config().ConnString())
	require.NoError(t, err)
	query := address.Query()
	query.Set("application_name", applicationName)
	address.RawQuery = query.Encode()
	pool, err := postgres.Connect(t.Context(), address.String())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	hub := inbox.NewHub(pool, commandstest.Quiet)
	commandstest.Run(t, hub.Run)
	w.deps = workers.Deps{
		Store: w.Store, Pool: pool, Brokers: brokers, Commands: w.Commands, Reads: w.Reads, Blobs: w.Blobs, Hub: hub, Now: w.now, Log: commandstest.Quiet,
	}
	return w
}

// applicationName tells the workers' database connections from others.
const applicationName = "musique-workers"

// cut ends all database connections of the workers.
func (w *world) cut(t testing.TB) {
	t.Helper()
	_, err := w.Pool.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", applicationName)
	require.NoError(t, err)
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

// set moves the clock to a time.
func (w *world) set(at time.Time) { w.ahead.Store(int64(time.Until(at))) }

// The workers by name.
const (
	dispatch     = "dispatch"
	delivering   = "delivery"
	closer       = "closer"
	cancellation = "cancellation"
	expiry       = "expiry"
	schedule     = "schedule"
	scheduler    = "scheduler"
	deletedAudio = "deleted audio"
	cleanup      = "cleanup"
	simulator    = "simulator"
	endpoints    = "endpoints"
	publisher    = "publisher"
)

var everything = []string{dispatch, delivering, closer, cancellation, expiry, schedule, scheduler, deletedAudio, cleanup, simulator, endpoints}

// start runs an instance of each worker that is named, until the test ends or stop is called.
func (w *world) start(t testing.TB, names ...string) (stop func()) {
	t.Helper()
	told, err := workers.NewEndpoints(w.deps, workers.EndpointsConfig{Keys: w.Keys, Policy: w.Endpoints, PublicURL: publicURL})
	require.NoError(t, err)
	var work []func(context.Context) error
	for _, name := range names {
		work = append(work, map[string]func(context.Context) error{
			dispatch: workers.NewDispatch(w.deps).Run, delivering: workers.NewDelivery(w.deps).Run, closer: workers.NewCloser(w.deps).Run,
			cancellation: workers.NewCancellation(w.deps).Run, expiry: workers.NewExpiry(w.deps).Run, schedule: workers.NewScheduler(w.deps).Follow,
			scheduler: workers.NewScheduler(w.deps).Run, deletedAudio: workers.NewCleanup(w.deps).Follow, cleanup: workers.NewCleanup(w.deps).Run,
			simulator: workers.NewSimulator(w.deps).Run, endpoints: told.Run, publisher: workers.NewPublisher(w.deps, published).Run,
		}[name])
	}
	return commandstest.Run(t, work...)
}

// private lets the tests' endpoints be on this machine; publicURL is where these workers say that the API is.
var private = endpoint.Policy{AllowPrivate: true}

const publicURL = "https://musique.example"

// item is a row of the inbox.
type item struct {
	Seq        int64
	Kind       string
	ExternalID string
	DeliveryID string
}

// inboxOf is all that is in the inboxes of a company.
func (w *world) inboxOf(t testing.TB, p commandstest.Partner) []item {
	t.Helper()
	rows, err := w.Pool.Query(context.Background(), "SELECT seq, kind, external_id, delivery_id FROM workers.inbox WHERE company_id = $1 ORDER BY seq", p.CompanyID)
	require.NoError(t, err)
	items, err := pgx.CollectRows(rows, pgx.RowToStructByPos[item])
	require.NoError(t, err)
	return items
}

// at is an inbox.
func at(p commandstest.Partner, env event.Environment, userID int64) inbox.Location {
	return inbox.Location{CompanyID: p.CompanyID, Environment: env, UserID: userID}
}

// open lists the deliveries that a location's player is told of when it comes.
func (w *world) open(t testing.TB, l inbox.Location) []string {
	t.Helper()
	items, err := w.inbox.After(context.Background(), l, 0, 10_000)
	require.NoError(t, err)
	ids := make([]string, len(items))
	for i, item := range items {
		ids[i] = item.Delivery.DeliveryID
	}
	return ids
}

// statuses are those of a send's deliveries, by external ID.
func (w *world) statuses(t testing.TB, p commandstest.Partner, env event.Environment, sendID string) map[string]string {
	t.Helper()
	found, _, err := sends.Deliveries(context.Background(), w.Pool, p.CompanyID, env, sendID, "", "", 10_000)
	require.NoError(t, err)
	statuses := map[string]string{}
	for _, d := range found {
		statuses[d.ExternalID] = d.Status
	}
	return statuses
}

func eventually(t testing.TB, holds func() bool, message ...any) {
	t.Helper()
	require.Eventually(t, holds, commandstest.Patience, 20*time.Millisecond, message...)
}

// passed waits until a follower has done an event that it follows.
func (w *world) passed(t testing.TB, follower string, position event.Position) {
	t.Helper()
	eventually(t, func() bool {
		var commit int64
		require.NoError(t, w.Pool.QueryRow(context.Background(), "SELECT coalesce(max(commit_position), 0) FROM workers.checkpoint WHERE follower = $1", follower).Scan(&commit))
		return uint64(commit) >= position.Commit
	}, follower+" is behind")
}
