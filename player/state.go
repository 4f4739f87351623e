package player

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/musique/musique/domain/playback"
)

const (
	stateFile = "state.json"
	// maxFinished bounds the deliveries that are remembered as done, so that none is played twice when the network repeats it.
	maxFinished = 10_000
)

// Order is what the server wants played, as it says it.
type Order struct {
	DeliveryID string     `json:"deliveryId"`
	SendID     string     `json:"sendId"`
	Audio      Audio      `json:"audio"`
	Priority   string     `json:"priority"`
	Repeat     int        `json:"repeat"`
	Volume     int        `json:"volume"` // percent
	PlayAt     *time.Time `json:"playAt"`
	ExpiresAt  time.Time  `json:"expiresAt"`
}

// Audio is what an order plays.
type Audio struct {
	Name     string  `json:"name"`
	URL      string  `json:"url"`
	SHA256   string  `json:"sha256"`
	Format   string  `json:"format"`
	Duration float64 `json:"duration"` // seconds
}

func (o Order) length() time.Duration { return time.Duration(o.Audio.Duration * float64(time.Second)) }

func (o Order) title() string {
	name := o.Audio.Name
	if name == "" {
		name = o.DeliveryID
	}
	return fmt.Sprintf("%q (%.1f s)", name, o.Audio.Duration)
}

// report is the player's word on a delivery.
type report struct {
	DeliveryID string    `json:"deliveryId"`
	Status     string    `json:"status"`
	At         time.Time `json:"at"`
	Reason     string    `json:"reason,omitempty"`
}

// state is what outlives the process. Every change is on the disk, whole, before it takes effect.
type state struct {
	path string
	lock *os.File

	mu       sync.Mutex
	kept     kept
	finished map[string]bool
	reported chan struct{} // has room for one: there may be reports to send
}

type kept struct {
	LastEventID string   `json:"lastEventId"`
	Orders      []Order  `json:"orders"`   // in the order of arrival
	Finished    []string `json:"finished"` // the oldest first
	Reports     []report `json:"reports"`  // still to be sent, in order
}

func openState(dir string) (*state, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another player uses %s; give this one a --state-dir of its own", dir)
	}
	s := &state{path: filepath.Join(dir, stateFile), lock: lock, finished: map[string]bool{}, reported: make(chan struct{}, 1)}
	raw, err := os.ReadFile(s.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, errors.Join(fmt.Errorf("player: %w", err), lock.Close())
	default:
		if err := json.Unmarshal(raw, &s.kept); err != nil {
			return nil, errors.Join(fmt.Errorf("player: %s: %w", s.path, err), lock.Close())
		}
	}
	for _, id := range s.kept.Finished {
		s.finished[id] = true
	}
	s.reported <- struct{}{}
	return s, nil
}

func (s *state) close() { s.lock.Close() }

// change makes a change and puts it on the disk.
func (s *state) change(do func(*kept)) error {
	do(&s.kept)
	if extra := len(s.kept.Finished) - maxFinished; extra > 0 {
		for _, id := range s.kept.Finished[:extra] {
			delete(s.finished, id)
		}
		s.kept.Finished = slices.Clone(s.kept.Finished[extra:])
	}
	raw, err := json.Marshal(s.kept)
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	return writeWhole(s.path, raw)
}

// writeWhole replaces a file's content: after a crash it is the old or the new, whole.
func writeWhole(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	defer os.Remove(file.Name()) //nolint:errcheck // renamed away when all went well
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	return nil
}

func (s *state) lastEventID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.kept.LastEventID
}

// accept takes an order; news is false for one that is known, or done.
func (s *state) accept(eventID string, o Order) (news bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := slices.IndexFunc(s.kept.Orders, func(k Order) bool { return k.DeliveryID == o.DeliveryID })
	news = known < 0 && !s.finished[o.DeliveryID]
	return news, s.change(func(k *kept) {
		if eventID != "" {
			k.LastEventID = eventID
		}
		switch {
		case news:
			k.Orders = append(k.Orders, o)
		case known >= 0:
			k.Orders[known].Audio.URL = o.Audio.URL // signed anew
		}
	})
}

// drop forgets an order that was cancelled.
func (s *state) drop(eventID, deliveryID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(k *kept) {
		if eventID != "" {
			k.LastEventID = eventID
		}
		s.forget(k, deliveryID)
	})
}

// finish ends an order, with its last reports.
func (s *state) finish(deliveryID string, last ...report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	return s.change(func(k *kept) {
		s.forget(k, deliveryID)
		k.Reports = append(k.Reports, last...)
	})
}

func (s *state) forget(k *kept, deliveryID string) {
	k.Orders = slices.DeleteFunc(k.Orders, func(o Order) bool { return o.DeliveryID == deliveryID })
	if !s.finished[deliveryID] {
		s.finished[deliveryID] = true
		k.Finished = append(k.Finished, deliveryID)
	}
}

func (s *state) report(r report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	return s.change(func(k *kept) { k.Reports = append(k.Reports, r) })
}

func (s *state) wake() {
	select {
	case s.reported <- struct{}{}:
	default:
	}
}

// firstReport is the next to send.
func (s *state) firstReport() (report, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept.Reports) == 0 {
		return report{}, false
	}
	return s.kept.Reports[0], true
}

// sent takes the first report off the list.
func (s *state) sent() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(k *kept) { k.Reports = slices.Delete(k.Reports, 0, 1) })
}

func (s *state) order(id string) (Order, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.kept.Orders {
		if o.DeliveryID == id {
			return o, true
		}
	}
	return Order{}, false
}

func (s *state) orders() []Order {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.kept.Orders)
}

// next is the most pressing order that want wants, the oldest of its priority.
func (s *state) next(want func(Order) bool) (found Order, ok bool) {
	best := playback.Priority(-1)
	for _, o := range s.orders() {
		if p, _ := playback.ParsePriority(o.Priority); p > best && want(o) {
			found, best, ok = o, p, true
		}
	}
	return found, ok
}
