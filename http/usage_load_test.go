package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/eventstore/storetest"
)

// logRow is a request in the usage logs.
type logRow struct {
	RequestID  string    `json:"requestId"`
	Timestamp  time.Time `json:"timestamp"`
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Endpoint   string    `json:"endpoint"`
	Status     int       `json:"status"`
	DurationMs int64     `json:"durationMs"`
	ExternalID string    `json:"externalId"`
	TokenID    string    `json:"tokenId"`
	IP         string    `json:"ip"`
	UserAgent  string    `json:"userAgent"`
	ErrorCode  string    `json:"errorCode"`
}

// waitingLog tells when the log says that requests wait to be recorded.
type waitingLog struct {
	slog.Handler
	told chan struct{}
}

func (l waitingLog) Enabled(context.Context, slog.Level) bool { return true }

func (l waitingLog) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "requests wait to be recorded") {
		select {
		case l.told <- struct{}{}:
		default:
		}
	}
	return nil
}

// tenant is a company's token of one environment, and what the logs are to say of its requests.
type tenant struct {
	partner
	externalID, tokenID string
	served              map[string]logRow
	others              []string // the IDs of requests for the token and for the logs
}

// Many requests of several companies at once are in their logs once each, and right, though the event store has trouble amid them: silent, it records what it
// hears, and who told it does not know; away, it hears nothing.
func TestEveryRequestIsLoggedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	between := storetest.NewProxy(t, storetest.URL(t))
	t.Cleanup(between.Close)
	store, err := eventstore.Open(between.URL(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	config, waiting := w.config, waitingLog{slog.DiscardHandler, make(chan struct{}, 1)}
	config.Log = slog.New(waiting)
	config.Store = store
	config.Commands = commands.New(commands.Deps{
		Store: store, Blobs: config.Blobs, Keys: config.Keys, Reads: config.Reads, Plans: config.Plans, Now: time.Now, Log: config.Log,
	})
	api, url, ops := w.serve(t, config)

	var tenants []*tenant
	for i := range 3 {
		p := w.company(t, company.Unlimited)
		for _, environment := range []string{"live", "test"} {
			one := &tenant{partner: p, externalID: fmt.Sprint("till_", i), served: map[string]logRow{}}
			body := object{"externalId": one.externalID, "companyToken": p.companyToken, "environment": environment}
			issued := call(t, http.MethodPost, w.url+v1+"/auth", "", body)
			made := ok[struct{ Token, TokenID string }](t, issued, http.StatusCreated)
			one.token, one.tokenID, one.others = made.Token, made.TokenID, []string{issued.Header.Get("X-Request-Id")}
			tenants = append(tenants, one)
		}
	}
	kinds := []logRow{
		{Method: http.MethodGet, Path: v1 + "/audio", Endpoint: v1 + "/audio", Status: http.StatusOK},
		{Method: http.MethodGet, Path: "/api/audio", Endpoint: v1 + "/audio", Status: http.StatusOK},
		{Method: http.MethodGet, Path: "/api/audio/aud_none", Endpoint: v1 + "/audio/{audioId}", Status: http.StatusNotFound, ErrorCode: "not_found"},
		{Method: http.MethodPost, Path: v1 + "/test", Endpoint: v1 + "/test", Status: http.StatusOK},
		{Method: http.MethodGet, Path: v1 + "/limits", Endpoint: v1 + "/limits", Status: http.StatusOK},
		{Method: http.MethodPost, Path: v1 + "/locations", Endpoint: v1 + "/locations", Status: http.StatusBadRequest, ErrorCode: "missing_field"},
	}
	const callersPerTenant, requestsPerCaller = 4, 30
	began := time.Now()
	all := make([][]logRow, len(tenants)*callersPerTenant)
	// under makes requests of all tenants, a quarter of them before something is done to the event store, which lasts until the recorder has noticed.
	under := func(trouble func()) {
		t.Helper()
		var callers errgroup.Group
		var quarter sync.WaitGroup
		quarter.Add(len(all))
		begun := make(chan struct{})
		for i := range all {
			one := tenants[i%len(tenants)]
			callers.Go(func() error {
				told := sync.OnceFunc(quarter.Done)
				defer told()
				for made := range requestsPerCaller {
					if made == requestsPerCaller/4 {
						told()
						<-begun
					}
					n := len(all[i])
					row := kinds[(i+n)%len(kinds)]
					row.RequestID, row.ExternalID, row.TokenID = uuid.NewString(), one.externalID, one.tokenID
					row.IP, row.UserAgent = fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("load/%d.%d", i, n)
					if err := row.request(t.Context(), url, one.token); err != nil {
						return err
					}
					all[i] = append(all[i], row)
				}
				return nil
			})
		}
		quarter.Wait()
		select {
		case <-waiting.told: // of what was before
		default:
		}
		trouble()
		close(begun)
		select {
		case <-waiting.told:
		case <-time.After(patience):
			t.Fatal("the recorder has not noticed")
		}
		require.NoError(t, callers.Wait(), "a request waits for no record")
		between.Cut()
	}
	under(between.Silence)
	under(between.Leave)
	api.Drain()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, api.Close(ctx))
	ended := time.Now()
	require.Contains(t, string(call(t, http.MethodGet, ops+"/metrics", "", nil).body), "musique_usage_records_lost_total 0")

	for i, rows := range all {
		for _, row := range rows {
			tenants[i%len(tenants)].served[row.RequestID] = row
		}
	}
	for _, one := range tenants {
		require.Len(t, one.served, 2*callersPerTenant*requestsPerCaller)
		var rows []logRow
		var found []string
		eventually(t, "requests are missing in the logs", func() bool {
			rows, found = one.logs(), nil
			for _, row := range rows {
				if _, mine := one.served[row.RequestID]; mine {
					found = append(found, row.RequestID)
				}
			}
			return len(found) >= len(one.served)
		})
		slices.Sort(found)
		require.Len(t, slices.Compact(found), len(one.served), "each once")
		require.Len(t, found, len(one.served))
		for _, row := range rows {
			want, mine := one.served[row.RequestID]
			if !mine {
				require.Contains(t, one.others, row.RequestID, "nobody else's requests: %+v", row)
				continue
			}
			require.WithinRange(t, row.Timestamp, began.Truncate(time.Millisecond), ended)
			require.GreaterOrEqual(t, row.DurationMs, int64(0))
			require.LessOrEqual(t, row.DurationMs, ended.Sub(began).Milliseconds())
			row.Timestamp, row.DurationMs = time.Time{}, 0
			require.Equal(t, want, row)
		}
	}
}

// request makes the request that the row tells of.
func (row logRow) request(ctx context.Context, url, token string) error {
	var body io.Reader
	if row.Method == http.MethodPost {
		body = strings.NewReader("{}")
	}
	request, err := http.NewRequestWithContext(ctx, row.Method, url+row.Path, body)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"X-API-Key": token, "X-Request-Id": row.RequestID, "X-Forwarded-For": row.IP, "User-Agent": row.UserAgent, "Content-Type": "application/json",
	} {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer envelope
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s %s: %w", row.Method, row.Path, err)
	}
	code := ""
	if answer.Error != nil {
		code = answer.Error.Code
	}
	if response.StatusCode != row.Status || code != row.ErrorCode || response.Header.Get("X-Request-Id") != row.RequestID {
		return fmt.Errorf("%s %s: %d %s", row.Method, row.Path, response.StatusCode, code)
	}
	return nil
}

// logs is all that the tenant's logs show.
func (one *tenant) logs() (rows []logRow) {
	one.t.Helper()
	for cursor := ""; ; {
		path := "/logs?limit=100"
		if cursor != "" {
			path += "&cursor=" + cursor
		}
		page := one.get(path)
		rows = append(rows, ok[[]logRow](one.t, page, http.StatusOK)...)
		one.others = append(one.others, page.Header.Get("X-Request-Id"))
		next := page.envelope(one.t).Pagination.NextCursor
		if next == nil {
			return rows
		}
		cursor = *next
	}
}
