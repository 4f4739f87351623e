package translog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/transparency-dev/merkle/compact"
)

var (
	// ErrChanged says that the history is not the one that heads were signed of. Nothing is signed then: 'musique events verify' tells what differs.
	ErrChanged = errors.New("the event history is not the one that was signed")
	// ErrInUse says that another process has the folder.
	ErrInUse = errors.New("another process keeps the history in this folder")
)

// maxHeadFileBytes is from when on heads go to a new file.
const maxHeadFileBytes = 4 << 20

// Log is the tree as it grows: it takes the events in their order, keeps their entries and hashes in a folder, and signs heads. One process has it open.
//
// What Append and Sign are through with is durable. After an error of theirs the Log is of no use: it is closed and opened again, and goes on from what is
// on the disk. A crash at any moment leaves a folder that Open takes up.
type Log struct {
	dir  string
	key  *Key
	lock *os.File
	log  *slog.Logger

	tree    *compact.Range
	tiles   [][][]byte // the hashes of the unfinished tile of each level
	bundle  [][]byte   // the entries of the unfinished bundle
	last    Entry      // the newest, if there is one
	saved   map[int]part
	touched map[string]bool // folders to sync

	signed   uint64            // size of the newest head
	kept     map[uint64][]byte // roots of the heads of sizes that the tree has yet to reach
	headFile string
}

// part is an unfinished tile as it was saved last.
type part struct {
	n     uint64
	width int
}

// kept is what the folder says of the tree: everything but the size follows from the tiles.
type keptState struct {
	Size uint64 `json:"size"`
	Root []byte `json:"root"`
}

// Open takes up what is in a folder, which is made if it is not there. Where tiles are lost or damaged the tree begins anew, and signs nothing before it has
// come to all that was signed. Errors: ErrInUse, ErrChanged (what is kept is not what the newest head was signed of).
func Open(dir string, key *Key, log *slog.Logger) (_ *Log, err error) {
	if err := os.MkdirAll(filepath.Join(dir, headsFolder), 0o755); err != nil { //nolint:gosec // heads and tiles are to be copied and read by others
		return nil, fmt.Errorf("folder of the history: %w", err)
	}
	l := &Log{dir: filepath.Clean(dir), key: key, log: log}
	if l.lock, err = os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, fmt.Errorf("folder of the history: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.lock.Close())
		}
	}()
	if err := syscall.Flock(int(l.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
	}
	if err := l.resume(); err != nil {
		log.Warn("what is kept of the event history cannot be read; it is made anew from the event store", "folder", dir, "reason", err)
		if err := l.setAside(); err != nil {
			return nil, fmt.Errorf("folder of the history: %w", err)
		}
	}
	if err := l.checkHeads(); err != nil {
		return nil, err
	}
	return l, nil
}

// Close lets another process have the folder.
func (l *Log) Close() error { return l.lock.Close() }

// Size is how many events the tree has.
func (l *Log) Size() uint64 { return l.tree.End() }

// Root is the root over all of them.
func (l *Log) Root() ([]byte, error) { return rootOf(l.tree) }

// Last is the newest event of the tree; ok is false where it has none.
func (l *Log) Last() (e Entry, ok bool) { return l.last, l.Size() > 0 }

// setAside empties the tree and keeps what there was under another name: what is made anew says what the store has now, and not what it had.
func (l *Log) setAside() error {
	l.begin()
	tiles := filepath.Join(l.dir, tileFolder)
	err := os.Rename(tiles, tiles+time.Now().UTC().Format("-20060102T150405.000000000"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return l.writeState()
}

// begin empties the tree.
func (l *Log) begin() {
	l.tree, l.tiles, l.bundle, l.last = ranges.NewEmptyRange(0), nil, nil, Entry{}
	l.saved, l.touched = map[int]part{}, map[string]bool{}
}

// resume reads the state.
func (l *Log) resume() error {
	l.begin()
	raw, err := os.ReadFile(filepath.Join(l.dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(l.dir, tileFolder)); errors.Is(err, os.ErrNotExist) {
			return l.writeState() // a new one
		}
	}
	if err != nil {
		return err
	}
	var state keptState
	if err := json.Unmarshal(raw, &state); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if l.tree, err = rangeOf(l.dir, state.Size); err != nil {
		return err
	}
	root, err := rootOf(l.tree)
	if err != nil {
		return err
	}
	if !bytes.Equal(root, state.Root) {
		return errors.New("the hashes do not give the root that is noted")
	}
	for level, width := 0, state.Size; width > 0; level, width = level+1, width/tileWidth {
		hashes, err := readHashes(l.dir, level, width/tileWidth, int(width%tileWidth))
		if width%tileWidth == 0 {
			hashes, err = nil, nil
		}
		if err != nil {
			return err
		}
		l.tiles = append(l.tiles, hashes)
		l.saved[level] = part{width / tileWidth, len(hashes)}
	}
	if state.Size == 0 {
		return nil
	}
	if err := l.complete(state.Size); err != nil {
		return err
	}
	n := (state.Size - 1) / tileWidth
	width := int(state.Size - n*tileWidth)
	entries, err := readEntries(l.dir, n, width)
	if err != nil {
		return err
	}
	leaves, err := readHashes(l.dir, 0, n, width)
	if err != nil {
		return err
	}
	for i, raw := range entries {
		if !bytes.Equal(leafHash(raw), leaves[i]) {
			return errors.New("the newest entries are not those of the hashes")
		}
	}
	if l.last, err = ParseEntry(entries[width-1]); err != nil {
		return err
	}
	if width < tileWidth {
		l.bundle = entries
	}
	l.saved[entriesLevel] = part{n, len(l.bundle)}
	return nil
}

// complete fails where a whole tile or bundle is lost.
func (l *Log) complete(size uint64) error {
	for level := entriesLevel; ; level++ {
		whole := size >> (tileHeight * max(level, 0)) / tileWidth
		if whole == 0 {
			return nil
		}
		for n := range whole {
			if _, err := os.Stat(filepath.Join(l.dir, tilePath(level, n, tileWidth))); err != nil {
				return err
			}
		}
	}
}

// checkHeads makes sure that the tree goes on from the newest head, or has yet to come to it.
func (l *Log) checkHeads() error {
	files, err := headFiles(l.dir)
	if err != nil {
		return fmt.Errorf("heads of the history: %w", err)
	}
	l.kept = map[uint64][]byte{}
	slices.Reverse(files)
	for _, file := range append([]string{filepath.Join(l.dir, checkpointFile)}, files...) {
		met, err := l.checkHeadsIn(file)
		if err != nil {
			return err
		}
		if met && filepath.Base(file) != checkpointFile {
			break // those in older files are smaller
		}
	}
	return nil
}

// checkHeadsIn does so for the heads of a file; met says that it has one that the tree has come to.
func (l *Log) checkHeadsIn(file string) (met bool, err error) {
	notes, _, err := notesOf(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("heads of the history: %w", err)
	}
	for _, signed := range slices.Backward(notes) {
		head, err := OpenHead(signed, l.key.Public)
		if err != nil {
			l.log.Warn("a head of the event history is not one that this key signed, or one before it", "file", file, "reason", err)
			continue
		}
		if head.Size <= l.Size() {
			l.signed = max(l.signed, head.Size)
			return true, l.goesOnFrom(head)
		}
		l.kept[head.Size] = head.Root
	}
	return false, nil
}

// goesOnFrom fails where the tree had another root when it had the head's size.
func (l *Log) goesOnFrom(head Head) error {
	before, err := rangeOf(l.dir, head.Size)
	if err != nil {
		return fmt.Errorf("hashes of the history: %w", err)
	}
	root, err := rootOf(before)
	if err == nil && !bytes.Equal(root, head.Root) {
		err = fmt.Errorf("%w: the head of %d events has another root than they have now", ErrChanged, head.Size)
	}
	return err
}

// Append adds the next events to the tree. Errors: ErrChanged (a head that is kept was signed of others).
func (l *Log) Append(entries ...Entry) error {
	for _, e := range entries {
		if err := l.add(e); err != nil {
			return err
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return l.save()
}

func (l *Log) add(e Entry) error {
	raw, err := e.Marshal()
	if err != nil {
		return err
	}
	l.bundle = append(l.bundle, raw)
	if len(l.bundle) == tileWidth {
		if err := l.writeTile(entriesLevel, l.Size()/tileWidth, joinEntries(l.bundle), tileWidth); err != nil {
			return err
		}
		l.bundle = nil
	}
	var failed error
	err = l.tree.Append(leafHash(raw), func(id compact.NodeID, hash []byte) {
		if id.Level%tileHeight == 0 && failed == nil {
			failed = l.addHash(int(id.Level)/tileHeight, id.Index, hash)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	l.last = e
	return l.meets()
}

// addHash puts the next hash of a level into its tile.
func (l *Log) addHash(level int, index uint64, hash []byte) error {
	if level == len(l.tiles) {
		l.tiles = append(l.tiles, nil)
	}
	l.tiles[level] = append(l.tiles[level], hash)
	if len(l.tiles[level]) < tileWidth {
		return nil
	}
	err := l.writeTile(level, index/tileWidth, bytes.Join(l.tiles[level], nil), tileWidth)
	l.tiles[level] = nil
	return err
}

// meets fails where a head that is kept says another root for this size.
func (l *Log) meets() error {
	said, ok := l.kept[l.Size()]
	if !ok {
		return nil
	}
	root, err := l.Root()
	if err == nil && !bytes.Equal(root, said) {
		err = fmt.Errorf("%w: the head of %d events has another root than they have now", ErrChanged, l.Size())
	}
	if err == nil {
		delete(l.kept, l.Size())
		l.signed = max(l.signed, l.Size())
	}
	return err
}

func (l *Log) writeTile(level int, n uint64, raw []byte, width int) error {
	path := filepath.Join(l.dir, tilePath(level, n, width))
	if err := writeFile(path, raw); err != nil {
		return fmt.Errorf("tile of the history: %w", err)
	}
	for folder := filepath.Dir(path); folder != l.dir; folder = filepath.Dir(folder) {
		l.touched[folder] = true
	}
	return nil
}

// save makes durable what was added: the unfinished tiles, then the state that says that they are there. The parts that they replace go last.
func (l *Log) save() error {
	unfinished := map[int][]byte{}
	now := map[int]part{entriesLevel: {l.Size() / tileWidth, len(l.bundle)}}
	unfinished[entriesLevel] = joinEntries(l.bundle)
	for level, hashes := range l.tiles {
		now[level] = part{(l.Size() >> (tileHeight * level)) / tileWidth, len(hashes)}
		unfinished[level] = bytes.Join(hashes, nil)
	}
	for level, at := range now {
		if at.width == 0 || at == l.saved[level] {
			continue
		}
		if err := l.writeTile(level, at.n, unfinished[level], at.width); err != nil {
			return err
		}
	}
	for folder := range maps.Keys(l.touched) {
		if err := syncFolder(folder); err != nil {
			return fmt.Errorf("tiles of the history: %w", err)
		}
	}
	l.touched = map[string]bool{}
	if err := l.writeState(); err != nil {
		return err
	}
	for level, before := range l.saved {
		if before.width > 0 && before != now[level] {
			l.drop(level, before)
		}
	}
	l.saved = now
	return nil
}

func (l *Log) writeState() error {
	root, err := l.Root()
	if err != nil {
		return err
	}
	raw, err := json.Marshal(keptState{l.Size(), root})
	if err != nil {
		return err
	}
	if err := errors.Join(writeFile(filepath.Join(l.dir, stateFile), raw), syncFolder(l.dir)); err != nil {
		return fmt.Errorf("state of the history: %w", err)
	}
	return nil
}

// drop removes a part that is not needed any more, and its folder with the last. What stays behind harms nobody.
func (l *Log) drop(level int, p part) {
	path := filepath.Join(l.dir, tilePath(level, p.n, p.width))
	_ = os.Remove(path)
	_ = os.Remove(filepath.Dir(path))
}

func joinEntries(entries [][]byte) []byte {
	var raw []byte
	for _, e := range entries {
		raw = binary.BigEndian.AppendUint16(raw, uint16(len(e)))
		raw = append(raw, e...)
	}
	return raw
}

// Sign signs a head of the tree, if there is something new that it would say; ok is false otherwise. There is never another head of a size that one is kept of.
func (l *Log) Sign(now time.Time) (head Head, ok bool, err error) {
	if l.Size() == 0 || l.Size() <= l.signed || len(l.kept) > 0 {
		return Head{}, false, nil
	}
	root, err := l.Root()
	if err != nil {
		return Head{}, false, err
	}
	if head, err = signHead(l.key, l.Size(), root); err != nil {
		return Head{}, false, fmt.Errorf("sign a head: %w", err)
	}
	if err := l.keep(head, now); err != nil {
		return Head{}, false, fmt.Errorf("keep a head: %w", err)
	}
	l.signed = l.Size()
	return head, true, nil
}

// keep writes a head behind the others, and as the newest. A file of heads is written by one Log only: where one ends amid a note, nothing comes after.
func (l *Log) keep(head Head, now time.Time) error {
	flags := os.O_APPEND | os.O_WRONLY
	if l.headFile == "" {
		flags |= os.O_CREATE | os.O_EXCL
		l.headFile = filepath.Join(l.dir, headsFolder, now.UTC().Format("20060102T150405.000000000"))
	}
	file, err := os.OpenFile(l.headFile, flags, 0o644) //nolint:gosec // heads are to be copied and read by others
	for n := 2; errors.Is(err, os.ErrExist); n++ {     // a clock that went back
		l.headFile = fmt.Sprintf("%s-%d", strings.TrimSuffix(l.headFile, fmt.Sprintf("-%d", n-1)), n)
		file, err = os.OpenFile(l.headFile, flags, 0o644) //nolint:gosec // as above
	}
	if err != nil {
		return err
	}
	_, err = file.Write(append(bytes.Clone(head.Note), '\n'))
	info, statErr := file.Stat()
	if err = errors.Join(err, statErr, flush(file), file.Close()); err != nil {
		return err
	}
	if err := syncFolder(filepath.Dir(l.headFile)); err != nil {
		return err
	}
	if info.Size() >= maxHeadFileBytes {
		l.headFile = ""
	}
	return errors.Join(writeFile(filepath.Join(l.dir, checkpointFile), head.Note), syncFolder(l.dir))
}

// Awaits is the largest size that a head is kept of and the tree has yet to come to; zero where there is none.
func (l *Log) Awaits() (size uint64) {
	for kept := range l.kept {
		size = max(size, kept)
	}
	return size
}
