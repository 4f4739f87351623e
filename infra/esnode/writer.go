package esnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/shared"
	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/cockroachdb/pebble/v2"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
)

const (
	// maxQueuedWrites bounds the writes that wait for the next group; more wait in their callers.
	maxQueuedWrites = 4096
	// maxGroupBytes bounds the events of one group, and so the time of its sync.
	maxGroupBytes = 8 << 20
)

// The kinds of an expected revision; a value from 0 on is an exact one.
const (
	expectNoStream     = int64(-1)
	expectAny          = int64(-2)
	expectStreamExists = int64(-4)
)

// Event types that the store itself writes.
const (
	typeMetadata      = "$metadata"
	typeStreamDeleted = "$streamDeleted"
)

// proposed is an event before it has a place.
type proposed struct {
	id             uuid.UUID
	metadata       map[string]string
	customMetadata []byte
	data           []byte
}

// write is one append, delete or tombstone that waits for its group.
type write struct {
	ctx      context.Context
	stream   string
	expected int64
	events   []proposed
	kind     writeKind
	bytes    int
	done     chan outcome // has room for one, so the writer never waits for a caller that left
}

type writeKind int

const (
	writeAppend writeKind = iota
	writeDelete
	writeTombstone
)

// outcome is the answer to a write. A wrongRevision is an ordinary answer; err is a failure.
type outcome struct {
	revision int64
	position uint64
	err      error
}

// wrongRevision says that the stream was not where the caller expected it.
type wrongRevision struct{ expected, current int64 }

func (e wrongRevision) Error() string {
	return fmt.Sprintf("expected revision %d, the stream is at %d", e.expected, e.current)
}

// streamDeleted says that the stream was tombstoned.
type streamDeleted struct{ stream string }

func (e streamDeleted) Error() string { return fmt.Sprintf("stream %s is deleted", e.stream) }

// writer is the one goroutine that changes the store. It takes whatever waits, decides each write in turn against the group so far,
// and makes the whole group durable with one sync: an append costs one fsync shared by all who wait.
type writer struct {
	store *store
	queue chan *write
	now   func() time.Time
	stop  chan struct{}
	ended chan struct{}
}

func newWriter(s *store, now func() time.Time) *writer {
	w := &writer{store: s, queue: make(chan *write, maxQueuedWrites), now: now, stop: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

// close ends the writer after the group that it is at. A writer whose disk failed may never end.
func (w *writer) close() {
	close(w.stop)
	select {
	case <-w.ended:
	case <-w.store.failed:
	}
}

// submit queues a write and waits for its answer. If ctx ends first the write may still happen, as with any lost answer.
func (w *writer) submit(ctx context.Context, one *write) outcome {
	one.ctx = ctx
	one.done = make(chan outcome, 1)
	for _, e := range one.events {
		one.bytes += len(e.data) + len(e.customMetadata)
	}
	select {
	case w.queue <- one:
	case <-ctx.Done():
		return outcome{err: ctx.Err()}
	case <-w.store.failed:
		return outcome{err: errFailed}
	case <-w.ended:
		return outcome{err: errClosed}
	}
	select {
	case o := <-one.done:
		return o
	case <-ctx.Done():
		return outcome{err: ctx.Err()}
	case <-w.store.failed:
		return one.answered(errFailed)
	case <-w.ended:
		return one.answered(errClosed)
	}
}

// answered gives the outcome of a write whose writer is gone: the one that it still told, or else why there is none.
func (one *write) answered(otherwise error) outcome {
	select {
	case o := <-one.done:
		return o
	default:
		return outcome{err: otherwise}
	}
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		select {
		case <-w.stop:
			return
		case <-w.store.failed:
			return
		case first := <-w.queue:
			if err := w.commit(w.gather(first)); err != nil {
				w.store.fail(err)
				return
			}
		}
	}
}

// gather takes what already waits, up to the bound of a group.
func (w *writer) gather(first *write) []*write {
	group, bytes := []*write{first}, first.bytes
	for bytes < maxGroupBytes && len(group) < maxQueuedWrites {
		select {
		case next := <-w.queue:
			group = append(group, next)
			bytes += next.bytes
		default:
			return group
		}
	}
	return group
}

// commit decides and syncs one group, then answers. An error means that the disk is not to be trusted any more; then nobody is answered here,
// and the failed store is the answer.
func (w *writer) commit(group []*write) error {
	g := &pending{batch: w.store.db.NewIndexedBatch(), position: w.store.current.head, now: w.now()}
	outcomes := make([]outcome, len(group))
	for i, one := range group {
		if err := one.ctx.Err(); err != nil {
			outcomes[i] = outcome{err: err}
			continue
		}
		var err error
		if outcomes[i], err = g.decide(one); err != nil {
			return err
		}
	}
	if len(g.events) > 0 {
		if err := g.batch.Commit(pebble.Sync); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		w.store.publish(g.events)
	}
	for i, one := range group {
		one.done <- outcomes[i]
	}
	if err := g.batch.Close(); err != nil {
		return fmt.Errorf("close batch: %w", err)
	}
	return nil
}

// pending is a group while it is decided: the batch sees the store and all that the group wrote before.
type pending struct {
	batch    *pebble.Batch
	position uint64
	now      time.Time
	events   []*recorded
}

// decide applies one write to the group. Its outcome may be a refusal; err is a failure of the disk.
func (g *pending) decide(one *write) (outcome, error) {
	h, err := headOf(g.batch, one.stream)
	if err != nil {
		return outcome{}, err
	}
	if h.tombstoned {
		return outcome{err: streamDeleted{one.stream}}, nil
	}
	switch one.kind {
	case writeDelete:
		return g.softDelete(one, h)
	case writeTombstone:
		return g.tombstone(one, h)
	default:
		return g.append(one, h)
	}
}

// append follows EventStoreDB's rules: an exact expectation that is behind the stream, or any, is a repeat if the very same events
// are there already, and answers as the first time did.
func (g *pending) append(one *write, h head) (outcome, error) {
	if repeat, o, err := g.repeated(one, h); repeat || err != nil {
		return o, err
	}
	if !matches(one.expected, h) {
		return outcome{err: wrongRevision{one.expected, h.last}}, nil
	}
	if h.softDeleted() && len(one.events) > 0 {
		if err := g.truncate(one.stream, &h, h.last+1); err != nil {
			return outcome{}, err
		}
	}
	if err := g.add(one.stream, &h, one.events); err != nil {
		return outcome{}, err
	}
	return outcome{revision: h.last, position: g.position}, nil
}

// matches reports whether a stream is where the caller expects it. A soft-deleted stream counts as absent, and as at its last revision.
func matches(expected int64, h head) bool {
	switch expected {
	case expectAny:
		return true
	case expectStreamExists:
		return h.exists()
	case expectNoStream:
		return h.last == noRevision || h.softDeleted()
	default:
		return expected == h.last
	}
}

// repeated finds out whether the events stand in the stream already, one after the other. With no revision to go by, events of which only
// the first ones are there are neither a repeat nor new, and are refused.
func (g *pending) repeated(one *write, h head) (decided bool, o outcome, err error) {
	if len(one.events) == 0 || h.last == noRevision {
		return false, outcome{}, nil
	}
	from, byID := one.expected+1, false
	if one.expected == expectAny || one.expected == expectStreamExists {
		first, found, err := g.byID(one.stream, one.events[0].id)
		if err != nil || !found {
			return false, outcome{}, err
		}
		from, byID = int64(first.StreamRevision), true
	}
	if from > h.last {
		return false, outcome{}, nil
	}
	var last *recorded
	for i, e := range one.events {
		position, found, err := positionOf(g.batch, one.stream, uint64(from)+uint64(i))
		if err != nil {
			return false, outcome{}, err
		}
		if found {
			if last, err = eventAt(g.batch, position); err != nil {
				return false, outcome{}, err
			}
		}
		if !found || idOf(last) != e.id {
			return byID, outcome{err: wrongRevision{one.expected, h.last}}, nil
		}
	}
	return true, outcome{revision: int64(last.StreamRevision), position: last.CommitPosition}, nil
}

func (g *pending) byID(stream string, id uuid.UUID) (*recorded, bool, error) {
	value, closer, err := g.batch.Get(idKey(stream, id))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("event %s: %w", id, err)
	}
	position := binary.BigEndian.Uint64(value)
	if err := closer.Close(); err != nil {
		return nil, false, err
	}
	e, err := eventAt(g.batch, position)
	if err != nil {
		return nil, false, err
	}
	return e, string(e.StreamIdentifier.StreamName) == stream, nil
}

// add gives events their places at the end of a stream.
func (g *pending) add(stream string, h *head, events []proposed) error {
	for _, p := range events {
		h.last++
		if err := g.put(stream, uint64(h.last), p); err != nil {
			return err
		}
	}
	if owner, ok := metadataOwner(stream); ok && len(events) > 0 {
		if err := g.retain(owner, events[len(events)-1].data); err != nil {
			return err
		}
	}
	return g.batch.Set(append([]byte{prefixHead}, stream...), h.encode(), nil)
}

func (g *pending) put(stream string, revision uint64, p proposed) error {
	g.position++
	metadata := make(map[string]string, len(p.metadata)+1)
	for k, v := range p.metadata {
		metadata[k] = v
	}
	metadata["created"] = strconv.FormatInt(g.now.UnixNano()/100, 10) // ticks of 100 ns since 1970, as the client reads it
	e := &recorded{
		Id:               structured(p.id),
		StreamIdentifier: &shared.StreamIdentifier{StreamName: []byte(stream)},
		StreamRevision:   revision,
		PreparePosition:  g.position,
		CommitPosition:   g.position,
		Metadata:         metadata,
		CustomMetadata:   p.customMetadata,
		Data:             p.data,
	}
	value, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	position := binary.BigEndian.AppendUint64(nil, g.position)
	g.events = append(g.events, e)
	return errors.Join(
		g.batch.Set(eventKey(g.position), value, nil),
		g.batch.Set(streamKey(stream, revision), position, nil),
		g.batch.Set(idKey(stream, p.id), position, nil),
	)
}

// retain takes over a stream's new metadata. Metadata that is not JSON bounds nothing, as in EventStoreDB.
func (g *pending) retain(owner string, data []byte) error {
	h, err := headOf(g.batch, owner)
	if err != nil {
		return err
	}
	if h.retention, err = parseRetention(data); err != nil {
		h.retention = retention{}
	}
	return g.batch.Set(append([]byte{prefixHead}, owner...), h.encode(), nil)
}

// truncate writes metadata with another `$tb`; that is how EventStoreDB deletes a stream softly and opens it again.
func (g *pending) truncate(stream string, h *head, before int64) error {
	name := "$$" + stream
	meta, err := headOf(g.batch, name)
	if err != nil {
		return err
	}
	var data []byte
	if meta.last > noRevision {
		position, found, err := positionOf(g.batch, name, uint64(meta.last))
		if err != nil {
			return err
		}
		if found {
			e, err := eventAt(g.batch, position)
			if err != nil {
				return err
			}
			data = e.Data
		}
	}
	if data, err = withTruncateBefore(data, before); err != nil {
		data = fmt.Appendf(nil, `{"$tb":%d}`, before) // what was there bounded nothing
	}
	event := proposed{id: uuid.New(), data: data, metadata: map[string]string{"type": typeMetadata, "content-type": "application/json"}}
	if err := g.add(name, &meta, []proposed{event}); err != nil {
		return err
	}
	h.retention.truncateBefore = before
	return nil
}

func (g *pending) softDelete(one *write, h head) (outcome, error) {
	if !matches(one.expected, h) || h.last == noRevision {
		return outcome{err: wrongRevision{one.expected, h.last}}, nil
	}
	if h.softDeleted() {
		return outcome{err: wrongRevision{one.expected, noRevision}}, nil
	}
	if err := g.truncate(one.stream, &h, deletedRevision); err != nil {
		return outcome{}, err
	}
	return outcome{revision: h.last, position: g.position}, nil
}

func (g *pending) tombstone(one *write, h head) (outcome, error) {
	if !matches(one.expected, h) {
		return outcome{err: wrongRevision{one.expected, h.last}}, nil
	}
	event := proposed{id: uuid.New(), data: []byte{}, metadata: map[string]string{"type": typeStreamDeleted, "content-type": "application/octet-stream"}}
	if err := g.put(one.stream, deletedRevision, event); err != nil {
		return outcome{}, err
	}
	h.last, h.tombstoned = deletedRevision, true
	if err := g.batch.Set(append([]byte{prefixHead}, one.stream...), h.encode(), nil); err != nil {
		return outcome{}, err
	}
	return outcome{revision: deletedRevision, position: g.position}, nil
}

func idKey(stream string, id uuid.UUID) []byte {
	hash := fnv.New64a()
	hash.Write([]byte(stream)) //nolint:errcheck // a hash never fails
	key := append([]byte{prefixID}, id[:]...)
	return binary.BigEndian.AppendUint64(key, hash.Sum64())
}

func idOf(e *streams.ReadResp_ReadEvent_RecordedEvent) (id uuid.UUID) {
	if s := e.Id.GetStructured(); s != nil {
		binary.BigEndian.PutUint64(id[:8], uint64(s.MostSignificantBits))
		binary.BigEndian.PutUint64(id[8:], uint64(s.LeastSignificantBits))
	}
	return id
}
