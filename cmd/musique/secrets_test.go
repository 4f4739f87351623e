package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// A busy session with all kinds of tokens in all kinds of wrong places leaves none of them, nor anything else that is nobody's business, in a log line at the finest level,
// or in a span.
func TestNothingSecretIsToldToOperators(t *testing.T) {
	t.Parallel()
	traces := receive(t)
	const opsToken, theirWord = "ops-token-that-only-operators-have", "Zanzibar" // the word is in all that a person may write
	secretKey := strings.Repeat("5a", 32)
	cmd := exec.Command(executable(t), append([]string{
		"serve", "--data-dir", filepath.Join(t.TempDir(), "data"), "--log-format", "json", "--log-level", "debug", "--traces-endpoint", traces.URL, "--allow-private-endpoints", "true",
	}, freePorts...)...)
	cmd.Env = environment("OTEL_BSP_SCHEDULE_DELAY=100", "MUSIQUE_OPS_TOKEN="+opsToken, "MUSIQUE_SECRET_KEY="+secretKey)
	s := awaitReady(t, start(t, cmd))
	secrets := []string{opsToken, secretKey, theirWord}
	keep := func(secret string) string {
		require.NotEmpty(t, secret)
		secrets = append(secrets, secret)
		return secret
	}
	ask := func(method, address, body string, headers ...string) (int, string) {
		request, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
		require.NoError(t, err)
		request.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		raw, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(raw)
	}
	find := func(text, pattern string) string {
		t.Helper()
		found := regexp.MustCompile(pattern).FindStringSubmatch(text)
		require.NotNil(t, found, "%s in %s", pattern, text)
		return found[1]
	}
	status, made := ask(http.MethodPost, "http://"+s.ops+"/ops/companies", `{"name": "`+theirWord+`", "plan": "plus"}`, "Authorization", "Bearer "+opsToken)
	require.Equal(t, http.StatusCreated, status, made)
	companyToken := keep(find(made, `"companyToken":"([^"]+)"`))
	partner := s.signIn(t, companyToken, "hq")
	keep(partner.token)
	device := keep(partner.location("store_001"))
	status, said := ask(http.MethodPost, s.url+v1+"/audio?name="+theirWord+"&token="+partner.token, "no form of "+theirWord, "X-API-Key", partner.token)
	require.Equal(t, http.StatusUnsupportedMediaType, status, said)
	audioID := partner.upload(theirWord, welcome(t))
	key := keep("idempotency-" + uuid.NewString())

	// an endpoint that fails, with a secret of its own and one in its URL
	endpointSecret := keep("whsec_" + base64.StdEncoding.EncodeToString([]byte("thirty-two bytes of a secret kept")))
	inURL := keep("path-" + uuid.NewString())
	failing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, theirWord, http.StatusInternalServerError)
	}))
	t.Cleanup(failing.Close)
	for i, channel := range []string{failing.URL, "http://127.0.0.1:9", "https://" + strings.TrimPrefix(failing.URL, "http://")} {
		externalID := fmt.Sprintf("endpoint_%d", i)
		want[object](partner.post("/locations", object{
			"externalId": externalID, "name": theirWord, "channel": object{"type": "http", "url": channel + "/" + inURL + "?key=" + inURL, "secret": endpointSecret},
		}), http.StatusCreated)
		partner.send(audioID, externalID)
	}

	// what callers do wrong
	for _, token := range []string{partner.token, companyToken, device, "msk_live_nonsense"} {
		for _, path := range []string{"/" + token, "/audio/" + token, "/audio?cursor=" + token, "/sends/" + token + "/deliveries", "/logs?externalId=" + url.QueryEscape(theirWord)} {
			for _, header := range []string{"X-API-Key", "Authorization"} {
				ask(http.MethodGet, s.url+v1+path, "", header, token, "X-Request-Id", token, "User-Agent", theirWord+token, "traceparent", "00-"+token+"-x-01", "tracestate", "x="+token, "baggage", "k="+token)
				ask(http.MethodPost, s.url+v1+path, `{"`+theirWord+`": "`+token, header, token, "Idempotency-Key", key)
			}
		}
	}
	for _, body := range []string{`{`, `{"externalIds": ["` + theirWord + `"]}`, `{"all": true, "scheduleAt": "` + theirWord + `"}`, `{"externalIds": ["store_001"]}`} {
		ask(http.MethodPost, s.url+v1+"/audio/"+audioID+"/send?"+theirWord, body, "X-API-Key", partner.token, "Idempotency-Key", key)
	}
	ask(http.MethodPost, s.url+v1+"/auth", `{"externalId": "hq", "companyToken": "comp_`+theirWord+`"}`)
	ask(http.MethodGet, "http://"+s.ops+"/ops/companies?"+theirWord, "", "Authorization", "Bearer "+theirWord)
	ask(http.MethodGet, "http://"+s.ops+"/ops/projections", "", "Authorization", "Bearer "+opsToken)
	_, got := ask(http.MethodGet, s.url+v1+"/audio/"+audioID, "", "X-API-Key", partner.token)
	media := strings.ReplaceAll(find(got, `"url":"([^"]+)"`), `\u0026`, "&")
	signed, err := url.Parse(media)
	require.NoError(t, err)
	keep(signed.Query().Get("signature"))
	ask(http.MethodGet, media, "")
	ask(http.MethodGet, media+"x", "")

	// a player plays, and one with no right to
	player := s.playAt(t, device, t.TempDir())
	player.awaits(&player.stdout, "✓ played")
	player.terminate()
	ask(http.MethodGet, s.url+"/api/player/v1/stream", "", "Authorization", "Bearer "+device+"x")
	deliveryID := partner.deliveries(want[[]struct{ SendID string }](partner.get("/sends"), http.StatusOK)[0].SendID)[0].DeliveryID
	ask(http.MethodPost, s.url+"/api/player/v1/deliveries/"+deliveryID, `{"status": "failed", "reason": "`+theirWord+`"}`, "Authorization", "Bearer "+device)

	// an event that no projection can apply stops some of them
	store, err := eventstore.Open(s.awaits(&s.stderr, `"eventstore":"(esdb://[^"]+)"`)[1], slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	_, err = store.Append(t.Context(), "audio-unreadable", eventstore.Any, event.Proposed{ID: uuid.New(), Payload: unreadable{}, Metadata: event.Metadata{Time: time.Now()}})
	require.NoError(t, err)
	require.NoError(t, store.Close())
	s.awaits(&s.stderr, `"msg":"the projection stands still`)
	s.awaits(&s.stderr, `"msg":"an endpoint was asked".*"outcome":"refused".*"requestId":"req_.*"traceId"`)
	s.awaits(&s.stderr, `"msg":"an endpoint was asked".*"outcome":"unreachable"`)
	require.Eventually(t, func() bool {
		traces.mu.Lock()
		defer traces.mu.Unlock()
		for _, span := range traces.spans {
			if span.GetName() == "ask endpoint" {
				return true
			}
		}
		return false
	}, patience, 50*time.Millisecond)
	s.terminate()

	log := s.stderr.String()
	require.Contains(t, log, `"level":"DEBUG"`)
	require.Contains(t, log, `"status":401`)
	traces.mu.Lock()
	defer traces.mu.Unlock()
	require.Greater(t, len(traces.spans), 100)
	sent := traces.raw.String()
	for _, secret := range secrets {
		for _, form := range []string{secret, url.QueryEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
			if at := strings.Index(log, form); at >= 0 {
				t.Errorf("the log has %q: %s", secret, lineAt(log, at))
			}
			if at := strings.Index(sent, form); at >= 0 {
				t.Errorf("a span has %q: %q", secret, sent[max(0, at-200):min(len(sent), at+100)])
			}
		}
	}
}

// lineAt is the line of a text that a place is in.
func lineAt(text string, at int) string {
	begin, end := strings.LastIndexByte(text[:at], '\n')+1, strings.IndexByte(text[at:], '\n')
	if end < 0 {
		return text[begin:]
	}
	return text[begin : at+end]
}
