package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// kills is how often the server is killed at work, and as often while it starts.
	kills = 4
	// maxStarting and maxWork bound how long it lives each time.
	maxStarting = 1500 * time.Millisecond
	maxWork     = 1200 * time.Millisecond
	// callers send requests at the same time, each one after the other.
	callers = 4
	// retryPause is the pause before somebody who lost the server looks for it again.
	retryPause = 20 * time.Millisecond
)

var crashShops = []string{"shop_1", "shop_2", "shop_3"}

// TestKilledAtRandomMoments kills the server again and again amid uploads and sends, and amid its starts. What it answered must be there, what it did not
// answer must be there whole or not at all, and a repeated request must get the first one's result.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := filepath.Join(t.TempDir(), "data")
	s := serveOn(t, dir)
	c := &chaos{t: t, api: s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "unlimited").CompanyToken, "hq")}
	c.audio = []string{c.api.upload("the first", aSecond())}
	var shops []*crashShop
	for _, name := range crashShops {
		shops = append(shops, newCrashShop(t, name, c.api.location(name), s.url))
	}
	for kill := range kills {
		work, stop := context.WithCancel(t.Context())
		var working sync.WaitGroup
		for caller := range callers {
			working.Go(func() { c.work(work, rand.New(rand.NewPCG(seed, uint64(1+kill*callers+caller)))) })
		}
		<-time.After(time.Duration(random.Int64N(int64(maxWork))))
		s.kill()
		stop()
		working.Wait()

		starting := launch(t, append([]string{"serve", "--data-dir", dir, "--log-format", "json"}, freePorts...)...)
		<-time.After(time.Duration(random.Int64N(int64(maxStarting))))
		starting.kill()
		s = serveOn(t, dir)
		c.use(s)
		for _, shop := range shops {
			shop.connect(s.url)
		}
	}
	require.Greater(t, c.settle(), kills, "something was going on")
	c.check(shops)
	s.terminate()
}

// settle asks for what was not answered until it is, and for everything once more. It tells how many requests had been answered before.
func (c *chaos) settle() (answered int) {
	answered = c.answered()
	for c.more() {
		c.work(c.t.Context(), nil)
	}
	c.t.Logf("%d requests, %d of them answered before the last kill", len(c.requests), answered)
	c.repeatAll()
	return answered
}

// chaos is a partner whose server dies all the time.
type chaos struct {
	t   *testing.T
	api api

	others []api // of the same service; requests go to all by turns

	mu       sync.Mutex
	asked    int
	requests []*crashRequest
	open     []*crashRequest // sent, and not answered
	audio    []string        // uploaded
}

// crashRequest is an upload or a send, with its Idempotency-Key.
type crashRequest struct {
	key string
	id  string // of what it made; "" until it was answered
	// The audio of an upload; nil for a send.
	content []byte
	// What is sent, and where.
	audioID string
	shops   []string
}

// work sends requests until ctx ends, or until there is no server: first those that were not answered, then new ones if there is something random.
func (c *chaos) work(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		r := c.next(random)
		if r == nil {
			return
		}
		got, err := c.ask(ctx, r)
		if err != nil || got.status >= 500 {
			if err == nil {
				c.unavailable(got)
			}
			c.mu.Lock()
			c.open = append(c.open, r)
			alone := len(c.others) == 0
			c.mu.Unlock()
			if err != nil && alone {
				return
			}
			continue
		}
		c.take(r, got)
	}
}

// unavailable notes an error that is not the one for what is away for a while.
func (c *chaos) unavailable(got answer) {
	var body struct{ Error struct{ Code string } }
	if got.status != http.StatusServiceUnavailable || json.Unmarshal(got.body, &body) != nil || body.Error.Code != "service_unavailable" || got.header.Get("Retry-After") == "" {
		c.t.Errorf("%d %s", got.status, got.body)
	}
}

func (c *chaos) next(random *rand.Rand) *crashRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.open); n > 0 {
		r := c.open[0]
		c.open = c.open[1:]
		return r
	}
	if random == nil {
		return nil
	}
	n := len(c.requests)
	r := &crashRequest{key: fmt.Sprintf("request-%d", n)}
	if random.IntN(3) == 0 {
		r.content = aSecond()
		binary.LittleEndian.PutUint32(r.content[len(r.content)-4:], uint32(n)) // no two sound the same
	} else {
		r.audioID = c.audio[random.IntN(len(c.audio))]
		r.shops = slices.Clone(crashShops)
		random.Shuffle(len(r.shops), func(i, j int) { r.shops[i], r.shops[j] = r.shops[j], r.shops[i] })
		r.shops = r.shops[:1+random.IntN(len(r.shops))]
		slices.Sort(r.shops)
	}
	c.requests = append(c.requests, r)
	return r
}

// use has requests go to these servers from now on.
func (c *chaos) use(servers ...*server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others = nil
	for _, s := range servers[1:] {
		c.others = append(c.others, c.api.on(s))
	}
	c.api = c.api.on(servers[0])
}

// turn is where the next request goes.
func (c *chaos) turn() api {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if turn := c.asked % (1 + len(c.others)); turn > 0 {
		return c.others[turn-1]
	}
	return c.api
}

func (c *chaos) ask(ctx context.Context, r *crashRequest) (answer, error) {
	api := c.turn()
	if r.content != nil {
		contentType, body := uploadForm(c.t, r.key, r.content)
		return api.try(ctx, http.MethodPost, "/audio", contentType, r.key, body)
	}
	body, err := json.Marshal(object{"externalIds": r.shops})
	if err != nil {
		return answer{}, err
	}
	return api.try(ctx, http.MethodPost, "/audio/"+r.audioID+"/send", "application/json", r.key, body)
}

// made is the ID of what a request made, by its answer.
func (r *crashRequest) made(got answer) (id string, ok bool) {
	var body struct {
		Data struct{ AudioID, SendID string }
	}
	if got.status != http.StatusCreated && got.status != http.StatusAccepted || json.Unmarshal(got.body, &body) != nil {
		return "", false
	}
	if r.content != nil {
		return body.Data.AudioID, true
	}
	return body.Data.SendID, true
}

// take notes what a request made.
func (c *chaos) take(r *crashRequest, got answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := r.made(got)
	if !ok {
		c.t.Errorf("%s: %d %s", r.key, got.status, got.body)
		return
	}
	r.id = id
	if r.content != nil {
		c.audio = append(c.audio, id)
	}
}

func (c *chaos) answered() (n int) {
	for _, r := range c.requests {
		if r.id != "" {
			n++
		}
	}
	return n
}

func (c *chaos) more() bool { return len(c.open) > 0 && !c.t.Failed() }

// repeatAll asks for everything once more.
func (c *chaos) repeatAll() {
	var all sync.WaitGroup
	for caller := range callers {
		all.Go(func() {
			for i := caller; i < len(c.requests); i += callers {
				r := c.requests[i]
				got, err := c.ask(c.t.Context(), r)
				if id, ok := r.made(got); err != nil || !ok || id != r.id || got.header.Get("Idempotency-Replayed") != "true" {
					c.t.Errorf("%s made %s, and repeated: %d %v %s %v", r.key, r.id, got.status, got.header, got.body, err)
				}
			}
		})
	}
	all.Wait()
	require.False(c.t, c.t.Failed())
}

// check compares what there is with what was answered.
func (c *chaos) check(shops []*crashShop) {
	t := c.t
	uploads, sends := map[string]*crashRequest{}, map[string]*crashRequest{}
	expected := map[string][]string{} // the sends of each shop
	for _, r := range c.requests {
		if r.content != nil {
			uploads[r.id] = r
			continue
		}
		sends[r.id] = r
		for _, name := range r.shops {
			expected[name] = append(expected[name], r.id)
		}
	}

	type audioData struct{ AudioID, Name, URL, SHA256 string }
	stored := everything[audioData](c.api, "/audio")
	require.Len(t, stored, len(uploads)+1, "and the first")
	for _, a := range stored {
		if r := uploads[a.AudioID]; r != nil {
			sum := sha256.Sum256(r.content)
			require.Equal(t, hex.EncodeToString(sum[:]), a.SHA256)
			require.Equal(t, r.key, a.Name)
		}
		resp, err := http.Get(a.URL)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
	quota := want[struct {
		Quota struct{ Uploads struct{ Used int } }
	}](c.api.get("/limits"), http.StatusOK).Quota
	require.Equal(t, len(uploads)+1, quota.Uploads.Used, "each is counted once")

	type sendData struct{ SendID, Status string }
	accepted := everything[sendData](c.api, "/sends")
	require.Len(t, accepted, len(sends))
	for _, s := range accepted {
		require.Contains(t, sends, s.SendID)
		var to []string
		for _, d := range c.api.deliveries(s.SendID) {
			to = append(to, d.ExternalID)
		}
		slices.Sort(to)
		require.Equal(t, sends[s.SendID].shops, to, "all of its shops, or none")
	}

	var reporting sync.WaitGroup
	for _, shop := range shops {
		shop.awaits(expected[shop.name])
		reporting.Go(func() { shop.playAll(c.api.url) })
	}
	reporting.Wait()
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(everything[sendData](c.api, "/sends"), func(s sendData) bool { return s.Status != "sent" })
	}, patience, 100*time.Millisecond)
	for _, shop := range shops {
		shop.awaits(expected[shop.name]) // nothing has come twice meanwhile
	}
}

// everything walks all pages of a list.
func everything[T any](a api, path string) (all []T) {
	a.t.Helper()
	for cursor := ""; ; {
		got := a.get(path + "?limit=100&cursor=" + cursor)
		all = append(all, want[[]T](got, http.StatusOK)...)
		var page struct {
			Pagination struct {
				HasMore    bool
				NextCursor string
			}
		}
		require.NoError(a.t, json.Unmarshal(got.body, &page))
		if !page.Pagination.HasMore {
			return all
		}
		cursor = page.Pagination.NextCursor
	}
}

// crashShop is a plain client of a location's stream: it takes what comes, and connects again where it was.
type crashShop struct {
	t     *testing.T
	name  string
	token string

	mu      sync.Mutex
	url     string
	lastID  string
	came    []string // deliveries, as they came
	sendIDs []string // of those
	changed chan struct{}
}

func newCrashShop(t *testing.T, name, token, url string) *crashShop {
	s := &crashShop{t: t, name: name, token: token, url: url, changed: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			s.listen(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// connect says where the server is now.
func (s *crashShop) connect(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.url = url
}

// listen takes events until the connection breaks.
func (s *crashShop) listen(ctx context.Context) {
	s.mu.Lock()
	url, lastID := s.url, s.lastID
	s.mu.Unlock()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/player/v1/stream", nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	r.Header.Set("Authorization", "Bearer "+s.token)
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode < 500 {
		s.t.Errorf("%s: the stream answered %s", s.name, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	var id, kind, data string
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = value
		case "":
			if kind == "deliver" {
				s.take(id, data)
			}
			kind = ""
		}
	}
}

func (s *crashShop) take(id, data string) {
	var order struct{ DeliveryID, SendID string }
	if err := json.Unmarshal([]byte(data), &order); err != nil {
		s.t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID = id
	s.came, s.sendIDs = append(s.came, order.DeliveryID), append(s.sendIDs, order.SendID)
	close(s.changed)
	s.changed = make(chan struct{})
}

// awaits waits until everything of these sends has come, and requires that nothing else did, nor anything twice.
func (s *crashShop) awaits(sendIDs []string) {
	s.t.Helper()
	timeout := time.After(patience)
	for {
		s.mu.Lock()
		came, changed := slices.Clone(s.sendIDs), s.changed
		s.mu.Unlock()
		if len(came) >= len(sendIDs) {
			slices.Sort(came)
			slices.Sort(sendIDs)
			require.Equal(s.t, sendIDs, came, s.name)
			return
		}
		select {
		case <-changed:
		case <-timeout:
			s.t.Fatalf("%s got %d deliveries of %d", s.name, len(came), len(sendIDs))
		}
	}
}

// playAll reports everything that came as played.
func (s *crashShop) playAll(url string) {
	for _, deliveryID := range s.came {
		r, err := http.NewRequest(http.MethodPost, url+"/api/player/v1/deliveries/"+deliveryID, strings.NewReader(`{"status":"played"}`))
		if err != nil {
			s.t.Error(err)
			return
		}
		r.Header.Set("Authorization", "Bearer "+s.token)
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			s.t.Error(err)
			return
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			s.t.Errorf("%s: the report of %s was answered %s", s.name, deliveryID, resp.Status)
		}
	}
}
