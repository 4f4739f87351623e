package httpapi_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/docs"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/workers"
)

// message is what an endpoint was sent.
type message struct {
	header http.Header
	body   []byte
}

func (m message) data(t *testing.T) object {
	t.Helper()
	var data object
	require.NoError(t, json.Unmarshal(m.body, &data))
	return data
}

// endpointAt is an endpoint of a location that answers always the same, and what it was sent.
func endpointAt(t *testing.T, status int) (url string, sent chan message) {
	t.Helper()
	sent = make(chan message, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			sent <- message{r.Header, body}
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/in", sent
}

// withEndpoints is the world as an operator has it who lets endpoints have private addresses, with the worker that tells them.
func withEndpoints(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.deps.Endpoints.AllowPrivate = true
	w.config.Commands = commands.New(w.deps)
	w.api, w.url, w.ops = w.serve(t, w.config)
	told, err := workers.NewEndpoints(w.work, workers.EndpointsConfig{Keys: w.config.Keys, Policy: w.deps.Endpoints, PublicURL: w.url})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running errgroup.Group
	running.Go(func() error { return told.Run(ctx) })
	t.Cleanup(func() {
		stop()
		if err := running.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return w
}

func TestEndpointsOfLocations(t *testing.T) {
	t.Parallel()
	w := withEndpoints(t)
	for name, test := range map[string]func(*testing.T, *world){
		"secrets": secretsOfChannels, "a message": aMessageToAnEndpoint, "reports": reportsOfAnEndpoint, "the guide": theGuidesReceiver, "strict": privateEndpointsAreRefused,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, w)
		})
	}
}

type shown struct {
	Channel struct{ Type, URL, Secret string }
	UserID  int64
}

func secretsOfChannels(t *testing.T, w *world) {
	p := w.partner(t)
	const url, given = "https://radio.example/in", "a secret of our own"
	channel := func(secret any) object {
		c := object{"type": "http", "url": url}
		if secret != "" {
			c["secret"] = secret
		}
		return c
	}
	require.Empty(t, ok[shown](t, p.post("/locations", object{"externalId": "given", "name": "x", "channel": channel(given)}), http.StatusCreated).Channel.Secret)
	body, key := object{"externalId": "made", "name": "x", "channel": channel("")}, header{"Idempotency-Key", "k"}
	made := ok[shown](t, p.post("/locations", body, key), http.StatusCreated)
	require.Regexp(t, "^whsec_", made.Channel.Secret)
	require.Equal(t, made, ok[shown](t, p.post("/locations", body, key), http.StatusCreated))
	body["channel"] = channel(given)
	refused(t, p.post("/locations", body, key), http.StatusConflict, "conflict")

	rows := ok[struct {
		Results []struct{ Status, Secret string }
	}](t, p.post("/locations/import", object{"locations": []object{
		{"externalId": "row", "name": "x", "channel": channel("")}, {"externalId": "given", "name": "y", "channel": channel(given)}, {"externalId": "bad", "name": "y", "channel": channel("short")},
	}}), http.StatusOK).Results
	require.Regexp(t, "^whsec_", rows[0].Secret)
	require.Empty(t, rows[1].Secret)
	require.Equal(t, "failed", rows[2].Status)

	require.Empty(t, ok[shown](t, p.call(http.MethodPatch, "/locations/made", object{"channel": channel("the next secret")}), http.StatusOK).Channel.Secret)
	ok[shown](t, p.call(http.MethodPatch, "/locations/made", object{"channel": object{"type": "player"}}), http.StatusOK)
	again := ok[shown](t, p.call(http.MethodPatch, "/locations/made", object{"channel": channel("")}), http.StatusOK)
	require.Regexp(t, "^whsec_", again.Channel.Secret, "it is shown where it is made")
	for _, path := range []string{"/locations/given", "/locations/made", "/locations/row", "/locations", "/logs"} {
		r := p.get(path)
		require.Equal(t, http.StatusOK, r.StatusCode)
		require.NotRegexp(t, `whsec_|"secret"|a secret of our own|the next secret`, string(r.body), path)
	}
	require.Equal(t, "channel.secret", refused(t, p.post("/locations", object{"externalId": "n", "name": "x", "channel": channel("short")}), http.StatusBadRequest, "out_of_range").Error.Param)
	require.Equal(t, "channel.secret", refused(t, p.post("/locations", object{"externalId": "n", "name": "x", "channel": channel(7)}), http.StatusBadRequest, "invalid_format").Error.Param)
	player := object{"externalId": "n", "name": "x", "channel": object{"type": "player", "secret": given}}
	require.Equal(t, "channel.secret", refused(t, p.post("/locations", player), http.StatusBadRequest, "invalid_format").Error.Param)
}

// Without the operator's word an endpoint is of the public internet, and asked with TLS.
func privateEndpointsAreRefused(t *testing.T, w *world) {
	strict := *w
	deps := w.deps
	deps.Endpoints = endpoint.Policy{}
	config := w.config
	config.Commands = commands.New(deps)
	_, strict.url, strict.ops = w.serve(t, config)
	p := strict.partner(t)
	for _, url := range []string{"http://radio.example/in", "https://127.0.0.1/", "https://192.168.1.7:8443/in", "https://[fd00::1]/", "https://[::ffff:10.0.0.1]/", "https://localhost/in"} {
		e := refused(t, p.post("/locations", object{"externalId": "n", "name": "x", "channel": object{"type": "http", "url": url}}), http.StatusBadRequest, "invalid_format")
		require.Equal(t, "channel.url", e.Error.Param)
		require.Equal(t, "validation_error", e.Error.Type)
	}
	ok[shown](t, p.post("/locations", object{"externalId": "n", "name": "x", "channel": object{"type": "http", "url": "https://radio.example/in"}}), http.StatusCreated)
	e := refused(t, p.call(http.MethodPatch, "/locations/n", object{"odd": 1, "channel": object{"type": "http", "url": "https://10.0.0.1/"}}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"channel.url", "odd"}, sortedKeys(failing(e)))
}

// What an endpoint is told is what a player's stream has, with a type and a URL to report to, and the audio can be fetched by it.
func aMessageToAnEndpoint(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("player")
	url, sent := endpointAt(t, http.StatusAccepted)
	ok[shown](t, p.post("/locations", object{"externalId": "endpoint", "name": "x", "channel": object{"type": "http", "url": url}}), http.StatusCreated)
	audio := p.upload("Both")
	p.send(audio.AudioID, object{"externalIds": []string{"player", "endpoint"}, "priority": "high"})
	told := (<-sent).data(t)
	played := w.listen(t, w.url, p.device("player").Token, "").next("deliver").data
	require.Equal(t, "deliver", told["type"])
	require.Contains(t, told["reportUrl"], w.url+"/report/")
	delete(told, "type")
	delete(told, "reportUrl")
	require.Equal(t, sortedKeys(played), sortedKeys(told))
	one, other := played["audio"].(object), told["audio"].(object) //nolint:forcetypeassert // a test
	require.Equal(t, sortedKeys(one), sortedKeys(other))
	heard := call(t, http.MethodGet, other["url"].(string), "", nil) //nolint:forcetypeassert // a test
	require.Equal(t, http.StatusOK, heard.StatusCode)
	require.Len(t, heard.body, audio.Size)
	for _, o := range []object{one, other} {
		delete(o, "url")
	}
	delete(played, "deliveryId")
	delete(told, "deliveryId")
	require.Equal(t, played, told)
}

func reportsOfAnEndpoint(t *testing.T, w *world) {
	p := w.partner(t)
	url, sent := endpointAt(t, http.StatusAccepted)
	ok[shown](t, p.post("/locations", object{"externalId": "hall", "name": "x", "channel": object{"type": "http", "url": url}}), http.StatusCreated)
	s := p.send(p.upload("x").AudioID, object{"all": true})
	told := (<-sent).data(t)
	reportURL := told["reportUrl"].(string) //nolint:forcetypeassert // a test
	status := func() string {
		return ok[[]struct{ Status string }](t, p.get("/sends/"+s.SendID+"/deliveries"), http.StatusOK)[0].Status
	}
	eventually(t, "it is delivered", func() bool { return status() == "delivered" })
	report := func(url string, body any) reply { return call(t, http.MethodPost, url, "", body) }
	type outcome struct{ DeliveryID, Status string }
	for _, step := range []struct {
		body object
		want string
	}{
		{object{"status": "playing", "at": time.Now().Format(time.RFC3339)}, "playing"}, {object{"status": "playing"}, "playing"},
		{object{"status": "played", "at": time.Now().Format(time.RFC3339)}, "played"}, {object{"status": "playing"}, "played"}, {object{"status": "failed", "reason": "late"}, "played"},
	} {
		require.Equal(t, outcome{told["deliveryId"].(string), step.want}, ok[outcome](t, report(reportURL, step.body), http.StatusOK)) //nolint:forcetypeassert // a test
		require.Equal(t, step.want, status())
	}
	refused(t, report(reportURL, object{}), http.StatusBadRequest, "missing_field")
	refused(t, report(reportURL, object{"status": "delivered"}), http.StatusBadRequest, "invalid_format")
	e := refused(t, report(reportURL, object{"status": "eaten", "at": 7, "reason": strings.Repeat("x", 501), "odd": 1}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, []string{"at", "odd", "reason", "status"}, sortedKeys(failing(e)))
	refused(t, call(t, http.MethodGet, reportURL, "", nil), http.StatusMethodNotAllowed, "method_not_allowed")
	for _, wrong := range []string{reportURL[:len(reportURL)-1], strings.Replace(reportURL, "/live/", "/test/", 1), strings.Replace(reportURL, "expires=", "expires=9", 1), reportURL[:strings.Index(reportURL, "?")]} {
		refused(t, report(wrong, object{"status": "played"}), http.StatusNotFound, "not_found")
	}
	late := w.config
	late.Now = func() time.Time { return time.Now().Add(26 * time.Hour) }
	_, lateURL, _ := w.serve(t, late)
	refused(t, report(strings.Replace(reportURL, w.url, lateURL, 1), object{"status": "played"}), http.StatusNotFound, "not_found")
}

// The receiver of the guide takes a message as it is sent, and none that was changed.
func theGuidesReceiver(t *testing.T, w *world) {
	python, err := exec.LookPath("python3")
	require.NoError(t, err)
	guide, err := docs.Partners.ReadFile("partners/endpoints.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```python\n(.*?)```").FindSubmatch(guide)
	require.NotNil(t, block)
	const ask = `
import json, sys
asked = json.load(sys.stdin)
print(genuine(asked["headers"], base64.b64decode(asked["body"]), asked["secret"]))
`
	genuine := func(headers map[string]string, body []byte, secret string) string {
		asked, err := json.Marshal(object{"headers": headers, "body": base64.StdEncoding.EncodeToString(body), "secret": secret})
		require.NoError(t, err)
		run := exec.CommandContext(t.Context(), python, "-c", string(block[1])+ask)
		run.Stdin, run.Dir = bytes.NewReader(asked), filepath.Clean(t.TempDir())
		out, err := run.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	p := w.partner(t)
	url, sent := endpointAt(t, http.StatusNoContent)
	secret := ok[shown](t, p.post("/locations", object{"externalId": "hall", "name": "x", "channel": object{"type": "http", "url": url}}), http.StatusCreated).Channel.Secret
	p.send(p.upload("x").AudioID, object{"all": true})
	m := <-sent
	headers := func(changed ...string) map[string]string {
		all := map[string]string{}
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			all[name] = m.header.Get(name)
		}
		for i := 0; i < len(changed); i += 2 {
			all[changed[i]] = changed[i+1]
		}
		return all
	}
	require.Equal(t, "True", genuine(headers(), m.body, secret))
	require.Equal(t, "True", genuine(headers("webhook-signature", "v1,AAAA "+m.header.Get("webhook-signature")), m.body, secret))
	require.Equal(t, "False", genuine(headers(), append(m.body, ' '), secret))
	require.Equal(t, "False", genuine(headers("webhook-id", "other"), m.body, secret))
	require.Equal(t, "False", genuine(headers("webhook-timestamp", strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)), m.body, secret))
	require.Equal(t, "False", genuine(headers(), m.body, endpoint.NewSecret()))
}
