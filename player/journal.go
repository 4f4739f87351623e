package player

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

const (
	journalFile = "state.log"
	// journalBytes is how long a journal is. It is that long from its beginning, so that the progress of what is there to be played can be noted when the
	// disk is full, and syncing a line changes nothing of the file but that line.
	journalBytes = 1 << 20
	// crampedFrom is where the state is written whole instead. What is left then is kept for a disk that does not take it.
	crampedFrom = journalBytes / 2
	// sumLength is that of a line's CRC-32 in hexadecimal digits, with the space after it.
	sumLength = 9
)

var errJournalFull = errors.New("the journal is full")

// journal is a file of lines, each a sum and a change, that goes on from a state that was written whole. Its first line says from which. What follows the
// last line is zeros.
type journal struct {
	file *os.File
	at   int64
}

// journalHead is the first line.
type journalHead struct {
	Generation int `json:"generation"`
}

// newJournal begins a journal, in the place of the one before.
func newJournal(path string, generation int) (*journal, error) {
	head, err := journalLine(journalHead{generation})
	if err != nil {
		return nil, err
	}
	content := make([]byte, journalBytes)
	copy(content, head)
	file, err := create(path, content)
	if err != nil {
		return nil, err
	}
	if err := syncDir(path); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &journal{file, int64(len(head))}, nil
}

func (j *journal) close() { j.file.Close() }

// add puts a change on the disk. After an error the journal is of no use any more: nobody knows what the disk has of the line.
func (j *journal) add(c change) error {
	line, err := journalLine(c)
	if err != nil {
		return err
	}
	if j.at+int64(len(line)) > journalBytes {
		return errJournalFull
	}
	if _, err := j.file.WriteAt(line, j.at); err != nil {
		return fmt.Errorf("player: %w", err)
	}
	j.at += int64(len(line))
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("player: %w", err)
	}
	return nil
}

func journalLine(v any) ([]byte, error) {
	raw, err := json.Marshal(v) // on one line
	if err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(raw), raw), nil
}

// recorded is what a journal says.
type recorded struct {
	generation int // -1 if there is no journal
	changes    []change
	end        int64 // where the next line goes
	used       int64 // where the zeros begin: behind end if half a line is there
	size       int64
}

// readJournal reads a journal. With an error it gives what stands before that which cannot be read. The last line of a run that was killed can be half
// there: it had taken no effect, and is no error.
func readJournal(path string) (recorded, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return recorded{generation: -1}, nil
	}
	if err != nil {
		return recorded{}, err
	}
	var head journalHead
	line, rest, whole := nextLine(raw)
	if !whole || json.Unmarshal(line, &head) != nil {
		return recorded{}, errors.New("its first line cannot be read")
	}
	r := recorded{generation: head.Generation, used: int64(len(bytes.TrimRight(raw, "\x00"))), size: int64(len(raw))}
	for {
		r.end = int64(len(raw) - len(rest))
		var c change
		line, after, whole := nextLine(rest)
		if !whole || json.Unmarshal(line, &c) != nil {
			if _, more, found := bytes.Cut(rest, []byte("\n")); found && hasLine(more) {
				return r, fmt.Errorf("line %d cannot be read, and others follow it", len(r.changes)+2)
			}
			return r, nil
		}
		r.changes, rest = append(r.changes, c), after
	}
}

// goOn opens a journal that was read, for what comes after it.
func goOn(path string, r recorded) (*journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	_, err = file.WriteAt(make([]byte, r.used-r.end), r.end) // half a line must not stand behind the next one
	if err == nil && r.size < journalBytes {
		_, err = file.WriteAt(make([]byte, journalBytes-r.size), r.size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("player: %w", err), file.Close())
	}
	return &journal{file, r.end}, nil
}

// nextLine is what the first line says, if it is whole.
func nextLine(raw []byte) (line, rest []byte, whole bool) {
	line, rest, whole = bytes.Cut(raw, []byte("\n"))
	if !whole || len(line) < sumLength || string(line[:sumLength]) != fmt.Sprintf("%08x ", crc32.ChecksumIEEE(line[sumLength:])) {
		return nil, nil, false
	}
	return line[sumLength:], rest, true
}

// hasLine reports whether a line is whole.
func hasLine(raw []byte) bool {
	for {
		if _, _, whole := nextLine(raw); whole {
			return true
		}
		_, rest, found := bytes.Cut(raw, []byte("\n"))
		if !found {
			return false
		}
		raw = rest
	}
}
