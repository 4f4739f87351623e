package eventstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"

	"github.com/musique/musique/domain/event"
)

// Raw is an event as the store has it, undecoded: for who looks at the history as such, and not at what it says.
type Raw struct {
	Position    event.Position
	Stream      string
	Revision    uint64
	ID          uuid.UUID
	Type        string
	ContentType string
	// Recorded is when the store recorded the event, in ticks of 100 ns since 1970: what the store keeps.
	Recorded       int64
	Data, Metadata []byte
}

// OfTheStore tells the store's own events (metadata, deletions, statistics).
func (r Raw) OfTheStore() bool { return ofTheStore(r.Type) }

// History reads some events of `$all` from a position on, the event there and the store's own included, at most limit and at most a page's bytes. Done says
// that nothing was left. Errors: ErrUnavailable.
func (s *Store) History(ctx context.Context, from event.Position, limit int) (events []Raw, done bool, err error) {
	type page struct {
		events []Raw
		done   bool
	}
	options := esdb.ReadAllOptions{Direction: esdb.Forwards, From: allFrom(from)}
	open := func(ctx context.Context, client *esdb.Client) (*esdb.ReadStream, error) {
		return client.ReadAll(ctx, options, uint64(limit))
	}
	read, err := collect(ctx, s, open, func(next func() (*esdb.RecordedEvent, error)) (page, error) {
		var p page
		for bytes := 0; bytes < maxPageBytes; {
			e, err := next()
			if errors.Is(err, io.EOF) {
				p.done = len(p.events) < limit
				return p, nil
			}
			if err != nil {
				return page{}, err
			}
			raw, err := rawOf(e)
			if err != nil {
				return page{}, err
			}
			p.events = append(p.events, raw)
			bytes += len(raw.Data) + len(raw.Metadata)
		}
		return p, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read $all: %w", err)
	}
	return read.events, read.done, nil
}

// createdKey is where the protocol has when an event was recorded.
const createdKey = "created"

func rawOf(e *esdb.RecordedEvent) (Raw, error) {
	recorded, err := strconv.ParseInt(e.SystemMetadata[createdKey], 10, 64)
	if err != nil {
		return Raw{}, fmt.Errorf("when %d@%s was recorded: %w", e.EventNumber, e.StreamID, err)
	}
	return Raw{
		Position: positionOf(e.Position), Stream: e.StreamID, Revision: e.EventNumber, ID: e.EventID,
		Type: e.EventType, ContentType: e.ContentType, Recorded: recorded, Data: e.Data, Metadata: e.UserMetadata,
	}, nil
}
