package esnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
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
	// ringEvents is how many of the newest events are kept in memory, so that live subscriptions read no disk.
	ringEvents = 4096
)

type recorded = streams.ReadResp_ReadEvent_RecordedEvent

// errFailed is answered to everything after the disk refused a write: what is on it is unknown until the node is opened again.
var errFailed = errors.New("the event store's disk failed; the node must be restarted")

// store is the durable part of the node. One goroutine writes (writer); any number read through views.
type store struct {
	db     *pebble.DB
	log    *slog.Logger
	failed atomic.Bool

	mu      sync.Mutex
	current *view
	changed chan struct{} // closed and replaced whenever current is
	ring    ring
}

// view is the store as of one committed group: readers see exactly what is durable, never what is still being synced.
type view struct {
	snapshot *pebble.Snapshot
	head     uint64 // position of the last event; 0 if there is none
	refs     int
}

// fatalError carries a pebble "fatal" out of the goroutine that met it.
type fatalError struct{ message string }

// logger turns pebble's log into slog, and its Fatalf into a panic that the writer turns into a failed store.
type logger struct{ log *slog.Logger }

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "message", fmt.Sprintf(format, args...))
}
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("pebble", "message", fmt.Sprintf(format, args...))
}
func (l logger) Fatalf(format string, args ...any) {
	panic(fatalError{fmt.Sprintf(format, args...)})
}

func openStore(dir string, fs vfs.FS, log *slog.Logger) (*store, error) {
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref()
	options := &pebble.Options{
		Cache:                      cache,
		FS:                         fs,
		Logger:                     logger{log},
		MemTableSize:               memTableBytes,
		FormatMajorVersion:         pebble.FormatNewest,
		L0CompactionThreshold:      4,
		L0StopWritesThreshold:      24,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, options)
	if err != nil {
		return nil, fmt.Errorf("open event store in %s: %w", dir, err)
	}
	s := &store{db: db, log: log, changed: make(chan struct{}), ring: newRing(ringEvents)}
	if err := s.checkFormat(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	head, err := lastPosition(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.current = &view{snapshot: db.NewSnapshot(), head: head, refs: 1}
	s.ring.reset(head)
	return s, nil
}

func (s *store) checkFormat() error {
	value, closer, err := s.db.Get([]byte{prefixFormat})
	if errors.Is(err, pebble.ErrNotFound) {
		return s.db.Set([]byte{prefixFormat}, []byte{formatVersion}, pebble.Sync)
	}
	if err != nil {
		return fmt.Errorf("read format: %w", err)
	}
	defer closer.Close() //nolint:errcheck // closing a value that was read cannot lose anything
	if len(value) != 1 || value[0] != formatVersion {
		return fmt.Errorf("the event store has format %v, this program reads format %d", value, formatVersion)
	}
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	last := s.current
	s.current = nil
	close(s.changed)
	s.mu.Unlock()
	if s.failed.Load() {
		return nil // pebble's own state is unknown now; the next open recovers from the disk
	}
	return errors.Join(s.release(last), s.db.Close())
}

// acquire gives the newest view; the caller releases it. ok is false once the store is closed.
func (s *store) acquire() (v *view, changed <-chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, nil, false
	}
	s.current.refs++
	return s.current, s.changed, true
}

func (s *store) release(v *view) error {
	s.mu.Lock()
	v.refs--
	last := v.refs == 0
	s.mu.Unlock()
	if last {
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
	defer it.Close() //nolint:errcheck // its error is asked for below
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
	defer closer.Close() //nolint:errcheck // see checkFormat
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
	defer closer.Close() //nolint:errcheck // see checkFormat
	return binary.BigEndian.Uint64(value), true, nil
}

// ring keeps the newest events by position. Positions are dense, so the place of one follows from the last.
type ring struct {
	events []*recorded
	last   uint64
	size   int
}

func newRing(capacity int) ring { return ring{events: make([]*recorded, capacity)} }

func (r *ring) reset(last uint64) { r.last, r.size = last, 0 }

func (r *ring) add(events []*recorded) {
	for _, e := range events {
		r.last = e.CommitPosition
		r.events[r.last%uint64(len(r.events))] = e
		r.size = min(r.size+1, len(r.events))
	}
}

// after gives up to max events that follow position, or ok false if they are not all in memory any more.
func (r *ring) after(position uint64, max int) (events []*recorded, ok bool) {
	if position >= r.last {
		return nil, true
	}
	if r.last-position > uint64(r.size) {
		return nil, false
	}
	n := min(int(r.last-position), max)
	events = make([]*recorded, n)
	for i := range events {
		events[i] = r.events[(position+1+uint64(i))%uint64(len(r.events))]
	}
	return events, true
}
