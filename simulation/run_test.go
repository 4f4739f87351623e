package simulation

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
)

const (
	processes       = 3
	partners        = 3
	audioPerPartner = 6
	// patience bounds each wait for what must happen in the end.
	patience = 4 * time.Minute
	// poolConns are the connections of one process's pool; a process has about twice as many beside it, and a PostgreSQL has 100.
	poolConns = 6
	// reportConns bounds the connections on which players report, for each process.
	reportConns = 24
	// setupWorkers is how much is made at the same time before a run.
	setupWorkers = 64
	// maxFailures bounds the failures that are told.
	maxFailures = 10
)

// scale is how large a run is.
type scale struct {
	seed            uint64
	players, rounds int
	children        bool // each process is one of the operating system
}

// run is a simulation.
type run struct {
	t testing.TB
	scale
	clock clock
	parts parts
	admin *pgxpool.Pool
	store *eventstore.Store
	// The partners have connections of their own, so that they do not stand in a line with all players.
	office, radio *http.Client
	stderr        transcript // of the children

	slots    []*slot
	partners []*partner

	mu      sync.Mutex // of the players
	players []*player
	living  sync.WaitGroup
	life    context.Context
	rest    func() // ends all players

	calm        atomic.Bool  // the load is over: nobody leaves any more
	events      atomic.Int64 // that players were told
	failures    atomic.Int64
	kills, cuts int
	jumping     sync.RWMutex // held for reading by what must not see the time jump
}

// slot is the place of a process: it is there, or it was killed and is about to come back.
type slot struct {
	name     string
	database string
	partner  atomic.Value // the address for partners and players, of the process that was there last

	changing sync.Mutex // held while a process starts or ends
	mu       sync.Mutex
	at       server // nil while there is none
	dead     []*process
}

// server is the process that is there, or nil.
func (s *slot) server() server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// set puts a process there, or takes it away.
func (s *slot) set(at server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = at
}

// fail tells of something that must not be. Anybody may call it.
func (r *run) fail(format string, args ...any) {
	if r.failures.Add(1) <= maxFailures {
		r.t.Errorf("seed %d: "+format, append([]any{r.seed}, args...)...)
	}
}

// random gives one part of the run its own random numbers: they follow from the seed, whatever the others draw.
func (r *run) random(part ...uint64) *rand.Rand {
	stream := uint64(0)
	for _, p := range part {
		stream = stream*1_000_003 + p + 1
	}
	return rand.New(rand.NewPCG(r.seed, stream))
}

// The parts of a run that draw random numbers.
const (
	ofTroubles = iota
	ofCallers
	ofPlayers
	ofNewPlayers
)

// newRun starts the parts and the processes, and makes the partners, their locations and their players.
func newRun(t testing.TB, s scale) *run {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	r := &run{
		t: t, scale: s, life: t.Context(), rest: func() {}, office: &http.Client{Transport: &http.Transport{}},
		radio: &http.Client{Transport: &http.Transport{MaxConnsPerHost: reportConns, MaxIdleConnsPerHost: reportConns}},
	}
	t.Cleanup(r.office.CloseIdleConnections)
	t.Cleanup(r.radio.CloseIdleConnections)
	node, err := esnode.Start(esnode.Options{Dir: filepath.Join(t.TempDir(), "events"), Listen: "127.0.0.1:0", Log: log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Close()) })
	r.store, err = eventstore.Open(node.ConnectionString(), log)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.store.Close()) })
	brokers := kafkatest.OwnBrokers(t)
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: workers.DispatchTopic, Partitions: workers.DispatchPartitions}))
	folder, err := blobs.FolderURL(t.TempDir())
	require.NoError(t, err)

	database := postgrestest.URL(t)
	r.admin, err = postgres.Connect(t.Context(), database)
	require.NoError(t, err)
	t.Cleanup(r.admin.Close)
	require.NoError(t, projections.Migrate(t.Context(), r.admin))
	require.NoError(t, workers.Migrate(t.Context(), r.admin))
	_, err = r.admin.Exec(t.Context(), simulatedNow)
	require.NoError(t, err)
	r.parts = parts{EventStore: node.ConnectionString(), Blobs: folder, Secret: fmt.Sprintf("%064x", s.seed), Brokers: brokers}
	for n := range processes {
		address, err := url.Parse(database)
		require.NoError(t, err)
		name := fmt.Sprint("simulated ", n)
		query := address.Query()
		query.Set("pool_max_conns", fmt.Sprint(poolConns))
		query.Set("application_name", name)
		query.Set("search_path", "simulated, pg_catalog, public")
		address.RawQuery = query.Encode()
		r.slots = append(r.slots, &slot{name: name, database: address.String()})
	}
	t.Cleanup(r.bury)
	var starting errgroup.Group
	for _, one := range r.slots {
		starting.Go(func() error { return r.start(one) })
	}
	require.NoError(t, starting.Wait())
	r.people()
	return r
}

// simulatedNow makes PostgreSQL tell the simulated time to whoever has the schema in front of its own functions.
const simulatedNow = `
CREATE SCHEMA simulated;
CREATE TABLE simulated.clock (ahead interval NOT NULL);
INSERT INTO simulated.clock VALUES ('0');
CREATE FUNCTION simulated.now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT pg_catalog.now() + ahead FROM simulated.clock'`

// start starts the process of a slot.
func (r *run) start(one *slot) error {
	one.changing.Lock()
	defer one.changing.Unlock()
	r.jumping.RLock()
	defer r.jumping.RUnlock()
	p := r.parts
	p.Database, p.Ahead = one.database, time.Duration(r.clock.ahead.Load())
	var started server
	var err error
	if r.children {
		started, err = startChild(p, &r.stderr)
	} else {
		started, err = startProcess(p, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		return err
	}
	one.set(started)
	url, _ := started.addresses()
	one.partner.Store(url)
	return nil
}

// kill ends the process of a slot at once.
func (r *run) kill(one *slot) error {
	one.changing.Lock()
	defer one.changing.Unlock()
	at := one.server()
	at.kill()
	if here, ok := at.(*process); ok {
		one.dead = append(one.dead, here)
	}
	one.set(nil)
	r.kills++
	if r.children {
		return nil
	}
	return r.cut("application_name = $1", one.name)
}

// cut ends database connections.
func (r *run) cut(which string, args ...any) error {
	_, err := r.admin.Exec(r.life, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND "+which, args...)
	return err
}

// jump moves all clocks.
func (r *run) jump(by time.Duration) error {
	r.jumping.Lock()
	defer r.jumping.Unlock()
	ahead := time.Duration(r.clock.ahead.Load()) + by
	if _, err := r.admin.Exec(r.life, "UPDATE simulated.clock SET ahead = $1", ahead); err != nil {
		return err
	}
	r.clock.set(ahead)
	for _, one := range r.slots {
		if at := one.server(); at != nil {
			at.jump(ahead)
		}
	}
	return nil
}

// addressOf is where a process is, or was before it died.
func (r *run) addressOf(n int) string {
	address, _ := r.slots[n%len(r.slots)].partner.Load().(string)
	return address
}

// address is where some process is, or was.
func (r *run) address(random *rand.Rand) string { return r.addressOf(random.IntN(len(r.slots))) }

// try makes one request.
func (r *run) try(ctx context.Context, method, url string, headers map[string]string, body []byte) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := r.office.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, raw}, err
}

// people makes the partners, and all that they have.
func (r *run) people() {
	t, ctx := r.t, r.t.Context()
	locations := max(r.scale.players/(2*partners), 1)
	tempers := r.random(ofPlayers)
	for n := range partners {
		p := &partner{run: r, number: n, everRemoved: map[string]bool{}}
		r.partners = append(r.partners, p)
		_, ops := r.slots[n%processes].server().addresses()
		got, err := r.try(ctx, http.MethodPost, ops+"/ops/companies", map[string]string{"Content-Type": "application/json"},
			fmt.Appendf(nil, `{"name": "Partner %d", "plan": %q}`, n, company.Unlimited))
		require.NoError(t, err)
		var made struct{ CompanyID, CompanyToken, Token string }
		require.NoError(t, got.decode(&made), "%s", got.body)
		p.id = made.CompanyID
		got, err = p.ask(ctx, http.MethodPost, "/auth", "", object{"externalId": "office", "companyToken": made.CompanyToken})
		require.NoError(t, err)
		require.NoError(t, got.decode(&made), "%s", got.body)
		p.token = made.Token
		var rows []object
		for at := range locations {
			id := fmt.Sprintf("shop_%d_%03d", n, at)
			p.locations = append(p.locations, id)
			rows = append(rows, object{"externalId": id, "name": id, "tags": tagsOf(at)})
		}
		got, err = p.ask(ctx, http.MethodPost, "/locations/import", "", object{"locations": rows})
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, got.status, "%s", got.body)
		for i := range audioPerPartner {
			require.NoError(t, p.upload(ctx, fmt.Sprint("first ", i)))
		}
	}
	ring, err := keys.Open("", r.parts.Secret)
	require.NoError(t, err)
	devices := map[string][]event.Proposed{} // by the streams of their locations
	for n := range r.scale.players {
		p := r.partners[n%partners]
		// Each location has a player; the others are second and third ones somewhere.
		at := n / partners
		if at >= locations {
			at = tempers.IntN(locations)
		}
		one := &player{run: r, name: fmt.Sprint("player ", n), partner: p, externalID: p.locations[at], deviceID: fmt.Sprintf("dvc_%022d", n), token: fmt.Sprintf("dev_%043d", n), temper: randomTemper(tempers)}
		one.dress(r.random(ofPlayers, uint64(n)), r.rounds)
		r.players = append(r.players, one)
		userID := location.UserIDCandidate(p.id, one.externalID, 0)
		stream := location.Stream(p.id, userID, event.Live)
		devices[stream] = append(devices[stream], event.Proposed{
			ID:       uuid.New(),
			Payload:  location.DeviceEnrolled{CompanyID: p.id, ExternalID: one.externalID, UserID: userID, DeviceID: one.deviceID, Hash: ring.HashToken(one.token)},
			Metadata: event.Metadata{CompanyID: p.id, Environment: event.Live, Actor: "simulation", Time: r.clock.now()},
		})
	}
	// So many devices take the API long, and it is not what this is about.
	var making errgroup.Group
	making.SetLimit(setupWorkers)
	for stream, enrolled := range devices {
		making.Go(func() error {
			_, err := r.store.Append(ctx, stream, eventstore.Exact(0), enrolled...)
			return err
		})
	}
	require.NoError(t, making.Wait())
	r.await("players cannot sign in", func() []string {
		return r.strings("SELECT 'some' FROM locations.device HAVING count(*) < " + fmt.Sprint(r.scale.players))
	})
}

func randomTemper(r *rand.Rand) temper {
	switch n := r.IntN(100); {
	case n < 68:
		return steady
	case n < 78:
		return restless
	case n < 83:
		return failing
	case n < 88:
		return leaving
	default:
		return absent
	}
}

// dress gives a player what is random about it.
func (p *player) dress(random *rand.Rand, rounds int) {
	p.random = random
	p.leavesIn = time.Duration(random.Int64N(int64(rounds)*int64(stepsPerRound*meanStep) + 1))
	switch n := random.IntN(10); {
	case n < 5:
		p.skew = time.Duration(random.Int64N(int64(2*clockTolerance))) - clockTolerance
	case n < 8:
		p.skew = time.Duration(random.Int64N(int64(4*time.Hour))) - 2*time.Hour
	}
}

// join lets a player live.
func (r *run) join(p *player) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.random == nil { // it is new
		p.dress(r.random(ofNewPlayers, uint64(len(r.players))), r.rounds)
		r.players = append(r.players, p)
	}
	if p.temper == absent {
		p.out.Store(true)
		return
	}
	r.living.Go(func() { p.live(r.life) })
}

// everybody lists the players.
func (r *run) everybody() []*player {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*player(nil), r.players...)
}

// play performs the script, and lets the players finish what they were told.
func (r *run) play() {
	t := r.t
	ctx, stop := context.WithCancel(context.Background())
	r.life = ctx
	r.rest = func() {
		stop()
		r.living.Wait()
	}
	defer r.rest()
	for _, p := range r.everybody() {
		r.join(p)
	}
	var callers errgroup.Group
	for n, p := range r.partners {
		for caller := range callersPerPartner {
			script := callerScript(r.random(ofCallers, uint64(n), uint64(caller)), r.rounds, len(p.locations))
			callers.Go(func() error {
				// Whatever happens, there is an answer in the end.
				ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(len(script))*2*meanStep)
				defer cancel()
				for i, s := range script {
					pause(ctx, s.after)
					if err := p.perform(ctx, s, fmt.Sprintf("caller %d step %d", caller, i)); err != nil {
						return fmt.Errorf("partner %d, caller %d, step %d: %w", n, caller, i, err)
					}
				}
				return nil
			})
		}
	}
	require.NoError(t, r.trouble(ctx), "seed %d", r.seed)
	require.NoError(t, callers.Wait(), "seed %d", r.seed)
	r.calm.Store(true)
	r.settle(ctx)
}

// trouble performs its script; in the end all processes are there.
func (r *run) trouble(ctx context.Context) error {
	var coming errgroup.Group
	for _, s := range troubleScript(r.random(ofTroubles), r.rounds) {
		pause(ctx, s.after)
		one := r.slots[s.pick%len(r.slots)]
		switch s.act {
		case killProcess:
			if one.server() == nil {
				continue
			}
			if err := r.kill(one); err != nil {
				return err
			}
			coming.Go(func() error {
				pause(ctx, s.length)
				return r.start(one)
			})
		case cutDatabase:
			r.cuts++
			if err := r.cut("application_name = $1", one.name); err != nil {
				return err
			}
		case cutLeads:
			r.cuts++
			if err := r.cut("application_name LIKE 'musique projection %'"); err != nil {
				return err
			}
		case jumpAhead:
			if err := r.jump(s.length); err != nil {
				return err
			}
		default:
			return fmt.Errorf("trouble does not do %d", s.act)
		}
	}
	return coming.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// settle lets everything come to its end: what is scheduled is sent, players play what they have, and then the time comes in which the rest expires.
func (r *run) settle(ctx context.Context) {
	t := r.t
	for ahead := time.Duration(0); ahead < maxAhead; ahead += settlingJump {
		require.NoError(t, r.jump(settlingJump))
		pause(ctx, settlingPause)
	}
	r.await("what is scheduled was not sent", func() (left []string) { return r.strings("SELECT send_id FROM workers.schedule") })
	r.await("deliveries at locations with a player that can play do not end", func() (left []string) {
		playing := map[string]bool{}
		for _, p := range r.everybody() {
			if !p.out.Load() && p.temper != failing {
				playing[p.externalID] = true
			}
		}
		for _, o := range r.open() {
			if playing[o.ExternalID] && !o.Overdue {
				left = append(left, o.DeliveryID)
			}
		}
		return left
	})
	r.await("players still have something to play or to report", func() (left []string) {
		for _, p := range r.everybody() {
			if !p.out.Load() && p.busy.Load() {
				left = append(left, p.name)
			}
		}
		return left
	})
	require.NoError(t, r.jump(longLife))
	r.await("deliveries do not expire", func() (left []string) {
		for _, o := range r.open() {
			if !o.Overdue {
				left = append(left, o.DeliveryID)
			}
		}
		return left
	})
	require.NoError(t, r.jump(longLife)) // those whose player died amid them
	r.await("deliveries do not end", func() (left []string) {
		for _, o := range r.open() {
			left = append(left, o.DeliveryID)
		}
		return left
	})
}

// opened is a delivery that has not ended. Overdue says that it was playing when it expired: its player is let finish.
type opened struct {
	ExternalID, DeliveryID string
	Overdue                bool
}

// open lists the deliveries that have not ended. One may be on its way to the inboxes, so that only the read model knows it; one of a send that was
// refused is in the inboxes alone.
func (r *run) open() []opened {
	const query = `
SELECT external_id, delivery_id, bool_or(overdue) FROM (
    SELECT external_id, 'dlv_' || substr(send_id, 5) || '_' || user_id AS delivery_id, false AS overdue
    FROM sends.delivery WHERE status IN ('scheduled', 'queued', 'delivered', 'playing')
    UNION ALL SELECT external_id, delivery_id, overdue FROM workers.inbox WHERE kind = 'deliver'
) AS o GROUP BY external_id, delivery_id`
	rows, err := r.admin.Query(context.Background(), query)
	require.NoError(r.t, err)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[opened])
	require.NoError(r.t, err)
	return found
}

const (
	// While a run settles, the time jumps by so much, and players have so long for what they are told then.
	settlingJump  = 10 * time.Second
	settlingPause = 250 * time.Millisecond
)

// await waits until nothing is left.
func (r *run) await(message string, left func() []string) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		still := left()
		if len(still) == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.fail("%s: %d, for instance %v", message, len(still), still[:min(len(still), 5)])
			r.tell(still[:min(len(still), 5)])
			r.t.FailNow()
		}
		pause(r.t.Context(), 50*time.Millisecond)
	}
}

func (r *run) strings(query string) []string {
	rows, err := r.admin.Query(context.Background(), query)
	require.NoError(r.t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(r.t, err)
	return found
}

// stop ends the processes in an orderly way.
func (r *run) stop() {
	for _, one := range r.slots {
		require.NoError(r.t, one.server().stop())
		one.set(nil)
	}
	require.NotContains(r.t, r.stderr.String(), "DATA RACE")
}

// bury ends what is left of the processes.
func (r *run) bury() {
	for _, one := range r.slots {
		one.changing.Lock()
		if at := one.server(); at != nil {
			at.kill()
			if here, ok := at.(*process); ok {
				one.dead = append(one.dead, here)
			}
		}
		for _, dead := range one.dead {
			dead.buried()
		}
		one.changing.Unlock()
	}
}

// uploadForm is the form of an upload whose sound is short, and unlike any other's.
func uploadForm(name string) (contentType string, body []byte) {
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	_ = form.WriteField("name", name) // a buffer never fails
	file, _ := form.CreateFormFile("file", "clip.wav")
	_, _ = file.Write(sound(name))
	_ = form.Close()
	return form.FormDataContentType(), b.Bytes()
}

// sound is 20 to 80 ms of a mono 16-bit sine at 8 kHz.
func sound(name string) []byte {
	const rate = 8000
	sum := 0
	for _, c := range name {
		sum = sum*31 + int(c)
	}
	sum = sum & math.MaxInt32
	samples := make([]int16, rate*(20+sum%60)/1000)
	for i := range samples {
		samples[i] = int16(12000 * math.Sin(2*math.Pi*float64(300+sum%1000)*float64(i)/rate))
	}
	var b bytes.Buffer
	write := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a buffer never fails
	b.WriteString("RIFF")
	write(uint32(36 + 2*len(samples)))
	b.WriteString("WAVEfmt ")
	write(uint32(16))
	write([]uint16{1, 1})
	write([]uint32{rate, 2 * rate})
	write([]uint16{2, 16})
	b.WriteString("data")
	write(uint32(2 * len(samples)))
	write(samples)
	return b.Bytes()
}
