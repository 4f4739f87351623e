package esnode

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// noRevision is the last revision of a stream that has no event.
const noRevision = -1

// deletedRevision is the revision of the event that ends a tombstoned stream, and the `$tb` of a soft-deleted one; the value is
// EventStoreDB's own (EventNumber.DeletedStream).
const deletedRevision = math.MaxInt64

// head is what an append or a read must know of a stream.
type head struct {
	last       int64 // revision of the last event, noRevision if there is none
	tombstoned bool
	retention  retention
}

// retention is the part of a stream's metadata that bounds what is read of it.
type retention struct {
	truncateBefore int64         // `$tb`: the first revision that is still read
	maxCount       int64         // `$maxCount`; 0 is no bound
	maxAge         time.Duration // `$maxAge`; 0 is no bound
}

func (h head) exists() bool      { return h.last > noRevision && !h.softDeleted() && !h.tombstoned }
func (h head) softDeleted() bool { return h.retention.truncateBefore == deletedRevision }

// first is the first revision that is read of the stream, not counting what `$maxAge` leaves out.
func (h head) first() int64 {
	first := h.retention.truncateBefore
	if h.retention.maxCount > 0 {
		first = max(first, h.last-h.retention.maxCount+1)
	}
	return max(first, 0)
}

const headBytes = 1 + 4*8

func (h head) encode() []byte {
	value := make([]byte, 1, headBytes)
	if h.tombstoned {
		value[0] = 1
	}
	for _, n := range []int64{h.last, h.retention.truncateBefore, h.retention.maxCount, int64(h.retention.maxAge)} {
		value = binary.BigEndian.AppendUint64(value, uint64(n))
	}
	return value
}

func headKey(stream string) []byte { return append([]byte{prefixHead}, stream...) }

// headOf gives the head of a stream. That of a metadata stream ends with the stream that it is of, and shows its newest event only.
func headOf(r pebble.Reader, stream string) (head, error) {
	h, err := storedHead(r, stream)
	owner, ok := metadataOwner(stream)
	if err != nil || !ok {
		return h, err
	}
	of, err := headOf(r, owner)
	h.tombstoned = h.tombstoned || of.tombstoned
	h.retention = retention{maxCount: 1}
	return h, err
}

func storedHead(r pebble.Reader, stream string) (head, error) {
	value, closer, err := r.Get(headKey(stream))
	if errors.Is(err, pebble.ErrNotFound) {
		return head{last: noRevision}, nil
	}
	if err != nil {
		return head{}, fmt.Errorf("head of %s: %w", stream, err)
	}
	defer closer.Close()
	if len(value) != headBytes {
		return head{}, fmt.Errorf("head of %s has %d bytes", stream, len(value))
	}
	number := func(i int) int64 { return int64(binary.BigEndian.Uint64(value[1+8*i:])) }
	return head{
		last:       number(0),
		tombstoned: value[0] == 1,
		retention:  retention{truncateBefore: number(1), maxCount: number(2), maxAge: time.Duration(number(3))},
	}, nil
}

// metadataOwner gives the stream that `$$name` is the metadata of.
func metadataOwner(stream string) (owner string, ok bool) {
	return strings.CutPrefix(stream, "$$")
}

func metadataOf(stream string) string { return "$$" + stream }

// parseRetention reads the system part of a stream's metadata; what it does not know stays as it is in the event.
func parseRetention(data []byte) (retention, error) {
	var fields struct {
		TruncateBefore *int64 `json:"$tb"`
		MaxCount       *int64 `json:"$maxCount"`
		MaxAge         *int64 `json:"$maxAge"` // seconds
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &fields); err != nil {
			return retention{}, fmt.Errorf("stream metadata: %w", err)
		}
	}
	var r retention
	if fields.TruncateBefore != nil && *fields.TruncateBefore > 0 {
		r.truncateBefore = *fields.TruncateBefore
	}
	if fields.MaxCount != nil && *fields.MaxCount > 0 {
		r.maxCount = *fields.MaxCount
	}
	if fields.MaxAge != nil && *fields.MaxAge > 0 {
		r.maxAge = time.Duration(min(*fields.MaxAge, math.MaxInt64/int64(time.Second))) * time.Second
	}
	return r, nil
}

// withTruncateBefore gives stream metadata with another `$tb` and all else as it was.
func withTruncateBefore(data []byte, before int64) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &fields); err != nil {
			return nil, fmt.Errorf("stream metadata: %w", err)
		}
	}
	fields["$tb"] = fmt.Appendf(nil, "%d", before)
	return json.Marshal(fields)
}
