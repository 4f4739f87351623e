package httpapi_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore/storetest"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/workers"
	"github.com/musique/musique/workers/inbox"
)

// patience bounds the wait for what happens beside a request.
const patience = time.Minute

// world is the whole product as it runs in one process, on real parts, and served over real connections.
type world struct {
	config httpapi.Config
	deps   commands.Deps // of the commands
	work   workers.Deps
	pool   *pgxpool.Pool
	api    *httpapi.Server
	url    string
	ops    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	store, pool, brokers := storetest.Open(t), postgrestest.New(t), kafkatest.OwnBrokers(t)
	require.NoError(t, projections.Migrate(t.Context(), pool))
	require.NoError(t, workers.Migrate(t.Context(), pool))
	require.NoError(t, kafka.EnsureTopics(t.Context(), brokers, kafka.Topic{Name: workers.DispatchTopic, Partitions: 4}))
	ring, err := keys.Open(t.TempDir(), "")
	require.NoError(t, err)
	folder, err := blobs.FolderURL(t.TempDir())
	require.NoError(t, err)
	bytesStore, err := blobs.Open(t.Context(), folder)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bytesStore.Close()) })

	positions, hub := projections.NewPositions(pool, log), inbox.NewHub(pool, log)
	reads := projections.NewReads(pool, positions)
	plans := company.DefaultPlans()
	decide := commands.Deps{Store: store, Blobs: bytesStore, Keys: ring, Reads: reads, Plans: plans, Now: time.Now, Log: log}
	handlers := commands.New(decide)
	deps := workers.Deps{Store: store, Pool: pool, Brokers: brokers, Commands: handlers, Reads: reads, Blobs: bytesStore, Hub: hub, Now: time.Now, Log: log}
	ctx, stop := context.WithCancel(context.Background())
	var running errgroup.Group
	for _, work := range []func(context.Context) error{
		positions.Run, hub.Run, projections.NewRunner(projections.RunnerConfig{Store: store, Pool: pool, Log: log}).Run,
		workers.NewDispatch(deps).Run, workers.NewDelivery(deps).Run, workers.NewCloser(deps).Run, workers.NewCancellation(deps).Run,
		workers.NewExpiry(deps).Run, workers.NewScheduler(deps).Follow, workers.NewScheduler(deps).Run,
	} {
		running.Go(func() error { return work(ctx) })
	}
	t.Cleanup(func() {
		stop()
		if err := running.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})

	w := &world{pool: pool, deps: decide, work: deps, config: httpapi.Config{
		Commands: handlers, Reads: reads, Pool: pool, Store: store, Blobs: bytesStore, Inbox: hub, Keys: ring, Plans: plans,
		Checks: httpapi.Checks{
			Database: pool.Ping, Storage: bytesStore.Ping, EventStore: store.Ping,
			Messaging: func(ctx context.Context) error { return kafka.Ping(ctx, brokers) },
		},
		Version: "test", TrustForwarded: true, SpoolDir: t.TempDir(), Log: log,
	}}
	w.api, w.url, w.ops = w.serve(t, w.config)
	return w
}

// serve starts one more API process over the same parts.
func (w *world) serve(t *testing.T, config httpapi.Config) (api *httpapi.Server, partnerURL, opsURL string) {
	t.Helper()
	config.Registry = prometheus.NewRegistry()
	api, err := httpapi.New(config)
	require.NoError(t, err)
	partner, ops := httptest.NewServer(api.Partner()), httptest.NewServer(api.Ops())
	t.Cleanup(func() {
		api.Drain()
		partner.Close()
		ops.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, api.Close(ctx))
	})
	return api, partner.URL, ops.URL
}

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body []byte // without its coding
	wire []byte // as it came, when the request said which codings it takes
}

// envelope is the outside of an answer.
type envelope struct {
	Data  json.RawMessage `json:"data"`
	Error *struct {
		Code       string         `json:"code"`
		Message    string         `json:"message"`
		Type       string         `json:"type"`
		RequestID  string         `json:"request_id"`
		DocURL     string         `json:"doc_url"`
		Param      string         `json:"param"`
		Details    map[string]any `json:"details"`
		RetryAfter int            `json:"retryAfter"`
	} `json:"error"`
	Pagination *struct {
		Limit      int     `json:"limit"`
		HasMore    bool    `json:"hasMore"`
		NextCursor *string `json:"nextCursor"`
	} `json:"pagination"`
	Timestamp time.Time `json:"timestamp"`
}

func (r reply) envelope(t *testing.T) envelope {
	t.Helper()
	var e envelope
	require.NoError(t, json.Unmarshal(r.body, &e), "%s", r.body)
	require.False(t, e.Timestamp.IsZero())
	require.NotEmpty(t, r.Header.Get("X-Request-Id"))
	return e
}

// ok checks the status and decodes the data into a T.
func ok[T any](t *testing.T, r reply, status int) T {
	t.Helper()
	require.Equal(t, status, r.StatusCode, "%s", r.body)
	var data T
	require.NoError(t, json.Unmarshal(r.envelope(t).Data, &data), "%s", r.body)
	return data
}

// refused checks that an answer is an error of the contract's form.
func refused(t *testing.T, r reply, status int, code string) envelope {
	t.Helper()
	require.Equal(t, status, r.StatusCode, "%s", r.body)
	e := r.envelope(t)
	require.NotNil(t, e.Error, "%s", r.body)
	require.Equal(t, code, e.Error.Code, "%s", r.body)
	require.NotEmpty(t, e.Error.Message)
	require.NotEmpty(t, e.Error.Type)
	require.Equal(t, r.Header.Get("X-Request-Id"), e.Error.RequestID)
	return e
}

// failing is the params of details.fields with their codes.
func failing(e envelope) map[string]string {
	out := map[string]string{}
	fields, _ := e.Error.Details["fields"].([]any)
	for _, f := range fields {
		field := f.(map[string]any) //nolint:forcetypeassert // a test
		out[field["param"].(string)] = field["code"].(string)
	}
	return out
}

type object = map[string]any

// header sets one header of a request.
type header struct{ name, value string }

func call(t *testing.T, method, url, token string, body any, headers ...header) reply {
	t.Helper()
	var payload io.Reader
	kind := ""
	switch b := body.(type) {
	case nil:
	case string:
		payload, kind = strings.NewReader(b), "application/json"
	case form:
		raw, contentType := b.encode(t)
		payload, kind = bytes.NewReader(raw), contentType
	default:
		raw, err := json.Marshal(b)
		require.NoError(t, err)
		payload, kind = bytes.NewReader(raw), "application/json"
	}
	request, err := http.NewRequestWithContext(t.Context(), method, url, payload)
	require.NoError(t, err)
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	if token != "" {
		request.Header.Set("X-API-Key", token)
	}
	for _, h := range headers {
		request.Header.Set(h.name, h.value)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	r := reply{response, raw, raw}
	if response.Header.Get("Content-Encoding") == "gzip" && response.StatusCode != http.StatusPartialContent && len(raw) > 0 {
		packed, err := gzip.NewReader(bytes.NewReader(raw))
		require.NoError(t, err)
		r.body, err = io.ReadAll(packed)
		require.NoError(t, err)
	}
	conforms(t, request, bodyOf(t, request), r)
	return r
}

// partner is a caller with one token.
type partner struct {
	t            *testing.T
	w            *world
	companyID    string
	companyToken string
	token        string
}

func (w *world) company(t *testing.T, plan string) partner {
	t.Helper()
	made := ok[struct{ CompanyID, CompanyToken string }](t, call(t, http.MethodPost, w.ops+"/ops/companies", "", object{"name": "Company " + uuid.NewString(), "plan": plan, "prefix": "msk"}), http.StatusCreated)
	return partner{t: t, w: w, companyID: made.CompanyID, companyToken: made.CompanyToken}
}

// partner makes a company with one token.
func (w *world) partner(t *testing.T) partner {
	t.Helper()
	return w.company(t, company.Unlimited).as("hq", object{})
}

// as is the same company with another token.
func (p partner) as(externalID string, more object) partner {
	p.t.Helper()
	body := object{"externalId": externalID, "companyToken": p.companyToken}
	for k, v := range more {
		body[k] = v
	}
	p.token = ok[struct{ Token string }](p.t, call(p.t, http.MethodPost, p.w.url+v1+"/auth", "", body), http.StatusCreated).Token
	return p
}

const v1 = "/api/v1/integration"

func (p partner) call(method, path string, body any, headers ...header) reply {
	p.t.Helper()
	if !strings.HasPrefix(path, "/api") {
		path = v1 + path
	}
	return call(p.t, method, p.w.url+path, p.token, body, headers...)
}

func (p partner) get(path string) reply { p.t.Helper(); return p.call(http.MethodGet, path, nil) }

func (p partner) post(path string, body any, headers ...header) reply {
	p.t.Helper()
	return p.call(http.MethodPost, path, body, headers...)
}

func (p partner) del(path string) reply { p.t.Helper(); return p.call(http.MethodDelete, path, nil) }

type uploaded struct {
	AudioID, Name, Description, Category, URL, Format, SHA256 string
	Duration                                                  float64
	Size                                                      int
}

func (p partner) upload(name string) uploaded {
	p.t.Helper()
	return ok[uploaded](p.t, p.post("/audio", form{{name: "name", value: name}, {name: "file", file: wav(0.5, 440)}}), http.StatusCreated)
}

func (p partner) location(externalID string) {
	p.t.Helper()
	ok[object](p.t, p.post("/locations", object{"externalId": externalID, "name": externalID}), http.StatusCreated)
}

type device struct{ DeviceID, Token string }

func (p partner) device(externalID string) device {
	p.t.Helper()
	return ok[device](p.t, p.post("/locations/"+externalID+"/devices", nil), http.StatusCreated)
}

type accepted struct {
	SendID, Status    string
	TotalDestinations int
}

func (p partner) send(audioID string, body object) accepted {
	p.t.Helper()
	return ok[accepted](p.t, p.post("/audio/"+audioID+"/send", body), http.StatusAccepted)
}

// form is a multipart form, in order.
type form []part

type part struct {
	name, value string
	file        []byte // a file's part if it is not nil
}

func (f form) encode(t *testing.T) (raw []byte, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range f {
		if p.file == nil {
			require.NoError(t, w.WriteField(p.name, p.value))
			continue
		}
		file, err := w.CreateFormFile(p.name, "clip.bin")
		require.NoError(t, err)
		_, err = file.Write(p.file)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes(), w.FormDataContentType()
}

// wav is a mono 16-bit sine at 8 kHz.
func wav(seconds, frequency float64) []byte {
	const rate = 8000
	samples := make([]int16, int(seconds*rate))
	for i := range samples {
		samples[i] = int16(12000 * math.Sin(2*math.Pi*frequency*float64(i)/rate))
	}
	var b bytes.Buffer
	b.WriteString("RIFF")
	write := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a buffer never fails
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

// stream is a player's open stream.
type stream struct {
	t        *testing.T
	url      string
	response *http.Response
	events   chan event
	stop     context.CancelFunc
	done     chan struct{} // closed when the server has ended the stream
}

type event struct {
	id, kind string
	data     object
}

// listen opens a stream as a player does.
func (w *world) listen(t *testing.T, url, token, lastEventID string) *stream {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/player/v1/stream", nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	if lastEventID != "" {
		request.Header.Set("Last-Event-ID", lastEventID)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	require.False(t, response.Uncompressed, "events would wait in the coding")
	s := &stream{t: t, url: url, response: response, events: make(chan event, 1000), stop: stop, done: make(chan struct{})}
	go s.read()
	return s
}

func (s *stream) read() {
	defer close(s.done)
	defer s.response.Body.Close()
	var e event
	lines := bufio.NewScanner(s.response.Body)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			e.id = value
		case "event":
			e.kind = value
		case "data":
			if json.Unmarshal([]byte(value), &e.data) != nil {
				return
			}
		case "":
			if e.kind != "" {
				s.events <- e
			}
			e = event{}
		}
	}
}

func (s *stream) next(kind string) event {
	s.t.Helper()
	select {
	case e := <-s.events:
		require.Equal(s.t, kind, e.kind)
		eventConforms(s.t, s.url, e)
		return e
	case <-time.After(patience):
		s.t.Fatalf("no %s event", kind)
		return event{}
	}
}

func (s *stream) ended() {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Fatal("the stream is still open")
	}
}

func (w *world) report(t *testing.T, token, deliveryID, status string) reply {
	t.Helper()
	body := object{"status": status, "at": time.Now().UTC().Format(time.RFC3339)}
	return call(t, http.MethodPost, w.url+"/api/player/v1/deliveries/"+deliveryID, "", body, header{"Authorization", "Bearer " + token})
}

func eventually(t *testing.T, message string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, patience, 50*time.Millisecond, message)
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return n
}
