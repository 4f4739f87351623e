package player

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// silenceLimit is how long a stream may say nothing; the server sends a heartbeat every 15 s.
	silenceLimit = 45 * time.Second
	// The pause before another try doubles from retryMin to retryMax.
	retryMin = 250 * time.Millisecond
	retryMax = 30 * time.Second
	// reportTimeout bounds one report.
	reportTimeout = 15 * time.Second
	// renewTimeout bounds the wait for an order to be told anew.
	renewTimeout = 10 * time.Second
	// pingAfter is the silence after which an HTTP/2 connection is asked whether it lives.
	pingAfter = 15 * time.Second
	// maxReasonBytes is within what the server takes.
	maxReasonBytes = 400
	// maxAnswerBytes bounds what is read of an answer.
	maxAnswerBytes = 1 << 20
)

// server is the Partner API as a device sees it.
type server struct {
	base  *url.URL
	token string
	http  *http.Client
	clock *serverClock
}

func newServer(address, token string, client *http.Client) (*server, error) {
	base, err := url.Parse(strings.TrimSuffix(address, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("%q is no server address such as https://api.example.com", address)
	}
	if token == "" {
		return nil, errors.New("a device token is needed: POST …/locations/{externalId}/devices makes one")
	}
	if client == nil {
		// No overall timeout: a stream lasts as long as it can.
		client = &http.Client{Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: reportTimeout}).DialContext,
			TLSHandshakeTimeout: reportTimeout,
			IdleConnTimeout:     retryMax,
			ForceAttemptHTTP2:   true,
			HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		}}
	}
	return &server{base, token, client, &serverClock{}}, nil
}

func (s *server) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.base.String()+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	req.Header.Set("User-Agent", "musique-player")
	return req, nil
}

// invalidFormat is the code of what the server cannot read.
const invalidFormat = "invalid_format"

// refusal is an error that the server answered.
type refusal struct {
	status string
	code   string // of the contract; "" if somebody else answered: a proxy, or the page that a network wants its guests to see first
}

// Error implements error.
func (r refusal) Error() string {
	if r.code == "" {
		return "the answer was " + r.status
	}
	return "the answer was " + r.status + " (" + r.code + ")"
}

// refused reads what was answered instead of a success.
func (s *server) refused(resp *http.Response) error {
	var body struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	_ = json.Unmarshal(raw, &body) // what is no answer of the API has no code
	r := refusal{resp.Status, body.Error.Code}
	if r.code != "" {
		s.clock.heard(resp.Header)
	}
	if resp.StatusCode == http.StatusUnauthorized && r.code != "" {
		return fmt.Errorf("%w: %w", ErrSignedOut, r)
	}
	return r
}

// open opens the event stream after an event, or from the beginning, with all that is open. The silence of the server ends it.
func (s *server) open(ctx context.Context, lastEventID string) (*events, func(), error) {
	ctx, cancel := context.WithCancel(ctx)
	silence := time.AfterFunc(silenceLimit, cancel)
	end := func() { silence.Stop(); cancel() }
	stream, body, err := s.ask(ctx, lastEventID, func() { silence.Reset(silenceLimit) })
	if err != nil {
		end()
		return nil, nil, err
	}
	return stream, func() { end(); body.Close() }, nil
}

func (s *server) ask(ctx context.Context, lastEventID string, alive func()) (*events, io.Closer, error) {
	req, err := s.request(ctx, http.MethodGet, "/api/player/v1/stream", nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode != http.StatusOK:
		err = s.refused(resp)
	case kind != "text/event-stream":
		err = fmt.Errorf("the stream's answer is %q: something between here and the server answers in its place", kind)
	default:
		s.clock.heard(resp.Header)
		return readEvents(resp.Body, alive), resp.Body, nil
	}
	return nil, nil, errors.Join(err, resp.Body.Close())
}

// listen keeps the stream open until ctx ends or the device is signed out.
func (p *player) listen(ctx context.Context) error {
	least := retryMin
	for failures := 0; ; failures++ {
		connected, retry, err := p.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrSignedOut):
			return err
		}
		if retry > 0 {
			least = min(retry, retryMax)
		}
		if connected {
			failures = 0
			p.say("… the connection is gone; connecting again")
		} else if failures == 0 {
			p.say("… no connection to %s: %v; trying again", p.Server, err)
		}
		p.Log.Debug("the stream ended", "error", err)
		pause(ctx, backoff(least, failures))
	}
}

// stream opens the event stream and takes what it brings until it breaks. Retry is what the server wants the player to wait then.
func (p *player) stream(ctx context.Context) (connected bool, retry time.Duration, err error) {
	last := p.state.lastEventID()
	stream, end, err := p.server.open(ctx, last)
	if err != nil {
		if r := (refusal{}); last != "" && errors.As(err, &r) && r.code == invalidFormat {
			p.state.forgetPlace() // it is none of this server's, so it will never be taken: from the beginning, then
			return false, 0, err
		}
		return false, 0, err
	}
	defer end()
	p.say("● connected to %s", p.Server)
	if err := p.tell(ctx, event{}); err != nil { // from here on the time is known
		return true, 0, err
	}
	for {
		e, err := stream.next()
		if err == nil {
			err = p.tell(ctx, e)
		}
		if err != nil {
			return true, stream.retry, err
		}
	}
}

// tell passes an event to the player's own loop.
func (p *player) tell(ctx context.Context, e event) error {
	select {
	case p.told <- e:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// renew has an order told anew, for a URL of its audio that works: without Last-Event-ID a stream begins with all that is open.
func (p *player) renew(ctx context.Context, deliveryID string) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	stream, end, err := p.server.open(ctx, "")
	if err != nil {
		return err
	}
	defer end()
	for {
		e, err := stream.next()
		if err != nil {
			return err
		}
		if e.kind != kindDeliver || e.err != nil || parseDeliveryID(e.data) != deliveryID {
			continue
		}
		e.id = "" // the place in the other stream is the one that counts
		return p.tell(ctx, e)
	}
}

// sendReports sends the reports in order, each until the server has it.
func (p *player) sendReports(ctx context.Context) error {
	failures := 0
	for {
		r, some := p.state.firstReport()
		if !some {
			select {
			case <-p.state.reported:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		done, err := p.server.report(ctx, r)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrSignedOut):
			return err
		case !done:
			p.Log.Debug("a report does not get through; trying again", "delivery", r.DeliveryID, "error", err)
			pause(ctx, backoff(retryMin, failures))
			failures++
			continue
		case err != nil:
			p.Log.Warn("the server does not take a report", "delivery", r.DeliveryID, "status", r.Status, "error", err)
		}
		failures = 0
		p.state.sent()
	}
}

// report sends one report. Done says that sending it again is of no use: the server has it, or will never take it.
func (s *server) report(ctx context.Context, r report) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	body := map[string]any{"status": r.Status, "at": r.At}
	if r.Reason != "" {
		body["reason"] = r.Reason
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return true, err
	}
	req, err := s.request(ctx, http.MethodPost, "/api/player/v1/deliveries/"+url.PathEscape(r.DeliveryID), bytes.NewReader(raw))
	if err != nil {
		return true, err
	}
	req.Header.Set("Content-Type", "application/json")
	if r.TraceParent != "" {
		req.Header.Set("traceparent", r.TraceParent)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := s.refused(resp)
		var r refusal
		final := errors.As(err, &r) && r.code != "" && resp.StatusCode < 500 &&
			resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusTooManyRequests
		return final, err
	}
	var answer struct {
		Data struct {
			DeliveryID string `json:"deliveryId"`
		} `json:"data"`
	}
	raw, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Data.DeliveryID != r.DeliveryID {
		return false, errors.New("the report's answer is not the server's: something between here and there answers in its place")
	}
	s.clock.heard(resp.Header)
	return true, nil
}

// clip gives the first n bytes of a text, as far as they are whole characters.
func clip(text string, n int) string {
	text = strings.ToValidUTF8(text, "?")
	return strings.ToValidUTF8(text[:min(len(text), n)], "")
}

// backoff is the pause after a number of failures; the jitter keeps a city's players apart when the server comes back.
func backoff(least time.Duration, failures int) time.Duration {
	wait := min(least<<min(failures, 16), retryMax)
	return wait + rand.N(wait/2+1) //nolint:gosec // nothing secret depends on it
}

func pause(ctx context.Context, wait time.Duration) {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}
