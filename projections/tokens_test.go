package projections

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections/tokens"
)

var plans = company.Plans{"standard": {PerMinute: 100, PerHour: 150, PerDay: 180, UploadsPerHour: 3}, "tiny": {PerMinute: 2, PerHour: 100, PerDay: 100}}

func registered(id, plan string) company.Registered {
	return company.Registered{CompanyID: id, Name: "Name " + id, Plan: plan, Prefix: "msk", TokenHash: "company " + id}
}

func issued(id, companyID string, expires *time.Time) token.Issued {
	return token.Issued{TokenID: id, CompanyID: companyID, Environment: event.Live, ExternalID: "store_1", UserID: 7, Name: "till", Permissions: []string{"audio.read"}, Hash: "hash " + id, ExpiresAt: expires}
}

func entries(payloads ...event.Payload) []event.Recorded {
	all := make([]entry, len(payloads))
	for i, p := range payloads {
		all[i] = entry{p, "co_one", event.Live}
	}
	return recorded(all)
}

// at is a clock that stands.
func at(now time.Time) func() time.Time { return func() time.Time { return now } }

// apply writes events to all read models.
func apply(t testing.TB, pool *pgxpool.Pool, events []event.Recorded) {
	t.Helper()
	for _, p := range All() {
		open(t, pool, p).project(t, events, nil)
	}
}

// With 200 callers at once over two pools, as two processes would have, a limit of 100 lets 100 through.
func TestALimitIsExactOverAllProcesses(t *testing.T) {
	t.Parallel()
	pool := database(t)
	other, err := postgres.Connect(t.Context(), pool.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(other.Close)
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil)))
	processes := []*tokens.Authenticator{
		tokens.NewAuthenticator(pool, plans, at(epoch.Add(61*time.Second))),
		tokens.NewAuthenticator(other, plans, at(epoch.Add(59*time.Second))), // its clock is behind, in the minute before
	}
	var allowed, refused atomic.Int64
	var told sync.Map
	var wait sync.WaitGroup
	for i := range 200 {
		wait.Go(func() {
			c, err := processes[i%2].Authenticate(context.Background(), []string{"nobody's", "hash tok_1"})
			if err != nil {
				if fault.CodeOf(err) != fault.RateLimitExceeded {
					t.Error(err)
				}
				refused.Add(1)
				return
			}
			allowed.Add(1)
			if _, twice := told.LoadOrStore([2]int64{c.Windows[0].Reset.Unix(), c.Windows[0].Remaining()}, true); twice {
				t.Error("two callers were told that the same requests remain")
			}
		})
	}
	wait.Wait()
	var minute, inMinute, inHour int64
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT minute, in_minute, in_hour FROM counters.request").Scan(&minute, &inMinute, &inHour))
	require.Equal(t, epoch.Add(time.Minute).Unix()/60, minute, "no clock takes a window back")
	require.LessOrEqual(t, inMinute, int64(100))
	require.Equal(t, inHour, allowed.Load())
	require.LessOrEqual(t, allowed.Load(), int64(150), "the hour holds over both minutes")
	require.EqualValues(t, 200, allowed.Load()+refused.Load())
}

func TestExactlyTheLimitIsLetThrough(t *testing.T) {
	t.Parallel()
	pool := database(t)
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil)))
	authenticator := tokens.NewAuthenticator(pool, plans, at(epoch))
	var allowed atomic.Int64
	var left sync.Map
	var wait sync.WaitGroup
	for range 200 {
		wait.Go(func() {
			c, err := authenticator.Authenticate(context.Background(), []string{"hash tok_1"})
			if err == nil {
				allowed.Add(1)
				left.Store(c.Windows[0].Remaining(), true)
			} else if fault.CodeOf(err) != fault.RateLimitExceeded || c.Windows[0].Remaining() != 0 {
				t.Error(err, c.Windows)
			}
		})
	}
	wait.Wait()
	require.EqualValues(t, 100, allowed.Load())
	for remaining := range int64(100) {
		_, told := left.Load(remaining)
		require.True(t, told, "each of those let through is told its own number: %d", remaining)
	}
}

// Callers with different tokens, good and bad, that come at the same moment share a round trip, and each gets its own answer.
func TestCallersAtTheSameMomentAreToldApart(t *testing.T) {
	t.Parallel()
	pool := database(t)
	soon := epoch.Add(time.Hour)
	events := []event.Payload{registered("co_one", "standard"), registered("co_two", "tiny")}
	for i := range 10 {
		tok := issued(fmt.Sprintf("tok_%d", i), "co_one", new(soon.Add(time.Duration(i+1)*time.Second)))
		tok.Permissions = []string{"audio.read", fmt.Sprintf("of.%d", i)}
		events = append(events, tok, issued(fmt.Sprintf("tiny_%d", i), "co_two", nil), issued(fmt.Sprintf("old_%d", i), "co_one", &soon))
	}
	apply(t, pool, entries(events...))
	processes := []*tokens.Authenticator{tokens.NewAuthenticator(pool, plans, at(soon)), tokens.NewAuthenticator(pool, plans, at(soon))}
	var tiny atomic.Int64
	var wait sync.WaitGroup
	for i := range 400 {
		id := fmt.Sprintf("%s_%d", []string{"tok", "tiny", "old", "no"}[i%4], i/4%10)
		wait.Go(func() {
			c, err := processes[i/4%2].Authenticate(context.Background(), []string{"older " + id, "hash " + id})
			code := fault.CodeOf(err)
			switch {
			case i%4 == 0 && err == nil && c.TokenID == id && c.Plan == "standard" && c.Permissions[1] == fmt.Sprintf("of.%d", i/4%10) &&
				c.ExpiresAt.Equal(soon.Add(time.Duration(i/4%10+1)*time.Second)):
			case i%4 == 1 && err == nil && c.TokenID == id && c.Plan == "tiny" && len(c.Permissions) == 1 && c.ExpiresAt == nil:
				tiny.Add(1)
			case i%4 == 1 && code == fault.RateLimitExceeded && c.TokenID == id:
			case i%4 == 2 && code == fault.ExpiredToken && c.TokenID == id:
			case i%4 == 3 && code == fault.InvalidToken && c.TokenID == "":
			default:
				t.Errorf("%s: %+v, %v", id, c, err)
			}
		})
	}
	wait.Wait()
	require.EqualValues(t, 20, tiny.Load(), "two each")
}

// hang has a round trip of the authenticator hang, which asks for a token that was counted before, until release is called.
func hang(t *testing.T, pool *pgxpool.Pool, authenticator *tokens.Authenticator, tokenID string) (release func()) {
	t.Helper()
	holder, err := pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = holder.Rollback(context.Background()) })
	held, err := holder.Exec(t.Context(), "SELECT FROM counters.request WHERE token_id = $1 FOR UPDATE", tokenID)
	require.NoError(t, err)
	require.EqualValues(t, 1, held.RowsAffected())
	hanging := make(chan error, 1)
	go func() {
		_, err := authenticator.Authenticate(context.Background(), []string{"hash " + tokenID})
		hanging <- err
	}()
	waiting(t, pool, 1)
	return func() {
		t.Helper()
		require.Empty(t, hanging, "it hung until now")
		require.NoError(t, holder.Rollback(t.Context()))
		require.NoError(t, <-hanging)
	}
}

// waiting waits until so many round trips wait for a lock.
func waiting(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		var there int
		err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%counters.request%' AND pid <> pg_backend_pid()").Scan(&there)
		return err == nil && there == n
	}, patience, time.Millisecond)
}

// However many come at once, a round trip is one of a size that is not slow.
func TestARoundTripIsBounded(t *testing.T) {
	t.Parallel()
	pool := database(t)
	events := []event.Payload{registered("co_one", "standard")}
	for i := range 1_000 {
		events = append(events, issued(fmt.Sprintf("tok_%d", i), "co_one", nil))
	}
	apply(t, pool, entries(events...))
	authenticator := tokens.NewAuthenticator(pool, plans, at(epoch))
	_, err := authenticator.Authenticate(t.Context(), []string{"hash tok_0"})
	require.NoError(t, err)
	release := hang(t, pool, authenticator, "tok_0")
	var wait sync.WaitGroup
	for i := 1; i < 1_000; i++ {
		wait.Go(func() {
			if _, err := authenticator.Authenticate(context.Background(), []string{fmt.Sprintf("hash tok_%d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	release()
	var trips, largest int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*), max(n) FROM (SELECT count(*) AS n FROM counters.request GROUP BY xmin) t").Scan(&trips, &largest))
	require.LessOrEqual(t, largest, 100)
	require.Greater(t, largest, 1, "in %d round trips", trips)
}

// The first requests of a token are bounded by each of its limits, though they come together.
func TestTheFirstRequestsKeepEachLimit(t *testing.T) {
	t.Parallel()
	pool := database(t)
	odd := company.Plans{"standard": plans["standard"], "hour": {PerMinute: 50, PerHour: 5, PerDay: 50}, "day": {PerMinute: 50, PerHour: 50, PerDay: 5}, "minute": {PerMinute: 5, PerHour: 50, PerDay: 50}}
	apply(t, pool, entries(
		registered("co_one", "standard"), issued("tok_0", "co_one", nil), registered("co_hour", "hour"), issued("tok_hour", "co_hour", nil),
		registered("co_day", "day"), issued("tok_day", "co_day", nil), registered("co_minute", "minute"), issued("tok_minute", "co_minute", nil),
	))
	authenticator := tokens.NewAuthenticator(pool, odd, at(epoch))
	_, err := authenticator.Authenticate(t.Context(), []string{"hash tok_0"})
	require.NoError(t, err)
	release := hang(t, pool, authenticator, "tok_0") // so that they gather
	var wait sync.WaitGroup
	var allowed [3]atomic.Int64
	for i := range 60 {
		wait.Go(func() {
			c, err := authenticator.Authenticate(context.Background(), []string{"hash tok_" + []string{"minute", "hour", "day"}[i%3]})
			if err == nil {
				allowed[i%3].Add(1)
			} else if fault.CodeOf(err) != fault.RateLimitExceeded || c.Windows[i%3].Remaining() != 0 {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	release()
	for i := range allowed {
		require.EqualValues(t, 5, allowed[i].Load(), i)
	}
}

// Round trips of several processes that have tokens in common do not wait for each other in a circle, in whatever order the tokens came.
func TestTokensAreCountedInOneOrder(t *testing.T) {
	t.Parallel()
	pool := database(t)
	hashes := []string{"hash tok_1", "hash tok_2", "hash tok_3"} // as of one token and three keys: all are counted
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil), issued("tok_2", "co_one", nil), issued("tok_3", "co_one", nil)))
	config := pool.Config()
	config.ConnConfig.RuntimeParams["enable_hashjoin"] = "off" // as it is planned where there are many tokens: they are found in the order in which they came
	config.ConnConfig.RuntimeParams["enable_mergejoin"] = "off"
	process, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(process.Close)
	authenticator := tokens.NewAuthenticator(process, plans, at(epoch))
	_, err = authenticator.Authenticate(t.Context(), hashes)
	require.NoError(t, err)
	release := hang(t, pool, authenticator, "tok_2")
	var wait sync.WaitGroup
	for i, order := range [][]string{hashes, {hashes[2], hashes[1], hashes[0]}} {
		wait.Go(func() {
			if _, err := tokens.NewAuthenticator(process, plans, at(epoch)).Authenticate(context.Background(), order); err != nil {
				t.Error(err)
			}
		})
		waiting(t, pool, 2+i)
	}
	release()
	wait.Wait()
}

// A process of the version before counts on in a database of this one, while it is replaced.
func TestTheVersionBeforeCountsOn(t *testing.T) {
	t.Parallel()
	pool := database(t)
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil)))
	before := func() (allowed bool) {
		t.Helper()
		require.NoError(t, pool.QueryRow(t.Context(), `INSERT INTO counters.request AS r (token_id, minute, hour, day, in_minute, in_hour, in_day, allowed)
			VALUES ('tok_1', $1::bigint, $1::bigint / 60, $1::bigint / 1440, 1, 1, 1, true)
			ON CONFLICT (token_id) DO UPDATE SET (in_minute, in_hour, in_day, allowed) = (SELECT r.in_minute + 1, r.in_hour + 1, r.in_day + 1, true) RETURNING allowed`,
			epoch.Unix()/60).Scan(&allowed))
		return allowed
	}
	require.True(t, before())
	for used := 2; used <= 4; used += 2 {
		c, err := tokens.NewAuthenticator(pool, plans, at(epoch)).Authenticate(t.Context(), []string{"hash tok_1"})
		require.NoError(t, err)
		require.EqualValues(t, used, c.Windows[0].Used)
		require.True(t, before())
	}
}

// Who leaves is not waited for, and who waits is told when the database cannot be asked.
func TestACallerWhoLeavesIsLetGo(t *testing.T) {
	t.Parallel()
	pool := database(t)
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil)))
	authenticator := tokens.NewAuthenticator(pool, plans, at(epoch))
	gone, leave := context.WithCancel(t.Context())
	leave()
	_, err := authenticator.Authenticate(gone, []string{"hash tok_1"})
	require.ErrorIs(t, err, context.Canceled)
	c, err := authenticator.Authenticate(t.Context(), []string{"hash tok_1"})
	require.NoError(t, err)
	require.EqualValues(t, 99, c.Windows[0].Remaining(), "the one who left was not counted")

	// Nor does a round trip that hangs hold up those who come after it. It cannot end before release; and who waits for it alone waits for longer than soon.
	release := hang(t, pool, authenticator, "tok_1")
	soon, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err = authenticator.Authenticate(soon, []string{"nobody's"})
	require.Equal(t, fault.InvalidToken, fault.CodeOf(err), err)
	release()

	away, err := postgres.Connect(t.Context(), "postgres://nobody@127.0.0.1:1/none")
	require.NoError(t, err)
	t.Cleanup(away.Close)
	_, err = tokens.NewAuthenticator(away, plans, at(epoch)).Authenticate(t.Context(), []string{"hash tok_1"})
	require.True(t, postgres.IsUnavailable(err), err)
}

func TestWindowsFollowEachOther(t *testing.T) {
	t.Parallel()
	pool := database(t)
	apply(t, pool, entries(registered("co_one", "standard"), issued("tok_1", "co_one", nil)))
	now := epoch.Add(20 * time.Second)
	call := func() (tokens.Caller, error) {
		return tokens.NewAuthenticator(pool, plans, at(now)).Authenticate(t.Context(), []string{"hash tok_1"})
	}
	use := func(n int) {
		for range n {
			_, err := call()
			require.NoError(t, err)
		}
	}
	refused := func(wait time.Duration) {
		c, err := call()
		require.Equal(t, fault.RateLimitExceeded, fault.CodeOf(err), err)
		require.Equal(t, wait, err.(*fault.Error).RetryAfter) //nolint:errorlint // made there
		require.Len(t, c.Windows, 3, "the headers are told to a refused caller too")
	}
	use(100)
	refused(40 * time.Second)
	now = now.Add(time.Minute)
	use(50)
	refused(58*time.Minute + 40*time.Second) // the hour's 150
	now = now.Add(time.Hour)
	use(30)
	refused(epoch.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)) // the day's 180
	now = now.Add(24 * time.Hour)
	c, err := call()
	require.NoError(t, err)
	require.Equal(t, []int64{99, 149, 179}, []int64{c.Windows[0].Remaining(), c.Windows[1].Remaining(), c.Windows[2].Remaining()})
	require.Equal(t, now.Truncate(time.Minute).Add(time.Minute), c.Windows[0].Reset)
}

func TestWhoIsLetIn(t *testing.T) {
	t.Parallel()
	pool := database(t)
	soon := epoch.Add(time.Hour)
	apply(t, pool, entries(
		registered("co_one", "tiny"), registered("co_two", "no such plan"), registered("co_three", "standard"), company.Suspended{CompanyID: "co_three"},
		issued("tok_1", "co_one", &soon), issued("tok_2", "co_two", nil), issued("tok_3", "co_three", nil), issued("tok_4", "co_one", nil), token.Revoked{TokenID: "tok_4"},
	))
	call := func(hash string, now time.Time) (tokens.Caller, fault.Code) {
		c, err := tokens.NewAuthenticator(pool, plans, at(now)).Authenticate(t.Context(), []string{hash})
		if err == nil {
			return c, ""
		}
		return c, fault.CodeOf(err)
	}
	c, code := call("hash tok_1", epoch)
	require.Empty(t, code)
	require.Equal(t, tokens.Caller{
		CompanyID: "co_one", CompanyName: "Name co_one", CompanyCreatedAt: c.CompanyCreatedAt, Plan: "tiny", Environment: event.Live, TokenID: "tok_1", TokenName: "till",
		ExternalID: "store_1", UserID: 7, Permissions: []string{"audio.read"}, ExpiresAt: c.ExpiresAt, CreatedAt: c.CreatedAt, Windows: c.Windows,
	}, c)
	require.Equal(t, epoch, c.CompanyCreatedAt.UTC())
	require.Equal(t, soon, c.ExpiresAt.UTC())
	require.EqualValues(t, 2, c.Windows[0].Limit)
	c, code = call("hash tok_1", soon)
	require.Equal(t, fault.ExpiredToken, code)
	require.Equal(t, "tok_1", c.TokenID)
	c, code = call("hash tok_2", epoch)
	require.Empty(t, code)
	require.EqualValues(t, 100, c.Windows[0].Limit, "a plan that is gone is the standard one")
	for _, hash := range []string{"hash tok_3", "hash tok_4", "nobody's"} {
		_, code = call(hash, epoch)
		require.Equal(t, fault.InvalidToken, code, hash)
	}
	var counters int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM counters.request").Scan(&counters))
	require.Equal(t, 2, counters, "only who is let in is counted")
}

func TestUploadsAndGuessesAreLimited(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	w, err := tokens.Uploads(ctx, pool, "tok_1", 3, epoch)
	require.NoError(t, err)
	require.EqualValues(t, 3, w.Remaining())
	for i := range 3 {
		w, err = tokens.CountUpload(ctx, pool, "tok_1", 3, epoch)
		require.NoError(t, err)
		require.EqualValues(t, 2-i, w.Remaining())
	}
	for range 2 {
		w, err = tokens.CountUpload(ctx, pool, "tok_1", 3, epoch.Add(10*time.Minute))
		require.Equal(t, fault.RateLimitExceeded, fault.CodeOf(err))
		require.Equal(t, 50*time.Minute, err.(*fault.Error).RetryAfter) //nolint:errorlint // made there
		require.EqualValues(t, 3, w.Used)
	}
	w, err = tokens.CountUpload(ctx, pool, "tok_1", 3, epoch.Add(time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, 1, w.Used)

	for range 20 {
		require.NoError(t, tokens.CheckGuesses(ctx, pool, "192.0.2.1", epoch))
		require.NoError(t, tokens.CountGuess(ctx, pool, "192.0.2.1", epoch))
	}
	for _, err := range []error{tokens.CheckGuesses(ctx, pool, "192.0.2.1", epoch.Add(50*time.Second)), tokens.CountGuess(ctx, pool, "192.0.2.1", epoch)} {
		require.Equal(t, fault.RateLimitExceeded, fault.CodeOf(err))
	}
	require.NoError(t, tokens.CheckGuesses(ctx, pool, "192.0.2.2", epoch))
	require.NoError(t, tokens.CheckGuesses(ctx, pool, "192.0.2.1", epoch.Add(time.Minute)))
	require.NoError(t, tokens.CountGuess(ctx, pool, "192.0.2.2", epoch.Add(3*time.Minute)))
	var addresses int
	require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM counters.guess").Scan(&addresses))
	require.Equal(t, 1, addresses, "old guesses are forgotten")
}

func TestTokensAndDevicesAreFound(t *testing.T) {
	t.Parallel()
	pool := database(t)
	ctx := t.Context()
	history := []event.Payload{registered("co_one", "standard"), registered("co_two", "plus")}
	for i := range 5 {
		history = append(history, issued(fmt.Sprint("tok_", i), "co_one", nil))
	}
	history = append(history, token.Revoked{TokenID: "tok_3"}, issued("tok_9", "co_two", nil), company.TokenRotated{CompanyID: "co_two", TokenHash: "new"}, company.PlanChanged{CompanyID: "co_two", Plan: "unlimited"},
		location.Registered{CompanyID: "co_one", ExternalID: "s1", UserID: 1, Name: "S", Timezone: "UTC"}, location.Registered{CompanyID: "co_one", ExternalID: "s2", UserID: 2, Name: "S", Timezone: "UTC"},
		location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "s1", UserID: 1, DeviceID: "dvc_1", Hash: "d1"}, location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "s1", UserID: 1, DeviceID: "dvc_2", Hash: "d2"},
		location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "s2", UserID: 2, DeviceID: "dvc_3", Hash: "d3"},
		location.DeviceEnrolled{CompanyID: "co_one", ExternalID: "s1", UserID: 1, DeviceID: "dvc_4", Hash: "d4"},
		location.DeviceTokenRotated{CompanyID: "co_one", ExternalID: "s1", UserID: 1, DeviceID: "dvc_4", Hash: "d5"},
		location.DeviceRevoked{CompanyID: "co_one", ExternalID: "s1", UserID: 1, DeviceID: "dvc_2"}, location.Removed{CompanyID: "co_one", ExternalID: "s2", UserID: 2})
	apply(t, pool, entries(history...))

	first, next, err := tokens.List(ctx, pool, "co_one", event.Live, "", 3)
	require.NoError(t, err)
	require.Equal(t, []string{"tok_4", "tok_2", "tok_1"}, []string{first[0].TokenID, first[1].TokenID, first[2].TokenID})
	rest, next, err := tokens.List(ctx, pool, "co_one", event.Live, next, 3)
	require.NoError(t, err)
	require.Len(t, rest, 1)
	require.Empty(t, next)
	none, _, err := tokens.List(ctx, pool, "co_one", event.Test, "", 3)
	require.NoError(t, err)
	require.Empty(t, none)
	_, _, err = tokens.List(ctx, pool, "co_one", event.Live, "nonsense", 3)
	require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
	revoked, err := tokens.Get(ctx, pool, "co_one", event.Live, "tok_3")
	require.NoError(t, err)
	require.NotNil(t, revoked.RevokedAt)
	_, err = tokens.Get(ctx, pool, "co_one", event.Live, "tok_9")
	require.Equal(t, fault.NotFound, fault.CodeOf(err), "another company's")

	reads := NewReads(pool, NewPositions(pool, quiet))
	id, found, err := reads.TokenByHash(ctx, "co_one", []string{"hash tok_1"})
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "tok_1", id)
	_, found, err = reads.TokenByHash(ctx, "co_one", []string{"hash tok_9"})
	require.NoError(t, err)
	require.False(t, found)
	id, found, err = reads.CompanyByTokenHash(ctx, []string{"x", "new"})
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "co_two", id)
	_, found, err = reads.CompanyByTokenHash(ctx, []string{"company co_two"})
	require.NoError(t, err)
	require.False(t, found, "it was rotated")
	companies, err := tokens.Companies(ctx, pool)
	require.NoError(t, err)
	require.Len(t, companies, 2)
	require.Equal(t, "unlimited", companies[1].Plan)

	d, err := tokens.AuthenticateDevice(ctx, pool, []string{"x", "d1"})
	require.NoError(t, err)
	require.Equal(t, tokens.Device{DeviceID: "dvc_1", CompanyID: "co_one", Environment: event.Live, ExternalID: "s1", UserID: 1, Hash: "d1"}, d)
	for _, gone := range []string{"d2", "d3", "d4", "x"} {
		_, err = tokens.AuthenticateDevice(ctx, pool, []string{gone})
		require.Equal(t, fault.InvalidToken, fault.CodeOf(err), gone)
	}
	active, err := tokens.ActiveSignIns(ctx, pool, []string{"d1", "d2", "d3", "d4", "d5"})
	require.NoError(t, err)
	require.Equal(t, map[string]bool{"d1": true, "d5": true}, active)
	d, err = tokens.AuthenticateDevice(ctx, pool, []string{"d5"})
	require.NoError(t, err)
	require.Equal(t, tokens.Device{DeviceID: "dvc_4", CompanyID: "co_one", Environment: event.Live, ExternalID: "s1", UserID: 1, Hash: "d5"}, d)
}
