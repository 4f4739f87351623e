package workers_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/workers"
)

// radio is an endpoint of a location, as a partner runs one.
type radio struct {
	*httptest.Server
	t testing.TB
	// answer gives the answer to each request, by its number from 1.
	answer func(n int, w http.ResponseWriter, told posted)

	mu   sync.Mutex
	told []posted
}

// posted is what an endpoint was told.
type posted struct {
	ID, Timestamp, Signature, Body string
	workers.DeliverMessage
}

const radioKey = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYq="

func newRadio(t testing.TB, answer func(n int, w http.ResponseWriter, told posted)) *radio {
	t.Helper()
	r := &radio{t: t, answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		m := posted{ID: request.Header.Get("webhook-id"), Timestamp: request.Header.Get("webhook-timestamp"), Signature: request.Header.Get("webhook-signature"), Body: string(body)}
		if err != nil || json.Unmarshal(body, &m.DeliverMessage) != nil || request.Method != http.MethodPost || request.Header.Get("Content-Type") != "application/json" {
			t.Errorf("no message: %s %s", request.Method, body)
		}
		r.mu.Lock()
		r.told = append(r.told, m)
		n := len(r.told)
		r.mu.Unlock()
		answer(n, w, m)
	}))
	t.Cleanup(r.Close)
	return r
}

// status answers always the same.
func status(code int) func(int, http.ResponseWriter, posted) {
	return func(_ int, w http.ResponseWriter, _ posted) { w.WriteHeader(code) }
}

func (r *radio) all() []posted {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

// genuine checks a signature as the specification says, with no code of ours.
func (m posted) genuine(t *testing.T) {
	t.Helper()
	seconds, err := strconv.ParseInt(m.Timestamp, 10, 64)
	require.NoError(t, err)
	require.InDelta(t, time.Now().Unix(), seconds, 60)
	key, err := base64.StdEncoding.DecodeString(radioKey)
	require.NoError(t, err)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(m.ID + "." + m.Timestamp + "." + m.Body))
	require.Equal(t, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), m.Signature)
}

// at gives live locations an endpoint.
func (r *radio) at(p commandstest.Partner, externalIDs ...string) {
	r.t.Helper()
	for _, id := range externalIDs {
		_, err := p.Commands.RegisterLocation.Handle(context.Background(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: id, Details: location.Details{
			Name: id, Channel: location.Channel{Type: location.ChannelHTTP, URL: r.URL + "/in?key=hidden"}, Secret: "whsec_" + radioKey,
		}})
		require.NoError(r.t, err)
	}
	p.Settle(r.t)
}

func sendWith(t *testing.T, p commandstest.Partner, audioID, priority string, to ...string) send.AudioSent {
	t.Helper()
	return p.SendAs(t, p.Caller(), audioID, send.Request{Targets: send.Targets{ExternalIDs: to}, Priority: priority}).Sent[0]
}

// deliveryOf is a delivery as the API shows it.
func (w *world) deliveryOf(t testing.TB, p commandstest.Partner, s send.AudioSent) sends.Delivery {
	t.Helper()
	found, _, err := sends.Deliveries(context.Background(), w.Pool, p.CompanyID, event.Live, s.SendID, "", "", 10)
	require.NoError(t, err)
	require.Len(t, found, 1)
	return found[0]
}

func (w *world) becomes(t testing.TB, p commandstest.Partner, s send.AudioSent, status string) {
	t.Helper()
	eventually(t, func() bool { return w.deliveryOf(t, p, s).Status == status }, status)
}

func TestAnEndpointIsToldWhatAPlayerWouldBe(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusOK))
	r.at(p, "hall")
	audioID := p.Upload(t, p.Caller())
	s := p.SendAs(t, p.Caller(), audioID, send.Request{Targets: send.Targets{All: true}, Priority: "high", Repeat: new(2), Volume: new(30)}).Sent[0]
	w.becomes(t, p, s, "played")
	require.Equal(t, []string{"AudioDelivered", "AudioPlayed"}, w.Types(t, delivery.Stream(s.SendID, s.UserID)))
	told := r.all()
	require.Len(t, told, 1)
	m := told[0]
	m.genuine(t)
	require.Equal(t, s.DeliveryID, m.ID)
	require.Equal(t, []any{"deliver", s.DeliveryID, s.SendID, "high", 2, 30, (*string)(nil)}, []any{m.Type, m.DeliveryID, m.SendID, m.Priority, m.Repeat, m.Volume, m.PlayAt})
	require.Equal(t, []any{audioID, "Opening", "wav", 0.2}, []any{m.Audio.AudioID, m.Audio.Name, m.Audio.Format, m.Audio.Duration})
	expires, err := time.Parse(time.RFC3339, m.ExpiresAt)
	require.NoError(t, err)
	require.WithinDuration(t, s.ExpiresAt, expires, time.Millisecond)

	audio, err := url.Parse(strings.TrimPrefix(m.Audio.URL, publicURL))
	require.NoError(t, err)
	key, until, err := blobs.NewSigner(w.Keys.SigningKeys("media")).Verify(audio, time.Now())
	require.NoError(t, err)
	require.Contains(t, key, audioID)
	require.True(t, until.After(expires))
	reportURL, err := url.Parse(strings.TrimPrefix(m.ReportURL, publicURL))
	require.NoError(t, err)
	reports := endpoint.NewReports(w.Keys.SigningKeys("report"))
	named, err := reports.Verify(reportURL, expires.Add(time.Hour-time.Minute))
	require.NoError(t, err)
	require.Equal(t, endpoint.Report{CompanyID: p.CompanyID, Environment: event.Live, DeliveryID: s.DeliveryID}, named)
	_, err = reports.Verify(reportURL, expires.Add(time.Hour+time.Second))
	require.Error(t, err)
}

func TestWhatAnAnswerMeans(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	audioID := p.Upload(t, p.Caller())
	for code, want := range map[int]string{200: "played", 201: "played", 202: "delivered", 204: "played", 410: "failed"} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			t.Parallel()
			r := newRadio(t, status(code))
			id := fmt.Sprint("hall_", code)
			r.at(p, id)
			s := sendWith(t, p, audioID, "", id)
			w.becomes(t, p, s, want)
			require.Len(t, r.all(), 1)
			if code == 410 {
				require.Equal(t, "The endpoint answered 410 Gone.", *w.deliveryOf(t, p, s).Reason)
			}
			if code == 202 { // it reports itself, as a player does
				report(t, p, s, delivery.StatusPlayed)
				w.becomes(t, p, s, "played")
			}
		})
	}
	for _, code := range []int{203, 206, 301, 307, 400, 401, 404, 429, 500, 503, 599} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			t.Parallel()
			var redirected atomic.Int64
			elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { redirected.Add(1) }))
			t.Cleanup(elsewhere.Close)
			r := newRadio(t, func(n int, answer http.ResponseWriter, _ posted) {
				if n == 1 {
					answer.Header().Set("Location", elsewhere.URL)
					answer.WriteHeader(code)
				}
			})
			id := fmt.Sprint("hall_", code)
			r.at(p, id)
			s := sendWith(t, p, audioID, "", id)
			w.becomes(t, p, s, "played")
			told := r.all()
			require.Len(t, told, 2)
			require.Equal(t, told[0].ID+told[0].Body, told[1].ID+told[1].Body, "the same message again")
			told[1].genuine(t)
			require.Zero(t, redirected.Load())
		})
	}
}

// rowsOf counts a company's rows in a table of the workers.
func (w *world) rowsOf(t testing.TB, p commandstest.Partner, table string) (n int) {
	t.Helper()
	require.NoError(t, w.Pool.QueryRow(context.Background(), "SELECT count(*) FROM workers."+table+" WHERE company_id = $1", p.CompanyID).Scan(&n))
	return n
}

func TestAnEndpointThatAsksForTimeGetsIt(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	var first, second time.Time
	r := newRadio(t, func(n int, answer http.ResponseWriter, _ posted) {
		if n == 1 {
			first = time.Now()
			answer.Header().Set("Retry-After", "3")
			answer.WriteHeader(http.StatusTooManyRequests)
			return
		}
		second = time.Now()
	})
	r.at(p, "hall")
	w.becomes(t, p, sendWith(t, p, p.Upload(t, p.Caller()), "", "hall"), "played")
	require.GreaterOrEqual(t, second.Sub(first), 2900*time.Millisecond)
}

// lasting is a world with a clock of its own in which endpoints are told.
func lasting(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.start(t, dispatch, delivering, closer, cancellation, expiry)
	return w
}

func TestAnEndpointThatNeverTakesADelivery(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	w.start(t, endpoints)
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusServiceUnavailable))
	r.at(p, "hall")
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	behind := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	for n := 1; n <= 12; n++ { // the clock goes from retry to retry
		eventually(t, func() bool {
			var over int
			const attempts = "SELECT coalesce(max(attempts), 0) FROM workers.endpoint_attempt WHERE delivery_id = $1 AND NOT asked"
			require.NoError(t, w.Pool.QueryRow(t.Context(), attempts, s.DeliveryID).Scan(&over))
			return over >= n
		})
		w.set(w.now().Add(workers.MaxRetry))
	}
	require.Equal(t, "queued", w.deliveryOf(t, p, s).Status)
	w.set(s.ExpiresAt.Add(time.Second))
	w.becomes(t, p, s, "failed")
	require.Equal(t, "The endpoint answered 503 Service Unavailable.", *w.deliveryOf(t, p, s).Reason)
	w.becomes(t, p, behind, "expired")
	for _, m := range r.all() {
		require.Equal(t, s.DeliveryID, m.ID, "what is behind it of the same priority waits")
	}
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint_attempt") == 0 })
}

func TestOrderAtAnEndpoint(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	var open atomic.Bool
	waiting := map[string]bool{}
	r := newRadio(t, func(_ int, answer http.ResponseWriter, told posted) {
		if !open.Load() && told.Priority == "normal" {
			waiting[told.ID] = true
			answer.WriteHeader(http.StatusBadGateway)
		}
	})
	r.at(p, "hall")
	audioID := p.Upload(t, p.Caller())
	first := sendWith(t, p, audioID, "normal", "hall")
	eventually(t, func() bool { return len(r.all()) > 0 })
	second := sendWith(t, p, audioID, "normal", "hall")
	low := sendWith(t, p, audioID, "low", "hall")
	urgent := sendWith(t, p, audioID, "urgent", "hall")
	w.becomes(t, p, low, "played")
	w.becomes(t, p, urgent, "played")
	require.Equal(t, "queued", w.deliveryOf(t, p, first).Status)
	require.Equal(t, map[string]bool{first.DeliveryID: true}, waiting, "the one behind it waits with it")
	open.Store(true)
	w.becomes(t, p, second, "played")
	require.Equal(t, "played", w.deliveryOf(t, p, first).Status)
	told := r.all()
	require.Equal(t, []string{first.DeliveryID, second.DeliveryID}, []string{told[len(told)-2].ID, told[len(told)-1].ID})
}

// What comes while the endpoint is asked goes by priority, and in order within one.
func TestHigherPrioritiesComeFirstAtAnEndpoint(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	r := newRadio(t, func(n int, _ http.ResponseWriter, _ posted) {
		if n == 1 {
			close(begun)
			<-goOn
		}
	})
	r.at(p, "hall")
	audioID := p.Upload(t, p.Caller())
	want := []string{sendWith(t, p, audioID, "normal", "hall").DeliveryID}
	<-begun
	by := map[string][]string{}
	for range 2 {
		for _, priority := range []string{"low", "urgent", "normal", "high"} {
			by[priority] = append(by[priority], sendWith(t, p, audioID, priority, "hall").DeliveryID)
		}
	}
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 9 })
	close(goOn)
	eventually(t, func() bool { return len(r.all()) == 9 })
	var got []string
	for _, m := range r.all() {
		got = append(got, m.ID)
	}
	require.Equal(t, slices.Concat(want, by["urgent"], by["high"], by["normal"], by["low"]), got)
}

func TestWhatAnEndpointTookIsCalledOffThere(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	refusals := 0
	r := newRadio(t, func(_ int, answer http.ResponseWriter, told posted) {
		if told.Type == "cancel" && refusals < 2 {
			refusals++
			answer.WriteHeader(http.StatusInternalServerError)
			return
		}
		answer.WriteHeader(map[string]int{"deliver": http.StatusAccepted, "cancel": http.StatusPartialContent}[told.Type])
	})
	r.at(p, "hall")
	refusing := newRadio(t, status(http.StatusInternalServerError))
	refusing.at(p, "yard")
	audioID := p.Upload(t, p.Caller())
	taken, refused := sendWith(t, p, audioID, "", "hall"), sendWith(t, p, audioID, "", "yard")
	w.becomes(t, p, taken, "delivered")
	eventually(t, func() bool { return len(refusing.all()) > 0 })
	cancel(t, p, taken.SendID)
	cancel(t, p, refused.SendID)
	eventually(t, func() bool { return len(r.all()) == 4 })
	for _, m := range r.all()[1:] {
		m.genuine(t)
		require.Equal(t, []string{taken.DeliveryID + "_cancel", "cancel", taken.DeliveryID, taken.SendID}, []string{m.ID, m.Type, m.DeliveryID, m.SendID})
	}
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint_attempt") == 0 })
	for _, m := range refusing.all() {
		require.Equal(t, "deliver", m.Type, "what it has not it is not told to leave")
	}

	// A location that is removed is told as well, and forgotten then.
	last := sendWith(t, p, audioID, "", "hall")
	w.becomes(t, p, last, "delivered")
	for _, id := range []string{"hall", "yard"} {
		require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: id}))
	}
	eventually(t, func() bool { told := r.all(); return told[len(told)-1].ID == last.DeliveryID+"_cancel" })
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint") == 0 })
}

func TestACancelEndsWithItsDelivery(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	w.start(t, endpoints)
	p := w.Partner(t)
	r := newRadio(t, func(_ int, answer http.ResponseWriter, told posted) {
		answer.WriteHeader(map[string]int{"deliver": http.StatusAccepted, "cancel": http.StatusInternalServerError}[told.Type])
	})
	r.at(p, "hall")
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	w.becomes(t, p, s, "delivered")
	cancel(t, p, s.SendID)
	eventually(t, func() bool { return len(r.all()) >= 2 })
	w.set(s.ExpiresAt.Add(time.Second))
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint_attempt") == 0 })
	require.Equal(t, "cancelled", w.deliveryOf(t, p, s).Status)
}

func TestAPrivateEndpointIsNotAskedUnlessTheOperatorLetsIt(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	registry := prometheus.NewRegistry()
	strict, err := workers.NewEndpoints(w.deps, workers.EndpointsConfig{Keys: w.Keys, PublicURL: publicURL, Registry: registry})
	require.NoError(t, err)
	commandstest.Run(t, strict.Run)
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusOK))
	r.at(p, "hall") // as the operator let it be before
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	eventually(t, func() bool {
		counted, err := registry.Gather()
		require.NoError(t, err)
		return slices.ContainsFunc(counted, func(m *dto.MetricFamily) bool {
			return m.GetName() == "musique_endpoint_attempts_total" && slices.ContainsFunc(m.GetMetric(), func(m *dto.Metric) bool {
				return m.GetLabel()[1].GetValue() == "private" && m.GetCounter().GetValue() > 0
			})
		})
	})
	w.set(s.ExpiresAt.Add(time.Second))
	w.becomes(t, p, s, "failed")
	require.Equal(t, "The endpoint's address is not one of the public internet.", *w.deliveryOf(t, p, s).Reason)
	require.Empty(t, r.all())
}

func TestEndpointsThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	audioID := p.Upload(t, p.Caller())
	reason := func(t *testing.T, s send.AudioSent) (reason string) {
		t.Helper()
		eventually(t, func() bool {
			err := w.Pool.QueryRow(context.Background(), "SELECT coalesce(max(reason), '') FROM workers.endpoint_attempt WHERE delivery_id = $1", s.DeliveryID).Scan(&reason)
			require.NoError(t, err)
			return reason != ""
		})
		return reason
	}
	for name, c := range map[string]struct {
		answer func(int, http.ResponseWriter, posted)
		want   string
	}{
		"broken": {func(_ int, answer http.ResponseWriter, _ posted) {
			conn, _, err := http.NewResponseController(answer).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		}, "The connection to the endpoint broke before it answered."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRadio(t, c.answer)
			r.at(p, name)
			require.Equal(t, c.want, reason(t, sendWith(t, p, audioID, "", name)))
		})
	}
	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		end := make(chan struct{})
		r := newRadio(t, func(int, http.ResponseWriter, posted) { <-end })
		t.Cleanup(func() { close(end) })
		r.at(p, "silent")
		require.Equal(t, "The endpoint did not answer within 10 seconds.", reason(t, sendWith(t, p, audioID, "", "silent")))
	})
	t.Run("gone", func(t *testing.T) {
		t.Parallel()
		r := newRadio(t, status(http.StatusOK))
		r.at(p, "gone")
		r.Close()
		require.Equal(t, "The endpoint's host takes no connection.", reason(t, sendWith(t, p, audioID, "", "gone")))
	})
	t.Run("without TLS", func(t *testing.T) {
		t.Parallel()
		r := newRadio(t, status(http.StatusOK))
		r.URL = strings.Replace(r.URL, "http:", "https:", 1)
		r.at(p, "plain")
		require.NotContains(t, reason(t, sendWith(t, p, audioID, "", "plain")), "hidden")
	})
	t.Run("endless", func(t *testing.T) {
		t.Parallel()
		r := newRadio(t, func(_ int, answer http.ResponseWriter, _ posted) {
			for range 1 << 12 {
				if _, err := answer.Write(make([]byte, 1<<12)); err != nil {
					return
				}
			}
		})
		r.at(p, "endless")
		w.becomes(t, p, sendWith(t, p, audioID, "", "endless"), "played")
	})
}

// Several processes share the endpoints: none is asked two things at the same time, and each thing once.
func TestAnEndpointIsAskedOneThingAtATime(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	for range 3 {
		w.start(t, endpoints)
	}
	p := w.Partner(t)
	var at sync.Map
	var most, together atomic.Int64
	r := newRadio(t, func(_ int, _ http.ResponseWriter, told posted) {
		_, userID, _ := delivery.ParseID(told.DeliveryID)
		if _, busy := at.LoadOrStore(userID, true); busy {
			t.Errorf("two requests at %d", userID)
		}
		most.Store(max(most.Load(), together.Add(1)))
		<-time.After(5 * time.Millisecond) // the endpoint's own work
		together.Add(-1)
		at.Delete(userID)
	})
	ids := names("store", 12)
	r.at(p, ids...)
	audioID := p.Upload(t, p.Caller())
	var all []send.Send
	for range 8 {
		all = append(all, p.Send(t, audioID, ids...))
	}
	for _, s := range all {
		eventually(t, func() bool {
			for _, status := range w.statuses(t, p, event.Live, s.ID) {
				if status != "played" {
					return false
				}
			}
			return true
		})
	}
	told := r.all()
	require.Len(t, told, len(all)*len(ids))
	require.Greater(t, most.Load(), int64(1), "different endpoints are asked at the same time")
	order := map[string][]string{}
	for _, m := range told {
		_, userID, _ := delivery.ParseID(m.DeliveryID)
		order[fmt.Sprint(userID)] = append(order[fmt.Sprint(userID)], m.SendID)
	}
	for _, sent := range order {
		for i, s := range all {
			require.Equal(t, s.ID, sent[i])
		}
	}
}

// A process dies when the endpoint has answered, and before it could write that down.
func TestAProcessThatDiesBeforeItRecordsAnAnswer(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	p := w.Partner(t)
	own, err := postgres.Connect(t.Context(), w.Pool.Config().ConnString())
	require.NoError(t, err)
	t.Cleanup(own.Close)
	r := newRadio(t, func(n int, _ http.ResponseWriter, _ posted) {
		if n == 1 {
			own.Close() // from here on nothing that this process does is seen
		}
	})
	r.at(p, "hall")
	dies := w.deps
	dies.Pool = own
	first, err := workers.NewEndpoints(dies, workers.EndpointsConfig{Keys: w.Keys, Policy: private, PublicURL: publicURL})
	require.NoError(t, err)
	stop := commandstest.Run(t, first.Run)
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	eventually(t, func() bool { return len(r.all()) == 1 })
	stop()
	w.start(t, endpoints)
	require.Never(t, func() bool { return len(r.all()) > 1 }, time.Second, 50*time.Millisecond, "its lease lasts")
	_, err = w.Pool.Exec(t.Context(), "UPDATE workers.endpoint SET leased_until = clock_timestamp() WHERE company_id = $1", p.CompanyID)
	require.NoError(t, err)
	w.becomes(t, p, s, "played")
	told := r.all()
	require.Len(t, told, 2)
	require.Equal(t, told[0].ID+told[0].Body, told[1].ID+told[1].Body)
	require.Equal(t, []string{"AudioDelivered", "AudioPlayed"}, w.Types(t, delivery.Stream(s.SendID, s.UserID)))
}

// What an endpoint answered is recorded later where the event store was away, without asking again.
func TestAnAnswerThatIsNotRecordedYet(t *testing.T) {
	t.Parallel()
	w := lasting(t)
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusServiceUnavailable))
	r.at(p, "hall")
	stop := w.start(t, endpoints)
	s := sendWith(t, p, p.Upload(t, p.Caller()), "", "hall")
	eventually(t, func() bool { return len(r.all()) > 0 })
	stop()
	_, err := w.Pool.Exec(t.Context(), "UPDATE workers.endpoint_attempt SET state = 'played' WHERE delivery_id = $1", s.DeliveryID)
	require.NoError(t, err)
	asked, answered := len(r.all()), w.now()
	_, err = w.Pool.Exec(t.Context(), "UPDATE workers.endpoint_attempt SET answered_at = $2 WHERE delivery_id = $1", s.DeliveryID, answered)
	require.NoError(t, err)
	w.set(s.ExpiresAt.Add(time.Second)) // it was played in time, whenever that is recorded
	w.start(t, endpoints)
	w.becomes(t, p, s, "played")
	require.Len(t, r.all(), asked)
	for _, e := range w.History(t, delivery.Stream(s.SendID, s.UserID)) {
		var told struct{ At time.Time }
		require.NoError(t, json.Unmarshal(e.Data, &told))
		require.WithinDuration(t, answered, told.At, time.Millisecond, e.Type)
	}
}

func TestALocationGetsAnEndpointAndAPlayerAgain(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	p.Locations(t, "hall")
	r, other := newRadio(t, status(http.StatusOK)), newRadio(t, status(http.StatusOK))
	audioID := p.Upload(t, p.Caller())
	change := func(channel location.Channel) {
		_, err := p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Channel: &channel})
		require.NoError(t, err)
	}
	waits := sendWith(t, p, audioID, "", "hall")
	eventually(t, func() bool { return len(w.inboxOf(t, p)) == 1 })
	change(location.Channel{Type: "http", URL: r.URL})
	w.becomes(t, p, waits, "played")
	require.NotEmpty(t, r.all()[0].Signature, "with a secret that was made")
	change(location.Channel{Type: "http", URL: other.URL})
	w.becomes(t, p, sendWith(t, p, audioID, "", "hall"), "played")
	eventually(t, func() bool { return len(other.all()) == 1 || len(r.all()) == 2 })
	change(location.Channel{Type: "player"})
	eventually(t, func() bool { return w.rowsOf(t, p, "endpoint") == 0 })
	forPlayer := sendWith(t, p, audioID, "", "hall")
	eventually(t, func() bool { return len(w.open(t, at(p, event.Live, forPlayer.UserID))) == 1 })
	require.Equal(t, 2, len(r.all())+len(other.all()))
}

// In the sandbox simulated players play, whatever the channel.
func TestTheSandboxAsksNoEndpoint(t *testing.T) {
	t.Parallel()
	w := shared
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusOK))
	c := p.Sandbox()
	_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: c, ExternalID: "hall", Details: location.Details{Name: "x", Channel: location.Channel{Type: "http", URL: r.URL}}})
	require.NoError(t, err)
	p.Settle(t)
	sent := p.SendAs(t, c, p.Upload(t, c), send.Request{Targets: send.Targets{All: true}})
	eventually(t, func() bool { return w.statuses(t, p, event.Test, sent.ID)["hall"] == "played" })
	require.Empty(t, r.all())
	require.Zero(t, w.rowsOf(t, p, "endpoint"))
}

func TestScheduledAudioComesAheadOfItsTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(t, dispatch, delivering, closer, schedule, scheduler, endpoints)
	p := w.Partner(t)
	r := newRadio(t, status(http.StatusAccepted))
	r.at(p, "hall")
	due := w.now().Add(time.Hour)
	p.SendAs(t, p.Caller(), p.Upload(t, p.Caller()), send.Request{Targets: send.Targets{All: true}, ScheduleAt: &due})
	w.set(due.Add(-send.Lead))
	eventually(t, func() bool { return len(r.all()) == 1 })
	require.Equal(t, due.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano), *r.all()[0].PlayAt)
}

func TestTheWaitBetweenAttempts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		attempt, chance := rapid.IntRange(1, 1<<40).Draw(t, "attempt"), rapid.Float64Range(0, 0.999999).Draw(t, "chance")
		full := workers.MaxRetry
		if attempt < 10 {
			full = min(full, time.Second<<(attempt-1))
		}
		wait := workers.Backoff(attempt, chance)
		require.GreaterOrEqual(t, wait, full/2)
		require.LessOrEqual(t, wait, full)
		require.GreaterOrEqual(t, workers.Backoff(attempt+1, chance), wait)
	})
}

func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "301": workers.MaxRetry, "-1": 0, "soon": 0, "1.5": 0, "99999999999999999999": 0,
		"Sun, 01 Mar 2026 09:00:30 GMT": 30 * time.Second, "Sun, 01 Mar 2026 08:00:30 GMT": 0, "Mon, 01 Mar 2027 08:00:30 GMT": workers.MaxRetry,
	} {
		require.Equal(f, want, workers.RetryAfter(http.Header{"Retry-After": {text}}, now), text)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		wait := workers.RetryAfter(http.Header{"Retry-After": {text}}, now)
		require.True(t, wait >= 0 && wait <= workers.MaxRetry)
	})
}
