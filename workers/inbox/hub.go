package inbox

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/infra/postgres"
)

const (
	// relistenPause is the pause before a broken connection is opened again.
	relistenPause = 250 * time.Millisecond
	listenTimeout = 5 * time.Second
	// aliveEvery is how often a connection that brought nothing is asked whether it lives.
	aliveEvery = 10 * time.Second
)

// Hub wakes those who wait for a location's items, and reads them. One connection listens for all of a process.
type Hub struct {
	pool  *pgxpool.Pool
	log   *slog.Logger
	reads *postgres.Gatherer[reading]

	mu      sync.Mutex
	waiting map[Location]map[chan struct{}]struct{}
	all     map[chan struct{}]struct{}
}

// NewHub makes a hub; Run makes it listen.
func NewHub(pool *pgxpool.Pool, log *slog.Logger) *Hub {
	h := &Hub{pool: pool, log: log, waiting: map[Location]map[chan struct{}]struct{}{}, all: map[chan struct{}]struct{}{}}
	h.reads = postgres.NewGatherer(maxReads, h.read)
	return h
}

// Subscribe gives a channel that is signalled whenever a location may have new items; several signals can be one. Call stop when done. Subscribe first,
// then read with After: nothing is missed so.
func (h *Hub) Subscribe(l Location) (wake <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting[l] == nil {
		h.waiting[l] = map[chan struct{}]struct{}{}
	}
	h.waiting[l][c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiting[l], c)
		if len(h.waiting[l]) == 0 {
			delete(h.waiting, l)
		}
	}
}

// SubscribeAll is Subscribe for the items of every location.
func (h *Hub) SubscribeAll() (wake <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[c] = struct{}{}
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, c)
	}
}

// Run listens until ctx ends. After each connection everyone is woken, since notifications may have been missed.
func (h *Hub) Run(ctx context.Context) error {
	for {
		err := h.listen(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it was told to end
		}
		h.log.Warn("the inbox's notifications cannot be listened to; connecting again", "error", err)
		select {
		case <-time.After(relistenPause):
		case <-ctx.Done():
			return nil
		}
	}
}

func (h *Hub) listen(ctx context.Context) error {
	dialCtx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(dialCtx, h.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it is given up either way
	}()
	if _, err := conn.Exec(dialCtx, "LISTEN "+channel); err != nil {
		return err
	}
	h.wakeAll()
	for {
		quiet, cancel := context.WithTimeout(ctx, aliveEvery)
		got, err := conn.WaitForNotification(quiet)
		timedOut := quiet.Err() != nil
		cancel()
		switch {
		case err == nil:
			h.wake(got.Payload)
		case ctx.Err() != nil:
			return ctx.Err()
		case timedOut && !conn.IsClosed():
			pingCtx, cancel := context.WithTimeout(ctx, listenTimeout)
			err := conn.Ping(pingCtx)
			cancel()
			if err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (h *Hub) wake(payload string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key := range strings.SplitSeq(payload, " ") {
		if l, ok := parseKey(key); ok {
			signal(h.waiting[l])
		}
	}
	signal(h.all)
}

func (h *Hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, waiting := range h.waiting {
		signal(waiting)
	}
	signal(h.all)
}

func signal(waiting map[chan struct{}]struct{}) {
	for c := range waiting {
		select {
		case c <- struct{}{}:
		default: // a signal is there already
		}
	}
}
