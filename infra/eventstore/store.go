// Package eventstore is the project's way to EventStoreDB: events of the domain in, events of the domain out, through the official client. It
// adds what the client leaves to its user: a deadline for every call, a new client when the old one gave up, and a Watermill Subscriber that
// hands out `$all` in pages.
package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/musique/musique/domain/event"
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
	// MaxAppendBytes bounds the events of one append, by EncodedSize. The server's default limit is 1 MiB of data and metadata.
	MaxAppendBytes = 1<<20 - 4<<10
	// callTimeout bounds one append or one small read.
	callTimeout = 10 * time.Second
	// loadTimeout bounds reading a whole stream, which may hold a large broadcast.
	loadTimeout = 30 * time.Second
	// appendAttempts is how often an append whose answer was lost is repeated; the same event IDs make the repeats harmless.
	appendAttempts = 3
	// headSearch is how many of the newest events Head looks through for one that is not the store's own.
	headSearch = 128
)

// Store is a connection to an event store. It is safe for concurrent use.
type Store struct {
	link *link
	log  *slog.Logger
}

// Open makes a store for an `esdb://` connection string. It does not wait for the server: calls answer ErrUnavailable until it is there.
func Open(connectionString string, log *slog.Logger) (*Store, error) {
	config, err := esdb.ParseConnectionString(connectionString)
	if err != nil {
		return nil, fmt.Errorf("event store connection string: %w", err)
	}
	config.Logger = func(level esdb.LogLevel, format string, args ...any) {
		log.Debug("event store client", "message", fmt.Sprintf(format, args...))
	}
	return &Store{link: newLink(config, log), log: log}, nil
}

// Close ends the connection; calls and subscriptions end with it.
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

// ExpectedAfter is the revision that a stream has as long as nothing was added to the history that was read of it.
func ExpectedAfter(history []event.Recorded) Expected {
	if len(history) == 0 {
		return NoStream
	}
	return Exact(history[len(history)-1].Revision)
}

// Append adds events to the end of a stream, all or none, and gives the position of the last. Events whose IDs stand there already (a repeat)
// are not added twice. Errors: ErrConflict, ErrTooLarge, ErrUnavailable.
func (s *Store) Append(ctx context.Context, stream string, expected Expected, events ...event.Proposed) (event.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	batch := make([]esdb.EventData, len(events))
	size := 0
	for i, e := range events {
		data, metadata, err := encode(e)
		if err != nil {
			return event.Position{}, err
		}
		size += len(data) + len(metadata)
		batch[i] = esdb.EventData{EventID: e.ID, EventType: e.Payload.EventType(), ContentType: esdb.ContentTypeJson, Data: data, Metadata: metadata}
	}
	if size > MaxAppendBytes {
		return event.Position{}, fmt.Errorf("append %d bytes to %s: %w", size, stream, ErrTooLarge)
	}
	var written *esdb.WriteResult
	var err error
	for range appendAttempts {
		err = s.link.do(ctx, func(ctx context.Context, client *esdb.Client) error {
			w, err := client.AppendToStream(ctx, stream, esdb.AppendToStreamOptions{ExpectedRevision: expected.revision}, batch...)
			if err == nil {
				written = w
			}
			return err
		})
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return event.Position{}, fmt.Errorf("append to %s: %w", stream, err)
	}
	return event.Position{Commit: written.CommitPosition, Prepare: written.PreparePosition}, nil
}

// EncodedSize is how many bytes an event counts towards MaxAppendBytes.
func EncodedSize(e event.Proposed) int {
	data, metadata, err := encode(e)
	if err != nil {
		return math.MaxInt32 // Append answers with the error
	}
	return len(data) + len(metadata)
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

// Load reads a whole stream; one that does not exist, or was deleted, is empty.
func (s *Store) Load(ctx context.Context, stream string) ([]event.Recorded, error) {
	return s.Page(ctx, stream, 0, math.MaxInt64)
}

// Page reads up to max events of a stream from a revision on.
func (s *Store) Page(ctx context.Context, stream string, from uint64, max int) ([]event.Recorded, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var events []event.Recorded
	err := s.link.do(ctx, func(ctx context.Context, client *esdb.Client) error {
		read, err := client.ReadStream(ctx, stream, esdb.ReadStreamOptions{Direction: esdb.Forwards, From: esdb.Revision(from)}, uint64(max))
		if err != nil {
			return err
		}
		defer read.Close()
		events, err = collect(read)
		return err
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
// that nothing was left.
func (s *Store) ReadAll(ctx context.Context, after event.Position, max int) (events []event.Recorded, through event.Position, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	var from esdb.AllPosition = esdb.Start{}
	if !after.IsZero() {
		from = esdb.Position{Commit: after.Commit, Prepare: after.Prepare}
	}
	err = s.link.do(ctx, func(ctx context.Context, client *esdb.Client) error {
		// A read from a position includes the event there.
		read, err := client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Forwards, From: from}, uint64(max)+1)
		if err != nil {
			return err
		}
		defer read.Close()
		events, err = collect(read)
		return err
	})
	if err != nil {
		return nil, after, false, fmt.Errorf("read $all: %w", err)
	}
	done, through = len(events) <= max, after
	kept := events[:0]
	for _, e := range events {
		if !after.Before(e.Position) {
			continue
		}
		through = e.Position
		if !strings.HasPrefix(e.Type, "$") {
			kept = append(kept, e)
		}
	}
	return kept, through, done, nil
}

// Head is the position of the newest event that is not the store's own; zero if there is none.
func (s *Store) Head(ctx context.Context) (event.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var newest []event.Recorded
	err := s.link.do(ctx, func(ctx context.Context, client *esdb.Client) error {
		read, err := client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.End{}}, headSearch)
		if err != nil {
			return err
		}
		defer read.Close()
		newest, err = collect(read)
		return err
	})
	if err != nil {
		return event.Position{}, fmt.Errorf("head of $all: %w", err)
	}
	for _, e := range newest {
		if !strings.HasPrefix(e.Type, "$") {
			return e.Position, nil
		}
	}
	return event.Position{}, nil
}

// Ping asks the store for one event, to learn whether it answers.
func (s *Store) Ping(ctx context.Context) error {
	return s.link.do(ctx, probe)
}

func probe(ctx context.Context, client *esdb.Client) error {
	read, err := client.ReadAll(ctx, esdb.ReadAllOptions{Direction: esdb.Backwards, From: esdb.End{}}, 1)
	if err != nil {
		return err
	}
	defer read.Close()
	_, err = collect(read)
	return err
}

func collect(read *esdb.ReadStream) ([]event.Recorded, error) {
	var events []event.Recorded
	for {
		resolved, err := read.Recv()
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		events = append(events, recordedOf(resolved.OriginalEvent()))
	}
}

func recordedOf(e *esdb.RecordedEvent) event.Recorded {
	r := event.Recorded{
		ID:       e.EventID,
		Stream:   e.StreamID,
		Revision: e.EventNumber,
		Position: event.Position{Commit: e.Position.Commit, Prepare: e.Position.Prepare},
		Type:     e.EventType,
		Data:     e.Data,
	}
	if err := json.Unmarshal(e.UserMetadata, &r.Metadata); err != nil {
		r.Metadata = event.Metadata{} // not written by this product; its type decides who looks at it
	}
	return r
}
