package esnode

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// streamNotFound says that a stream has no event, or was deleted softly.
type streamNotFound struct{ stream string }

func (e streamNotFound) Error() string { return "stream " + e.stream + " is not found" }

// latest stands for "from the end" as the place where a backward read begins.
const latest = math.MaxInt64

// pageEvents and pageBytes are how many events, and how much of them, a read or a subscription looks at before it takes a newer view of the store.
// What it found is sent only then: a client may take as long as it likes, and a view that is kept keeps memory and disk from being freed.
const (
	pageEvents = 1024
	pageBytes  = 4 << 20
)

// streamPage is a part of a read of a stream.
type streamPage struct {
	events []*recorded
	next   int64 // where the next part begins
	done   bool  // nothing is left
	last   int64 // the stream's last revision
}

// readStream reads a part of a stream, from a revision on (included), at most count events, in the direction asked; forwards it ends with
// revision to.
func readStream(v *view, stream string, backwards bool, from, to int64, count uint64, now time.Time) (page streamPage, err error) {
	h, err := headOf(v.snapshot, stream)
	if err != nil {
		return streamPage{}, err
	}
	if h.tombstoned {
		return streamPage{}, streamDeleted{stream}
	}
	if !h.exists() {
		return streamPage{}, streamNotFound{stream}
	}
	page = streamPage{next: from, done: true, last: h.last}
	lower := streamKey(stream, uint64(h.first()))
	upper := append(streamKey(stream, uint64(min(h.last, to))), 0)
	if backwards && from < h.last {
		upper = append(streamKey(stream, uint64(from)), 0)
	}
	if !backwards && from > h.first() {
		lower = streamKey(stream, uint64(from))
	}
	events := eventReader{reader: v.snapshot}
	defer func() { err = errors.Join(err, events.close()) }()
	looked, bytes := 0, 0
	err = eachPosition(v.snapshot, lower, upper, backwards, func(value []byte) (bool, error) {
		if looked == pageEvents || bytes >= pageBytes || uint64(len(page.events)) == count {
			page.done = uint64(len(page.events)) == count
			return false, nil
		}
		e, err := events.at(binary.BigEndian.Uint64(value))
		if err != nil {
			return false, err
		}
		looked++
		page.next = int64(e.StreamRevision) + 1
		if backwards {
			page.next = int64(e.StreamRevision) - 1
		}
		if !h.retention.expired(e, now) {
			bytes += payloadBytes(e)
			page.events = append(page.events, e)
		}
		return true, nil
	})
	return page, err
}

// eventReader reads events by their positions. What was appended together stands together, so it goes on from the event before where it can: most
// streams have an event or two, for which a look at each is the cheaper way, but a broadcast has many.
type eventReader struct {
	reader pebble.Reader
	looked bool
	it     *pebble.Iterator
}

func (r *eventReader) at(position uint64) (*recorded, error) {
	if !r.looked {
		r.looked = true
		return eventAt(r.reader, position)
	}
	if r.it == nil {
		it, err := r.reader.NewIter(&pebble.IterOptions{LowerBound: eventKey(0), UpperBound: eventKey(math.MaxUint64)})
		if err != nil {
			return nil, err
		}
		r.it = it
	}
	key := eventKey(position)
	there := r.it.Valid() && r.it.Next() && bytes.Equal(r.it.Key(), key)
	if !there {
		there = r.it.SeekGE(key) && bytes.Equal(r.it.Key(), key)
	}
	if !there {
		return nil, fmt.Errorf("event at position %d: %w", position, cmp.Or(r.it.Error(), pebble.ErrNotFound))
	}
	value, err := r.it.ValueAndErr()
	if err != nil {
		return nil, fmt.Errorf("event at position %d: %w", position, err)
	}
	return decodeEvent(value)
}

func (r *eventReader) close() error {
	if r.it == nil {
		return nil
	}
	return r.it.Close()
}

// allPage is a part of a read of `$all`.
type allPage struct {
	events []*recorded
	next   uint64
	done   bool
}

// readAll reads a part of the whole store, at most count events. Forwards it begins with the event at from and ends with the one at to, backwards
// it begins with the one before from, as EventStoreDB does.
func readAll(v *view, backwards bool, from, to, count uint64, f filter) (allPage, error) {
	page := allPage{next: from, done: true}
	lower, upper := eventKey(0), eventKey(min(v.head, to)+1)
	if backwards && from <= v.head {
		upper = eventKey(from)
	}
	if !backwards {
		lower = eventKey(from)
	}
	looked, bytes := 0, 0
	err := eachPosition(v.snapshot, lower, upper, backwards, func(value []byte) (bool, error) {
		if looked == pageEvents || bytes >= pageBytes || uint64(len(page.events)) == count {
			page.done = uint64(len(page.events)) == count
			return false, nil
		}
		e, err := decodeEvent(value)
		if err != nil {
			return false, err
		}
		looked++
		bytes += payloadBytes(e)
		page.next = e.CommitPosition + 1
		if backwards {
			page.next = e.CommitPosition
		}
		if f.matches(e) {
			page.events = append(page.events, e)
		}
		return true, nil
	})
	return page, err
}

// eachPosition goes through the values of the keys in [lower, upper) until visit says no or fails.
func eachPosition(r pebble.Reader, lower, upper []byte, backwards bool, visit func(value []byte) (more bool, err error)) error {
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close() // its error is asked for below
	first, next := it.First, it.Next
	if backwards {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		more, err := visit(value)
		if err != nil || !more {
			return err
		}
	}
	return it.Error()
}

// expired reports whether `$maxAge` leaves the event out.
func (r retention) expired(e *recorded, now time.Time) bool {
	if r.maxAge == 0 {
		return false
	}
	ticks, err := strconv.ParseInt(e.Metadata[keyCreated], 10, 64)
	return err == nil && now.Sub(time.Unix(0, ticks*100)) > r.maxAge
}
