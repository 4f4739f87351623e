package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

type shownSend struct {
	SendID, AudioID, Status, Priority string
	Repeat, Volume, ExpiresIn         int
	ScheduleAt                        *time.Time
	LocalTime                         *string
	CreatedAt                         time.Time
}

func changedSends(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("store_001")
	ok[object](t, p.post("/locations", object{"externalId": "store_002", "name": "x", "timezone": "Asia/Tokyo"}), http.StatusCreated)
	audio := p.upload("Later").AudioID
	due := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	sent := p.send(audio, object{"all": true, "scheduleAt": due})
	path := "/sends/" + sent.SendID
	change := func(body any) reply { return p.call(http.MethodPatch, path, body) }

	later := due.Add(time.Hour)
	for range 2 {
		changed := ok[shownSend](t, change(object{"scheduleAt": later.In(time.FixedZone("", 3600)), "priority": "urgent", "repeat": 2, "volume": 0, "expiresIn": 60}), http.StatusOK)
		require.Equal(t, ok[shownSend](t, p.get(path), http.StatusOK), changed)
		require.Equal(t, later, *changed.ScheduleAt)
		require.Equal(t, shownSend{SendID: sent.SendID, AudioID: audio, Status: "scheduled", Priority: "urgent", Repeat: 2, Volume: 0, ExpiresIn: 60, ScheduleAt: &later, CreatedAt: changed.CreatedAt}, changed)
	}
	local := time.Now().UTC().AddDate(0, 0, 3).Format(time.DateOnly) + "T09:00"
	changed := ok[shownSend](t, change(object{"localTime": local, "scheduleAt": nil, "volume": nil}), http.StatusOK)
	require.Equal(t, local, *changed.LocalTime)
	require.Equal(t, 0, changed.Volume, "null is not given")
	deliveries := ok[[]struct {
		ExternalID, Status string
		PlayAt             time.Time
	}](t, p.get(path+"/deliveries"), http.StatusOK)
	require.Len(t, deliveries, 2)
	for _, d := range deliveries {
		require.Equal(t, "scheduled", d.Status)
		require.Equal(t, map[string]string{"store_001": local + ":00Z", "store_002": local[:11] + "00:00:00Z"}[d.ExternalID], d.PlayAt.Format(time.RFC3339))
	}
	require.Equal(t, changed, ok[shownSend](t, change(object{}), http.StatusOK), "nothing is changed")

	wrong := refused(t, change(object{"scheduleAt": "tomorrow", "localTime": "9:00", "priority": "loud", "repeat": 0, "volume": 101, "expiresIn": "1", "audioId": audio}), http.StatusBadRequest, "invalid_format")
	require.Equal(t, map[string]string{"scheduleAt": "invalid_format", "localTime": "invalid_format", "priority": "invalid_format", "repeat": "out_of_range", "volume": "out_of_range", "expiresIn": "invalid_format", "audioId": "invalid_format"}, failing(wrong))
	require.Equal(t, map[string]string{"scheduleAt": "out_of_range"}, failing(refused(t, change(object{"scheduleAt": time.Now()}), http.StatusBadRequest, "out_of_range")))
	require.Equal(t, map[string]string{"localTime": "invalid_format"}, failing(refused(t, change(object{"scheduleAt": later, "localTime": local}), http.StatusBadRequest, "invalid_format")))
	require.Equal(t, map[string]string{"localTime": "invalid_format"}, failing(refused(t, change(object{"localTime": ""}), http.StatusBadRequest, "invalid_format")))
	refused(t, p.as("reader", object{"permissions": []string{"audio.read"}}).call(http.MethodPatch, path, object{}), http.StatusForbidden, "insufficient_scope")
	refused(t, w.partner(t).call(http.MethodPatch, path, object{"volume": 1}), http.StatusNotFound, "not_found")
	refused(t, p.as("tester", object{"environment": "test"}).call(http.MethodPatch, path, object{"volume": 1}), http.StatusNotFound, "not_found")
	refused(t, p.call(http.MethodPatch, "/sends/snd_none", object{"volume": 1}), http.StatusNotFound, "not_found")
	now := p.send(audio, object{"externalIds": []string{"store_001"}})
	refused(t, p.call(http.MethodPatch, "/sends/"+now.SendID, object{"volume": 1}), http.StatusConflict, "conflict")
	ok[object](t, p.del(path), http.StatusOK)
	refused(t, change(object{"volume": 1}), http.StatusConflict, "conflict")
}

func sendsByTime(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("store_001")
	first, second := p.upload("One").AudioID, p.upload("Two").AudioID
	hour := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	var ids []string
	for i, audio := range []string{first, second, first} {
		ids = append(ids, p.send(audio, object{"all": true, "scheduleAt": hour.Add(-time.Duration(i) * time.Minute)}).SendID)
	}
	ids = append(ids, p.send(first, object{"all": true}).SendID)
	list := func(query url.Values) (got []string) {
		query.Set("limit", "1")
		for next := "/sends?" + query.Encode(); next != ""; {
			r := p.get(next)
			for _, s := range ok[[]shownSend](t, r, http.StatusOK) {
				got = append(got, s.SendID)
			}
			next = ""
			if e := r.envelope(t); e.Pagination.HasMore {
				query.Set("cursor", *e.Pagination.NextCursor)
				next = "/sends?" + query.Encode()
			}
		}
		return got
	}
	text := func(at time.Time) []string { return []string{at.Format(time.RFC3339Nano)} }
	made := ok[shownSend](t, p.get("/sends/"+ids[1]), http.StatusOK).CreatedAt
	require.Equal(t, []string{ids[3], ids[2], ids[1], ids[0]}, list(url.Values{}))
	require.Equal(t, []string{ids[0], ids[1], ids[2]}, list(url.Values{"scheduledAfter": text(hour.Add(-time.Hour))}), "the latest first")
	require.Equal(t, []string{ids[1]}, list(url.Values{"scheduledAfter": text(hour.Add(-2 * time.Minute)), "scheduledBefore": text(hour)}))
	require.Equal(t, []string{ids[0], ids[2]}, list(url.Values{"scheduledBefore": text(hour.Add(time.Second)), "audioId": {first}, "status": {"scheduled"}}))
	require.Equal(t, []string{ids[0]}, list(url.Values{"createdBefore": text(made)}))
	require.Subset(t, list(url.Values{"createdAfter": text(made.Add(time.Millisecond))}), []string{ids[3], ids[2]}, "times are shown to the millisecond")
	require.Empty(t, list(url.Values{"createdAfter": text(time.Now().Add(time.Hour)), "status": {"scheduled"}}))
	for _, name := range []string{"scheduledAfter", "scheduledBefore", "createdAfter", "createdBefore"} {
		require.Equal(t, map[string]string{name: "invalid_format"}, failing(refused(t, p.get("/sends?"+name+"=yesterday"), http.StatusBadRequest, "invalid_format")))
	}
}

var inCSV = header{"Accept", "text/csv"}

// rows reads an answer in CSV: each line by the names of its columns.
func rows(t *testing.T, r reply) (columns []string, all []map[string]string) {
	t.Helper()
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
	require.Equal(t, "text/csv; charset=utf-8; header=present", r.Header.Get("Content-Type"))
	lines, err := csv.NewReader(bytes.NewReader(r.body)).ReadAll()
	require.NoError(t, err)
	require.True(t, bytes.HasSuffix(r.body, []byte("\r\n")))
	for _, line := range lines[1:] {
		row := map[string]string{}
		for i, cell := range line {
			row[lines[0][i]] = cell
		}
		all = append(all, row)
	}
	return lines[0], all
}

func deliveriesInCSV(t *testing.T, w *world) {
	p := w.partner(t)
	for _, id := range []string{"-store_1", "store_2", "store_3"} {
		p.location(id)
	}
	audio := p.upload("Proof").AudioID
	sent := p.send(audio, object{"all": true, "priority": "high"})
	path := "/sends/" + sent.SendID + "/deliveries"
	type delivery struct{ DeliveryID, ExternalID string }
	for _, d := range ok[[]delivery](t, p.get(path), http.StatusOK) {
		token := p.device(d.ExternalID).Token
		report := func(body object) {
			ok[object](t, call(t, http.MethodPost, w.url+"/api/player/v1/deliveries/"+d.DeliveryID, "", body, header{"Authorization", "Bearer " + token}), http.StatusOK)
		}
		switch d.ExternalID {
		case "-store_1":
			report(object{"status": "failed", "reason": "=1+1, \"no\"\r\nspeaker"})
		case "store_2":
			report(object{"status": "played"})
		}
	}
	r := p.call(http.MethodGet, path, nil, inCSV)
	require.Equal(t, `attachment; filename="`+sent.SendID+`-deliveries.csv"`, r.Header.Get("Content-Disposition"))
	columns, got := rows(t, r)
	require.Len(t, got, 3)
	require.Equal(t, []string{"priority", "audioId"}, columns[len(columns)-2:])
	for i, d := range ok[[]map[string]any](t, p.get(path), http.StatusOK) {
		require.Len(t, d, len(columns)-2)
		for name, value := range d {
			text := ""
			switch v := value.(type) {
			case string:
				text = v
			case float64:
				text = fmt.Sprintf("%.0f", v)
			}
			if strings.HasPrefix(text, "=") || strings.HasPrefix(text, "-") {
				text = "'" + text
			}
			require.Equal(t, strings.ReplaceAll(text, "\r\n", "\n"), got[i][name], name) // as the reader of CSV gives it
		}
		require.Equal(t, "high", got[i]["priority"])
		require.Equal(t, audio, got[i]["audioId"])
	}
	_, failed := rows(t, p.call(http.MethodGet, path+"?status=failed", nil, inCSV))
	require.Len(t, failed, 1)
	require.Equal(t, "'-store_1", failed[0]["externalId"])
	_, none := rows(t, p.call(http.MethodGet, path+"?status=expired", nil, inCSV))
	require.Empty(t, none)
	packed := p.call(http.MethodGet, path, nil, inCSV, header{"Accept-Encoding", "gzip"})
	require.Equal(t, "gzip", packed.Header.Get("Content-Encoding"))
	require.Equal(t, r.body, packed.body)
	head := p.call(http.MethodHead, path, nil, inCSV)
	require.Equal(t, r.Header.Get("Content-Type"), head.Header.Get("Content-Type"))
	require.Equal(t, r.Header.Get("Content-Disposition"), head.Header.Get("Content-Disposition"))
	require.Empty(t, head.body)

	for _, accept := range []string{"application/json", "text/csv;q=0.5, application/json", "*/*", "image/png", ""} {
		ok[[]delivery](t, p.call(http.MethodGet, path, nil, header{"Accept", accept}), http.StatusOK)
	}
	require.Equal(t, map[string]string{"limit": "invalid_format", "cursor": "invalid_format", "page": "invalid_format"}, failing(refused(t, p.call(http.MethodGet, path+"?limit=1&cursor=&page=1", nil, inCSV), http.StatusBadRequest, "invalid_format")))
	refused(t, p.call(http.MethodGet, path+"?status=lost", nil, inCSV), http.StatusBadRequest, "invalid_format")
	refused(t, w.partner(t).call(http.MethodGet, path, nil, inCSV), http.StatusNotFound, "not_found")
	refused(t, p.call(http.MethodGet, "/sends/snd_none/deliveries", nil, inCSV), http.StatusNotFound, "not_found")
}

// largeSend puts a send of a company into the read model, with this many deliveries.
func (w *world) largeSend(t *testing.T, companyID string, deliveries int) (sendID string) {
	t.Helper()
	sendID = "snd_" + strings.ReplaceAll(uuid.NewString(), "-", "")[:22]
	_, err := w.pool.Exec(t.Context(), `INSERT INTO sends.send (send_id, company_id, environment, audio_id, priority, repeat, volume, expires_in, single, local_time, total, created_at, sealed, position)
		VALUES ($1, $2, 'live', 'aud_0000000000000000000001', 'normal', 1, 100, 60, false, '', $3, now(), true, 1)`, sendID, companyID, deliveries)
	require.NoError(t, err)
	_, err = w.pool.Exec(t.Context(), `INSERT INTO sends.delivery (send_id, user_id, external_id, status, rank, expires_at, queued_at)
		SELECT $1, i * 45035996273, 'store_' || i, 'queued', 1, now(), now() FROM generate_series(1, $2::int) i`, sendID, deliveries)
	require.NoError(t, err)
	return sendID
}

// A file of the largest broadcast has each of its locations once. One that breaks off is not taken for whole.
func largeCSV(t *testing.T, w *world) {
	p := w.partner(t)
	const total = 100_000
	path := v1 + "/sends/" + w.largeSend(t, p.companyID, total) + "/deliveries"
	config, address := w.config, w.pool.Config().Copy()
	name := "csv-" + uuid.NewString()
	address.ConnConfig.RuntimeParams["application_name"] = name
	pool, err := pgxpool.NewWithConfig(t.Context(), address)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	config.Pool = pool
	_, base, _ := w.serve(t, config)
	get := func(coding string) *http.Response {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		require.NoError(t, err)
		request.Header = http.Header{"X-Api-Key": {p.token}, "Accept": {"text/csv"}, "Accept-Encoding": {coding}}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		t.Cleanup(func() { response.Body.Close() })
		require.Equal(t, http.StatusOK, response.StatusCode)
		return response
	}
	whole := get("identity")
	lines := csv.NewReader(whole.Body)
	seen := map[string]bool{}
	_, err = lines.Read()
	require.NoError(t, err)
	for range total {
		line, err := lines.Read()
		require.NoError(t, err)
		seen[line[2]] = true
	}
	_, err = lines.Read()
	require.ErrorIs(t, err, io.EOF)
	require.Len(t, seen, total)

	for _, coding := range []string{"identity", "gzip"} {
		tx, err := w.pool.Begin(t.Context())
		require.NoError(t, err)
		broken := get(coding)
		body := bufio.NewReader(broken.Body)
		_, err = body.ReadByte()
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "LOCK TABLE sends.delivery IN ACCESS EXCLUSIVE MODE")
		require.NoError(t, err)
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, body)
			read <- err
		}()
		eventually(t, "the next page waits", func() bool {
			var ended int
			require.NoError(t, tx.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
				WHERE application_name = $1 AND wait_event_type = 'Lock' AND pg_backend_pid() = ANY(pg_blocking_pids(pid))`, name).Scan(&ended))
			return ended > 0
		})
		require.ErrorIs(t, <-read, io.ErrUnexpectedEOF, "%s", coding)
		require.NoError(t, tx.Rollback(context.WithoutCancel(t.Context())))
	}
}

func statsOfALocation(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("store_001")
	device := p.device("store_001").Token
	audio := p.upload("Counted").AudioID
	type shown struct {
		UserID int64
		Stats  *struct {
			TimesPlayed  int
			LastPlayedAt *time.Time
			Deliveries   map[string]int
		}
	}
	none := map[string]int{"scheduled": 0, "queued": 0, "delivered": 0, "playing": 0, "played": 0, "failed": 0, "expired": 0, "cancelled": 0}
	before := ok[shown](t, p.get("/locations/store_001"), http.StatusOK)
	require.Equal(t, none, before.Stats.Deliveries)
	require.Nil(t, before.Stats.LastPlayedAt)
	p.send(audio, object{"all": true, "scheduleAt": time.Now().Add(time.Hour)})
	for _, status := range []string{"played", "failed", ""} {
		sent := p.send(audio, object{"all": true})
		if status != "" {
			ok[object](t, w.report(t, device, ok[[]struct{ DeliveryID string }](t, p.get("/sends/"+sent.SendID+"/deliveries"), http.StatusOK)[0].DeliveryID, status), http.StatusOK)
		}
	}
	after := ok[shown](t, p.get("/locations/store_001"), http.StatusOK)
	require.Equal(t, 1, after.Stats.TimesPlayed)
	require.NotNil(t, after.Stats.LastPlayedAt)
	require.Equal(t, map[string]int{"scheduled": 1, "queued": 1, "delivered": 0, "playing": 0, "played": 1, "failed": 1, "expired": 0, "cancelled": 0}, after.Stats.Deliveries)
	tester := p.as("tester", object{"environment": "test"})
	tester.location("store_001")
	theirs := ok[shown](t, tester.get("/locations/store_001"), http.StatusOK)
	require.Equal(t, before.UserID, theirs.UserID, "live and test share it")
	require.Equal(t, none, theirs.Stats.Deliveries)
	require.Nil(t, ok[[]shown](t, p.get("/locations"), http.StatusOK)[0].Stats)
}
