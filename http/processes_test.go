package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// The secret keys of the processes. Of each two one has the new one in use and the other not yet, as while it is rotated: whatever the processes promise, they promise
// then too.
var olderSecret, newerSecret = strings.Repeat("a1", 32), strings.Repeat("b2", 32)

// tight is a plan whose limits are soon reached.
const tight = "tight"

// installation is where the parts are that several processes work with. The processes have nothing else in common.
type installation struct {
	database, eventStore, blobs string
	brokers                     []string
	plans                       company.Plans
}

// install makes an installation, in which a process that serves nobody keeps the read models.
func install(t *testing.T) installation {
	t.Helper()
	database, err := url.Parse(postgrestest.URL(t))
	require.NoError(t, err)
	query := database.Query()
	query.Set("pool_max_conns", "10") // five processes on one server
	database.RawQuery = query.Encode()
	folder, err := blobs.FolderURL(t.TempDir())
	require.NoError(t, err)
	i := installation{
		database: database.String(), eventStore: storetest.URL(t), blobs: folder, brokers: kafkatest.Brokers(t), plans: company.DefaultPlans(),
	}
	plan := i.plans[company.Unlimited]
	plan.PerMinute, plan.PerHour, plan.UploadsPerHour = 100, 250, 7
	i.plans[tight] = plan

	pool, err := postgres.Connect(t.Context(), i.database)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, projections.Migrate(t.Context(), pool))
	require.NoError(t, workers.Migrate(t.Context(), pool))
	store, err := eventstore.Open(i.eventStore, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	commandstest.Run(t, projections.NewRunner(projections.RunnerConfig{Store: store, Pool: pool, Log: slog.New(slog.DiscardHandler)}).Run)
	return i
}

// process starts an API process, wired as the program wires it.
func (i installation) process(t *testing.T, now func() time.Time, secrets ...string) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, err := eventstore.Open(i.eventStore, log)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	pool, err := postgres.Connect(t.Context(), i.database)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	bytesStore, err := blobs.Open(t.Context(), i.blobs)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bytesStore.Close()) })
	ring, err := keys.Open("", strings.Join(secrets, ","))
	require.NoError(t, err)
	positions, hub := projections.NewPositions(pool, log), inbox.NewHub(pool, log)
	commandstest.Run(t, positions.Run, hub.Run)
	reads := projections.NewReads(pool, positions)
	handlers := commands.New(commands.Deps{Store: store, Blobs: bytesStore, Keys: ring, Reads: reads, Plans: i.plans, Now: now, Log: log})
	w := &world{pool: pool, config: httpapi.Config{
		Commands: handlers, Reads: reads, Pool: pool, Store: store, Blobs: bytesStore, Inbox: hub, Keys: ring, Plans: i.plans,
		Checks: httpapi.Checks{
			Database: pool.Ping, Storage: bytesStore.Ping, EventStore: store.Ping,
			Messaging: func(ctx context.Context) error { return kafka.Ping(ctx, i.brokers) },
		},
		Version: "test", TrustForwarded: true, SpoolDir: t.TempDir(), Log: log, Now: now,
	}}
	w.api, w.url, w.ops = w.serve(t, w.config)
	return w
}

// pair is two API processes of an installation.
type pair [2]*world

// pair starts two processes amid a rotation of the secret key, each with its own clock.
func (i installation) pair(t *testing.T, now, others func() time.Time) pair {
	t.Helper()
	return pair{i.process(t, now, olderSecret, newerSecret), i.process(t, others, newerSecret, olderSecret)}
}

// at is the caller at another process, in another test.
func (p partner) at(t *testing.T, w *world) partner {
	p.t, p.w = t, w
	return p
}

// clock is a time that passes when it is told to.
type clock struct{ seconds atomic.Int64 }

func (c *clock) now() time.Time       { return time.Unix(c.seconds.Load(), 0).UTC() }
func (c *clock) pass(d time.Duration) { c.seconds.Add(int64(d / time.Second)) }

// clocks are those of a pair.
type clocks [2]*clock

func (c clocks) pass(d time.Duration) {
	for _, one := range c {
		one.pass(d)
	}
}

// end is when a window ends, and left how long that is from now, while both tell the same time.
func (c clocks) end(window time.Duration) time.Time      { return c[0].now().Truncate(window).Add(window) }
func (c clocks) left(window time.Duration) time.Duration { return c.end(window).Sub(c[0].now()) }

// TestProcesses holds several processes to what the contract promises of all of them together.
func TestProcesses(t *testing.T) {
	i := install(t)
	t.Run("limits are exact", func(t *testing.T) {
		stopped := clocks{{}, {}} // at ten minutes and twenty seconds past the hour: no window ends but when a test wants it to
		stopped.pass(time.Duration(time.Now().Truncate(time.Hour).Unix())*time.Second + 10*time.Minute + 20*time.Second)
		two := i.pair(t, stopped[0].now, stopped[1].now)
		for _, limit := range []struct {
			of   string
			test func(*testing.T, pair, clocks)
		}{ // one after the other: they share the clocks
			{"requests", requestsAreCountedTogether},
			{"uploads", uploadsAreCountedTogether},
			{"guesses of an address", guessesOfAnAddressAreCountedTogether},
			{"guesses of a company", guessesOfACompanyAreCountedTogether},
		} {
			t.Run(limit.of, func(t *testing.T) { limit.test(t, two, stopped) })
		}
	})
	two := i.pair(t, time.Now, time.Now)
	t.Run("at once", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, pair){
			"a revoked token is accepted nowhere":         revokedTokens,
			"a suspended company is accepted nowhere":     suspendedCompanies,
			"a rotated company token is accepted nowhere": rotatedCompanyTokens,
			"a revoked device's stream closes everywhere": revokedDevices,
			"a device token that was rotated":             rotatedDeviceTokens,
			"who wrote here reads it there":               writesAreReadElsewhere,
			"a key makes requests run once":               keysHoldTogether,
			"tokens and URLs are good at each process":    tokensAndURLsAreGoodEverywhere,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, two)
			})
		}
	})
	t.Run("without the older secret key", func(t *testing.T) { withoutTheOlderSecretKey(t, two, i.process(t, time.Now, newerSecret)) })
}

// ask is one of many requests that are made at the same moment.
type ask struct {
	method, path, token string
	ops                 bool // of an operator
	body                any
	headers             []header
}

// burst makes n requests that begin at the same moment, in turn at each process.
func (two pair) burst(t *testing.T, n int, of func(i int) ask) []reply {
	t.Helper()
	replies, failures := make([]reply, n), make([]error, n)
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	ready.Add(n)
	for i := range n {
		request := of(i).request(t, two[i%2])
		done.Go(func() {
			ready.Done()
			<-begin
			replies[i], failures[i] = answerTo(request)
		})
	}
	ready.Wait()
	close(begin)
	done.Wait()
	for _, err := range failures {
		require.NoError(t, err)
	}
	return replies
}

func (a ask) request(t *testing.T, w *world) *http.Request {
	t.Helper()
	var payload []byte
	kind := "application/json"
	switch b := a.body.(type) {
	case nil:
	case form:
		payload, kind = b.encode(t)
	default:
		var err error
		payload, err = json.Marshal(b)
		require.NoError(t, err)
	}
	base := w.url + v1
	if a.ops {
		base = w.ops + "/ops"
	}
	request, err := http.NewRequestWithContext(t.Context(), a.method, base+a.path, bytes.NewReader(payload))
	require.NoError(t, err)
	if payload != nil {
		request.Header.Set("Content-Type", kind)
	}
	if a.token != "" {
		request.Header.Set("X-API-Key", a.token)
	}
	for _, h := range a.headers {
		request.Header.Set(h.name, h.value)
	}
	return request
}

// crowd is a client of many connections.
var crowd = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 300}}

func answerTo(request *http.Request) (reply, error) {
	response, err := crowd.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return reply{Response: response, body: raw}, err
}

// statuses counts the answers by their status.
func statuses(replies []reply) map[int]int {
	all := map[int]int{}
	for _, r := range replies {
		all[r.StatusCode]++
	}
	return all
}

// refusedUntil checks an answer that says when to come again.
func refusedUntil(t *testing.T, r reply, wait time.Duration) {
	t.Helper()
	e := refused(t, r, http.StatusTooManyRequests, "rate_limit_exceeded")
	require.Equal(t, int(wait.Seconds()), e.Error.RetryAfter)
	require.Equal(t, int(wait.Seconds()), number(t, r.Header.Get("Retry-After")))
}

func requestsAreCountedTogether(t *testing.T, two pair, c clocks) {
	owner := two[0].company(t, tight)
	p := owner.as("till", object{})
	requests := func(int) ask { return ask{method: http.MethodPost, path: "/test", token: p.token} }
	for _, window := range []struct {
		length                time.Duration
		made, limit, accepted int
	}{{time.Minute, 300, 100, 100}, {time.Minute, 120, 100, 100}, {time.Hour, 120, 250, 50}} {
		var remaining []int
		for _, r := range two.burst(t, window.made, requests) {
			require.Equal(t, fmt.Sprint(window.limit), r.Header.Get("X-RateLimit-Limit"))
			require.Equal(t, fmt.Sprint(c.end(window.length).Unix()), r.Header.Get("X-RateLimit-Reset"))
			left := number(t, r.Header.Get("X-RateLimit-Remaining"))
			if r.StatusCode == http.StatusOK {
				remaining = append(remaining, left)
				continue
			}
			require.Zero(t, left)
			refusedUntil(t, r, c.left(window.length))
		}
		slices.Sort(remaining)
		want := make([]int, window.accepted)
		for n := range want {
			want[n] = n
		}
		require.Equal(t, want, remaining, "each that is let through has its own place")
		c.pass(time.Minute)
	}
	c.pass(time.Hour)
	require.Equal(t, map[int]int{http.StatusOK: 2}, statuses(two.burst(t, 2, requests)))

	// Clocks that go apart let no more through: a process that is behind counts in the minute that the other one has begun.
	p = owner.as("another", object{})
	require.Equal(t, map[int]int{http.StatusOK: 100, http.StatusTooManyRequests: 20}, statuses(two.burst(t, 120, requests)))
	c[0].pass(time.Minute)
	require.Equal(t, http.StatusOK, p.at(t, two[0]).post("/test", nil).StatusCode)
	require.Equal(t, map[int]int{http.StatusOK: 99, http.StatusTooManyRequests: 21}, statuses(two.burst(t, 120, requests)))
	c[1].pass(time.Minute)
	require.Equal(t, map[int]int{http.StatusTooManyRequests: 10}, statuses(two.burst(t, 10, requests)))
}

func uploadsAreCountedTogether(t *testing.T, two pair, c clocks) {
	p := two[0].company(t, tight).as("till", object{})
	clip := wav(0.1, 440)
	upload := func(int) ask {
		return ask{method: http.MethodPost, path: "/audio", token: p.token, body: form{{name: "name", value: "Clip"}, {name: "file", file: clip}}}
	}
	replies := two.burst(t, 30, upload)
	require.Equal(t, map[int]int{http.StatusCreated: 7, http.StatusTooManyRequests: 23}, statuses(replies))
	for _, r := range replies {
		if r.StatusCode == http.StatusTooManyRequests {
			refusedUntil(t, r, c.left(time.Hour))
		}
	}
	for _, w := range two {
		require.Len(t, ok[[]object](t, p.at(t, w).get("/audio"), http.StatusOK), 7)
	}
	c.pass(time.Hour)
	require.Equal(t, map[int]int{http.StatusCreated: 4}, statuses(two.burst(t, 4, upload)))
}

func guessesOfAnAddressAreCountedTogether(t *testing.T, two pair, c clocks) {
	p := two[0].company(t, company.Unlimited)
	guess := func(token, from string) ask {
		return ask{method: http.MethodPost, path: "/auth", body: object{"externalId": "till", "companyToken": token}, headers: []header{{"X-Forwarded-For", from}}}
	}
	for range 2 {
		replies := two.burst(t, 60, func(int) ask { return guess("comp_guess", "198.51.100.20") })
		require.Equal(t, map[int]int{http.StatusUnauthorized: 20, http.StatusTooManyRequests: 40}, statuses(replies))
		for _, r := range replies {
			if r.StatusCode == http.StatusTooManyRequests {
				refusedUntil(t, r, c.left(time.Minute))
			}
		}
		require.Equal(t, map[int]int{http.StatusTooManyRequests: 2}, statuses(two.burst(t, 2, func(int) ask { return guess(p.companyToken, "198.51.100.20") })))
		require.Equal(t, map[int]int{http.StatusCreated: 2}, statuses(two.burst(t, 2, func(int) ask { return guess(p.companyToken, "198.51.100.21") })))
		c.pass(time.Minute)
		require.Equal(t, map[int]int{http.StatusCreated: 2}, statuses(two.burst(t, 2, func(int) ask { return guess(p.companyToken, "198.51.100.20") })))
	}
}

func guessesOfACompanyAreCountedTogether(t *testing.T, two pair, c clocks) {
	p, other := two[0].partner(t), two[1].partner(t)
	sandbox := p.as("hq", object{"environment": "test"})
	reader := p.as("reader", object{"permissions": []string{"audio.read"}})
	from := header{"X-Forwarded-For", "198.51.100.30"}
	revoke := func(p partner, token string) ask {
		return ask{method: http.MethodDelete, path: "/auth", token: p.token, body: object{"token": token}, headers: []header{from}}
	}
	wrong := func(i int) ask {
		return revoke(p, []string{"msk_live_" + strings.Repeat("x", 43), other.token, sandbox.token, p.companyToken}[i%4])
	}
	one := func(a ask, status int) {
		t.Helper()
		for _, r := range two.burst(t, 2, func(int) ask { return a }) {
			require.Equal(t, status, r.StatusCode, "%s", r.body)
		}
	}
	for range 2 {
		// What is no guess: right tokens, those that were revoked before, the calling one, IDs, what is refused for its form or for a permission.
		var right []string
		for n := range 6 {
			right = append(right, p.as(fmt.Sprint("till_", n), object{}).token)
		}
		require.Equal(t, map[int]int{http.StatusOK: 6}, statuses(two.burst(t, 6, func(i int) ask { return revoke(p, right[i]) })))
		require.Equal(t, map[int]int{http.StatusUnauthorized: 6}, statuses(two.burst(t, 6, func(i int) ask { return revoke(p, right[i]) })))
		one(ask{method: http.MethodDelete, path: "/auth", token: p.token, body: object{"tokenId": "tok_none"}}, http.StatusNotFound)
		one(revoke(p, ""), http.StatusBadRequest)
		one(revoke(reader, "msk_live_nonsense"), http.StatusForbidden)

		replies := two.burst(t, 60, wrong)
		require.Equal(t, map[int]int{http.StatusUnauthorized: 20, http.StatusTooManyRequests: 40}, statuses(replies))
		for _, r := range replies {
			if r.StatusCode == http.StatusTooManyRequests {
				refusedUntil(t, r, c.left(time.Minute))
			}
		}
		// Until the minute is over no token can be tried, whoever of the company asks.
		late := p.as("late", object{})
		one(revoke(p, late.token), http.StatusTooManyRequests)
		one(revoke(p.as("colleague", object{}), late.token), http.StatusTooManyRequests)
		// Nobody else is kept from it, and nothing else is.
		one(revoke(other, "msk_live_nonsense"), http.StatusUnauthorized)
		one(revoke(sandbox, "msk_live_nonsense"), http.StatusUnauthorized)
		one(ask{method: http.MethodPost, path: "/auth", body: object{"externalId": "x", "companyToken": "comp_guess"}, headers: []header{from}}, http.StatusUnauthorized)
		own, byID := p.as("own", object{}), p.as("by-id", object{})
		require.Equal(t, http.StatusOK, own.at(t, two[1]).call(http.MethodDelete, "/auth", object{"token": own.token}).StatusCode)
		id := ok[struct{ TokenID string }](t, byID.post("/test", nil), http.StatusOK).TokenID
		require.Equal(t, http.StatusOK, p.at(t, two[1]).del("/tokens/"+id).StatusCode)
		refused(t, byID.post("/test", nil), http.StatusUnauthorized, "invalid_token")

		c.pass(time.Minute)
		require.Equal(t, http.StatusOK, p.at(t, two[1]).call(http.MethodDelete, "/auth", object{"token": late.token}).StatusCode)
	}
}

// use makes requests with a token at both processes, again and again, until stop is called. One that begins after revoked was set must be refused; while the revocation is
// under way it may be.
func (two pair) use(t *testing.T, token string, revoked *atomic.Bool) (stop func()) {
	t.Helper()
	var using sync.WaitGroup
	enough := make(chan struct{})
	after := make([]atomic.Int64, len(two))
	for n, w := range two {
		request := ask{method: http.MethodPost, path: "/test", token: token}.request(t, w)
		using.Go(func() {
			for {
				late := revoked.Load()
				r, err := answerTo(again(request))
				switch {
				case err != nil:
					t.Error(err)
					return
				case late && r.StatusCode != http.StatusUnauthorized:
					t.Errorf("a revoked token is answered %d: %s", r.StatusCode, r.body)
					return
				case !late && r.StatusCode != http.StatusOK && r.StatusCode != http.StatusUnauthorized:
					t.Errorf("answered %d: %s", r.StatusCode, r.body)
					return
				case late:
					after[n].Add(1)
				}
				select {
				case <-enough:
					if after[n].Load() > 0 || t.Failed() {
						return
					}
				default:
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(enough)
		using.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// again is a request that can be sent once more.
func again(request *http.Request) *http.Request {
	next := request.Clone(request.Context())
	next.Body, _ = request.GetBody() // of bytes: it never fails
	return next
}

const revocationRounds = 24

// guesserAt is an address of its own, for wrong company tokens.
func guesserAt(n int) header {
	return header{"X-Forwarded-For", fmt.Sprint("198.51.", 100+n/250, ".", n%250)}
}

func revokedTokens(t *testing.T, two pair) {
	admin := two[0].partner(t)
	for round := range revocationRounds {
		here, there := two[round%2], two[(round+1)%2]
		victim := admin.at(t, here).as("till", object{})
		id := ok[struct{ TokenID string }](t, victim.at(t, there).post("/test", nil), http.StatusOK).TokenID
		revoked := &atomic.Bool{}
		stop := two.use(t, victim.token, revoked)
		revoke := []func() reply{
			func() reply { return victim.at(t, here).del("/auth") },
			func() reply { return admin.at(t, here).call(http.MethodDelete, "/auth", object{"token": victim.token}) },
			func() reply { return admin.at(t, here).call(http.MethodDelete, "/auth", object{"tokenId": id}) },
			func() reply { return admin.at(t, here).del("/tokens/" + id) },
		}[round/2%4]
		ok[object](t, revoke(), http.StatusOK)
		revoked.Store(true)
		refused(t, victim.at(t, there).post("/test", nil), http.StatusUnauthorized, "invalid_token")
		refused(t, victim.at(t, here).post("/test", nil), http.StatusUnauthorized, "invalid_token")
		stop()
	}
}

func suspendedCompanies(t *testing.T, two pair) {
	for round := range revocationRounds / 6 {
		here, there := two[round%2], two[(round+1)%2]
		p := there.partner(t)
		p.location("hall")
		d := p.device("hall")
		player := there.listen(t, there.url, d.Token, "")
		revoked := &atomic.Bool{}
		stop := two.use(t, p.token, revoked)
		ok[object](t, call(t, http.MethodPost, here.ops+"/ops/companies/"+p.companyID+"/suspend", "", nil), http.StatusOK)
		revoked.Store(true)
		refused(t, p.at(t, there).post("/test", nil), http.StatusUnauthorized, "invalid_token")
		refused(t, call(t, http.MethodPost, there.url+v1+"/auth", "", object{"externalId": "x", "companyToken": p.companyToken}, guesserAt(200+round)), http.StatusUnauthorized, "invalid_token")
		refused(t, there.report(t, d.Token, "dlv_x", "played"), http.StatusUnauthorized, "invalid_token")
		stop()
		player.ended()
	}
}

func rotatedCompanyTokens(t *testing.T, two pair) {
	for round := range revocationRounds / 2 {
		here, there := two[round%2], two[(round+1)%2]
		p := there.company(t, company.Unlimited)
		issue := func(w *world, companyToken string) reply {
			return call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "x", "companyToken": companyToken}, guesserAt(100+round))
		}
		ok[object](t, issue(there, p.companyToken), http.StatusCreated)
		rotated := ok[struct{ CompanyToken string }](t, call(t, http.MethodPost, here.ops+"/ops/companies/"+p.companyID+"/rotate-token", "", nil), http.StatusOK)
		refused(t, issue(there, p.companyToken), http.StatusUnauthorized, "invalid_token")
		refused(t, issue(here, p.companyToken), http.StatusUnauthorized, "invalid_token")
		ok[object](t, issue(there, rotated.CompanyToken), http.StatusCreated)
	}
}

func revokedDevices(t *testing.T, two pair) {
	p := two[0].partner(t)
	p.location("hall")
	for round := range 3 {
		here, there := two[round%2], two[(round+1)%2]
		d := p.at(t, here).device("hall")
		players := []*stream{there.listen(t, there.url, d.Token, ""), here.listen(t, here.url, d.Token, "")}
		ok[object](t, p.at(t, here).del("/locations/hall/devices/"+d.DeviceID), http.StatusOK)
		refused(t, there.report(t, d.Token, "dlv_x", "played"), http.StatusUnauthorized, "invalid_token")
		refused(t, call(t, http.MethodGet, there.url+"/api/player/v1/stream", "", nil, header{"Authorization", "Bearer " + d.Token}), http.StatusUnauthorized, "invalid_token")
		for _, s := range players {
			s.ended()
		}
	}
}

// From the answer on neither process accepts the token before, and both close what it opened; what other tokens opened they leave alone.
func rotatedDeviceTokens(t *testing.T, two pair) {
	p := two[0].partner(t)
	p.location("hall")
	d := p.device("hall")
	other := p.device("hall").Token
	bystanders := []*stream{two[0].listen(t, two[0].url, other, ""), two[1].listen(t, two[1].url, other, "")}
	players := []*stream{two[0].listen(t, two[0].url, d.Token, ""), two[1].listen(t, two[1].url, d.Token, "")}
	for round := range 4 {
		here, there := two[round%2], two[(round+1)%2]
		for _, s := range slices.Concat(players, bystanders) {
			select {
			case <-s.done:
				t.Error("a stream is closed whose token is good, in round", round)
			default:
			}
		}
		rotated := ok[device](t, p.at(t, here).post("/locations/hall/devices/"+d.DeviceID+"/rotate", nil), http.StatusCreated)
		require.Equal(t, d.DeviceID, rotated.DeviceID)
		require.NotEqual(t, d.Token, rotated.Token)
		for _, w := range []*world{there, here} {
			refused(t, w.report(t, d.Token, "dlv_x", "played"), http.StatusUnauthorized, "invalid_token")
			refused(t, call(t, http.MethodGet, w.url+"/api/player/v1/stream", "", nil, header{"Authorization", "Bearer " + d.Token}), http.StatusUnauthorized, "invalid_token")
			refused(t, w.report(t, rotated.Token, "dlv_x", "played"), http.StatusNotFound, "not_found")
		}
		next := []*stream{there.listen(t, there.url, rotated.Token, ""), here.listen(t, here.url, rotated.Token, "")}
		for _, s := range players {
			s.ended()
		}
		require.Len(t, ok[[]device](t, p.at(t, there).get("/locations/hall/devices"), http.StatusOK), 2)
		d, players = rotated, next
	}
	for _, s := range slices.Concat(players, bystanders) {
		s.stop()
	}
}

func writesAreReadElsewhere(t *testing.T, two pair) {
	for caller := range 3 {
		t.Run(fmt.Sprint("caller ", caller), func(t *testing.T) {
			t.Parallel()
			p := two[caller%2].partner(t)
			for round := range 6 {
				here, there := p.at(t, two[(caller+round)%2]), p.at(t, two[(caller+round+1)%2])
				place := fmt.Sprint("shop_", round)
				here.location(place)
				require.Equal(t, place, ok[object](t, there.get("/locations/"+place), http.StatusOK)["name"])
				ok[object](t, here.call(http.MethodPatch, "/locations/"+place, object{"name": "Renamed", "tags": []string{place}}), http.StatusOK)
				require.Equal(t, "Renamed", ok[object](t, there.get("/locations/"+place), http.StatusOK)["name"])
				rows := []object{{"externalId": place, "name": "Imported"}, {"externalId": "new_" + place, "name": "Imported"}}
				ok[object](t, here.post("/locations/import", object{"locations": rows}), http.StatusOK)
				for _, row := range rows {
					require.Equal(t, "Imported", ok[object](t, there.get("/locations/"+row["externalId"].(string)), http.StatusOK)["name"])
				}
				d := here.device(place)
				require.Equal(t, d.DeviceID, ok[[]device](t, there.get("/locations/"+place+"/devices"), http.StatusOK)[0].DeviceID)
				refused(t, there.w.report(t, d.Token, "dlv_x", "played"), http.StatusNotFound, "not_found")

				audio := here.upload("Clip")
				ok[object](t, there.get("/audio/"+audio.AudioID), http.StatusOK)
				require.Equal(t, audio.AudioID, ok[[]uploaded](t, there.get("/audio?limit=1"), http.StatusOK)[0].AudioID)
				sent := here.send(audio.AudioID, object{"externalIds": []string{place, "new_" + place}})
				require.Equal(t, "queued", ok[accepted](t, there.get("/sends/"+sent.SendID), http.StatusOK).Status)
				require.Len(t, ok[[]object](t, there.get("/sends/"+sent.SendID+"/deliveries"), http.StatusOK), 2)
				require.Equal(t, sent.SendID, ok[[]accepted](t, there.get("/sends?limit=1"), http.StatusOK)[0].SendID)
				require.Equal(t, 2.0, ok[struct{ Stats object }](t, there.get("/audio/"+audio.AudioID), http.StatusOK).Stats["totalRecipients"])
				refused(t, there.del("/audio/"+audio.AudioID), http.StatusConflict, "conflict")
				ok[object](t, here.del("/sends/"+sent.SendID), http.StatusOK)
				require.Equal(t, "cancelled", ok[accepted](t, there.get("/sends/"+sent.SendID), http.StatusOK).Status)
				ok[object](t, here.del("/audio/"+audio.AudioID), http.StatusOK)
				refused(t, there.get("/audio/"+audio.AudioID), http.StatusNotFound, "not_found")
				refused(t, there.post("/audio/"+audio.AudioID+"/send", object{"all": true}), http.StatusNotFound, "not_found")
				type used struct{ Used int }
				quota := ok[struct {
					Quota struct{ Uploads, Sends, StorageBytes used }
				}](t, there.get("/limits"), http.StatusOK).Quota
				require.Equal(t, []used{{round + 1}, {round + 1}, {0}}, []used{quota.Uploads, quota.Sends, quota.StorageBytes})

				till := here.as("till", object{})
				require.Equal(t, "till", ok[object](t, till.at(t, there.w).post("/test", nil), http.StatusOK)["externalId"])
				require.Equal(t, "till", ok[[]object](t, there.get("/tokens?limit=1"), http.StatusOK)[0]["externalId"])
				ok[object](t, here.del("/locations/"+place), http.StatusOK)
				refused(t, there.get("/locations/"+place), http.StatusNotFound, "not_found")
				refused(t, there.w.report(t, d.Token, "dlv_x", "played"), http.StatusUnauthorized, "invalid_token")
			}
		})
	}
}

func keysHoldTogether(t *testing.T, two pair) {
	const rounds = 6
	p, rotated := two[0].partner(t), two[1].company(t, company.Unlimited)
	p.location("hall")
	audio, clip := p.upload("Clip"), wav(0.1, 440)
	for round := range rounds {
		for name, a := range map[string]ask{
			"token":    {path: "/auth", body: object{"externalId": fmt.Sprint("till_", round), "companyToken": p.companyToken}},
			"audio":    {path: "/audio", body: form{{name: "name", value: fmt.Sprint("Keyed ", round)}, {name: "file", file: clip}}},
			"send":     {path: "/audio/" + audio.AudioID + "/send", body: object{"externalIds": []string{"hall"}}},
			"location": {path: "/locations", body: object{"externalId": fmt.Sprint("door_", round), "name": "Door"}},
			"device":   {path: "/locations/hall/devices", body: object{"name": "Player"}},
			"import":   {path: "/locations/import", body: object{"locations": []object{{"externalId": fmt.Sprint("row_", round), "name": "Row"}, {"externalId": "hall", "name": fmt.Sprint("Hall ", round)}}}},
			"company":  {ops: true, path: "/companies", body: object{"name": "Keyed " + p.companyID}},
			"rotation": {ops: true, path: "/companies/" + rotated.companyID + "/rotate-token"},
		} {
			a.method, a.headers = http.MethodPost, []header{{"Idempotency-Key", fmt.Sprint(p.companyID, name, round)}}
			if name != "token" && !a.ops {
				a.token = p.token
			}
			ran := 0
			replies := two.burst(t, 4, func(int) ask { return a })
			for _, r := range replies {
				require.Less(t, r.StatusCode, 300, "%s: %s", name, r.body)
				require.Equal(t, result(t, replies[0]), result(t, r), name)
				if r.Header.Get("Idempotency-Replayed") == "" {
					ran++
				}
			}
			require.Equal(t, 1, ran, name)
		}
	}
	for _, w := range two {
		p := p.at(t, w)
		require.Len(t, ok[[]object](t, p.get("/audio?limit=100"), http.StatusOK), 1+rounds)
		require.Len(t, ok[[]object](t, p.get("/sends?limit=100"), http.StatusOK), rounds)
		require.Len(t, ok[[]object](t, p.get("/locations/hall/devices"), http.StatusOK), rounds)
		require.Len(t, ok[[]object](t, p.get("/locations?limit=100"), http.StatusOK), 1+2*rounds)
		require.Len(t, ok[[]object](t, p.get("/tokens?limit=100"), http.StatusOK), 1+rounds)
		keyed := 0
		for _, c := range ok[[]struct{ Name string }](t, call(t, http.MethodGet, w.ops+"/ops/companies", "", nil), http.StatusOK) {
			if c.Name == "Keyed "+p.companyID {
				keyed++
			}
		}
		require.Equal(t, rounds, keyed)
	}
}

// result is what an answer tells, but for the URL of audio, which each process signs for itself.
func result(t *testing.T, r reply) object {
	t.Helper()
	var data object
	require.NoError(t, json.Unmarshal(r.envelope(t).Data, &data), "%s", r.body)
	delete(data, "url")
	return data
}

// elsewhere is a URL of one process at another.
func elsewhere(t *testing.T, from string, w *world) string {
	t.Helper()
	u, err := url.Parse(from)
	require.NoError(t, err)
	return w.url + u.RequestURI()
}

func tokensAndURLsAreGoodEverywhere(t *testing.T, two pair) {
	for n := range two {
		here, there := two[n], two[1-n]
		p := here.partner(t)
		ok[object](t, p.at(t, there).post("/test", nil), http.StatusOK)
		ok[object](t, p.at(t, there).as("till", object{}).at(t, here).post("/test", nil), http.StatusOK)
		audio := p.upload("Clip")
		for _, w := range two {
			require.Equal(t, http.StatusOK, call(t, http.MethodGet, elsewhere(t, audio.URL, w), "", nil).StatusCode)
		}
	}
}

// Whose secret key was taken away is refused; what was made under the newer one is not, nor what follows from none.
func withoutTheOlderSecretKey(t *testing.T, two pair, later *world) {
	p := two[1].partner(t) // of the newer key
	older := p.at(t, two[0]).as("till", object{})
	refused(t, older.at(t, later).post("/test", nil), http.StatusUnauthorized, "invalid_token")
	ok[object](t, p.at(t, later).post("/test", nil), http.StatusOK)

	key := header{"Idempotency-Key", "made before"}
	audio := form{{name: "name", value: "Clip"}, {name: "file", file: wav(0.1, 440)}}
	before := ok[uploaded](t, p.at(t, two[0]).post("/audio", audio, key), http.StatusCreated)
	after := ok[uploaded](t, p.at(t, later).post("/audio", audio, key), http.StatusCreated)
	require.Equal(t, before.AudioID, after.AudioID)
	require.Equal(t, http.StatusNotFound, call(t, http.MethodGet, elsewhere(t, before.URL, later), "", nil).StatusCode)
	for _, w := range []*world{two[0], two[1], later} {
		require.Equal(t, http.StatusOK, call(t, http.MethodGet, elsewhere(t, after.URL, w), "", nil).StatusCode)
	}

	auth := func(w *world) reply {
		return call(t, http.MethodPost, w.url+v1+"/auth", "", object{"externalId": "keyed", "companyToken": p.companyToken}, key)
	}
	made := ok[struct{ Token string }](t, auth(two[0]), http.StatusCreated)
	require.Equal(t, made, ok[struct{ Token string }](t, auth(two[1]), http.StatusCreated))
	require.Contains(t, refused(t, auth(later), http.StatusConflict, "conflict").Error.Message, "cannot be shown again")
}
