package httpapi

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
)

// journal stands where the event store's command is: it takes batches, or fails as it is told.
type journal struct {
	mu    sync.Mutex
	fail  []error // the answers to come, before it takes batches
	taken []string
	calls int
}

func (j *journal) record(_ context.Context, cmd commands.RecordUsage) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls++
	if len(j.fail) > 0 {
		err := j.fail[0]
		j.fail = j.fail[1:]
		return err
	}
	for _, r := range cmd.Requests {
		j.taken = append(j.taken, r.Served.RequestID)
	}
	return nil
}

func request(company, id string) commands.ServedRequest {
	return commands.ServedRequest{
		Caller: commands.Caller{CompanyID: company, Environment: event.Live},
		Served: usage.ApiRequestServed{RequestID: id, Timestamp: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)},
	}
}

func TestUsageIsRecordedInOrderAndThroughOutages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{fail: []error{errors.New("away"), errors.New("still away")}}
		u := newUsageRecorder(j.record, func(int) { t.Error("lost a request") }, func(error) {})
		var want []string
		for i := range 2*maxUsageBatch + 7 {
			id := fmt.Sprint(i)
			want = append(want, id)
			u.add(request("co_1", id))
		}
		require.NoError(t, u.close(t.Context()))
		require.Equal(t, want, j.taken)
		require.Equal(t, 2+3, j.calls)
	})
}

func TestBatchesAreOfOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var batches [][]commands.ServedRequest
		u := newUsageRecorder(func(_ context.Context, cmd commands.RecordUsage) error {
			mu.Lock()
			defer mu.Unlock()
			batches = append(batches, cmd.Requests)
			return nil
		}, func(int) { t.Error("lost a request") }, func(error) {})
		for i := range 10 {
			u.add(request(fmt.Sprint("co_", i%2), fmt.Sprint(i)))
		}
		require.NoError(t, u.close(t.Context()))
		require.Len(t, batches, 2)
		for _, batch := range batches {
			require.Len(t, batch, 5)
		}
	})
}

// What one append takes must not be what each company's requests wait for: of two thousand companies that would be ten seconds.
func TestRequestsOfManyCompaniesAreKeptUpWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const companies, perTick, ticks = 2_000, 50, 2_000
		var mu sync.Mutex
		recorded, newest := 0, map[string]int{}
		u := newUsageRecorder(func(_ context.Context, cmd commands.RecordUsage) error {
			<-time.After(5 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			recorded += len(cmd.Requests)
			for _, r := range cmd.Requests {
				at, err := strconv.Atoi(r.Served.RequestID)
				require.NoError(t, err)
				require.Greater(t, at, newest[r.Caller.CompanyID], "a company's requests are in order")
				newest[r.Caller.CompanyID] = at
			}
			return nil
		}, func(n int) { t.Error("lost ", n) }, func(error) {})
		for tick := range ticks {
			for i := range perTick {
				n := tick*perTick + i + 1
				u.add(request(fmt.Sprint("co_", n%companies), strconv.Itoa(n)))
			}
			<-time.After(10 * time.Millisecond)
			if t.Failed() {
				break
			}
		}
		require.NoError(t, u.close(t.Context()))
		require.Equal(t, ticks*perTick, recorded)
	})
}

func TestABatchThatIsTooLargeIsSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{fail: []error{eventstore.ErrTooLarge, eventstore.ErrTooLarge}}
		u := newUsageRecorder(j.record, func(int) { t.Error("lost a request") }, func(error) {})
		for i := range 8 {
			u.add(request("co_1", fmt.Sprint(i)))
		}
		require.NoError(t, u.close(t.Context()))
		require.Equal(t, []string{"0", "1", "2", "3", "4", "5", "6", "7"}, j.taken)
	})
}

// A stream to which the event store takes no more does not keep the requests of others waiting, and a store that is away for long loses none.
func TestWhatIsRefusedHoldsUpNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		lost, taken, until := 0, []string{}, time.Now().Add(time.Hour)
		u := newUsageRecorder(func(_ context.Context, cmd commands.RecordUsage) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case time.Now().Before(until):
				return fmt.Errorf("append: %w", eventstore.ErrUnavailable)
			case cmd.Requests[0].Caller.CompanyID == "co_refused":
				return errors.New("the stream is deleted")
			}
			for _, r := range cmd.Requests {
				taken = append(taken, r.Served.RequestID)
			}
			return nil
		}, func(n int) { lost += n }, func(error) {})
		u.add(request("co_refused", "1"))
		u.add(request("co_refused", "2"))
		u.add(request("co_1", "3"))
		time.AfterFunc(time.Hour+time.Minute, func() { u.add(request("co_1", "4")) })
		<-time.After(time.Hour + 2*time.Minute)
		require.NoError(t, u.close(t.Context()))
		require.Equal(t, []string{"3", "4"}, taken)
		require.Equal(t, 2, lost)
	})
}

func TestTheEndOfTheEndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := 0
		u := newUsageRecorder(func(ctx context.Context, _ commands.RecordUsage) error {
			<-ctx.Done()
			return ctx.Err()
		}, func(n int) { lost += n }, func(error) {})
		u.add(request("co_1", "1"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, u.close(ctx))
		require.Equal(t, 1, lost)
		u.add(request("co_1", "2"))
		require.Equal(t, 2, lost, "what comes after the end is lost and counted")
	})
}

func TestTokensAreHiddenWhereverTheyAre(t *testing.T) {
	secret := strings.Repeat("aB3", 15)[:43]
	for _, text := range []string{"/api/audio/msk_live_" + secret, "curl/8 (comp_" + secret + ")", "/x/dev_" + secret + "/y"} {
		require.NotContains(t, withoutTokens(text), secret[:20])
	}
	for cut := range maxLoggedPath {
		path := recordable("/"+strings.Repeat("p", cut)+"/msk_live_"+secret, maxLoggedPath)
		require.NotContains(t, path, secret[:1], "a token that is cut is still most of a token")
	}
	delivery := "/api/player/v1/deliveries/dlv_0123456789ABCDEFGHIJKL_4503599627370496"
	require.Equal(t, delivery, withoutTokens(delivery))
	require.Equal(t, "ab\uFFFD", clip("ab\u00e9", 3), "a rune that is cut is no UTF-8")
}
