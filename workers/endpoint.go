package workers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/endpoint"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/inbox"
)

const (
	// maxLanes is how many endpoints a process asks at the same time, each of them one thing at a time; a company that has fullLanes of them gets no more, so
	// that one whose endpoints take all the time that they have leaves others their turn. Claims are of a few, since one can go that far above it.
	maxLanes  = 128
	fullLanes = 32
	maxClaim  = 8
	// maxTold bounds what an endpoint is told before others have their turn.
	maxTold = 50
	// maxBegun bounds what is read at once of what was begun at an endpoint.
	maxBegun     = 100
	endpointPoll = 500 * time.Millisecond
	// firstRetry is the wait after the first attempt that failed; it doubles with each that follows, up to maxRetry. An endpoint's Retry-After counts as far.
	firstRetry = time.Second
	maxRetry   = 5 * time.Minute
	// reportGrace is how long after its expiry a delivery can still be reported on, and its audio be fetched.
	reportGrace = time.Hour
	// drainTime is how long a request that is under way may take when the worker is told to end.
	drainTime = 12 * time.Second
)

// EndpointsConfig is what the worker needs beside the parts of all workers.
type EndpointsConfig struct {
	// Keys open the endpoints' secrets, and sign the URLs of audio and reports.
	Keys *keys.Ring
	// Policy says which endpoints may be asked.
	Policy endpoint.Policy
	// PublicURL is what the URLs in messages begin with, without a slash at its end.
	PublicURL string
	// Registry gets the metrics; nil is none.
	Registry prometheus.Registerer
}

// Endpoints tells the locations that have an HTTP endpoint instead of a player what to play. Any number of processes share the work.
type Endpoints struct {
	Deps
	config   EndpointsConfig
	client   *http.Client
	media    blobs.Signer
	reports  endpoint.Reports
	attempts *prometheus.CounterVec
	took     prometheus.Histogram
}

// NewEndpoints makes the worker.
func NewEndpoints(d Deps, config EndpointsConfig) (*Endpoints, error) {
	w := &Endpoints{
		Deps: d, config: config, client: config.Policy.Client(),
		media: blobs.NewSigner(config.Keys.SigningKeys("media")), reports: endpoint.NewReports(config.Keys.SigningKeys("report")),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "musique_endpoint_attempts_total", Help: "Requests to endpoints of locations, by what they told and what came of them.",
		}, []string{"kind", "outcome"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "musique_endpoint_attempt_seconds", Help: "How long requests to endpoints of locations took.", Buckets: prometheus.ExponentialBuckets(0.01, 2.5, 9),
		}),
	}
	for _, kind := range []string{inbox.Deliver, inbox.Cancel} { // so that they are there before the first request
		for _, outcome := range []string{"played", "accepted", "taken", "gone", "refused", outcomeTimeout, outcomeBroken, "private", "unreachable", "untrusted", "unsealed", "unreadable"} {
			w.attempts.WithLabelValues(kind, outcome)
		}
	}
	if config.Registry == nil {
		return w, nil
	}
	return w, errors.Join(config.Registry.Register(w.attempts), config.Registry.Register(w.took))
}

// Run tells endpoints until ctx ends.
func (w *Endpoints) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return follower{
			Deps: w.Deps, name: "endpoints", types: followedTypes["endpoints"],
			handle: w.follow,
		}.run(ctx)
	})
	group.Go(func() error { return w.tell(ctx) })
	return group.Wait()
}

// tell serves the endpoints that are due, until ctx ends.
func (w *Endpoints) tell(ctx context.Context) error {
	wake, stop := w.Hub.SubscribeAll()
	defer stop()
	var lanes sync.WaitGroup
	defer lanes.Wait()
	served := make(chan *lane, maxLanes)
	of := map[string]int{} // how many of the lanes are a company's
	for running := 0; ; {
		pause := endpointPoll
		for running+maxClaim <= maxLanes {
			full := []string{}
			for company, n := range of {
				if n >= fullLanes {
					full = append(full, company)
				}
			}
			claimed, err := w.claim(ctx, full)
			if err != nil && ctx.Err() == nil {
				w.Log.Warn("it cannot be looked which endpoints are due", "error", err)
				pause = retryPause
			}
			for _, l := range claimed {
				running++
				of[l.CompanyID]++
				lanes.Go(func() {
					w.serve(ctx, l)
					served <- l
				})
			}
			if len(claimed) < maxClaim {
				break
			}
		}
		select {
		case l := <-served:
			running--
			if of[l.CompanyID]--; of[l.CompanyID] == 0 {
				delete(of, l.CompanyID)
			}
		case <-wake:
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serve tells one endpoint what there is, one thing after the other. What is in hand is finished even when the worker is told to end.
func (w *Endpoints) serve(ctx context.Context, l *lane) {
	again := w.Now()
	for range maxTold {
		if ctx.Err() != nil {
			break
		}
		work, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTime)
		ending := context.AfterFunc(ctx, func() { time.AfterFunc(drainTime, cancel) })
		more, err := w.next(work, l)
		ending()
		cancel()
		if err != nil {
			w.Log.Warn("an endpoint could not be served; it is tried again", "company", l.CompanyID, "location", l.externalID, "error", err)
			again = w.Now().Add(retryPause)
			break
		}
		if !more {
			return
		}
	}
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockTimeout)
	defer cancel()
	if err := w.release(work, l, again); err != nil {
		w.Log.Warn("an endpoint could not be given back; its lease ends by itself", "company", l.CompanyID, "location", l.externalID, "error", err)
	}
}

// next does the first thing that there is to do at an endpoint; more is false where there is none, or it is not for this process to do.
func (w *Endpoints) next(ctx context.Context, l *lane) (more bool, err error) {
	found, held, err := w.look(ctx, l)
	if err != nil || !held {
		return false, err
	}
	now := w.Now()
	var until *time.Time
	for _, t := range found {
		switch {
		case t.kind == inbox.Deliver && t.state != stateTrying:
			return true, w.record(ctx, l, &t)
		case t.kind == inbox.Deliver && !l.active: // the location has a player now, or is gone
			continue
		case !t.nextAt.After(now):
			return true, w.attempt(ctx, l, &t)
		case until == nil || t.nextAt.Before(*until):
			until = &t.nextAt
		}
	}
	rests, err := w.rest(ctx, l, until)
	return !rests, err
}

// answer is what an attempt came to.
type answer struct {
	outcome string // for metrics and logs
	status  int    // 0 without an answer
	state   string
	reason  string
	// after is how long the endpoint asks to be left alone.
	after   time.Duration
	nextAt  time.Time
	mayHave bool
	at      time.Time // by which the endpoint had answered
}

// attempt tells the endpoint something, and records what it came to.
func (w *Endpoints) attempt(ctx context.Context, l *lane, t *telling) error {
	if t.kind == inbox.Cancel && !t.expiresAt.After(w.Now()) {
		_, err := w.finish(ctx, t, t.attempts, answer{state: statePlayed})
		return err
	}
	number, ok, err := w.begin(ctx, t)
	if err != nil || !ok {
		return err
	}
	of := t.delivery()
	ctx, span := telemetry.Continue(telemetry.WithRequest(ctx, of.RequestID), of.TraceParent, "ask endpoint")
	defer span.End()
	began := w.Now()
	a := w.ask(ctx, l, t)
	a.at = w.Now()
	took := a.at.Sub(began)
	a.nextAt = a.at.Add(max(a.after, backoff(number, rand.Float64()))) //nolint:gosec // jitter is no secret
	w.attempts.WithLabelValues(t.kind, a.outcome).Inc()
	w.took.Observe(took.Seconds())
	telemetry.Attribute(span, "musique.delivery_id", t.deliveryID)
	telemetry.Attribute(span, "musique.outcome", a.outcome)
	telemetry.Number(span, "musique.attempt", number)
	w.Log.InfoContext(ctx, "an endpoint was asked", "company", l.CompanyID, "location", l.externalID, "host", hostOf(l.url), "kind", t.kind, "delivery", t.deliveryID,
		"attempt", number, "outcome", a.outcome, "status", a.status, "duration", took)
	waited, err := w.finish(ctx, t, number, a)
	if err != nil || !waited || t.kind == inbox.Cancel || a.state == stateTrying {
		return err
	}
	t.state, t.reason, t.answeredAt = a.state, a.reason, &a.at
	return w.record(ctx, l, t)
}

// record takes what an endpoint answered for the report of a player.
func (w *Endpoints) record(ctx context.Context, l *lane, t *telling) error {
	reports := map[string][]delivery.Status{
		stateAccepted: {delivery.StatusDelivered}, statePlayed: {delivery.StatusDelivered, delivery.StatusPlayed}, stateFailed: {delivery.StatusFailed},
	}
	for _, status := range reports[t.state] {
		_, err := w.Commands.ReportPlayback.Handle(ctx, commands.ReportPlayback{
			Caller: commands.Caller{CompanyID: l.CompanyID, Environment: l.Environment, Actor: "worker:endpoints", RequestID: telemetry.RequestID(ctx)},
			UserID: l.UserID, DeliveryID: t.deliveryID, Status: string(status), At: t.answeredAt, Reason: t.reason,
		})
		if fault.CodeOf(err) == fault.NotFound { // there is nobody to record it for
			w.Log.ErrorContext(ctx, "what an endpoint answered is about no delivery", "delivery", t.deliveryID, "error", err)
			break
		}
		if err != nil {
			return fmt.Errorf("record that %s was %s: %w", t.deliveryID, status, err)
		}
	}
	return w.recorded(ctx, t.deliveryID)
}

// DeliverMessage is what an endpoint is told to play: what a player's stream has, and where to report.
type DeliverMessage struct {
	Type       string       `json:"type"`
	DeliveryID string       `json:"deliveryId"`
	SendID     string       `json:"sendId"`
	Audio      MessageAudio `json:"audio"`
	Priority   string       `json:"priority"`
	Repeat     int          `json:"repeat"`
	Volume     int          `json:"volume"`
	PlayAt     *string      `json:"playAt"`
	ExpiresAt  string       `json:"expiresAt"`
	ReportURL  string       `json:"reportUrl"`
}

// MessageAudio is the audio of a delivery.
type MessageAudio struct {
	AudioID  string  `json:"audioId"`
	Name     string  `json:"name"`
	URL      string  `json:"url"`
	SHA256   string  `json:"sha256"`
	Format   string  `json:"format"`
	Duration float64 `json:"duration"` // seconds
	Size     int64   `json:"size"`
}

// CancelMessage is what an endpoint is told not to play, and to stop if it plays.
type CancelMessage struct {
	Type       string `json:"type"`
	DeliveryID string `json:"deliveryId"`
	SendID     string `json:"sendId"`
}

// message writes what to tell, the same in each attempt, and its ID.
func (w *Endpoints) message(l *lane, t *telling) (id string, body []byte, err error) {
	if t.kind == inbox.Cancel {
		sendID, _, _ := delivery.ParseID(t.deliveryID)
		body, err = json.Marshal(CancelMessage{Type: inbox.Cancel, DeliveryID: t.deliveryID, SendID: sendID})
		return t.deliveryID + "_cancel", body, err
	}
	var d inbox.Delivery
	if err := json.Unmarshal(t.payload, &d); err != nil {
		return "", nil, fmt.Errorf("inbox item: %w", err)
	}
	until := d.ExpiresAt.Add(reportGrace)
	report := endpoint.Report{CompanyID: l.CompanyID, Environment: l.Environment, DeliveryID: d.DeliveryID}
	message := DeliverMessage{
		Type: inbox.Deliver, DeliveryID: d.DeliveryID, SendID: d.SendID,
		Audio: MessageAudio{
			AudioID: d.AudioID, Name: d.Name, URL: w.config.PublicURL + w.media.Path(d.BlobKey, until), SHA256: d.SHA256, Format: d.Format,
			Duration: float64(d.DurationMs) / 1000, Size: d.Size,
		},
		Priority: d.Priority, Repeat: d.Repeat, Volume: d.Volume, ExpiresAt: moment(d.ExpiresAt), ReportURL: w.config.PublicURL + w.reports.Path(report, until),
	}
	if d.PlayAt != nil {
		message.PlayAt = new(moment(*d.PlayAt))
	}
	body, err = json.Marshal(message)
	return d.DeliveryID, body, err
}

// moment writes a time as the API does: RFC 3339, in UTC, to the millisecond.
func moment(t time.Time) string { return t.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano) }

// ask makes the request.
func (w *Endpoints) ask(ctx context.Context, l *lane, t *telling) answer {
	refused := func(outcome, reason string) answer {
		return answer{outcome: outcome, state: stateTrying, reason: reason}
	}
	secret := ""
	if l.secret != "" {
		var err error
		if secret, err = commands.ChannelSecret(w.config.Keys, l.CompanyID, l.Environment, l.UserID, l.secret); err != nil {
			return refused("unsealed", "The secret of the channel cannot be read any more, since the server's secret key was changed; give the channel another one.")
		}
	}
	id, body, err := w.message(l, t)
	if err != nil {
		return refused("unreadable", "The message to the endpoint cannot be written.")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return refused("unreadable", "The url of the channel is none.")
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "Musique")
	if traceParent := telemetry.TraceParent(ctx); traceParent != "" {
		request.Header.Set(traceParentHeader, traceParent)
	}
	endpoint.Sign(request.Header, secret, id, w.Now(), body)
	response, err := w.client.Do(request)
	if err != nil {
		a := refused(why(err))
		a.mayHave = a.outcome == outcomeTimeout || a.outcome == outcomeBroken
		return a
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, endpoint.MaxAnswerBytes)) // so that the connection can be used again; what it says is of no interest
	a := judge(response.StatusCode)
	if t.kind == inbox.Cancel && response.StatusCode >= 200 && response.StatusCode < 300 {
		a.state, a.outcome = statePlayed, "taken" // there is nothing more to it
	}
	a.after = retryAfter(response.Header, w.Now())
	return a
}

// judge says what an answer means.
func judge(status int) answer {
	a := answer{status: status, state: stateTrying, outcome: "refused"}
	switch {
	case status == http.StatusOK, status == http.StatusCreated, status == http.StatusNoContent:
		a.state, a.outcome = statePlayed, "played"
	case status == http.StatusAccepted:
		a.state, a.outcome, a.mayHave = stateAccepted, "accepted", true
	case status == http.StatusGone:
		a.state, a.outcome, a.reason = stateFailed, "gone", "The endpoint answered 410 Gone."
	case status >= 300 && status < 400:
		a.reason = fmt.Sprintf("The endpoint answered %d, a redirect, which is not followed.", status)
	default:
		text := http.StatusText(status)
		if text != "" {
			text = " " + text
		}
		a.reason = fmt.Sprintf("The endpoint answered %d%s.", status, text)
	}
	return a
}

const (
	outcomeTimeout = "timeout"
	outcomeBroken  = "broken"
)

// why says why there was no answer, for metrics and in a sentence. Nothing of the URL is in it, nor what a name of a private network stands for.
func why(err error) (outcome, reason string) {
	var notFound *net.DNSError
	var certificate *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case endpoint.Refused(err):
		return "private", "The endpoint's address is not one of the public internet."
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return outcomeTimeout, fmt.Sprintf("The endpoint did not answer within %d seconds.", int(endpoint.Timeout.Seconds()))
	case errors.As(err, &notFound):
		return "unreachable", "The name of the endpoint's host cannot be looked up."
	case errors.As(err, &certificate):
		return "untrusted", "The endpoint's certificate is not valid for its name, or not trusted."
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable", "The endpoint's host takes no connection."
	default:
		return outcomeBroken, "The connection to the endpoint broke before it answered."
	}
}

// backoff is how long to wait after an attempt, by its number: a half of the doubled wait is for sure and the other half by chance, so that many that failed
// at the same time do not come again at the same time.
func backoff(attempt int, chance float64) time.Duration {
	wait := firstRetry
	for i := 1; i < attempt && wait < maxRetry; i++ {
		wait *= 2
	}
	half := min(wait, maxRetry) / 2
	return half + time.Duration(chance*float64(half))
}

// retryAfter is how long an endpoint asks to be left alone (RFC 9110 §10.2.3), as far as that counts.
func retryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetry)
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(at.Sub(now), 0), maxRetry)
	}
	return 0
}

// hostOf is what a log may say of a URL.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}
