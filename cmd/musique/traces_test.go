package main

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP/HTTP receiver (OpenTelemetry Protocol 1.x, §OTLP/HTTP) that keeps what it is sent.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*tracepb.Span
	raw   bytes.Buffer
}

func receive(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		var body io.Reader = request.Body
		if request.Header.Get("Content-Encoding") == "gzip" {
			unpacked, err := gzip.NewReader(body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			body = unpacked
		}
		raw, err := io.ReadAll(body)
		var export collector.ExportTraceServiceRequest
		if err != nil || request.URL.Path != "/v1/traces" || proto.Unmarshal(raw, &export) != nil {
			http.Error(w, "no traces", http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.raw.Write(raw)
		for _, resource := range export.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				r.spans = append(r.spans, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(r.Close)
	return r
}

// trace gives the spans of a trace that were received.
func (r *receiver) trace(id string) (spans []*tracepb.Span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.spans {
		if hex.EncodeToString(s.GetTraceId()) == id {
			spans = append(spans, s)
		}
	}
	return spans
}

func (r *receiver) all() []*tracepb.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

// lineage names a span and those above it, as far as they were received, the span first.
func lineage(spans []*tracepb.Span, of *tracepb.Span) (names []string) {
	for of != nil {
		names = append(names, of.GetName())
		parent := of.GetParentSpanId()
		if i := slices.IndexFunc(spans, func(s *tracepb.Span) bool { return bytes.Equal(s.GetSpanId(), parent) }); i >= 0 {
			of = spans[i]
		} else {
			of = nil
		}
	}
	return names
}

// lineages are those of all spans of a name.
func lineages(spans []*tracepb.Span, name string) (all []string) {
	for _, s := range spans {
		if s.GetName() == name {
			all = append(all, strings.Join(lineage(spans, s), " < "))
		}
	}
	return all
}

const (
	sendRoute   = "POST /api/v1/integration/audio/{audioId}/send"
	reportRoute = "POST /api/player/v1/deliveries/{deliveryId}"
	sendAppend  = "append to send < command SendAudio < " + sendRoute
)

// One send to a player is one trace, from the request to the player's last report, in the trace that the caller began.
func TestASendIsOneTrace(t *testing.T) {
	t.Parallel()
	traces := receive(t)
	cmd := exec.Command(executable(t), append([]string{"serve", "--data-dir", filepath.Join(t.TempDir(), "data"), "--log-format", "json", "--traces-endpoint", traces.URL}, freePorts...)...)
	cmd.Env = environment("OTEL_BSP_SCHEDULE_DELAY=100")
	s := awaitReady(t, start(t, cmd))
	partner := s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "plus").CompanyToken, "hq")
	device, audioID := partner.location("store_001"), partner.upload("Welcome", welcome(t))
	player := s.playAt(t, device, t.TempDir())

	const traceID, theirs = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+v1+"/audio/"+audioID+"/send", strings.NewReader(`{"externalIds": ["store_001"]}`))
	require.NoError(t, err)
	request.Header.Set("X-API-Key", partner.token)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Request-Id", "the-one-send")
	request.Header.Set("traceparent", "00-"+traceID+"-"+theirs+"-01")
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, response.StatusCode)
	require.NoError(t, response.Body.Close())
	player.awaits(&player.stdout, "✓ played")

	told := "tell player < deliver < dispatch < " + sendAppend
	reported := "append to delivery < command ReportPlayback < " + reportRoute + " < " + told
	expected := map[string]struct {
		lineage string
		times   int
	}{
		sendRoute:            {sendRoute, 1},
		"append to send":     {sendAppend, 1},
		"dispatch":           {"dispatch < " + sendAppend, 1},
		"deliver":            {"deliver < dispatch < " + sendAppend, 1},
		"tell player":        {told, 1},
		reportRoute:          {reportRoute + " < " + told, 3}, // delivered, playing, played
		"append to delivery": {reported, 3},
		"closer":             {"closer < " + reported, 1},
	}
	var spans []*tracepb.Span
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		spans = traces.trace(traceID)
		for name, of := range expected {
			require.Equal(c, slices.Repeat([]string{of.lineage}, of.times), lineages(spans, name), name)
		}
		require.Contains(c, lineages(spans, "project sends"), "project sends < "+sendAppend)
		require.Contains(c, lineages(spans, "project sends"), "project sends < "+reported)
		require.Contains(c, lineages(spans, "publish"), "publish < "+sendAppend)
		require.Contains(c, lineages(spans, "publish"), "publish < "+reported)
	}, patience, 100*time.Millisecond)
	for _, span := range spans {
		if span.GetName() == sendRoute {
			require.Equal(t, theirs, hex.EncodeToString(span.GetParentSpanId()), "the request goes on in the caller's trace")
		}
		require.Empty(t, span.GetEvents(), "no error's words are kept")
	}

	// On Kafka, public events say where they were made, and all messages where they were published.
	brokers := s.awaits(&s.stderr, `"kafka":"([^"]+)"`)[1]
	reader, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics("musique.sends.v1", "musique.dispatch"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	t.Cleanup(reader.Close)
	made := map[string]map[string]string{}
	for len(made) < 2 {
		fetched := reader.PollFetches(t.Context())
		require.NoError(t, fetched.Err())
		fetched.EachRecord(func(r *kgo.Record) {
			made[r.Topic] = map[string]string{}
			for _, h := range r.Headers {
				made[r.Topic][h.Key] = string(h.Value)
			}
		})
	}
	named := func(traceParent string) string {
		i := slices.IndexFunc(spans, func(s *tracepb.Span) bool {
			return "00-"+traceID+"-"+hex.EncodeToString(s.GetSpanId())+"-01" == traceParent
		})
		require.GreaterOrEqual(t, i, 0, traceParent)
		return spans[i].GetName()
	}
	require.Equal(t, "append to send", named(made["musique.sends.v1"]["ce_traceparent"]))
	require.Equal(t, "publish", named(made["musique.sends.v1"]["traceparent"]))
	require.Equal(t, "dispatch", named(made["musique.dispatch"]["traceparent"]))

	// A player that knows nothing of traces reports in the trace of its send all the same, by what the read model has.
	other := partner.location("store_002")
	sent := partner.send(audioID, "store_002")
	partner.awaitStatus(sent, "queued", "queued")
	report, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/api/player/v1/deliveries/"+partner.deliveries(sent)[0].DeliveryID, strings.NewReader(`{"status": "delivered"}`))
	require.NoError(t, err)
	report.Header.Set("Authorization", "Bearer "+other)
	report.Header.Set("Content-Type", "application/json")
	response, err = http.DefaultClient.Do(report)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.NoError(t, response.Body.Close())
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		all := traces.all()
		require.Contains(c, lineages(all, "append to delivery"), "append to delivery < command ReportPlayback < "+sendAppend)
		i := slices.IndexFunc(all, func(s *tracepb.Span) bool { return len(s.GetLinks()) > 0 && s.GetName() == "command ReportPlayback" })
		require.GreaterOrEqual(c, i, 0)
		j := slices.IndexFunc(all, func(s *tracepb.Span) bool { return bytes.Equal(s.GetSpanId(), all[i].GetLinks()[0].GetSpanId()) })
		require.GreaterOrEqual(c, j, 0)
		require.Equal(c, reportRoute, all[j].GetName())
	}, patience, 100*time.Millisecond)

	// Of a broadcast to many, no delivery is followed by itself.
	const many = 150
	var imported []object
	for i := range many {
		imported = append(imported, object{"externalId": fmt.Sprintf("many_%03d", i), "name": "One of many", "tags": []string{"many"}})
	}
	partner.post("/locations/import", object{"locations": imported})
	second := want[struct{ Token string }](partner.post("/locations/many_007/devices", object{}), http.StatusCreated).Token
	one := s.playAt(t, second, t.TempDir())
	partner.post("/audio/"+audioID+"/send", object{"tags": []string{"many"}})
	one.awaits(&one.stdout, "✓ played")
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		all := traces.all()
		i := slices.IndexFunc(all, func(s *tracepb.Span) bool {
			return s.GetName() == "append to send" && slices.ContainsFunc(s.GetAttributes(), func(a *common.KeyValue) bool {
				return a.GetKey() == "musique.events" && a.GetValue().GetIntValue() == many
			})
		})
		require.GreaterOrEqual(c, i, 0)
		of := traces.trace(hex.EncodeToString(all[i].GetTraceId()))
		require.NotEmpty(c, lineages(of, "dispatch"))
		require.NotEmpty(c, lineages(of, "deliver"))
		require.NotEmpty(c, lineages(of, "publish"))
		require.Empty(c, lineages(of, "tell player"))
		require.Empty(c, lineages(of, reportRoute))
		require.Less(c, len(of), 60)
	}, patience, 100*time.Millisecond)
	one.terminate()

	require.Regexp(t, `"msg":"request","requestId":"the-one-send".*"traceId":"`+traceID+`"`, s.stderr.String())

	player.terminate()
	s.terminate()
}
