package translog

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/note"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// Source reads the store: eventstore.Store's History.
type Source func(ctx context.Context, from event.Position, limit int) (events []eventstore.Raw, done bool, err error)

// Retained are streams that the store may forget the events of when they are old.
type Retained struct {
	Prefix string        // of the streams' names
	Age    time.Duration // of what it may forget
}

// Has tells whether an event is one that the store may have forgotten.
func (r Retained) Has(e Entry, now time.Time) bool {
	return strings.HasPrefix(e.Stream, r.Prefix) && now.Sub(e.recorded()) > r.Age
}

// VerifyConfig is what Verify looks at.
type VerifyConfig struct {
	Dir string // the folder of the heads
	// Keys are the verifier keys that heads are believed by.
	Keys []string
	// Copies are texts of heads that were kept elsewhere.
	Copies   [][]byte
	Source   Source
	Retained []Retained
	Now      time.Time
	// Progress is told how many of the signed events were looked at. May be nil.
	Progress func(stage string, done, of uint64)
}

// The verdicts of a Report.
const (
	Verified   = "verified"
	Tampered   = "tampered"
	CannotTell = "cannot tell"
)

// The kinds of a Difference.
const (
	Changed   = "changed"   // the event says something else
	Missing   = "missing"   // the event is not in the store
	Added     = "added"     // the store has an event among the signed ones that was never there
	Reordered = "reordered" // the event stands elsewhere
	Shifted   = "shifted"   // events say the same, but their positions are others
	Hidden    = "hidden"    // the store has been told not to show a stream, or a part of it
	Somewhere = "somewhere" // something among these events is not what was signed; which, is not kept
)

// Difference is something in the store that is not what was signed.
type Difference struct {
	Kind string `json:"kind"`
	// Event is what was signed, Found what the store has.
	Event *Named `json:"event,omitempty"`
	Found *Named `json:"found,omitempty"`
	// Fields are those that differ.
	Fields []string `json:"fields,omitempty"`
	Detail string   `json:"detail,omitempty"`
}

// Report is what Verify found.
type Report struct {
	Verdict string   `json:"verdict"`
	Origin  string   `json:"origin"`
	Keys    []string `json:"keys"`
	// Heads is how many were looked at, Size what the largest of them says, Proven how many events are proven to be what was signed.
	Heads  int    `json:"heads"`
	Size   uint64 `json:"size"`
	Root   []byte `json:"root,omitempty"`
	Proven uint64 `json:"proven"`
	// Uncovered are the events after the largest head, Expired those that the store may have forgotten and has.
	Uncovered uint64 `json:"uncovered"`
	Expired   uint64 `json:"expired"`
	// Differences are in the order of the history; More is how many others there are.
	Differences []Difference `json:"differences"`
	More        uint64       `json:"moreDifferences"`
	// Evidence says what was done to the heads and hashes, Warnings what is lost of them or not known.
	Evidence []string `json:"evidence"`
	Warnings []string `json:"warnings"`
}

const (
	// maxDifferences bounds what is named, maxCandidates what is remembered until it is clear where it belongs.
	maxDifferences = 1_000
	maxCandidates  = 20_000
	// window is how far an event that stands elsewhere is looked for at once; from further away it is found in the end.
	window = 1_024
	// pageEvents is how many events are read at a time.
	pageEvents = 4_096
	// progressEvery is after how many events Progress is told.
	progressEvery = 8_192
)

// Heads are those that are kept.
type Heads struct {
	Heads    []Head // by size; where there are several of one size, their roots differ
	Evidence []string
	Warnings []string
	Read     int
	// Unread says that a text that was given has a head that none of the keys signed, or none at all: it was not compared with anything.
	Unread bool
}

// ReadHeads reads all heads in a folder, and further texts of heads.
func ReadHeads(dir string, keys []string, copies ...[]byte) (Heads, error) {
	known, origin, err := verifiers(keys)
	if err != nil {
		return Heads{}, err
	}
	h := Heads{Evidence: []string{}, Warnings: []string{}}
	files, err := headFiles(dir)
	if err != nil {
		return Heads{}, err
	}
	for _, file := range append(files, filepath.Join(dir, checkpointFile)) {
		raw, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Heads{}, err
		}
		h.read(filepath.Base(file), raw, known, origin)
	}
	for i, raw := range copies {
		name, read, evidence := fmt.Sprintf("given head file %d", i+1), h.Read, len(h.Evidence)
		unknown := h.read(name, raw, known, origin)
		if h.Read == read && len(h.Evidence) == evidence && !unknown {
			h.Warnings = append(h.Warnings, name+": there is no head in it")
			unknown = true
		}
		h.Unread = h.Unread || unknown
	}
	slices.SortStableFunc(h.Heads, func(a, b Head) int {
		return cmp.Or(cmp.Compare(a.Size, b.Size), bytes.Compare(a.Root, b.Root))
	})
	h.Heads = slices.CompactFunc(h.Heads, func(a, b Head) bool { return a.Size == b.Size && bytes.Equal(a.Root, b.Root) })
	for i := 1; i < len(h.Heads); i++ {
		if h.Heads[i].Size == h.Heads[i-1].Size {
			h.Evidence = append(h.Evidence, fmt.Sprintf("two heads of %d events have different roots", h.Heads[i].Size))
		}
	}
	return h, nil
}

// read takes up the heads of a text; unknown says that none of the keys signed one of them.
func (h *Heads) read(name string, raw []byte, known note.Verifiers, origin string) (unknown bool) {
	notes, unfinished := splitNotes(raw)
	for i, signed := range notes {
		head, err := openHead(signed, known, origin)
		switch _, another := errors.AsType[*note.UnverifiedNoteError](err); {
		case err == nil:
			h.Heads = append(h.Heads, head)
			h.Read++
		case another:
			unknown = true
			h.Warnings = append(h.Warnings, fmt.Sprintf("%s: head %d is signed by none of the given keys", name, i+1))
		default:
			h.Evidence = append(h.Evidence, fmt.Sprintf("%s: head %d was changed: %v", name, i+1, err))
		}
	}
	if len(unfinished) > 0 {
		h.Warnings = append(h.Warnings, fmt.Sprintf("%s: the last %d bytes are no whole head", name, len(unfinished)))
	}
	return unknown
}

// Verify reads the store from its first event on and compares it with what was signed of it. An error says that it could not.
func Verify(ctx context.Context, c VerifyConfig) (Report, error) {
	heads, err := ReadHeads(c.Dir, c.Keys, c.Copies...)
	if err != nil {
		return Report{}, err
	}
	_, origin, err := verifiers(c.Keys)
	if err != nil {
		return Report{}, err
	}
	v := &verification{VerifyConfig: c, heads: heads.Heads, unread: heads.Unread, hidden: map[string]string{}}
	v.report = Report{
		Origin: origin, Keys: c.Keys, Heads: heads.Read, Differences: []Difference{}, Evidence: heads.Evidence, Warnings: heads.Warnings,
	}
	if len(v.heads) > 0 {
		newest := v.heads[len(v.heads)-1]
		v.report.Size, v.report.Root = newest.Size, newest.Root
	}
	if err := v.run(ctx); err != nil {
		return Report{}, err
	}
	return v.report, nil
}

type verification struct {
	VerifyConfig
	heads  []Head
	unread bool // a head that was given could not be believed
	report Report

	kept  *keptReader
	store *storeReader
	tree  *compact.Range // over the store's events, those that it may have forgotten included
	unmet []Head         // heads that had another root when the tree had their size

	missing, added []candidate
	overflow       uint64
	shifted        []located // of which only the place or the time differs
	changed        []located
	hidden         map[string]string
	unknown        bool // something is lost that would tell whether the store may have forgotten what it has not
}

// candidate is an event that one side has where the other has not; it may be elsewhere there.
type candidate struct {
	index uint64
	entry Entry
}

// located is a difference and where in the tree it is.
type located struct {
	index uint64
	Difference
}

func (v *verification) run(ctx context.Context) error {
	trusted, err := v.checkKept(ctx)
	if err != nil {
		return err
	}
	v.kept = &keptReader{dir: v.Dir, size: v.report.Size, hashesFirst: trusted == hashesTrusted}
	v.store = &storeReader{source: v.Source, each: v.looksFor}
	v.tree = ranges.NewEmptyRange(0)
	if err := v.compare(ctx); err != nil {
		return err
	}
	v.conclude(trusted)
	return nil
}

// What is kept of the events can be believed as far as its root is the one that was signed.
const (
	nothingTrusted = iota
	entriesTrusted
	hashesTrusted
)

// checkKept computes the roots of what is kept, of the entries and of the hashes, and compares them with those of the heads.
func (v *verification) checkKept(ctx context.Context) (trusted int, err error) {
	byEntries, byHashes := ranges.NewEmptyRange(0), ranges.NewEmptyRange(0)
	entriesGood, hashesGood := true, true
	var lost, disputed uint64
	next := 0
	for index := uint64(0); index < v.report.Size; index++ {
		if index%progressEvery == 0 {
			v.progress("kept hashes", index)
			if ctx.Err() != nil {
				return nothingTrusted, ctx.Err()
			}
		}
		n, i := index/tileWidth, index%tileWidth
		if i == 0 {
			v.kept = &keptReader{dir: v.Dir, size: v.report.Size}
			if err := v.kept.load(n); err != nil {
				return nothingTrusted, err
			}
		}
		entry, hash := v.kept.leaf(i)
		if entry == nil {
			lost++
		}
		if entry != nil && hash != nil && !bytes.Equal(entry, hash) {
			if disputed++; disputed == 1 {
				v.report.Evidence = append(v.report.Evidence, fmt.Sprintf("what is kept of the event with index %d is not what the hash beside it was made of", index))
			}
		}
		if entry == nil {
			entry = hash
		}
		if hash == nil {
			hash = entry
		}
		if entry == nil {
			entriesGood, hashesGood = false, false // lost, both
			continue
		}
		if err := errors.Join(byEntries.Append(entry, nil), byHashes.Append(hash, nil)); err != nil {
			return nothingTrusted, err
		}
		for ; next < len(v.heads) && v.heads[next].Size == index+1; next++ {
			for _, side := range []struct {
				tree *compact.Range
				good *bool
			}{{byEntries, &entriesGood}, {byHashes, &hashesGood}} {
				root, err := rootOf(side.tree)
				if err != nil {
					return nothingTrusted, err
				}
				*side.good = *side.good && bytes.Equal(root, v.heads[next].Root)
			}
		}
	}
	if lost > 0 {
		v.report.Warnings = append(v.report.Warnings, fmt.Sprintf("of %d events no entry is kept", lost))
	}
	switch {
	case v.report.Size == 0:
		return nothingTrusted, nil
	case entriesGood:
		return entriesTrusted, nil
	case hashesGood:
		return hashesTrusted, nil
	}
	if lost < v.report.Size {
		if lost == 0 {
			v.report.Evidence = append(v.report.Evidence, "what is kept of the events is not what the heads were signed of")
		} else {
			v.report.Warnings = append(v.report.Warnings, "what is left of the kept entries cannot be checked against the heads")
		}
	}
	return nothingTrusted, nil
}

func (v *verification) progress(stage string, done uint64) {
	if v.Progress != nil {
		v.Progress(stage, done, v.report.Size)
	}
}

// compare walks through what is kept and what the store has.
func (v *verification) compare(ctx context.Context) error {
	told := uint64(0)
	var end *Entry // the newest that was signed, once it is reached; nil where it is not kept
	for {
		if v.tree.End() >= told {
			v.progress("event store", v.tree.End())
			told = v.tree.End() + progressEvery
		}
		k, kept, err := v.kept.peek(0)
		if err != nil {
			return err
		}
		s, stored, err := v.store.peek(ctx, 0)
		if err != nil {
			return err
		}
		if kept && k.index == v.report.Size-1 {
			end = k.entry
		}
		switch {
		case !kept && !stored:
			return nil
		case !kept && end != nil && end.Position.Before(s.entry.Position), !kept && end == nil && v.tree.End() >= v.report.Size:
			v.report.Uncovered++
			v.store.pop()
		case !kept:
			if err := v.isAdded(s); err != nil {
				return err
			}
			v.store.pop()
		case !stored:
			if err := v.isMissing(k); err != nil {
				return err
			}
			v.kept.pop()
		default:
			if err := v.step(ctx, k, s); err != nil {
				return err
			}
		}
	}
}

// step settles the next event of one side or of both.
func (v *verification) step(ctx context.Context, k keptLeaf, s storedEvent) error {
	if k.entry == nil {
		return v.stepUnnamed(k, s)
	}
	if k.entry.key() == s.entry.key() {
		v.kept.pop()
		v.store.pop()
		v.isBoth(k, s)
		return v.grow(s.hash)
	}
	if v.mayBeForgotten(*k.entry) && k.entry.Position.Before(s.entry.Position) {
		v.kept.pop()
		return v.isMissing(k)
	}
	inKept, err := v.kept.search(s.entry.key())
	if err != nil {
		return err
	}
	inStore, err := v.store.search(ctx, k.entry.key())
	if err != nil {
		return err
	}
	dropKept, dropStore := false, false
	switch {
	case inKept < 0 && inStore < 0:
		dropKept, dropStore = !s.entry.Position.Before(k.entry.Position), !k.entry.Position.Before(s.entry.Position)
	case inStore < 0:
		dropKept = true
	case inKept < 0:
		dropStore = true
	default: // of an event that has another position than it had, it is clear that it stands elsewhere
		there, _, err := v.store.peek(ctx, inStore)
		if err != nil {
			return err
		}
		before, _, err := v.kept.peek(inKept)
		if err != nil {
			return err
		}
		switch {
		case there.entry.Position == k.entry.Position:
			dropStore = true
		case before.entry.Position == s.entry.Position:
			dropKept = true
		default:
			dropKept = inKept < inStore
			dropStore = !dropKept
		}
	}
	if dropKept {
		v.kept.pop()
		if err := v.isMissing(k); err != nil {
			return err
		}
	}
	if dropStore {
		v.store.pop()
		return v.isAdded(s)
	}
	return nil
}

// stepUnnamed settles an event of which no entry is kept. It is taken to be the next that the store has before the next event that is known.
func (v *verification) stepUnnamed(k keptLeaf, s storedEvent) error {
	known, ok, err := v.kept.nextKnown()
	if err != nil {
		return err
	}
	v.kept.pop()
	if ok && !s.entry.Position.Before(known.Position) {
		return v.isMissing(k)
	}
	v.store.pop()
	switch {
	case k.hash == nil || bytes.Equal(k.hash, s.hash):
	case v.forgetful():
		v.unknown = true
	default:
		found := s.entry.named(nil)
		v.differs(k.index, Difference{Kind: Changed, Found: &found, Detail: "only the hash of the event that was signed here is kept"})
	}
	return v.grow(s.hash)
}

// forgetful says that the store may have forgotten events that it is not known what they were: the first of all is not known to be younger than that.
func (v *verification) forgetful() bool {
	first := v.kept.first
	return slices.ContainsFunc(v.Retained, func(r Retained) bool { return first == nil || v.Now.Sub(first.recorded()) > r.Age })
}

// grow adds the next event of the store to its tree, and compares the root where a head was signed.
func (v *verification) grow(hash []byte) error {
	if v.tree.End() >= v.report.Size {
		return nil
	}
	if err := v.tree.Append(hash, nil); err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(v.heads, v.tree.End(), func(h Head, size uint64) int {
		return cmp.Compare(h.Size, size)
	})
	if !found {
		return nil
	}
	root, err := rootOf(v.tree)
	if err != nil {
		return err
	}
	for ; at < len(v.heads) && v.heads[at].Size == v.tree.End(); at++ {
		if bytes.Equal(root, v.heads[at].Root) {
			v.report.Proven = v.tree.End() // a root that is met proves all before it
		} else {
			v.unmet = append(v.unmet, v.heads[at])
		}
	}
	return nil
}

func (v *verification) mayBeForgotten(e Entry) bool {
	return slices.ContainsFunc(v.Retained, func(r Retained) bool { return r.Has(e, v.Now) })
}

func (v *verification) isMissing(k keptLeaf) error {
	if k.entry == nil && v.forgetful() {
		v.unknown = true
		return nil
	}
	if k.entry == nil {
		v.differs(k.index, Difference{Kind: Missing, Detail: fmt.Sprintf("the event with index %d; what it was is not kept", k.index)})
		return nil
	}
	if v.mayBeForgotten(*k.entry) {
		v.report.Expired++
		return v.grow(k.hash)
	}
	if len(v.missing) < maxCandidates {
		v.missing = append(v.missing, candidate{k.index, *k.entry})
	} else {
		v.overflow++
	}
	return nil
}

func (v *verification) isAdded(s storedEvent) error {
	if len(v.added) < maxCandidates {
		v.added = append(v.added, candidate{v.tree.End(), s.entry})
	} else {
		v.overflow++
	}
	return v.grow(s.hash)
}

// isBoth compares an event with what was signed of it.
func (v *verification) isBoth(k keptLeaf, s storedEvent) {
	if bytes.Equal(k.hash, s.hash) {
		return
	}
	fields := k.entry.differences(s.entry)
	was, found := k.entry.named(&k.index), s.entry.named(nil)
	if slices.ContainsFunc(fields, func(f string) bool { return f != "position" && f != "recorded" }) {
		v.differs(k.index, Difference{Kind: Changed, Event: &was, Found: &found, Fields: fields})
		return
	}
	if len(v.shifted) < maxCandidates {
		v.shifted = append(v.shifted, located{k.index, Difference{Kind: Changed, Event: &was, Found: &found, Fields: fields}})
	} else {
		v.overflow++
	}
}

func (v *verification) differs(index uint64, d Difference) {
	if len(v.changed) < maxCandidates {
		v.changed = append(v.changed, located{index, d})
	} else {
		v.overflow++
	}
}

// conclude settles what stands elsewhere, and the verdict.
func (v *verification) conclude(trusted int) {
	elsewhere := map[eventKey]candidate{}
	for _, a := range v.added {
		elsewhere[a.entry.key()] = a
	}
	for _, m := range v.missing {
		was := m.entry.named(&m.index)
		a, ok := elsewhere[m.entry.key()]
		if !ok {
			v.differs(m.index, Difference{Kind: Missing, Event: &was})
			continue
		}
		delete(elsewhere, m.entry.key())
		found := a.entry.named(nil)
		v.differs(max(m.index, a.index), Difference{Kind: Reordered, Event: &was, Found: &found, Fields: m.entry.differences(a.entry)})
	}
	for _, a := range v.added {
		if _, ok := elsewhere[a.entry.key()]; ok {
			delete(elsewhere, a.entry.key())
			found := a.entry.named(nil)
			v.differs(a.index, Difference{Kind: Added, Found: &found})
		}
	}
	v.concludeShifted()
	for _, head := range v.unmet {
		if head.Size < v.report.Proven { // whoever has the key signed another history
			v.report.Evidence = append(v.report.Evidence, fmt.Sprintf("the head of %d events is of another history than the head of %d events, which the store agrees with", head.Size, v.report.Proven))
		}
	}
	// What a root proves is proven, whatever was done to the entries that it was compared with.
	v.changed = slices.DeleteFunc(v.changed, func(l located) bool { return l.index < v.report.Proven })
	slices.SortStableFunc(v.changed, func(a, b located) int { return cmp.Compare(a.index, b.index) })
	v.unknown = v.unknown && v.report.Proven < v.report.Size
	if v.unknown {
		v.report.Warnings = append(v.report.Warnings, "entries are lost, and the store may have forgotten old usage: restore the folder from a copy to tell whether more is missing")
	}
	if v.report.Proven < v.report.Size && len(v.changed) == 0 && !v.unknown {
		v.differs(v.report.Proven, Difference{
			Kind: Somewhere, Detail: fmt.Sprintf("the store has %d events; of those with index %d to %d something is not what was signed", v.tree.End()+v.report.Uncovered, v.report.Proven, v.report.Size-1),
		})
	}
	for _, stream := range slices.Sorted(maps.Keys(v.hidden)) {
		v.differs(v.report.Size, Difference{Kind: Hidden, Detail: fmt.Sprintf("%s: %s", stream, v.hidden[stream])})
	}
	for _, l := range v.changed {
		if len(v.report.Differences) == maxDifferences {
			v.report.More++
			continue
		}
		v.report.Differences = append(v.report.Differences, l.Difference)
	}
	v.report.More += v.overflow
	if len(v.changed) > 0 && trusted == nothingTrusted && v.report.Size > 0 {
		v.report.Warnings = append(v.report.Warnings, "what is kept of the events is not proven, so what is said of single events may be wrong: restore the folder from a copy to be sure")
	}
	switch {
	case len(v.report.Differences) > 0 || len(v.report.Evidence) > 0:
		v.report.Verdict = Tampered
	case len(v.heads) == 0 || v.unknown || v.unread:
		v.report.Verdict = CannotTell
	default:
		v.report.Verdict = Verified
	}
}

// fewShifted are named one by one; more are one difference, so that they hide no other.
const fewShifted = 10

// concludeShifted settles the events that say the same as they did, but for where they stand and when they were recorded.
func (v *verification) concludeShifted() {
	v.shifted = slices.DeleteFunc(v.shifted, func(l located) bool { return l.index < v.report.Proven })
	if len(v.shifted) <= fewShifted {
		for _, l := range v.shifted {
			if slices.Contains(l.Fields, "position") {
				l.Kind = Shifted
			}
			v.differs(l.index, l.Difference)
		}
		return
	}
	first, last := v.shifted[0], v.shifted[len(v.shifted)-1]
	fields := first.Fields
	for _, l := range v.shifted {
		if len(l.Fields) > len(fields) {
			fields = l.Fields
		}
	}
	v.differs(last.index, Difference{
		Kind: Shifted, Event: first.Event, Fields: fields,
		Detail: fmt.Sprintf("%d events from this one to %d@%s are the same but for these fields", len(v.shifted), last.Event.Revision, last.Event.Stream),
	})
}

// looksFor looks for what has the store leave out events: nothing of the product does, but for those that it may forget. The newest event of a stream's
// metadata counts, whatever its type is.
func (v *verification) looksFor(e eventstore.Raw) {
	switch stream, of := strings.CutPrefix(e.Stream, "$$"); {
	case e.Type == "$streamDeleted":
		v.hidden[e.Stream] = "it was deleted for good"
	case of:
		delete(v.hidden, stream)
		if reason := v.hides(stream, e.Data); reason != "" && e.ContentType == jsonType {
			v.hidden[stream] = reason
		}
	}
}

// jsonType is the content type that the store reads metadata of; of another it bounds nothing.
const jsonType = "application/json"

func (v *verification) hides(stream string, raw []byte) string {
	if strings.HasPrefix(stream, "$") {
		return ""
	}
	var metadata struct {
		Before   *json.Number `json:"$tb"`
		MaxCount *json.Number `json:"$maxCount"`
		MaxAge   *int64       `json:"$maxAge"` // seconds
	}
	if err := json.Unmarshal(raw, &metadata); err != nil {
		return ""
	}
	switch {
	case metadata.Before != nil:
		return "it was deleted, or cut off before revision " + metadata.Before.String()
	case metadata.MaxCount != nil:
		return "only the newest " + metadata.MaxCount.String() + " events are shown"
	case metadata.MaxAge != nil:
		age := time.Duration(min(*metadata.MaxAge, int64(1<<62/time.Second))) * time.Second
		if !slices.ContainsFunc(v.Retained, func(r Retained) bool { return strings.HasPrefix(stream, r.Prefix) && age >= r.Age }) {
			return fmt.Sprintf("events older than %v are not shown", age)
		}
	}
	return ""
}

// keptLeaf is what is kept of an event. Hash is nil where nothing is, entry where only the hash is.
type keptLeaf struct {
	index uint64
	hash  []byte
	entry *Entry
}

// keptReader reads what is kept, bundle by bundle.
type keptReader struct {
	dir         string
	size        uint64
	hashesFirst bool // an entry that is not that of its hash is not believed

	next   uint64 // index of the first leaf that is not in leaves yet
	leaves []keptLeaf
	known  *keptLeaf // what nextKnown found
	first  *Entry    // the first of all, if it is kept

	entries, hashes [][]byte // of the bundle that was loaded last; nil where lost
}

// load reads what there is of a bundle. What is lost or malformed is nil.
func (r *keptReader) load(n uint64) (err error) {
	width := int(min(r.size-n*tileWidth, tileWidth))
	lost := func(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, errTile) }
	if r.entries, err = readEntries(r.dir, n, width); lost(err) {
		r.entries, err = nil, nil
	}
	if err != nil {
		return err
	}
	if r.hashes, err = readHashes(r.dir, 0, n, width); lost(err) {
		r.hashes, err = nil, nil
	}
	return err
}

// leaf gives the hash of the entry, and the hash that is kept, at a place of the bundle.
func (r *keptReader) leaf(i uint64) (entry, hash []byte) {
	if r.entries != nil {
		entry = leafHash(r.entries[i])
	}
	if r.hashes != nil {
		hash = r.hashes[i]
	}
	return entry, hash
}

func (r *keptReader) peek(i int) (keptLeaf, bool, error) {
	for len(r.leaves) <= i && r.next < r.size {
		if err := r.load(r.next / tileWidth); err != nil {
			return keptLeaf{}, false, err
		}
		for end := min(r.size, r.next+tileWidth); r.next < end; r.next++ {
			place := r.next % tileWidth
			byEntry, hash := r.leaf(place)
			leaf := keptLeaf{index: r.next, hash: byEntry}
			if byEntry == nil || r.hashesFirst && hash != nil && !bytes.Equal(byEntry, hash) {
				leaf.hash = hash
			} else if e, err := ParseEntry(r.entries[place]); err == nil {
				leaf.entry = &e
			}
			if r.leaves = append(r.leaves, leaf); r.next == 0 {
				r.first = leaf.entry
			}
		}
	}
	if len(r.leaves) <= i {
		return keptLeaf{}, false, nil
	}
	return r.leaves[i], true, nil
}

// nextKnown is the next event that an entry is kept of; ok is false where there is none.
func (r *keptReader) nextKnown() (e Entry, ok bool, err error) {
	first, there, err := r.peek(0)
	if err != nil || !there {
		return Entry{}, false, err
	}
	if r.known == nil || r.known.index < first.index {
		r.known = &keptLeaf{index: r.size}
		for i := 0; ; i++ {
			leaf, there, err := r.peek(i)
			if err != nil {
				return Entry{}, false, err
			}
			if !there {
				break
			}
			if leaf.entry != nil {
				r.known = &leaf
				break
			}
		}
	}
	if r.known.entry == nil {
		return Entry{}, false, nil
	}
	return *r.known.entry, true, nil
}

func (r *keptReader) pop() { r.leaves = r.leaves[1:] }

// search looks for an event among the next ones.
func (r *keptReader) search(key eventKey) (int, error) {
	for i := range window {
		leaf, ok, err := r.peek(i)
		if err != nil || !ok {
			return -1, err
		}
		if leaf.entry != nil && leaf.entry.key() == key {
			return i, nil
		}
	}
	return -1, nil
}

// storedEvent is an event of the store, as an entry.
type storedEvent struct {
	entry Entry
	hash  []byte
}

// storeReader reads the store page by page.
type storeReader struct {
	source Source
	each   func(eventstore.Raw) // is told of all events, the store's own included

	at     event.Position
	events []storedEvent
	done   bool
}

func (r *storeReader) peek(ctx context.Context, i int) (storedEvent, bool, error) {
	for len(r.events) <= i && !r.done {
		page, done, err := r.source(ctx, r.at, pageEvents)
		if err != nil {
			return storedEvent{}, false, err
		}
		if len(page) > 0 && !r.at.IsZero() && page[0].Position == r.at {
			page = page[1:] // that the last page ended with
		}
		if r.done = done; len(page) == 0 && !done {
			return storedEvent{}, false, fmt.Errorf("the event store gives nothing after position %d, and says that there is more", r.at.Commit)
		}
		for _, e := range page {
			r.at = e.Position
			if r.each(e); e.OfTheStore() {
				continue
			}
			entry := NewEntry(e)
			raw, err := entry.Marshal()
			if err != nil {
				return storedEvent{}, false, err
			}
			r.events = append(r.events, storedEvent{entry, leafHash(raw)})
		}
	}
	if len(r.events) <= i {
		return storedEvent{}, false, nil
	}
	return r.events[i], true, nil
}

func (r *storeReader) pop() { r.events = r.events[1:] }

func (r *storeReader) search(ctx context.Context, key eventKey) (int, error) {
	for i := range window {
		e, ok, err := r.peek(ctx, i)
		if err != nil || !ok {
			return -1, err
		}
		if e.entry.key() == key {
			return i, nil
		}
	}
	return -1, nil
}
