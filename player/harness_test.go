package player_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/player"
)

// These tests run in the virtual time of testing/synctest: days pass in milliseconds, and a sound of ten seconds takes exactly ten. The player speaks real
// HTTP with a real server; only the wire between them is the test's own, since the kernel's knows no virtual time.

const deviceToken = "dev_of_this_shop"

// station is the other side of the player's protocol, as http/player.go speaks it.
type station struct {
	network
	t   *testing.T
	url string

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	items   []item
	closed  map[string]bool
	media   map[string][]byte // by digest
	// signature is what the URLs of audio are valid with.
	signature int
	// offset is how far the station's clock is from the machine's.
	offset time.Duration
	// mute keeps the stream silent, without heartbeats.
	mute bool
	// before can answer a request in the station's place.
	before func(http.ResponseWriter, *http.Request) bool

	reports   []reported
	resumed   []string // the Last-Event-IDs of the streams, in order
	downloads map[string]int
}

// item is an event of the stream.
type item struct {
	seq      int
	kind, id string
	data     func() []byte
}

// reported is a report that the station took.
type reported struct {
	DeliveryID, Status, Reason string
	At                         time.Time
}

func (r reported) String() string { return r.DeliveryID + " " + r.Status }

// bubble runs a test with a station of its own in virtual time.
func bubble(t *testing.T, test func(t *testing.T, s *station)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newStation(t)) })
}

func newStation(t *testing.T) *station {
	s := &station{
		t: t, url: "http://station.example", changed: make(chan struct{}), closed: map[string]bool{}, media: map[string][]byte{}, downloads: map[string]int{},
		network: network{arriving: make(chan net.Conn), closed: make(chan struct{}), open: map[net.Conn]struct{}{}},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/player/v1/stream", s.stream)
	mux.HandleFunc("POST /api/player/v1/deliveries/{id}", s.report)
	mux.HandleFunc("GET /media/{digest}", s.serveMedia)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", s.now().UTC().Format(http.TimeFormat))
		s.mu.Lock()
		before := s.before
		s.mu.Unlock()
		if before == nil || !before(w, r) {
			mux.ServeHTTP(w, r)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(&s.network) }()
	t.Cleanup(func() {
		s.cut()
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-served, http.ErrServerClosed)
	})
	return s
}

func (s *station) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.offset)
}

// change does something to the station and wakes its streams.
func (s *station) change(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	close(s.changed)
	s.changed = make(chan struct{})
}

// order is what to play, and for how long.
type order struct {
	id, audio, priority string
	length              time.Duration
	repeat, volume      int // volume 0 is 100
	playAt              time.Time
	life                time.Duration // 0 is a day
}

// digest is the name of an audio's bytes.
func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// deliver has an order played.
func (s *station) deliver(o order) {
	content := []byte("the sound of " + o.audio)
	if o.life == 0 {
		o.life = 24 * time.Hour
	}
	if o.volume == 0 {
		o.volume = 100
	}
	if o.priority == "" {
		o.priority = "normal"
	}
	expires := s.now().Add(o.life).UTC().Format(time.RFC3339Nano)
	var playAt any
	if !o.playAt.IsZero() {
		playAt = o.playAt.UTC().Format(time.RFC3339Nano)
	}
	s.change(func() { s.media[digest(content)] = content })
	s.event("deliver", o.id, func() []byte {
		raw, err := json.Marshal(map[string]any{
			"deliveryId": o.id, "sendId": "snd_1", "priority": o.priority, "repeat": max(o.repeat, 1), "volume": o.volume, "playAt": playAt, "expiresAt": expires,
			"audio": map[string]any{
				"audioId": "aud_1", "name": o.audio, "url": fmt.Sprintf("%s/media/%s?signature=%d", s.url, digest(content), s.signature),
				"sha256": digest(content), "format": "mp3", "duration": o.length.Seconds(), "size": len(content),
			},
		})
		if err != nil {
			panic(err) // strings and numbers
		}
		return raw
	})
}

func (s *station) cancel(id string) {
	s.change(func() { s.closed[id] = true })
	s.event("cancel", id, func() []byte { return fmt.Appendf(nil, `{"deliveryId":%q,"sendId":"snd_1"}`, id) })
}

// event puts an event into the stream.
func (s *station) event(kind, id string, data func() []byte) {
	s.change(func() { s.items = append(s.items, item{len(s.items) + 1, kind, id, data}) })
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%q,"message":"No.","type":"some_error","request_id":"req_1"},"timestamp":"2000-01-01T00:00:00Z"}`+"\n", code)
}

func (s *station) admit(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Authorization") == "Bearer "+deviceToken || strings.HasPrefix(r.Header.Get("Authorization"), "Bearer dev_other") {
		return true
	}
	fail(w, http.StatusUnauthorized, "invalid_token")
	return false
}

func (s *station) stream(w http.ResponseWriter, r *http.Request) {
	if !s.admit(w, r) {
		return
	}
	given := r.Header.Get("Last-Event-ID")
	after, err := strconv.Atoi(given)
	if given != "" && err != nil {
		fail(w, http.StatusBadRequest, "invalid_format")
		return
	}
	s.change(func() { s.resumed = append(s.resumed, given) })
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	write := func(text []byte) bool {
		_, err := w.Write(text)
		return err == nil && control.Flush() == nil
	}
	alive := write([]byte("retry: 2000\n\n"))
	for alive {
		s.mu.Lock()
		changed, mute := s.changed, s.mute
		var text bytes.Buffer
		for _, i := range s.items[min(after, len(s.items)):] {
			if i.kind == "cancel" && after == 0 || i.kind == "deliver" && s.closed[i.id] {
				continue
			}
			fmt.Fprintf(&text, "id: %d\nevent: %s\ndata: %s\n\n", i.seq, i.kind, i.data())
		}
		if !mute {
			after = len(s.items)
		}
		s.mu.Unlock()
		if text.Len() > 0 && !mute {
			alive = write(text.Bytes())
		}
		select {
		case <-changed:
		case <-time.After(15 * time.Second):
			alive = mute || write([]byte(": heartbeat\n\n"))
		case <-r.Context().Done():
			return
		}
	}
}

func (s *station) report(w http.ResponseWriter, r *http.Request) {
	if !s.admit(w, r) {
		return
	}
	body := json.NewDecoder(r.Body)
	body.DisallowUnknownFields()
	var given struct {
		Status string    `json:"status"`
		At     time.Time `json:"at"`
		Reason string    `json:"reason"`
	}
	id := r.PathValue("id")
	known := func(i item) bool { return i.kind != "cancel" && i.id == id }
	switch err := body.Decode(&given); {
	case err != nil:
		fail(w, http.StatusBadRequest, "invalid_format")
		return
	case !slices.Contains([]string{"delivered", "playing", "played", "failed"}, given.Status) || len(given.Reason) > 500:
		fail(w, http.StatusBadRequest, "out_of_range")
		return
	case !slices.ContainsFunc(s.sent(), known):
		fail(w, http.StatusNotFound, "not_found")
		return
	}
	s.change(func() {
		s.reports = append(s.reports, reported{id, given.Status, given.Reason, given.At})
		if given.Status == "played" || given.Status == "failed" {
			s.closed[id] = true
		}
	})
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	fmt.Fprintf(w, `{"data":{"deliveryId":%q,"status":%q},"timestamp":"2000-01-01T00:00:00Z"}`+"\n", id, given.Status)
}

func (s *station) serveMedia(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("digest")
	s.mu.Lock()
	s.downloads[string(s.media[name])]++
	content, valid := s.media[name], r.URL.Query().Get("signature") == strconv.Itoa(s.signature)
	s.mu.Unlock()
	if !valid {
		fail(w, http.StatusNotFound, "not_found")
		return
	}
	_, _ = w.Write(content) // the player may have gone
}

func (s *station) sent() []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.items)
}

// told lists the reports as `delivery status`, in order.
func (s *station) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, r := range s.reports {
		lines = append(lines, r.String())
	}
	return lines
}

// last is the last report.
func (s *station) last() reported {
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NotEmpty(s.t, s.reports)
	return s.reports[len(s.reports)-1]
}

func (s *station) downloaded(audio string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.downloads["the sound of "+audio]
}

func (s *station) streams() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.resumed)
}

// answer lets before answer in the station's place; nil is nobody.
func (s *station) answer(before func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

// network is the wire between players and a station.
type network struct {
	arriving chan net.Conn
	closed   chan struct{}
	once     sync.Once

	mu    sync.Mutex
	down  bool
	open  map[net.Conn]struct{}
	dials int
}

var errDown = errors.New("no route to host")

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	down := n.down
	here, there := net.Pipe()
	if !down {
		n.open[here] = struct{}{}
	}
	n.mu.Unlock()
	if down {
		return nil, errDown
	}
	select {
	case n.arriving <- there:
		return here, nil
	case <-n.closed:
		return nil, errDown
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cut breaks every connection.
func (n *network) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.open {
		c.Close()
	}
	clear(n.open)
}

// setDown takes the network away, or brings it back.
func (n *network) setDown(down bool) {
	n.mu.Lock()
	n.down = down
	n.mu.Unlock()
	if down {
		n.cut()
	}
}

func (n *network) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// Accept implements net.Listener.
func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.arriving:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (n *network) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

// Addr implements net.Listener.
func (n *network) Addr() net.Addr { return &net.TCPAddr{} }

// performance is what a stage played.
type performance struct {
	Audio      string
	From, Took time.Duration
	Volume     int
	Whole      bool // to its end
	Begun      time.Time
}

// stage is a backend that plays in virtual time and remembers what.
type stage struct {
	simulated player.Backend

	mu       sync.Mutex
	played   []performance
	playing  int
	overlaps bool
	broken   error
}

func (*stage) Name() string { return "a stage" }

func (b *stage) Play(ctx context.Context, sound player.Sound) error {
	begun := time.Now()
	content, err := os.ReadFile(sound.File)
	b.mu.Lock()
	b.playing++
	b.overlaps = b.overlaps || b.playing > 1
	if err == nil {
		err = b.broken
	}
	b.mu.Unlock()
	if err == nil {
		err = b.simulated.Play(ctx, sound)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.playing--
	b.played = append(b.played, performance{
		strings.TrimPrefix(string(content), "the sound of "), sound.From, time.Since(begun), sound.Volume, err == nil, begun,
	})
	return err
}

func (b *stage) setBroken(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = err
}

func (b *stage) performances() []performance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.played)
}

// heard lists what was played, `!` after what did not come to its end.
func (b *stage) heard() []string {
	var all []string
	for _, p := range b.performances() {
		if !p.Whole {
			p.Audio += "!"
		}
		all = append(all, p.Audio)
	}
	return all
}

// shop is a location with a player.
type shop struct {
	t       *testing.T
	station *station
	stage   *stage
	out     *output
	options player.Options
	stop    context.CancelFunc
	ended   chan error
}

func newShop(t *testing.T, s *station) *shop {
	simulated, err := player.Find(player.Simulated)
	require.NoError(t, err)
	p := &shop{t: t, station: s, stage: &stage{simulated: simulated}, out: &output{}}
	p.options = player.Options{
		Server: s.url, DeviceToken: deviceToken, StateDir: player.MemoryDir(t), Backend: p.stage, Output: p.out,
		Log:  slog.New(slog.NewTextHandler(p.out, nil)),
		HTTP: &http.Client{Transport: &http.Transport{DialContext: s.dial}},
	}
	t.Cleanup(func() {
		if p.stop != nil {
			p.stop()
			require.NoError(t, <-p.ended)
		}
		p.options.HTTP.CloseIdleConnections()
		if t.Failed() {
			t.Log(p.out.String())
		}
	})
	return p
}

// opened makes a shop and starts its player.
func opened(t *testing.T, s *station) *shop {
	p := newShop(t, s)
	p.start()
	return p
}

// start starts the player.
func (p *shop) start() {
	p.t.Helper()
	require.Nil(p.t, p.stop)
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	p.ended = make(chan error, 1)
	go func() { p.ended <- player.Run(ctx, p.options) }()
	synctest.Wait()
}

// end stops the player in an orderly way.
func (p *shop) end() {
	p.t.Helper()
	p.stop()
	require.NoError(p.t, <-p.ended)
	p.stop = nil
}

// exit waits for the player to end by itself.
func (p *shop) exit() error {
	defer func() { p.stop = nil }()
	defer p.stop()
	return <-p.ended
}

// pass lets time pass, to the end of all that happens in it.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// output is a writer for several goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
