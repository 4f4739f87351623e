package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	httpapi "github.com/musique/musique/http"
)

const (
	// benchLocations is to how many locations the sends go, one after the other.
	benchLocations = 16
	// benchPatience bounds one request, and the wait for what was accepted to be at the players.
	benchPatience = 30 * time.Second
)

// benchSystem is the whole product in this process, as serve wires it, with one partner.
type benchSystem struct {
	*app
	api     *httpapi.Server
	url     string
	client  *http.Client
	servers []*http.Server
	running *errgroup.Group
	stop    context.CancelFunc
	// background ends with stop.
	background context.Context //nolint:containedctx // it is of what runs in the system

	caller          commands.Caller // the partner
	token, sendPath string
	begun           atomic.Int64 // sends
	sent            *passages
}

// startBenchSystem is openBenchSystem with benchLocations, each with a player that is connected.
func startBenchSystem(ctx context.Context, dir string) (*benchSystem, error) {
	s, err := openBenchSystem(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := s.furnish(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// anyPort is an address that the system chooses.
const anyPort = "127.0.0.1:0"

// benchParts has everything embedded, in a folder of its own.
func benchParts(dir string) serveConfig {
	return serveConfig{
		dataDir: filepath.Join(dir, "system-"+uuid.NewString()), eventStore: embedded, eventStoreListen: anyPort, kafka: embedded, kafkaListen: anyPort,
		database: embedded, roles: roles, topicPartitions: 12, topicRetention: 7 * 24 * time.Hour, plans: company.DefaultPlans(),
	}
}

func openBenchSystem(ctx context.Context, dir string) (*benchSystem, error) {
	return openBenchSystemWith(ctx, benchParts(dir), nil)
}

// openBenchSystemWith has others, which do what config's roles leave out, begin before the partner is made.
func openBenchSystemWith(ctx context.Context, config serveConfig, others func(*parts) error) (s *benchSystem, err error) {
	log := newLogger("text", "warn")
	parts, err := openParts(ctx, config, log)
	if err != nil {
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	running, background := errgroup.WithContext(background)
	s = &benchSystem{
		app: assemble(config, parts, prometheus.NewRegistry(), nil, log), stop: stop, running: running, background: background, sent: newPassages(),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: benchCallers + benchLocations, DisableCompression: true}},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.start(background, running)
	if s.api, err = s.app.api(); err != nil {
		return nil, err
	}
	server, address, err := listen(ctx, anyPort, s.api.Partner(), running)
	if err != nil {
		return nil, err
	}
	s.servers, s.url = []*http.Server{server}, "http://"+address
	if others != nil {
		if err := others(parts); err != nil {
			return nil, err
		}
	}
	return s, s.admit(ctx)
}

// admit makes the partner, its audio and its token.
func (s *benchSystem) admit(ctx context.Context) error {
	caller := commands.Caller{Actor: "operator", RequestID: "bench"}
	made, err := s.commands.RegisterCompany.Handle(ctx, commands.RegisterCompany{Caller: caller, Name: "Bench", Plan: company.Unlimited})
	if err != nil {
		return err
	}
	caller.CompanyID, caller.Environment, caller.Plan = made.CompanyID, event.Live, s.config.plans[company.Unlimited]
	s.caller = caller
	audioID, err := s.upload(ctx)
	if err != nil {
		return err
	}
	s.sendPath = "/api/v1/integration/audio/" + audioID + "/send"
	issued, err := s.commands.IssueToken.Handle(ctx, commands.IssueToken{Caller: caller, CompanyToken: made.CompanyToken, ExternalID: benchLocation(0)})
	if err != nil {
		return err
	}
	s.token = issued.Token
	return nil
}

// furnish makes benchLocations and connects a player to each of them.
func (s *benchSystem) furnish(ctx context.Context) error {
	for i := range benchLocations {
		_, err := s.commands.RegisterLocation.Handle(ctx, commands.RegisterLocation{
			Caller: s.caller, ExternalID: benchLocation(i), Details: location.Details{Name: "Store", Timezone: "UTC"},
		})
		if err != nil {
			return err
		}
		device, err := s.commands.EnrolDevice.Handle(ctx, commands.EnrolDevice{Caller: s.caller, ExternalID: benchLocation(i)})
		if err != nil {
			return err
		}
		if err := s.connect(s.background, device.Token); err != nil {
			return err
		}
	}
	return nil
}

// upload adds a second of silence to the library.
func (s *benchSystem) upload(ctx context.Context) (audioID string, err error) {
	wav := aSecond()
	sum := sha256.Sum256(wav)
	uploaded, err := s.commands.UploadAudio.Handle(ctx, commands.UploadAudio{
		Caller: s.caller, Details: audio.Details{Name: "Silence", Category: "announcement"}, File: bytes.NewReader(wav), Size: int64(len(wav)), SHA256: hex.EncodeToString(sum[:]),
	})
	return uploaded.AudioID, err
}

// populate imports so many locations, from one on, and waits until sends reach them.
func (s *benchSystem) populate(ctx context.Context, first, locations int) error {
	for from := first; from < first+locations; from += commands.MaxImport {
		rows := make([]commands.ImportedLocation, min(commands.MaxImport, first+locations-from))
		for i := range rows {
			rows[i] = commands.ImportedLocation{ExternalID: benchLocation(from + i), Details: location.Details{Name: "Store", Timezone: "UTC"}}
		}
		results, _, err := s.commands.ImportLocations.Handle(ctx, commands.ImportLocations{Caller: s.caller, Locations: rows})
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return fmt.Errorf("import %s: %w", r.ExternalID, r.Err)
			}
		}
	}
	return nil
}

func benchLocation(i int) string { return fmt.Sprintf("store_%04d", i) }

// connect opens the stream of a location's player, which notes what arrives until ctx ends.
func (s *benchSystem) connect(ctx context.Context, deviceToken string) error {
	resp, err := s.call(ctx, http.MethodGet, "/api/player/v1/stream", "Authorization", "Bearer "+deviceToken, "")
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.Join(fmt.Errorf("a player's stream: %s", resp.Status), resp.Body.Close())
	}
	s.running.Go(func() error {
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
			if !ok {
				continue
			}
			now := time.Now()
			var delivery struct{ SendID string }
			if err := json.Unmarshal(data, &delivery); err != nil {
				return fmt.Errorf("a player's stream: %w", err)
			}
			s.sent.note(delivery.SendID, func(p *passage) { p.arrived = now })
		}
		return nil
	})
	return nil
}

// send sends to the next location, and notes when it was accepted.
func (s *benchSystem) send(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, benchPatience)
	defer cancel()
	body := fmt.Sprintf(`{"externalIds": [%q]}`, benchLocation(int(s.begun.Add(1))%benchLocations))
	began := time.Now()
	resp, err := s.call(ctx, http.MethodPost, s.sendPath, "X-API-Key", s.token, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	now := time.Now()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("a send was answered with %s: %s", resp.Status, raw)
	}
	var accepted struct{ Data struct{ SendID string } }
	if err := json.Unmarshal(raw, &accepted); err != nil {
		return err
	}
	s.sent.note(accepted.Data.SendID, func(p *passage) { p.begun, p.accepted = began, now })
	return nil
}

func (s *benchSystem) call(ctx context.Context, method, path, header, value, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set(header, value)
	req.Header.Set("Content-Type", "application/json")
	return s.client.Do(req)
}

func (s *benchSystem) close() error {
	err := drain(s.api, s.servers, slog.New(slog.DiscardHandler))
	s.stop()
	err = errors.Join(err, within(stopTimeout, "the workers", s.running.Wait))
	s.client.CloseIdleConnections()
	return errors.Join(err, s.parts.close())
}

// passage is the way of one send, as far as it is known. It can be at the player before its caller has the answer.
type passage struct{ begun, accepted, arrived time.Time }

func (p passage) sinceBegun() time.Duration { return p.arrived.Sub(p.begun) }

func (p passage) sinceAccepted() time.Duration { return max(0, p.arrived.Sub(p.accepted)) }

// passages are the sends on their way.
type passages struct {
	mu      sync.Mutex
	open    map[string]passage
	done    []passage
	settled chan struct{} // closed, and replaced, when none is open
}

func newPassages() *passages {
	return &passages{open: map[string]passage{}, settled: make(chan struct{})}
}

func (p *passages) note(sendID string, change func(*passage)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := p.open[sendID]
	change(&one)
	if one.accepted.IsZero() || one.arrived.IsZero() {
		p.open[sendID] = one
		return
	}
	delete(p.open, sendID)
	p.done = append(p.done, one)
	if len(p.open) == 0 {
		close(p.settled)
		p.settled = make(chan struct{})
	}
}

// all waits until everything that was accepted is at its player, and takes what arrived since it was called last.
func (p *passages) all(ctx context.Context) ([]passage, error) {
	patience := time.NewTimer(benchPatience)
	defer patience.Stop()
	for {
		p.mu.Lock()
		open, done, settled := len(p.open), p.done, p.settled
		if open == 0 {
			p.done = nil
		}
		p.mu.Unlock()
		if open == 0 {
			return done, nil
		}
		select {
		case <-settled:
		case <-patience.C:
			return nil, fmt.Errorf("%d sends are not at their players after %v", open, benchPatience)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// aSecond is a second of silence as a WAV file: 8,000 samples of one byte.
func aSecond() []byte {
	const rate = 8000
	wav := []byte("RIFF")
	number := func(n uint32) { wav = binary.LittleEndian.AppendUint32(wav, n) }
	number(36 + rate)
	wav = append(wav, "WAVEfmt "...)
	number(16)
	number(1 | 1<<16) // PCM, one channel
	number(rate)
	number(rate)
	number(1 | 8<<16) // one byte a frame, eight bits a sample
	wav = append(wav, "data"...)
	number(rate)
	return append(wav, bytes.Repeat([]byte{128}, rate)...)
}
