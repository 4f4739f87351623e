package player

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// silenceLimit is how long a stream may say nothing; the server sends a heartbeat every 15 s.
	silenceLimit = 45 * time.Second
	// maxEventBytes bounds one line of the stream.
	maxEventBytes = 1 << 20
	// The pause before another try doubles from retryMin to retryMax.
	retryMin = 250 * time.Millisecond
	retryMax = 30 * time.Second
	// reportTimeout bounds one report.
	reportTimeout = 15 * time.Second
)

// server is the Partner API as a device sees it.
type server struct {
	base  *url.URL
	token string
	http  *http.Client
}

func newServer(address, token string) (*server, error) {
	base, err := url.Parse(strings.TrimSuffix(address, "/"))
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		return nil, fmt.Errorf("%q is no server address such as https://api.example.com", address)
	}
	if token == "" {
		return nil, errors.New("a device token is needed: POST …/locations/{externalId}/devices makes one")
	}
	// No overall timeout: a stream lasts as long as it can.
	return &server{base: base, token: token, http: &http.Client{}}, nil
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

// listen keeps the stream open until ctx ends or the device is signed out.
func (p *player) listen(ctx context.Context) error {
	for failures := 0; ; failures++ {
		connected, err := p.stream(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrSignedOut):
			return err
		}
		if connected {
			failures = 0
			p.say("… the connection is gone; connecting again")
		} else if failures == 0 {
			p.say("… no connection to %s; trying again", p.Server)
		}
		p.Log.Debug("the stream ended", "error", err)
		pause(ctx, failures)
	}
}

// stream opens the event stream and takes what it brings until it breaks.
func (p *player) stream(ctx context.Context) (connected bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := p.server.request(ctx, http.MethodGet, "/api/player/v1/stream", nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if last := p.state.lastEventID(); last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	silence := time.AfterFunc(silenceLimit, cancel)
	defer silence.Stop()
	resp, err := p.server.http.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return false, ErrSignedOut
	case resp.StatusCode != http.StatusOK:
		return false, fmt.Errorf("the stream answered %s", resp.Status)
	}
	p.say("● connected to %s", p.Server)
	return true, p.read(ctx, resp.Body, func() { silence.Reset(silenceLimit) })
}

// read takes Server-Sent Events (WHATWG HTML, "Server-sent events") as far as this server writes them.
func (p *player) read(ctx context.Context, body io.Reader, alive func()) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEventBytes)
	var id, kind string
	var data bytes.Buffer
	for lines.Scan() {
		alive()
		line := lines.Text()
		if line == "" {
			if data.Len() > 0 {
				if err := p.pass(ctx, id, kind, data.Bytes()); err != nil {
					return err
				}
			}
			kind = ""
			data.Reset()
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data.WriteString(value)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

func (p *player) pass(ctx context.Context, id, kind string, data []byte) error {
	var order Order
	if err := json.Unmarshal(data, &order); err != nil {
		return fmt.Errorf("event %s: %w", id, err)
	}
	select {
	case p.told <- told{id, kind, order}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendReports sends the reports in order, each until the server has it.
func (p *player) sendReports(ctx context.Context) error {
	failures := 0
	for {
		r, any := p.state.firstReport()
		if !any {
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
			pause(ctx, failures)
			failures++
			continue
		case err != nil:
			p.Log.Warn("the server does not take a report", "delivery", r.DeliveryID, "status", r.Status, "error", err)
		}
		failures = 0
		if err := p.state.sent(); err != nil {
			return err
		}
	}
}

// report sends one report. Done says that sending it again is of no use: the server has it, or will never take it.
func (s *server) report(ctx context.Context, r report) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	body := map[string]any{"status": r.Status, "at": r.At}
	if r.Reason != "" {
		body["reason"] = r.Reason[:min(len(r.Reason), 400)]
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
	resp, err := s.http.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode < 300:
		return true, nil
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return false, ErrSignedOut
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		return false, fmt.Errorf("the report was answered %s", resp.Status)
	default:
		return true, fmt.Errorf("the report was answered %s", resp.Status)
	}
}

// pause waits before another try, longer after each failure; the jitter keeps a city's players apart when the server comes back.
func pause(ctx context.Context, failures int) {
	wait := min(retryMin<<min(failures, 16), retryMax)
	select {
	case <-time.After(wait/2 + rand.N(wait/2)):
	case <-ctx.Done():
	}
}
