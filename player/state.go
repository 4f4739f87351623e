package player

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	// corruptFile is what a state file that cannot be read is kept as, for whoever wants to know why.
	corruptFile = "state.json.corrupt"
	// newFiles are files that are being written; those of a killed run are removed.
	newFiles = ".new-"
	// maxFinished bounds the deliveries that are remembered as done, so that none is played twice when the network repeats it.
	maxFinished = 10_000
)

// progress is how far a delivery has come: after an interruption or a restart it goes on from there.
type progress struct {
	// Delivered and Playing say that this was reported.
	Delivered bool `json:"delivered,omitempty"`
	Playing   bool `json:"playing,omitempty"`
	// Rounds are those that were played to the end, Offset is how far into the next one it came.
	Rounds int           `json:"rounds,omitempty"`
	Offset time.Duration `json:"offset,omitempty"`
}

// task is an order and how far it has come.
type task struct {
	Order
	Done progress `json:"done"`
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
	ctx  context.Context // of the run: a disk that is full is waited for as long as it lasts
	path string
	lock *os.File
	log  *slog.Logger

	mu       sync.Mutex
	kept     kept
	finished map[string]bool
	reported chan struct{} // has room for one: there may be reports to send
}

type kept struct {
	// Device says in short whose state it is: the server's and the device's.
	Device      string   `json:"device"`
	LastEventID string   `json:"lastEventId"`
	Orders      []task   `json:"orders"`   // in the order of arrival
	Finished    []string `json:"finished"` // the oldest first
	Reports     []report `json:"reports"`  // still to be sent, in order
}

// openState opens the state in a folder that no other player uses.
func openState(ctx context.Context, dir, server, token string, log *slog.Logger) (*state, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another player uses %s; give this one a --state-dir of its own", dir)
	}
	s := &state{
		ctx: ctx, path: filepath.Join(dir, stateFile), lock: lock, log: log, finished: map[string]bool{}, reported: make(chan struct{}, 1),
	}
	removeUnfinished(dir)
	if err := s.read(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if device := sha256.Sum256([]byte(server + "\n" + token)); s.kept.Device != hex.EncodeToString(device[:8]) {
		// Another device's place in its stream means nothing to this one, and what is still to be played here the server tells from the beginning.
		s.kept.Device, s.kept.LastEventID, s.kept.Orders = hex.EncodeToString(device[:8]), "", nil
	}
	for _, id := range s.kept.Finished {
		s.finished[id] = true
	}
	s.reported <- struct{}{}
	return s, nil
}

// read reads the file. One that a broken disk or a lost supply left unreadable is put aside and not in the way: a shop whose player does not start any more
// is worse off than one that hears something twice, since a player without a state is told all that is open.
func (s *state) read() error {
	raw, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	if err := json.Unmarshal(raw, &s.kept); err != nil {
		aside := filepath.Join(filepath.Dir(s.path), corruptFile)
		s.log.Error("the player's state cannot be read; it begins anew", "file", s.path, "kept", aside, "error", err)
		s.kept = kept{}
		if err := os.Rename(s.path, aside); err != nil {
			return fmt.Errorf("player: %w", err)
		}
	}
	return nil
}

func removeUnfinished(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, newFiles+"*")) // fails for bad patterns only
	for _, file := range files {
		_ = os.Remove(file) // it only takes room
	}
}

func (s *state) close() { s.lock.Close() }

// change makes a change and puts it on the disk. A disk that does not take it, since it is full, is tried until it does: nothing can be promised to the
// server meanwhile.
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
	for failures := 0; ; failures++ {
		if err = writeWhole(s.path, raw); err == nil || s.ctx.Err() != nil {
			return err
		}
		s.log.Error("the player's state cannot be written; trying again", "error", err)
		pause(s.ctx, backoff(retryMin, failures))
	}
}

// writeWhole replaces a file's content: after a crash, of the machine too, it is the old or the new, whole.
func writeWhole(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), newFiles)
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	defer os.Remove(file.Name()) // renamed away when all went well
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
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
	known := s.find(o.DeliveryID)
	news = known < 0 && !s.finished[o.DeliveryID]
	return news, s.change(func(k *kept) {
		k.seen(eventID)
		switch {
		case news:
			k.Orders = append(k.Orders, task{Order: o})
		case known >= 0:
			k.Orders[known].Audio.URL = o.Audio.URL // signed anew
		}
	})
}

// drop ends an order: it is not obeyed again. The last reports on it are kept with that.
func (s *state) drop(eventID, deliveryID string, last ...report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	return s.change(func(k *kept) {
		k.seen(eventID)
		s.forget(k, deliveryID)
		k.Reports = append(k.Reports, last...)
	})
}

// seen notes how far the stream was read.
func (s *state) seen(eventID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(k *kept) { k.seen(eventID) })
}

// forgetPlace lets the stream begin anew.
func (s *state) forgetPlace() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(k *kept) { k.LastEventID = "" })
}

func (k *kept) seen(eventID string) {
	if eventID != "" {
		k.LastEventID = eventID
	}
}

func (s *state) forget(k *kept, deliveryID string) {
	k.Orders = slices.DeleteFunc(k.Orders, func(t task) bool { return t.DeliveryID == deliveryID })
	if deliveryID != "" && !s.finished[deliveryID] {
		s.finished[deliveryID] = true
		k.Finished = append(k.Finished, deliveryID)
	}
}

// advance notes how far a delivery has come, with the reports on that.
func (s *state) advance(deliveryID string, done progress, reports ...report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.find(deliveryID)
	if at < 0 {
		return nil
	}
	defer s.wake()
	return s.change(func(k *kept) {
		k.Orders[at].Done = done
		k.Reports = append(k.Reports, reports...)
	})
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

func (s *state) find(deliveryID string) int {
	return slices.IndexFunc(s.kept.Orders, func(t task) bool { return t.DeliveryID == deliveryID })
}

func (s *state) task(deliveryID string) (task, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.find(deliveryID); at >= 0 {
		return s.kept.Orders[at], true
	}
	return task{}, false
}

// tasks lists what is open, in the order of arrival.
func (s *state) tasks() []task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.kept.Orders)
}

// audio lists the audio of what is open.
func (s *state) audio() []Audio {
	var all []Audio
	for _, t := range s.tasks() {
		all = append(all, t.Audio)
	}
	return all
}

// next is the oldest order of a priority that want wants.
func (s *state) next(priority playback.Priority, want func(Order) bool) (Order, bool) {
	for _, t := range s.tasks() {
		if t.priority() == priority && want(t.Order) {
			return t.Order, true
		}
	}
	return Order{}, false
}
