package esnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
)

// What lies on the disk. One pebble database; every number is big-endian, so that keys sort by it.
//
//	e <position:8>                      → RecordedEvent, as the protocol's own protobuf message
//	s <len:2><stream> <revision:8>      → position:8                      events of a stream in order
//	h <stream>                          → head: last revision and retention of the stream (see head)
//	i <event id:16> <stream hash:8>     → position:8                      for the idempotent repeat of an append
//	f                                   → format version
//
// An append writes all keys of all its events in one batch; pebble makes a batch whole or absent after a crash.
const (
	prefixEvent  = 'e'
	prefixStream = 's'
	prefixHead   = 'h'
	prefixID     = 'i'
	prefixFormat = 'f'

	formatVersion = 1

	// maxStreamName bounds the length of a stream's name in bytes.
	maxStreamName = 1024
	// memTableBytes and cacheBytes bound what the database keeps in memory.
	memTableBytes = 32 << 20
	cacheBytes    = 64 << 20
	// ringEvents and ringBytes bound the newest events that are kept in memory, so that live subscriptions read no disk.
	ringEvents = 4096
	ringBytes  = 32 << 20
)

type recorded = streams.ReadResp_ReadEvent_RecordedEvent

// errFailed is answered to everything after the disk refused a write: what is on it is unknown until the node is opened again.
var errFailed = errors.New("the event store's disk failed; the node must be restarted")

// errClosed is answered to what the node's closing cuts off.
var errClosed = errors.New("the event store is closing")

// store is the durable part of the node. One goroutine writes (writer); any number read through views.
type store struct {
	db     *pebble.DB
	log    *slog.Logger
	failed chan struct{} // closed once the disk failed

	mu      sync.Mutex
	current *view         // nil once the store is closed
	changed chan struct{} // closed and replaced whenever current is
	ring    ring
}

// view is the store as of one committed group: readers see exactly what is durable, never what is still being synced.
type view struct {
	snapshot *pebble.Snapshot
	head     uint64 // position of the last event; 0 if there is none
	refs     int
}

// logger turns pebble's log into slog. A failure that pebble cannot go on after stops the store, and the goroutine that met it.
type logger struct {
	log   *slog.Logger
	armed *atomic.Bool
	fail  func(error)
}

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "message", fmt.Sprintf(format, args...))
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble", "message", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	if !l.armed.Load() {
		panic(openFailure{err})
	}
	l.fail(err)
	runtime.Goexit()
}

// openFailure carries an error out of the opening of a database.
type openFailure struct{ err error }

// openDatabase is pebble.Open with pebble's "fatal" failures as errors.
func openDatabase(dir string, options *pebble.Options) (db *pebble.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			failure, ok := p.(openFailure)
			if !ok {
				panic(p)
			}
			err = failure.err
		}
	}()
	return pebble.Open(dir, options)
}

func openStore(dir string, fs vfs.FS, log *slog.Logger) (*store, error) {
	s := &store{log: log, failed: make(chan struct{}), changed: make(chan struct{}), ring: newRing(ringEvents, ringBytes)}
	under := &disk{FS: fs, failed: s.fail}
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref()
	options := &pebble.Options{
		Cache:                      cache,
		FS:                         under,
		Logger:                     logger{log, &under.armed, s.fail},
		MemTableSize:               memTableBytes,
		FormatMajorVersion:         pebble.FormatNewest,
		L0CompactionThreshold:      4,
		L0StopWritesThreshold:      24,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := openDatabase(dir, options)
	if err != nil {
		return nil, fmt.Errorf("open event store in %s: %w", dir, err)
	}
	s.db = db
	if err := s.checkFormat(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	head, err := lastPosition(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.current = &view{snapshot: db.NewSnapshot(), head: head, refs: 1}
	s.ring.reset(head)
	under.armed.Store(true)
	return s, nil
}

// fail stops the store for good and lets everyone who waits for it know. What pebble holds in memory is not touched any more; the next
// open recovers from the disk.
func (s *store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hasFailed() {
		return
	}
	close(s.failed)
	s.log.Error("the event store stops: its disk failed", "error", err)
}

func (s *store) hasFailed() bool {
	select {
	case <-s.failed:
		return true
	default:
		return false
	}
}

func (s *store) checkFormat() error {
	value, closer, err := s.db.Get([]byte{prefixFormat})
	if errors.Is(err, pebble.ErrNotFound) {
		return s.db.Set([]byte{prefixFormat}, []byte{formatVersion}, pebble.Sync)
	}
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	defer closer.Close()
	if len(value) != 1 || value[0] != formatVersion {
		return fmt.Errorf("the event store has format %v, this program reads format %d", value, formatVersion)
	}
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	last := s.current
	s.current = nil
	s.mu.Unlock()
	if s.hasFailed() {
		return nil // pebble's own state is unknown now, and a call into it could wait for the one that failed
	}
	return errors.Join(s.release(last), s.db.Close())
}

// acquire gives the newest view; the caller releases it. changed is closed when there is a newer one.
func (s *store) acquire() (v *view, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hasFailed() {
		return nil, nil, errFailed
	}
	if s.current == nil {
		return nil, nil, errClosed
	}
	s.current.refs++
	return s.current, s.changed, nil
}

func (s *store) release(v *view) error {
	s.mu.Lock()
	v.refs--
	last := v.refs == 0
	s.mu.Unlock()
	if last && !s.hasFailed() {
		return v.snapshot.Close()
	}
	return nil
}

// publish makes a synced group visible to readers and wakes the subscriptions.
func (s *store) publish(events []*recorded) {
	next := &view{snapshot: s.db.NewSnapshot(), head: events[len(events)-1].CommitPosition, refs: 1}
	s.mu.Lock()
	before := s.current
	s.current = next
	s.ring.add(events)
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if err := s.release(before); err != nil {
		s.log.Error("release of a snapshot", "error", err)
	}
}

func lastPosition(r pebble.Reader) (uint64, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: []byte{prefixEvent}, UpperBound: []byte{prefixEvent + 1}})
	if err != nil {
		return 0, fmt.Errorf("find the last event: %w", err)
	}
	defer it.Close() // its error is asked for below
	if !it.Last() {
		return 0, it.Error()
	}
	return binary.BigEndian.Uint64(it.Key()[1:]), nil
}

func eventKey(position uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixEvent}, position)
}

func streamPrefix(stream string) []byte {
	key := make([]byte, 0, 3+len(stream)+8)
	key = append(key, prefixStream)
	key = binary.BigEndian.AppendUint16(key, uint16(len(stream)))
	return append(key, stream...)
}

func streamKey(stream string, revision uint64) []byte {
	return binary.BigEndian.AppendUint64(streamPrefix(stream), revision)
}

func decodeEvent(value []byte) (*recorded, error) {
	e := &recorded{}
	if err := proto.Unmarshal(value, e); err != nil {
		return nil, fmt.Errorf("an event on the disk cannot be read: %w", err)
	}
	return e, nil
}

func eventAt(r pebble.Reader, position uint64) (*recorded, error) {
	value, closer, err := r.Get(eventKey(position))
	if err != nil {
		return nil, fmt.Errorf("event at position %d: %w", position, err)
	}
	defer closer.Close()
	return decodeEvent(value)
}

// positionOf finds where the event of this revision stands in `$all`.
func positionOf(r pebble.Reader, stream string, revision uint64) (position uint64, found bool, err error) {
	value, closer, err := r.Get(streamKey(stream, revision))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("revision %d of %s: %w", revision, stream, err)
	}
	defer closer.Close()
	return binary.BigEndian.Uint64(value), true, nil
}

// ring keeps the newest events by position, as many as its two bounds allow. Positions are dense, so the place of one follows from the last.
type ring struct {
	events   []*recorded
	last     uint64
	size     int
	bytes    int
	maxBytes int
}

func newRing(capacity, maxBytes int) ring {
	return ring{events: make([]*recorded, capacity), maxBytes: maxBytes}
}

func (r *ring) reset(last uint64) { r.last = last }

func (r *ring) place(position uint64) *(*recorded) {
	return &r.events[position%uint64(len(r.events))]
}

func (r *ring) add(events []*recorded) {
	for _, e := range events {
		if r.size == len(r.events) {
			r.drop()
		}
		r.last = e.CommitPosition
		*r.place(r.last) = e
		r.size++
		r.bytes += payloadBytes(e)
		for r.bytes > r.maxBytes {
			r.drop()
		}
	}
}

// drop forgets the oldest event.
func (r *ring) drop() {
	oldest := r.place(r.last - uint64(r.size) + 1)
	r.bytes -= payloadBytes(*oldest)
	r.size--
	*oldest = nil
}

// after gives the events that follow position, up to maxEvents or until they hold maxBytes, or ok false if they are not all in memory any more.
func (r *ring) after(position uint64, maxEvents, maxBytes int) (events []*recorded, ok bool) {
	if position >= r.last {
		return nil, true
	}
	if r.last-position > uint64(r.size) {
		return nil, false
	}
	n := min(int(r.last-position), maxEvents)
	events = make([]*recorded, 0, n)
	for bytes := 0; len(events) < n && bytes < maxBytes; {
		e := *r.place(position + 1 + uint64(len(events)))
		events = append(events, e)
		bytes += payloadBytes(e)
	}
	return events, true
}

// eventOverheadBytes is about what an event takes beside its payload.
const eventOverheadBytes = 256

func payloadBytes(e *recorded) int { return len(e.Data) + len(e.CustomMetadata) + eventOverheadBytes }
