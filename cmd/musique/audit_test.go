package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// timeless is the data of an answer without what is not kept in events.
func timeless(t *testing.T, raw []byte) any {
	t.Helper()
	var envelope struct{ Data any }
	require.NoError(t, json.Unmarshal(raw, &envelope), "%s", raw)
	items, isList := envelope.Data.([]any)
	if !isList {
		items = []any{envelope.Data}
	}
	for _, item := range items {
		fields, ok := item.(object)
		require.True(t, ok)
		for _, name := range []string{"url", "online", "lastSeenAt"} {
			delete(fields, name)
		}
	}
	return envelope.Data
}

// What partners were answered at a time, an auditor is answered from a replay as of then, whatever has happened since; and nothing that serves is touched.
func TestAnAuditorSeesWhatPartnersSawThen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serveOn(t, dir, "--demo", "false")
	made := operator[companyMade](s, "company", "create", "--name", "Audited", "--plan", "unlimited")
	partner := s.signIn(t, made.CompanyToken, "hq")
	for _, name := range []string{"store_001", "store_002", "store_003"} {
		want[object](partner.post("/locations", object{"externalId": name, "name": "Name of " + name, "tags": []string{"north"}}), http.StatusCreated)
	}
	contentType, body := uploadForm(t, "Closing time", welcome(t))
	uploaded, err := partner.try(t.Context(), http.MethodPost, "/audio", contentType, "", body)
	require.NoError(t, err)
	audioID := want[struct{ AudioID string }](uploaded, http.StatusCreated).AudioID
	sent := want[struct{ SendID string }](partner.post("/audio/"+audioID+"/send", object{"all": true}), http.StatusAccepted).SendID
	later := want[struct{ SendID string }](partner.post("/audio/"+audioID+"/send", object{"externalIds": []string{"store_001"}, "scheduleAt": time.Now().Add(time.Hour).Format(time.RFC3339)}), http.StatusAccepted).SendID

	paths := []string{"sends", "sends?status=scheduled", "sends/" + sent, "sends/" + sent + "/deliveries?limit=2", "audio", "audio/" + audioID, "locations?tag=north", "locations/store_002", "locations/store_001/devices", "tokens", "audit?limit=100"}
	then := map[string]any{}
	for _, path := range paths {
		got := partner.get("/" + path)
		require.Equal(t, http.StatusOK, got.status, "%s", got.body)
		then[path] = timeless(t, got.body)
	}
	moment := time.Now().UTC()
	want[object](partner.call(http.MethodDelete, "/sends/"+later, nil), http.StatusOK)
	want[object](partner.call(http.MethodPatch, "/locations/store_002", object{"name": "Another"}), http.StatusOK)
	want[object](partner.call(http.MethodDelete, "/locations/store_003", nil), http.StatusOK)
	s.signIn(t, made.CompanyToken, "other")
	now := map[string]any{}
	for _, path := range []string{"locations?tag=north", "tokens", "audio"} { // what no worker changes meanwhile
		now[path] = timeless(t, partner.get("/"+path).body)
	}

	at := moment.Format(time.RFC3339Nano)
	database := "--data-dir=" + dir
	audit := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := program(t.Context(), &out, io.Discard, append([]string{"audit"}, args...)...)
		return out.String(), err
	}
	replay := func(args ...string) (string, error) {
		return audit(append([]string{"replay", database, "--eventstore", eventStoreOf(t, s)}, args...)...)
	}
	_, err = audit("query", database, "--as-of", at, "--company", made.CompanyID, "sends")
	require.ErrorContains(t, err, "musique audit replay --until "+at)
	for range 2 { // the second time it is there
		said, err := replay("--until", at)
		require.NoError(t, err)
		require.Contains(t, said, "is as of "+at)
	}
	for _, path := range paths {
		got, err := audit("query", database, "--as-of", at, "--company", made.CompanyID, path)
		require.NoError(t, err, path)
		require.Equal(t, then[path], timeless(t, []byte(got)), path)
	}
	for path, shown := range now {
		require.Equal(t, shown, timeless(t, partner.get("/"+path).body), "what serves is as it was: %s", path)
	}
	require.NotEqual(t, then["tokens"], now["tokens"])
	lines, err := audit("query", database, "--as-of", at, "--company", made.CompanyID, "--all", "sends/"+sent+"/deliveries?limit=1")
	require.NoError(t, err)
	require.Equal(t, 3, strings.Count(lines, "\n"))
	empty, err := audit("query", database, "--as-of", at, "--company", made.CompanyID, "--environment", "dev", "--all", "sends")
	require.NoError(t, err)
	require.Empty(t, empty)
	for words, args := range map[string][]string{
		"not_found":           {"sends/snd_none"},
		"no such path":        {"limits"},
		"invalid_format":      {"sends?status=gone"},
		"is for lists":        {"--all", "sends/" + sent},
		"no company co_none":  {"--company", "co_none", "sends"},
		"--environment is":    {"--environment", "x", "sends"},
		"give --as-of or":     {"--replay", "x", "sends"},
		"--company is requir": {"--company", "", "sends"},
	} {
		_, err := audit(append([]string{"query", database, "--as-of", at, "--company", made.CompanyID}, args...)...)
		require.ErrorContains(t, err, words)
	}

	t.Run("over HTTP", func(t *testing.T) {
		var out transcript
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- program(ctx, &out, io.Discard, "audit", "serve", database, "--as-of", at, "--company", made.CompanyID)
		}()
		p := &process{t: t, ended: make(chan struct{})}
		said := p.awaits(&out, `As of \S+ at (http://127\.0\.0\.1:\d+)/`)
		auditor := api{t: t, url: said[1]}
		for _, path := range paths {
			got := auditor.get("/" + path)
			require.Equal(t, then[path], timeless(t, got.body), path)
			require.Equal(t, at, got.header.Get("Musique-As-Of"))
			require.NotEmpty(t, got.header.Get("ETag"))
		}
		auditor.call(http.MethodDelete, "/audio/"+audioID, nil).refused(http.StatusMethodNotAllowed, "method_not_allowed")
		auditor.post("/locations", object{}).refused(http.StatusMethodNotAllowed, "method_not_allowed")
		auditor.get("/nowhere").refused(http.StatusNotFound, "not_found")
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, said[1]+v1+"/sends", nil)
		require.NoError(t, err)
		request.Host = "evil.example"
		refused, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, refused.Body.Close())
		require.Equal(t, http.StatusForbidden, refused.StatusCode)
		stop()
		require.NoError(t, <-ended)
		_, err = audit("serve", database, "--as-of", at, "--company", made.CompanyID, "--listen", "0.0.0.0:0")
		require.ErrorContains(t, err, "loopback")
	})
	t.Run("from before the first event", func(t *testing.T) {
		_, err := replay("--until", "2020-01-01T00:00:00Z", "--name", "before")
		require.NoError(t, err)
		_, err = audit("query", database, "--replay", "before", "--company", made.CompanyID, "sends")
		require.ErrorContains(t, err, "there was no company")
	})
	t.Run("that is still to come", func(t *testing.T) {
		_, err := replay("--until", time.Now().Add(time.Hour).Format(time.RFC3339))
		require.ErrorContains(t, err, "still to come")
	})
	t.Run("they are listed and dropped", func(t *testing.T) {
		listed, err := audit("list", database, "--output", "json")
		require.NoError(t, err)
		var all []struct {
			Name       string
			AsOf       time.Time
			FinishedAt *time.Time
		}
		require.NoError(t, json.Unmarshal([]byte(listed), &all))
		require.Len(t, all, 2)
		require.True(t, moment.Equal(all[1].AsOf))
		_, err = replay("--until", at, "--name", "before")
		require.ErrorContains(t, err, "of another moment")
		_, err = replay("--until", at, "--name", "before", "--fresh")
		require.NoError(t, err)
		for _, r := range all {
			_, err := audit("drop", database, r.Name)
			require.NoError(t, err)
		}
		_, err = audit("drop", database, "before")
		require.ErrorContains(t, err, "no such replay")
		listed, err = audit("list", database)
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(listed, "\n"))
	})
}
