// Package eventstore is the project's way to EventStoreDB: events of the domain in, events of the domain out, through the official client. It
// adds what the client leaves to its user: a deadline for every call, a new client when the old one gave up, and a Watermill Subscriber that
// hands out `$all` in pages.
package eventstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

var (
	// ErrConflict says that the stream was not at the expected revision: load it again and decide again.
	ErrConflict = errors.New("the stream has moved on")
	// ErrUnavailable says that the store could not be reached in time. An append that ends so may have happened; repeating it with the same
	// event IDs is safe.
	ErrUnavailable = errors.New("the event store is away")
	// ErrTooLarge says that the events do not fit one append.
	ErrTooLarge = errors.New("the events are too large for one append")
)

const (
	// MaxAppendBytes bounds the events of one append, by EncodedSize. The server's default limit (MaxAppendSize) is 1 MiB.
	MaxAppendBytes = 1<<20 - 4<<10
	// appendTimeout bounds one Append, its repeats included.
	appendTimeout = 5 * time.Second
	// appendAttempts is how often an append whose answer was lost is sent; the same event IDs make the repeats harmless.
	appendAttempts = 3
	// silenceTimeout bounds the wait for each next event of a read.
	silenceTimeout = 5 * time.Second
	// readTimeout bounds one read as a whole: a stream may hold a large broadcast.
	readTimeout = 30 * time.Second
	// headSearch is how many of the newest events Head and HeadFor look through.
	headSearch = 2 * searchWindow
)

// Store is a connection to an event store. It is safe for concurrent use.
type Store struct {
	link      *link
	log       *slog.Logger
	feedBytes int

	mu   sync.Mutex
	feed *feed // that of the subscriptions; nil where there is none
}

// Open makes a store for an `esdb://` connection string. It does not wait for the server: calls answer ErrUnavailable until it is there.
func Open(connectionString string, log *slog.Logger) (*Store, error) {
	config, err := esdb.ParseConnectionString(connectionString)
	if err != nil {
		return nil, fmt.Errorf("event store connection string: %w", err)
	}
	return &Store{link: newLink(config, log), log: log, feedBytes: feedBytes}, nil
}

// Close ends calls and subscriptions, waits for them, and closes the connection.
func (s *Store) Close() error {
	s.link.close()
	return nil
}

// Expected is the revision that a stream must be at for an append to happen.
type Expected struct{ revision esdb.ExpectedRevision }

// Any lets an append happen wherever the stream is; NoStream only where it does not exist.
var (
	Any      = Expected{esdb.Any{}}
	NoStream = Expected{esdb.NoStream{}}
)

// Exact lets an append happen only where the stream's last event has this revision.
func Exact(revision uint64) Expected { return Expected{esdb.Revision(revision)} }

// Revision gives the revision that an exact expectation names.
func (e Expected) Revision() (revision uint64, exact bool) {
	at, exact := e.revision.(esdb.StreamRevision)
	return at.Value, exact
}

// ExpectedAfter is the revision that a stream has as long as nothing was added to the history that was read of it.
func ExpectedAfter(history []event.Recorded) Expected {
	if len(history) == 0 {
		return NoStream
	}
	return Exact(history[len(history)-1].Revision)
}

// Append adds events to the end of a stream, all or none, and gives the position of the last.
//
// It may be repeated as it is, with the same event IDs, by anyone and at any time: events that stand there already are not added twice, and the
// answer is the same. Append does so itself when an answer was lost; if it cannot learn in time what became of the append, it answers
// ErrUnavailable, and the events may have been added or not.
//
// Where the context is in a trace, the events say so.
//
// Errors: ErrConflict (the stream is not at the expected revision; nothing was added), ErrTooLarge (more than MaxAppendBytes; nothing was
// added), ErrUnavailable.
func (s *Store) Append(ctx context.Context, stream string, expected Expected, events ...event.Proposed) (_ event.Position, err error) {
	ctx, span := telemetry.Start(ctx, "append to "+kindOf(stream))
	began := time.Now()
	defer func() {
		s.link.appended(began, err)
		telemetry.Number(span, "musique.events", len(events))
		telemetry.Failed(span, err)
		span.End()
	}()
	traceParent := telemetry.TraceParent(ctx)
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	batch := make([]esdb.EventData, len(events))
	size := 0
	for i, e := range events {
		if traceParent != "" {
			e.Metadata.TraceParent = traceParent
		}
		data, metadata, err := encode(e)
		if err != nil {
			return event.Position{}, err
		}
		size += encodedSize(e, data, metadata)
		batch[i] = esdb.EventData{EventID: e.ID, EventType: e.Payload.EventType(), ContentType: esdb.ContentTypeJson, Data: data, Metadata: metadata}
	}
	if size > MaxAppendBytes {
		return event.Position{}, fmt.Errorf("append %d bytes to %s: %w", size, stream, ErrTooLarge)
	}
	options := esdb.AppendToStreamOptions{ExpectedRevision: expected.revision}
	for attempt := 1; ; attempt++ {
		written, err := call(ctx, s.link, func(ctx context.Context, client *esdb.Client) (*esdb.WriteResult, error) {
			return client.AppendToStream(ctx, stream, options, batch...)
		})
		switch {
		case err == nil:
			return event.Position{Commit: written.CommitPosition, Prepare: written.PreparePosition}, nil
		case !errors.Is(err, ErrUnavailable), errors.Is(err, errNotSent), ctx.Err() != nil, attempt == appendAttempts:
			return event.Position{}, fmt.Errorf("append to %s: %w", stream, err)
		}
	}
}

// LimitAge has the events of a stream read for a time only: reads of the stream leave out what was recorded longer ago. It may be called before the stream
// is there. A stream that has metadata keeps what it has, so the call may be repeated, by anyone.
//
// `$all` shows such events still: EventStoreDB does not look at a stream's metadata there, until a scavenge has removed them, which an operator
// has it do ("Event streams", Deleting streams and events, in its documentation); of the stream it keeps the last event, whatever its age.
// The embedded node does not scavenge.
//
// Errors: ErrUnavailable, or what the server refuses with, to a user who may not write metadata for one; never ErrConflict.
func (s *Store) LimitAge(ctx context.Context, stream string, age time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	var metadata esdb.StreamMetadata
	metadata.SetMaxAge(age)
	options := esdb.AppendToStreamOptions{ExpectedRevision: esdb.NoStream{}}
	_, err := call(ctx, s.link, func(ctx context.Context, client *esdb.Client) (*esdb.WriteResult, error) {
		return client.SetStreamMetadata(ctx, stream, options, metadata)
	})
	if err != nil && !errors.Is(err, ErrConflict) {
		return fmt.Errorf("limit the age of %s: %w", stream, err)
	}
	return nil
}

// EncodedSize is how many bytes an event counts towards MaxAppendBytes: its data, its metadata, and two for each byte of its type's name, as
// EventStoreDB counts (Event.SizeOnDisk).
func EncodedSize(e event.Proposed) int {
	data, metadata, err := encode(e)
	if err != nil {
		return math.MaxInt32 // Append answers with the error
	}
	return encodedSize(e, data, metadata)
}

func encodedSize(e event.Proposed, data, metadata []byte) int {
	return len(data) + len(metadata) + 2*len(e.Payload.EventType())
}

func encode(e event.Proposed) (data, metadata []byte, err error) {
	if data, err = json.Marshal(e.Payload); err != nil {
		return nil, nil, fmt.Errorf("encode %s: %w", e.Payload.EventType(), err)
	}
	if metadata, err = json.Marshal(e.Metadata); err != nil {
		return nil, nil, fmt.Errorf("encode metadata of %s: %w", e.Payload.EventType(), err)
	}
	return data, metadata, nil
}

// Load reads a whole stream; one that does not exist, or was deleted, is empty. Errors: ErrUnavailable.
func (s *Store) Load(ctx context.Context, stream string) ([]event.Recorded, error) {
	return s.Page(ctx, stream, 0, math.MaxInt)
}

// Page reads up to max events of a stream from a revision on. Errors: ErrUnavailable.
func (s *Store) Page(ctx context.Context, stream string, from uint64, max int) ([]event.Recorded, error) {
	options := esdb.ReadStreamOptions{Direction: esdb.Forwards, From: esdb.Revision(from)}
	events, err := s.read(ctx, func(ctx context.Context, client *esdb.Client) (*esdb.ReadStream, error) {
		return client.ReadStream(ctx, stream, options, uint64(max))
	})
	var known *esdb.Error
	if errors.As(err, &known) && (known.Code() == esdb.ErrorCodeResourceNotFound || known.Code() == esdb.ErrorCodeStreamDeleted) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", stream, err)
	}
	return events, nil
}

// ReadAll reads up to max events of `$all` that stand after a position, the store's own (`$…`) left out. Through is how far it looked; done says
// that nothing was left. Errors: ErrUnavailable.
func (s *Store) ReadAll(ctx context.Context, after event.Position, max int) (events []event.Recorded, through event.Position, done bool, err error) {
	options := esdb.ReadAllOptions{Direction: esdb.Forwards, From: allFrom(after)}
	// A read from a position includes the event there, if one is there.
	found, err := s.read(ctx, func(ctx context.Context, client *esdb.Client) (*esdb.ReadStream, error) {
		return client.ReadAll(ctx, options, uint64(max)+1)
	})
	if err != nil {
		return nil, after, false, fmt.Errorf("read $all: %w", err)
	}
	done = len(found) <= max
	if len(found) > 0 && !after.Before(found[0].Position) {
		found = found[1:]
	}
	found = found[:min(len(found), max)]
	through = after
	for _, e := range found {
		through = e.Position
		if !ofTheStore(e.Type) {
			events = append(events, e)
		}
	}
	return events, through, done, nil
}

// Head is the position of the newest event that is not the store's own; zero where there is none. If the newest headSearch are all the store's, it is that
// of the oldest of these. Errors: ErrUnavailable.
func (s *Store) Head(ctx context.Context) (event.Position, error) {
	return s.HeadFor(ctx, SubscriberConfig{})
}

// HeadFor is a position that a subscriber passes as soon as it has all that there is for it, however long nothing comes after. What it is given stands at or
// before it. It is that of the newest event that the server sends to such a subscriber. If none of the newest headSearch is sent, it is that of the oldest of
// these: the server says at least once in searchWindow events how far it looked, and EventStoreDB is up to a page, which is as long again, behind when a
// subscription goes live. Errors: ErrUnavailable.
func (s *Store) HeadFor(ctx context.Context, config SubscriberConfig) (event.Position, error) {
	newest, err := s.read(ctx, func(ctx context.Context, client *esdb.Client) (*esdb.ReadStream, error) {
		return client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.End{}}, headSearch)
	})
	if err != nil {
		return event.Position{}, fmt.Errorf("head of $all: %w", err)
	}
	for _, e := range newest {
		if !ofTheStore(e.Type) && config.sent(e.Type, e.Stream) {
			return e.Position, nil
		}
	}
	if len(newest) < headSearch {
		return event.Position{}, nil // that is all there is
	}
	return newest[len(newest)-1].Position, nil
}

// Ping asks the store for one event, to learn whether it answers. Errors: ErrUnavailable.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := call(ctx, s.link, newest)
	return err
}

// newest is the position of the newest event, the store's own included; zero where there is none.
func newest(ctx context.Context, client *esdb.Client) (event.Position, error) {
	read, err := client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.End{}}, 1)
	if err != nil {
		return event.Position{}, err
	}
	defer read.Close()
	switch found, err := read.Recv(); {
	case errors.Is(err, io.EOF): // an empty store
		return event.Position{}, nil
	case err != nil:
		return event.Position{}, err
	default:
		return positionOf(found.OriginalEvent().Position), nil
	}
}

// read collects all that a read brings.
func (s *Store) read(ctx context.Context, open func(context.Context, *esdb.Client) (*esdb.ReadStream, error)) ([]event.Recorded, error) {
	return collect(ctx, s, open, func(next func() (*esdb.RecordedEvent, error)) (events []event.Recorded, err error) {
		var decoder decoder
		for {
			e, err := next()
			if errors.Is(err, io.EOF) {
				return events, nil
			}
			if err != nil {
				return nil, err
			}
			events = append(events, decoder.recorded(e))
		}
	})
}

// collect makes something of what a read brings: next gives the next event, and io.EOF behind the last. It may take readTimeout, as long as the store is not
// silent for silenceTimeout.
func collect[T any](ctx context.Context, s *Store, open func(context.Context, *esdb.Client) (*esdb.ReadStream, error),
	from func(next func() (*esdb.RecordedEvent, error)) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	silence := time.AfterFunc(silenceTimeout, func() { end(errSilent) })
	defer silence.Stop()
	return call(ctx, s.link, func(ctx context.Context, client *esdb.Client) (T, error) {
		read, err := open(ctx, client)
		if err != nil {
			var none T
			return none, err
		}
		defer read.Close()
		return from(func() (*esdb.RecordedEvent, error) {
			resolved, err := read.Recv()
			if err != nil {
				return nil, err
			}
			silence.Reset(silenceTimeout)
			return resolved.OriginalEvent(), nil
		})
	})
}

// positionOf is a position as the project has it.
func positionOf(p esdb.Position) event.Position {
	return event.Position{Commit: p.Commit, Prepare: p.Prepare}
}

// allFrom is a position in `$all` as the client takes it; the zero position is the start. A read gives the event there, a subscription those after it.
func allFrom(p event.Position) esdb.AllPosition {
	if p.IsZero() {
		return esdb.Start{}
	}
	return esdb.Position{Commit: p.Commit, Prepare: p.Prepare}
}

// ofTheStore tells the types of the store's own events (metadata, deletions, statistics).
func ofTheStore(kind string) bool { return strings.HasPrefix(kind, "$") }

// decoder makes recorded events of the client's. It keeps the metadata that it decoded last: the events of one append often have the same.
type decoder struct {
	raw      []byte
	metadata event.Metadata
}

func (d *decoder) decoded(raw []byte) event.Metadata {
	if d.raw == nil || !bytes.Equal(d.raw, raw) {
		d.raw, d.metadata = raw, event.Metadata{}
		if err := json.Unmarshal(raw, &d.metadata); err != nil {
			d.metadata = event.Metadata{} // not written by this product; its type decides who looks at it
		}
	}
	return d.metadata
}

func (d *decoder) recorded(e *esdb.RecordedEvent) event.Recorded {
	return event.Recorded{
		ID:       e.EventID,
		Stream:   e.StreamID,
		Revision: e.EventNumber,
		Position: positionOf(e.Position),
		Type:     e.EventType,
		Data:     e.Data,
		Metadata: d.decoded(e.UserMetadata),
	}
}
