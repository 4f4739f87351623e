package player

import (
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
	// corruptSuffix is what a file that cannot be read is kept under, for whoever wants to know why.
	corruptSuffix = ".corrupt"
	// newFiles are files that are being written; those of a killed run are removed.
	newFiles = ".new-"
	// maxFinished is how many deliveries are remembered as done, so that none is played twice when the network repeats it. They are forgotten by
	// finishedStep at once.
	maxFinished  = 10_000
	finishedStep = 1000
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
	// TraceParent is the order's.
	TraceParent string `json:"traceparent,omitempty"`
}

// state is what outlives the process. It is a file that holds it whole, and a journal of the changes since: each is on the disk before it takes effect.
//
// A disk that takes nothing, since it is full or broken, stops no sound: the changes are kept in memory then, and written whole as soon as they can be. A run
// that is killed before that goes on from what the disk has. The place in the stream there is the older one too, so what was taken since is told again; what
// was played meanwhile, and was told before, is played twice.
type state struct {
	dir  string
	lock *os.File
	log  *slog.Logger

	mu       sync.Mutex
	kept     kept
	finished map[string]bool
	journal  *journal
	cramped  bool          // the state could not be written whole, and the journal has some room left
	unsaved  bool          // the journal takes nothing either
	behind   chan struct{} // has room for one: the state is to be written whole
	reported chan struct{} // has room for one: there may be reports to send
}

type kept struct {
	// Generation is that of the journal that goes on from here.
	Generation int `json:"generation"`
	// Device says in short whose state it is: the server's and the device's.
	Device      string   `json:"device"`
	LastEventID string   `json:"lastEventId"`
	Orders      []task   `json:"orders"`   // in the order of arrival
	Finished    []string `json:"finished"` // the oldest first
	Reports     []report `json:"reports"`  // still to be sent, in order
}

// change is a line of the journal. What is not set stays as it is.
type change struct {
	// Event is how far the stream was read, and Anew says that this is forgotten.
	Event string `json:"event,omitempty"`
	Anew  bool   `json:"anew,omitempty"`
	// Order is one that was taken.
	Order *Order `json:"order,omitempty"`
	// Delivery is the one that the next three are of.
	Delivery string    `json:"delivery,omitempty"`
	URL      string    `json:"url,omitempty"`
	Done     *progress `json:"done,omitempty"`
	Over     bool      `json:"over,omitempty"`
	// Reports are to be sent, and Sent says that the first was.
	Reports []report `json:"reports,omitempty"`
	Sent    bool     `json:"sent,omitempty"`
}

// openState opens the state in a folder that no other player uses.
func openState(dir, server, token string, log *slog.Logger) (*state, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another player uses %s; give this one a --state-dir of its own", dir)
	}
	s := &state{dir: dir, lock: lock, log: log, finished: map[string]bool{}, behind: make(chan struct{}, 1), reported: make(chan struct{}, 1)}
	removeUnfinished(dir)
	s.read()
	if device := sha256.Sum256([]byte(server + "\n" + token)); s.kept.Device != hex.EncodeToString(device[:8]) {
		// Another device's place in its stream means nothing to this one, and what is still to be played here the server tells from the beginning.
		s.kept.Device, s.kept.LastEventID, s.kept.Orders = hex.EncodeToString(device[:8]), "", nil
		s.unsaved = true
	}
	if s.journal == nil {
		s.unsaved = true
	}
	if err := s.catchUp(); err != nil {
		s.fallBehind(err)
	}
	s.reported <- struct{}{}
	return s, nil
}

// read reads the files. One that a broken disk or a lost supply left unreadable is put aside and not in the way: a shop whose player does not start any more
// is worse off than one that hears something twice, since a player without a place in the stream is told all that is open.
func (s *state) read() {
	raw, err := os.ReadFile(filepath.Join(s.dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		raw, err = []byte("{}"), nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s.kept)
	}
	if err != nil {
		s.kept = kept{}
		s.putAside(stateFile, "the player's state cannot be read; it begins anew", err)
	}
	for _, id := range s.kept.Finished {
		s.finished[id] = true
	}
	path := filepath.Join(s.dir, journalFile)
	r, err := readJournal(path)
	if err == nil && r.generation < s.kept.Generation { // of the time before the whole was written
		return
	}
	if r.generation != s.kept.Generation {
		r.changes, err = nil, errors.Join(err, fmt.Errorf("it goes on from generation %d of %s, which is of generation %d", r.generation, stateFile, s.kept.Generation))
	}
	for _, c := range r.changes {
		s.apply(c)
	}
	if err != nil {
		s.putAside(journalFile, "the journal of the player's state cannot be read to its end; the server is asked for all that is open", err)
		s.kept.LastEventID = ""
		s.kept.Generation = max(s.kept.Generation, r.generation)
		return
	}
	if s.journal, err = goOn(path, r); err != nil {
		s.log.Warn("the journal of the player's state cannot be gone on with", "file", path, "error", err)
	}
}

// putAside keeps a file that cannot be read for people. A disk that does not let it be renamed is no reason to stop.
func (s *state) putAside(name, what string, why error) {
	path := filepath.Join(s.dir, name)
	err := os.Rename(path, path+corruptSuffix)
	s.log.Error(what, "file", path, "kept", path+corruptSuffix, "error", errors.Join(why, err))
}

func removeUnfinished(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, newFiles+"*")) // fails for bad patterns only
	for _, file := range files {
		_ = os.Remove(file) // it only takes room
	}
}

// close writes what the disk does not have yet, and the rest whole, so that the next run finds one file.
func (s *state) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.write(); err != nil && s.unsaved {
		s.log.Error("the player's state is not kept", "error", err)
	}
	if s.journal != nil {
		s.journal.close()
	}
	s.lock.Close()
}

// write writes the state whole, and begins a journal that goes on from it. A crash between the two leaves a journal of the generation before, which the new
// whole has in it.
func (s *state) write() error {
	s.kept.Generation++
	raw, err := json.Marshal(s.kept)
	if err != nil {
		return fmt.Errorf("player: %w", err)
	}
	if err := writeWhole(filepath.Join(s.dir, stateFile), raw); err != nil {
		return err
	}
	next, err := newJournal(filepath.Join(s.dir, journalFile), s.kept.Generation)
	if err != nil {
		return err
	}
	if s.journal != nil {
		s.journal.close()
	}
	s.journal, s.cramped, s.unsaved = next, false, false
	return nil
}

// change makes a change and puts it on the disk.
func (s *state) change(c change) {
	s.apply(c)
	if s.unsaved {
		return
	}
	if err := s.journal.add(c); err != nil {
		s.unsaved = true
		s.fallBehind(err)
		return
	}
	if s.journal.at >= crampedFrom && !s.cramped {
		if err := s.write(); err != nil {
			s.cramped = true
			s.fallBehind(err)
		}
	}
}

func (s *state) fallBehind(err error) {
	s.log.Error("the player's state cannot be written; it plays on and tries again", "dir", s.dir, "journal", !s.unsaved, "error", err)
	select {
	case s.behind <- struct{}{}:
	default:
	}
}

// catchUp writes the state whole after it could not be.
func (s *state) catchUp() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cramped && !s.unsaved {
		return nil
	}
	return s.write()
}

func (s *state) apply(c change) {
	k := &s.kept
	if c.Event != "" || c.Anew {
		k.LastEventID = c.Event
	}
	if c.Order != nil {
		k.Orders = append(k.Orders, task{Order: *c.Order})
	}
	if at := s.find(c.Delivery); c.Delivery != "" && at >= 0 {
		if c.URL != "" {
			k.Orders[at].Audio.URL = c.URL
		}
		if c.Done != nil {
			k.Orders[at].Done = *c.Done
		}
	}
	if c.Over {
		s.forget(c.Delivery)
	}
	k.Reports = append(k.Reports, c.Reports...)
	if c.Sent && len(k.Reports) > 0 {
		k.Reports = slices.Delete(k.Reports, 0, 1)
	}
}

func (s *state) forget(deliveryID string) {
	k := &s.kept
	k.Orders = slices.DeleteFunc(k.Orders, func(t task) bool { return t.DeliveryID == deliveryID })
	if deliveryID != "" && !s.finished[deliveryID] {
		s.finished[deliveryID] = true
		k.Finished = append(k.Finished, deliveryID)
	}
	if extra := len(k.Finished) - maxFinished; extra >= finishedStep {
		for _, id := range k.Finished[:extra] {
			delete(s.finished, id)
		}
		k.Finished = slices.Clone(k.Finished[extra:])
	}
}

// writeWhole replaces a file's content: after a crash, of the machine too, it is the old or the new, whole.
func writeWhole(path string, content []byte) error {
	file, err := create(path, content)
	if err != nil {
		return err
	}
	return errors.Join(file.Close(), syncDir(path))
}

// create makes a file with a content, in the place of one that there may be. It is open then; its name is on the disk after syncDir.
func create(path string, content []byte) (file *os.File, err error) {
	if file, err = os.CreateTemp(filepath.Dir(path), newFiles); err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("player: %w", err), file.Close(), os.Remove(file.Name()))
	}
	return file, nil
}

func syncDir(path string) error {
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
func (s *state) accept(eventID string, o Order) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch known := s.find(o.DeliveryID) >= 0; {
	case known:
		s.change(change{Event: eventID, Delivery: o.DeliveryID, URL: o.Audio.URL}) // signed anew
	case s.finished[o.DeliveryID]:
		s.change(change{Event: eventID})
	default:
		s.change(change{Event: eventID, Order: &o})
		return true
	}
	return false
}

// drop ends an order: it is not obeyed again. The last reports on it are kept with that.
func (s *state) drop(eventID, deliveryID string, last ...report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	s.change(change{Event: eventID, Delivery: deliveryID, Over: true, Reports: last})
}

// seen notes how far the stream was read.
func (s *state) seen(eventID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(change{Event: eventID})
}

// forgetPlace lets the stream begin anew.
func (s *state) forgetPlace() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(change{Anew: true})
}

// advance notes how far a delivery has come, with the reports on that.
func (s *state) advance(deliveryID string, done progress, reports ...report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(deliveryID) < 0 {
		return
	}
	defer s.wake()
	s.change(change{Delivery: deliveryID, Done: &done, Reports: reports})
}

// note notes how far a sound has come, where that does not take the room of what matters more.
func (s *state) note(deliveryID string, done progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cramped && s.find(deliveryID) >= 0 {
		s.change(change{Delivery: deliveryID, Done: &done})
	}
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
func (s *state) sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(change{Sent: true})
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

// needed lists the audio of what is open, in the order that it is needed in.
func (s *state) needed(now time.Time) []Audio {
	tasks := s.tasks()
	due := func(t task) time.Time {
		if t.PlayAt == nil || t.PlayAt.Before(now) {
			return now
		}
		return *t.PlayAt
	}
	slices.SortStableFunc(tasks, func(a, b task) int {
		switch {
		case a.Done.Playing != b.Done.Playing:
			if a.Done.Playing {
				return -1
			}
			return 1
		case !due(a).Equal(due(b)):
			return due(a).Compare(due(b))
		}
		return int(b.priority() - a.priority())
	})
	audio := make([]Audio, len(tasks))
	for i, t := range tasks {
		audio[i] = t.Audio
	}
	return audio
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
