// Package translog makes the event history tamper-evident: a Merkle tree (RFC 9162 §2.1) over all events in the order of `$all`, its heads signed as C2SP
// checkpoints, and what is kept of it in a folder outside the event store, laid out as C2SP tlog-tiles says. docs/tamper-evidence.md is for those who rely
// on it.
package translog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/google/uuid"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

const (
	// entryVersion is the first byte of an entry. Another format is another number, and old entries stay as they are.
	entryVersion = 1
	// fixedBytes is what an entry has beside its three names: version, commit, prepare, revision, ID, recorded, and two hashes.
	fixedBytes = 1 + 8 + 8 + 8 + 16 + 8 + 2*sha256.Size
	// maxEntryBytes is what tlog-tiles has room for.
	maxEntryBytes = math.MaxUint16
)

// Entry is what the tree holds of an event. Its leaf hash is SHA-256(0x00 ‖ Marshal()).
type Entry struct {
	Position    event.Position
	Stream      string
	Revision    uint64
	ID          uuid.UUID
	Type        string
	ContentType string
	// Recorded is when the store recorded it, in ticks of 100 ns since 1970.
	Recorded           int64
	DataHash, MetaHash [sha256.Size]byte // SHA-256 of the bytes as they are stored
}

// NewEntry is the entry of an event.
func NewEntry(e eventstore.Raw) Entry {
	return Entry{
		Position: e.Position, Stream: e.Stream, Revision: e.Revision, ID: e.ID, Type: e.Type, ContentType: e.ContentType, Recorded: e.Recorded,
		DataHash: sha256.Sum256(e.Data), MetaHash: sha256.Sum256(e.Metadata),
	}
}

// Marshal encodes the entry: the version, then numbers of eight bytes, the ID, the hashes, and the names, each after its length in two bytes. All numbers are
// big-endian. An entry has one encoding, and an encoding one entry.
func (e Entry) Marshal() ([]byte, error) {
	size := fixedBytes + 3*2 + len(e.Stream) + len(e.Type) + len(e.ContentType)
	if size > maxEntryBytes {
		return nil, fmt.Errorf("the names of %d@%.100s are too long for the history: %d bytes of %d", e.Revision, e.Stream, size, maxEntryBytes)
	}
	raw := append(make([]byte, 0, size), entryVersion)
	raw = binary.BigEndian.AppendUint64(raw, e.Position.Commit)
	raw = binary.BigEndian.AppendUint64(raw, e.Position.Prepare)
	raw = binary.BigEndian.AppendUint64(raw, e.Revision)
	raw = append(raw, e.ID[:]...)
	raw = binary.BigEndian.AppendUint64(raw, uint64(e.Recorded))
	raw = append(raw, e.DataHash[:]...)
	raw = append(raw, e.MetaHash[:]...)
	for _, name := range []string{e.Stream, e.Type, e.ContentType} {
		raw = binary.BigEndian.AppendUint16(raw, uint16(len(name)))
		raw = append(raw, name...)
	}
	return raw, nil
}

var errEntry = errors.New("this is no entry of the history")

// ParseEntry reads what Marshal wrote, and nothing else.
func ParseEntry(raw []byte) (e Entry, err error) {
	if len(raw) < fixedBytes || raw[0] != entryVersion {
		return Entry{}, errEntry
	}
	rest := raw[1:]
	number := func() uint64 {
		n := binary.BigEndian.Uint64(rest)
		rest = rest[8:]
		return n
	}
	e.Position = event.Position{Commit: number(), Prepare: number()}
	e.Revision = number()
	rest = rest[copy(e.ID[:], rest):]
	e.Recorded = int64(number())
	rest = rest[copy(e.DataHash[:], rest):]
	rest = rest[copy(e.MetaHash[:], rest):]
	for _, name := range []*string{&e.Stream, &e.Type, &e.ContentType} {
		if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
			return Entry{}, errEntry
		}
		end := 2 + int(binary.BigEndian.Uint16(rest))
		*name, rest = string(rest[2:end]), rest[end:]
	}
	if len(rest) > 0 || len(raw) > maxEntryBytes {
		return Entry{}, errEntry
	}
	return e, nil
}

// leafHash is the hash of an entry in the tree.
func leafHash(raw []byte) []byte { return rfc6962.DefaultHasher.HashLeaf(raw) }

// key is what there is once in a store.
func (e Entry) key() eventKey { return eventKey{e.Stream, e.Revision} }

type eventKey struct {
	stream   string
	revision uint64
}

// differences names what is not the same in two entries of one event.
func (e Entry) differences(other Entry) (fields []string) {
	for _, field := range []struct {
		name string
		same bool
	}{
		{"position", e.Position == other.Position}, {"stream", e.Stream == other.Stream}, {"revision", e.Revision == other.Revision}, {"id", e.ID == other.ID},
		{"type", e.Type == other.Type}, {"contentType", e.ContentType == other.ContentType}, {"recorded", e.Recorded == other.Recorded},
		{"data", e.DataHash == other.DataHash}, {"metadata", e.MetaHash == other.MetaHash},
	} {
		if !field.same {
			fields = append(fields, field.name)
		}
	}
	return fields
}
