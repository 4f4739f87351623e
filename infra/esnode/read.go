package esnode

import (
	"bytes"
	"encoding/binary"
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

// readStream gives the events of a stream to send, from a revision on (included), at most count, in the direction asked.
// It stops at send's first error and returns it.
func readStream(v *view, stream string, backwards bool, from int64, count uint64, now time.Time, send func(*recorded) error) error {
	h, err := headOf(v.snapshot, stream)
	if err != nil {
		return err
	}
	if h.tombstoned {
		return streamDeleted{stream}
	}
	if !h.exists() {
		return streamNotFound{stream}
	}
	lower := streamKey(stream, uint64(h.first()))
	upper := append(streamKey(stream, uint64(h.last)), 0)
	if backwards && from < h.last {
		upper = append(streamKey(stream, uint64(from)), 0)
	}
	if !backwards && from > h.first() {
		lower = streamKey(stream, uint64(from))
	}
	return eachPosition(v.snapshot, lower, upper, backwards, func(value []byte) (bool, error) {
		if count == 0 {
			return false, nil
		}
		e, err := eventAt(v.snapshot, binary.BigEndian.Uint64(value))
		if err != nil {
			return false, err
		}
		if h.retention.expired(e, now) {
			return true, nil
		}
		count--
		return true, send(e)
	})
}

// readAll gives events of the whole store to send. Forwards it begins with the event at from, backwards with the one before it, as
// EventStoreDB does.
func readAll(v *view, backwards bool, from uint64, count uint64, f filter, send func(*recorded) error) error {
	lower, upper := eventKey(0), eventKey(v.head+1)
	if backwards && from <= v.head {
		upper = eventKey(from)
	}
	if !backwards {
		lower = eventKey(from)
	}
	return eachPosition(v.snapshot, lower, upper, backwards, func(value []byte) (bool, error) {
		if count == 0 {
			return false, nil
		}
		e, err := decodeEvent(value)
		if err != nil {
			return false, err
		}
		if !f.matches(e) {
			return true, nil
		}
		count--
		return true, send(e)
	})
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
	defer it.Close() //nolint:errcheck // its error is asked for below
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
	ticks, err := strconv.ParseInt(e.Metadata["created"], 10, 64)
	return err == nil && now.Sub(time.Unix(0, ticks*100)) > r.maxAge
}
