package translog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// Proof is what shows, without the event store and without the rest of the tree, that an event is in the history that a head was signed of, or that one head
// goes on from another. Its hashes are in the order of RFC 9162 §2.1.3 and §2.1.4.
type Proof struct {
	Kind string `json:"kind"` // inclusion or consistency
	// Head is the note of the head that the proof leads to.
	Head string `json:"head"`
	// Index and Entry are of an inclusion: which event of the tree, counted from zero, and its encoding.
	Index uint64 `json:"index"`
	Entry []byte `json:"entry,omitempty"`
	// Event is for people: what the entry says.
	Event *Named `json:"event,omitempty"`
	// From is of a consistency: the note of the older head.
	From   string   `json:"from,omitempty"`
	Hashes [][]byte `json:"hashes"`
}

// The kinds of a Proof.
const (
	Inclusion   = "inclusion"
	Consistency = "consistency"
)

// maxProofHashes is more than a tree of 2^64 events needs.
const maxProofHashes = 130

var errProof = errors.New("the proof does not hold")

// Check makes sure that a proof holds with heads that one of the keys signed, and gives the heads and, of an inclusion, the entry. Where it does not, the
// error says why.
func (p Proof) Check(keys []string) (head Head, from *Head, entry *Entry, err error) {
	known, origin, err := verifiers(keys)
	if err != nil {
		return Head{}, nil, nil, err
	}
	if head, err = p.openHead(p.Head, known, origin); err != nil {
		return Head{}, nil, nil, err
	}
	if len(p.Hashes) > maxProofHashes {
		return Head{}, nil, nil, fmt.Errorf("%w: too many hashes", errProof)
	}
	switch p.Kind {
	case Inclusion:
		e, err := ParseEntry(p.Entry)
		if err != nil {
			return Head{}, nil, nil, fmt.Errorf("%w: %w", errProof, err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, head.Size, leafHash(p.Entry), p.Hashes, head.Root); err != nil {
			return Head{}, nil, nil, fmt.Errorf("%w: %w", errProof, err)
		}
		return head, nil, &e, nil
	case Consistency:
		older, err := p.openHead(p.From, known, origin)
		if err != nil {
			return Head{}, nil, nil, err
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, head.Size, p.Hashes, older.Root, head.Root); err != nil {
			return Head{}, nil, nil, fmt.Errorf("%w: %w", errProof, err)
		}
		return head, &older, nil, nil
	default:
		return Head{}, nil, nil, fmt.Errorf("%w: its kind is neither %s nor %s", errProof, Inclusion, Consistency)
	}
}

func (p Proof) openHead(signed string, known note.Verifiers, origin string) (Head, error) {
	head, err := openHead([]byte(signed), known, origin)
	if err != nil {
		return Head{}, fmt.Errorf("%w: head: %w", errProof, err)
	}
	return head, nil
}

// ErrNotKept says that what is asked for is not in the folder.
var ErrNotKept = errors.New("not in the history")

// ProveInclusion makes the proof that an event is in the history of a head.
func ProveInclusion(dir string, head Head, index uint64) (Proof, error) {
	if index >= head.Size {
		return Proof{}, fmt.Errorf("%w of %d events: the event with index %d", ErrNotKept, head.Size, index)
	}
	n := index / tileWidth
	entries, err := readEntries(dir, n, int(min(head.Size-n*tileWidth, tileWidth)))
	if err != nil {
		return Proof{}, err
	}
	raw := entries[index%tileWidth]
	e, err := ParseEntry(raw)
	if err != nil {
		return Proof{}, err
	}
	nodes, err := proof.Inclusion(index, head.Size)
	if err != nil {
		return Proof{}, err
	}
	hashes, err := proofHashes(dir, nodes)
	named := e.named(&index)
	return Proof{Kind: Inclusion, Head: string(head.Note), Index: index, Entry: raw, Event: &named, Hashes: hashes}, err
}

// ProveConsistency makes the proof that a head goes on from an older one.
func ProveConsistency(dir string, from, head Head) (Proof, error) {
	if from.Size > head.Size || from.Size == 0 {
		return Proof{}, fmt.Errorf("a head of %d events cannot come after one of %d", head.Size, from.Size)
	}
	nodes, err := proof.Consistency(from.Size, head.Size)
	if err != nil {
		return Proof{}, err
	}
	hashes, err := proofHashes(dir, nodes)
	return Proof{Kind: Consistency, Head: string(head.Note), From: string(from.Note), Hashes: hashes}, err
}

func proofHashes(dir string, nodes proof.Nodes) ([][]byte, error) {
	hashes := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		var err error
		if hashes[i], err = nodeHash(dir, id); err != nil {
			return nil, fmt.Errorf("hashes of the history: %w", err)
		}
	}
	return nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
}

// Find looks for an event among the first of the tree, by what match says of its entry.
func Find(ctx context.Context, dir string, size uint64, match func(Entry) bool) (index uint64, err error) {
	for n := uint64(0); n*tileWidth < size; n++ {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		entries, err := readEntries(dir, n, int(min(size-n*tileWidth, tileWidth)))
		if err != nil {
			return 0, err
		}
		for i, raw := range entries {
			e, err := ParseEntry(raw)
			if err != nil {
				return 0, err
			}
			if match(e) {
				return n*tileWidth + uint64(i), nil
			}
		}
	}
	return 0, ErrNotKept
}

// HeadOf finds a head by its size among those that are kept, the newest for size zero.
func HeadOf(dir string, size uint64, keys []string) (Head, error) {
	all, err := ReadHeads(dir, keys)
	if err != nil {
		return Head{}, err
	}
	for i := len(all.Heads) - 1; i >= 0; i-- {
		if head := all.Heads[i]; size == 0 || head.Size == size {
			return head, nil
		}
	}
	if size == 0 {
		return Head{}, errors.New("no head is kept that one of the keys signed")
	}
	return Head{}, fmt.Errorf("%w: a head of %d events", ErrNotKept, size)
}

// Named says which event an entry is of.
type Named struct {
	Index    *uint64   `json:"index,omitempty"` // in the tree, counted from zero
	Position uint64    `json:"position"`        // in `$all`
	Stream   string    `json:"stream"`
	Revision uint64    `json:"revision"`
	Type     string    `json:"type"`
	EventID  uuid.UUID `json:"eventId"`
	Recorded string    `json:"recorded"`
	DataHash string    `json:"dataSha256"`
	MetaHash string    `json:"metadataSha256"`
}

// Named says which event the entry is of.
func (e Entry) Named() Named { return e.named(nil) }

func (e Entry) named(index *uint64) Named {
	return Named{
		Index: index, Position: e.Position.Commit, Stream: e.Stream, Revision: e.Revision, Type: e.Type, EventID: e.ID, Recorded: e.recorded().Format(time.RFC3339Nano),
		DataHash: hex.EncodeToString(e.DataHash[:]), MetaHash: hex.EncodeToString(e.MetaHash[:]),
	}
}

func (e Entry) recorded() time.Time {
	return time.Unix(e.Recorded/ticksPerSecond, e.Recorded%ticksPerSecond*100).UTC()
}

// ticksPerSecond are those that the store notes times in.
const ticksPerSecond = int64(time.Second / 100)

// String names the event as operators look for it.
func (n Named) String() string {
	return fmt.Sprintf("%s %d@%s, position %d, event %s, recorded %s", n.Type, n.Revision, n.Stream, n.Position, n.EventID, n.Recorded)
}
