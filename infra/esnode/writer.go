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

// Keys of a recorded event's metadata, and the content types that there are.
const (
	keyType           = "type"
	keyContentType    = "content-type"
	keyCreated        = "created" // ticks of 100 ns since 1970, as the client reads it
	contentTypeJSON   = "application/json"
	contentTypeBinary = "application/octet-stream"
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
	last  uint64 // position of the newest event
}

func newWriter(s *store, now func() time.Time) *writer {
	w := &writer{store: s, queue: make(chan *write, maxQueuedWrites), now: now, stop: make(chan struct{}), ended: make(chan struct{}), last: s.current.head}
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
		one.bytes += len(e.data) + len(e.customMetadata) + eventOverheadBytes
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
	g := &pending{batch: w.store.db.NewIndexedBatch(), position: w.last, now: w.now()}
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
		w.last = g.position
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
	if decided, o, err := g.check(one, h); decided || err != nil {
		return o, err
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

// check finds out whether a write is refused, or is the repeat of one that was done, by EventStoreDB's rules (IndexWriter.CheckCommit).
func (g *pending) check(one *write, h head) (decided bool, o outcome, err error) {
	wrong := outcome{err: wrongRevision{one.expected, h.last}}
	if h.tombstoned {
		return true, outcome{err: streamDeleted{one.stream}}, nil
	}
	if one.expected == expectStreamExists {
		if h.softDeleted() {
			return true, outcome{err: streamDeleted{one.stream}}, nil
		}
		if h.last == noRevision {
			meta, err := headOf(g.batch, metadataOf(one.stream))
			if err != nil || meta.last == noRevision {
				return true, wrong, err
			}
		}
	}
	switch {
	case one.expected == expectAny, one.expected == expectStreamExists:
		return g.repeatedByID(one, wrong)
	case one.expected < h.last:
		return g.repeatedAt(one, h, wrong)
	default:
		return one.expected > h.last, wrong, nil
	}
}

// repeatedByID: with no revision to go by, an append is a repeat if all its events are in the stream. One of which only the first are there is
// neither a repeat nor new, and is refused.
func (g *pending) repeatedByID(one *write, wrong outcome) (decided bool, o outcome, err error) {
	for i, e := range one.events {
		there, found, err := g.byID(one.stream, e.id)
		if err != nil || !found && i == 0 {
			return false, outcome{}, err
		}
		if !found {
			return true, wrong, nil
		}
		decided, o = true, outcome{revision: int64(there.StreamRevision), position: there.CommitPosition}
	}
	return decided, o, nil
}

// repeatedAt: a write that expects a revision that the stream has left behind is a repeat if the very same events follow there. Otherwise it is
// refused, but for one that expects no stream where the stream was deleted softly.
func (g *pending) repeatedAt(one *write, h head, wrong outcome) (decided bool, o outcome, err error) {
	absent := one.expected == expectNoStream && h.softDeleted()
	if len(one.events) == 0 {
		return one.kind == writeAppend || !absent, wrong, nil
	}
	for i, e := range one.events {
		position, found, err := positionOf(g.batch, one.stream, uint64(one.expected+1)+uint64(i))
		if err != nil {
			return false, outcome{}, err
		}
		var there *recorded
		if found {
			if there, err = eventAt(g.batch, position); err != nil {
				return false, outcome{}, err
			}
		}
		if !found || idOf(there) != e.id {
			return i > 0 || !absent, wrong, nil
		}
		o = outcome{revision: int64(there.StreamRevision), position: there.CommitPosition}
	}
	return true, o, nil
}

// append adds events that check found to be new. If their stream was deleted softly, or they are the metadata of one that was, it opens that
// stream again, behind what was deleted.
func (g *pending) append(one *write, h head) (outcome, error) {
	deleted, last := h.softDeleted(), h.last
	opened := one.stream
	if owner, ok := metadataOwner(one.stream); ok {
		of, err := headOf(g.batch, owner)
		if err != nil {
			return outcome{}, err
		}
		opened, deleted, last = owner, of.softDeleted(), of.last
	}
	if err := g.add(one.stream, &h, one.events); err != nil {
		return outcome{}, err
	}
	o := outcome{revision: h.last, position: g.position}
	if !deleted || len(one.events) == 0 {
		return o, nil
	}
	return o, g.reopen(opened, last+1)
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
	if err := g.batch.Set(headKey(stream), h.encode(), nil); err != nil {
		return err
	}
	owner, ok := metadataOwner(stream)
	if !ok || len(events) == 0 {
		return nil
	}
	return g.retain(owner, events[len(events)-1])
}

func (g *pending) put(stream string, revision uint64, p proposed) error {
	g.position++
	metadata := make(map[string]string, len(p.metadata)+1)
	for k, v := range p.metadata {
		metadata[k] = v
	}
	metadata[keyCreated] = strconv.FormatInt(g.now.UnixNano()/100, 10)
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
func (g *pending) retain(owner string, meta proposed) error {
	h, err := headOf(g.batch, owner)
	if err != nil {
		return err
	}
	h.retention = retention{}
	if meta.metadata[keyContentType] == contentTypeJSON {
		if h.retention, err = parseRetention(meta.data); err != nil {
			h.retention = retention{}
		}
	}
	return g.batch.Set(headKey(owner), h.encode(), nil)
}

// setMetadata writes a stream's metadata; that is how EventStoreDB deletes a stream softly and opens it again.
func (g *pending) setMetadata(stream string, data []byte) error {
	name := metadataOf(stream)
	h, err := headOf(g.batch, name)
	if err != nil {
		return err
	}
	return g.add(name, &h, []proposed{{id: uuid.New(), data: data, metadata: eventMetadata(typeMetadata, contentTypeJSON)}})
}

// reopen leaves a stream's metadata as it is but for `$tb`. Metadata that is not JSON deletes nothing, so there is nothing to open.
func (g *pending) reopen(stream string, before int64) error {
	name := metadataOf(stream)
	h, err := headOf(g.batch, name)
	if err != nil {
		return err
	}
	position, found, err := positionOf(g.batch, name, uint64(h.last))
	if err != nil || !found {
		return err
	}
	e, err := eventAt(g.batch, position)
	if err != nil {
		return err
	}
	data, err := withTruncateBefore(e.Data, before)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	return g.setMetadata(stream, data)
}

// softDelete replaces the stream's metadata, so that what it held beside the deletion is gone too. It can be repeated.
func (g *pending) softDelete(one *write, h head) (outcome, error) {
	if h.last == noRevision {
		meta, err := headOf(g.batch, metadataOf(one.stream))
		if err != nil || meta.last == noRevision {
			return outcome{err: wrongRevision{one.expected, noRevision}}, err
		}
	}
	if err := g.setMetadata(one.stream, fmt.Appendf(nil, `{"$tb":%d}`, int64(deletedRevision))); err != nil {
		return outcome{}, err
	}
	return outcome{revision: h.last, position: g.position}, nil
}

func (g *pending) tombstone(one *write, h head) (outcome, error) {
	event := proposed{id: uuid.New(), data: []byte{}, metadata: eventMetadata(typeStreamDeleted, contentTypeBinary)}
	if err := g.put(one.stream, deletedRevision, event); err != nil {
		return outcome{}, err
	}
	h.last, h.tombstoned = deletedRevision, true
	if err := g.batch.Set(headKey(one.stream), h.encode(), nil); err != nil {
		return outcome{}, err
	}
	return outcome{revision: deletedRevision, position: g.position}, nil
}

// systemEvent is the metadata of an event that the store itself writes.
func eventMetadata(eventType, contentType string) map[string]string {
	return map[string]string{keyType: eventType, keyContentType: contentType}
}

func idKey(stream string, id uuid.UUID) []byte {
	hash := fnv.New64a()
	hash.Write([]byte(stream))
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
