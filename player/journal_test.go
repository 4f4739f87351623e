package player

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// MemoryDir is a folder in memory, where the machine has one: syncing costs nothing there, and these tests sync all the time.
func MemoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "musique-player")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// openAt opens a folder's state and gives what was said about it.
func openAt(t require.TestingT, dir string) (*state, *bytes.Buffer) {
	said := &bytes.Buffer{}
	s, err := openState(dir, "http://server.example", "dev_x", slog.New(slog.NewTextHandler(said, nil)))
	require.NoError(t, err)
	return s, said
}

// kill ends a run as kill -9 would: nothing more is written.
func (s *state) kill() {
	s.journal.close()
	s.lock.Close()
}

// content is what a state is, but for its generation.
func (s *state) content(t require.TestingT) string {
	kept := s.kept
	kept.Generation = 0
	raw, err := json.Marshal(kept)
	require.NoError(t, err)
	return string(raw)
}

func anOrder(id int) Order {
	return Order{
		DeliveryID: fmt.Sprintf("dlv_%022d_631992454843280", id), SendID: fmt.Sprintf("snd_%022d", id), Priority: "normal", Repeat: 1, Volume: 100,
		ExpiresAt: time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC),
		Audio: Audio{
			Name: "Announcement", URL: "https://api.example.com/media/co_3mJr7AoUXx2Wqd4kTnYb9L/aud_0hV5GzQe8CwRt1NfKpS6uM?expires=1772355600&signature=" + fmt.Sprintf("%064d", id),
			SHA256: fmt.Sprintf("%064d", id), Format: "mp3", Duration: 12.5, Size: 200_000,
		},
	}
}

// play does to a state what a delivery does from its arrival to the last of its reports.
func (s *state) play(id int) {
	o := anOrder(id)
	s.accept(fmt.Sprint(id), o)
	at := time.Date(2026, 3, 1, 8, 0, id, 0, time.UTC)
	s.advance(o.DeliveryID, progress{Delivered: true}, report{DeliveryID: o.DeliveryID, Status: "delivered", At: at})
	s.advance(o.DeliveryID, progress{Delivered: true, Playing: true}, report{DeliveryID: o.DeliveryID, Status: "playing", At: at})
	s.note(o.DeliveryID, progress{Delivered: true, Playing: true, Offset: 5 * time.Second})
	s.drop("", o.DeliveryID, report{DeliveryID: o.DeliveryID, Status: "played", At: at})
	for range 3 {
		s.sent()
	}
}

// Whatever is changed, a run that is killed at any moment leaves what it had, and the next one goes on from there.
func TestAStateOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		dir := MemoryDir(t)
		s, said := openAt(r, dir)
		for range rapid.IntRange(0, 40).Draw(r, "changes") {
			o := anOrder(rapid.IntRange(1, 5).Draw(r, "order"))
			switch rapid.IntRange(0, 8).Draw(r, "change") {
			case 0, 1:
				s.accept(rapid.StringMatching("[0-9]{0,3}").Draw(r, "event"), o)
			case 2:
				s.drop(rapid.StringMatching("[0-9]{0,3}").Draw(r, "event"), o.DeliveryID, report{DeliveryID: o.DeliveryID, Status: "played"})
			case 3:
				s.advance(o.DeliveryID, progress{Delivered: true, Rounds: rapid.IntRange(0, 3).Draw(r, "rounds")}, report{DeliveryID: o.DeliveryID, Status: "delivered"})
			case 4:
				s.note(o.DeliveryID, progress{Offset: time.Duration(rapid.IntRange(0, 1000).Draw(r, "offset"))})
			case 5:
				s.sent()
			case 6:
				s.forgetPlace()
			case 7:
				if rapid.Bool().Draw(r, "whole") {
					require.NoError(r, s.write())
				}
				fallthrough
			case 8:
				before, finished := s.content(r), s.finished
				if rapid.Bool().Draw(r, "orderly") {
					s.close()
				} else {
					s.kill()
				}
				s, said = openAt(r, dir)
				require.Equal(r, before, s.content(r))
				require.Equal(r, finished, s.finished)
			}
			require.Empty(r, said.String())
		}
		s.kill()
	})
}

// A line that was being written when the supply was lost had taken no effect: whatever of it is there, the state is that before it.
func TestHalfALineOfTheJournal(t *testing.T) {
	t.Parallel()
	dir := MemoryDir(t)
	s, _ := openAt(t, dir)
	s.play(1)
	s.accept("2", anOrder(2))
	before, start := s.content(t), s.journal.at
	s.accept("3", anOrder(3))
	after, end := s.content(t), s.journal.at
	s.kill()
	path := filepath.Join(dir, journalFile)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Len(t, whole, journalBytes)
	for cut := start; cut <= end; cut++ {
		torn := bytes.Clone(whole)
		clear(torn[cut:])
		if cut%2 == 0 { // the end of the line, without its beginning
			torn = bytes.Clone(whole)
			clear(torn[start : start+end-cut])
		}
		if cut%3 == 0 { // the file was not that long yet
			torn = bytes.TrimRight(torn, "\x00")
		}
		require.NoError(t, os.WriteFile(path, torn, 0o600))
		s, said := openAt(t, dir)
		want := before
		if bytes.Equal(bytes.TrimRight(torn, "\x00"), bytes.TrimRight(whole, "\x00")) {
			want = after
		}
		require.Equal(t, want, s.content(t), cut)
		require.Empty(t, said.String())
		s.accept("4", anOrder(4)) // in its place
		goesOn := s.content(t)
		s.kill()
		s, said = openAt(t, dir)
		require.Equal(t, goesOn, s.content(t), cut)
		require.Empty(t, said.String())
		s.kill()
	}
}

// Writing the whole is several steps. After each of them the folder has the same state.
func TestAKillAmidTheWritingOfTheWhole(t *testing.T) {
	t.Parallel()
	dir := MemoryDir(t)
	s, _ := openAt(t, dir)
	for id := range 5 {
		s.play(id)
	}
	s.accept("9", anOrder(9))
	want := s.content(t)
	older, err := os.ReadFile(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	before := MemoryDir(t)
	require.NoError(t, os.CopyFS(before, os.DirFS(dir)))
	require.NoError(t, s.write())
	s.kill()
	whole, err := os.ReadFile(filepath.Join(dir, stateFile))
	require.NoError(t, err)
	next, err := os.ReadFile(filepath.Join(dir, journalFile))
	require.NoError(t, err)
	for name, files := range map[string]map[string][]byte{
		"half of the whole":   {newFiles + "1": whole[:len(whole)/2]},
		"the whole, unnamed":  {newFiles + "1": whole},
		"the whole":           {stateFile: whole},
		"half of the journal": {stateFile: whole, newFiles + "2": next[:100]},
		"no journal":          {stateFile: whole, journalFile: nil},
		"the journal":         {stateFile: whole, journalFile: next},
		"the older journal":   {stateFile: whole, journalFile: older},
	} {
		t.Run(name, func(t *testing.T) {
			disk := MemoryDir(t)
			require.NoError(t, os.CopyFS(disk, os.DirFS(before)))
			for file, content := range files {
				require.NoError(t, os.WriteFile(filepath.Join(disk, file), content, 0o600))
				if content == nil {
					require.NoError(t, os.Remove(filepath.Join(disk, file)))
				}
			}
			s, said := openAt(t, disk)
			require.Equal(t, want, s.content(t))
			require.Empty(t, said.String())
			s.kill()
		})
	}
}

// What a broken disk made of the journal is put aside, loudly; what stands before is kept, and the rest is asked for.
func TestAJournalThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(journal []byte) []byte{
		"a line amid others": func(j []byte) []byte { j[bytes.Index(j, []byte("dlv_0000000000000000000003"))+10] ^= 1; return j },
		"its first line":     func(j []byte) []byte { j[12] ^= 1; return j },
		"all of it":          func(j []byte) []byte { return make([]byte, len(j)) },
		"nothing there":      func([]byte) []byte { return nil },
		"of the future": func([]byte) []byte {
			line, err := journalLine(journalHead{99})
			require.NoError(t, err)
			return line
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := MemoryDir(t)
			s, _ := openAt(t, dir)
			s.play(1)
			require.NoError(t, s.write())
			s.play(2)
			s.play(3)
			s.play(4)
			s.kill()
			path := filepath.Join(dir, journalFile)
			good, err := os.ReadFile(path)
			require.NoError(t, err)
			bad := spoil(bytes.Clone(good))
			require.NoError(t, os.WriteFile(path, bad, 0o600))
			s, said := openAt(t, dir)
			require.Contains(t, said.String(), "level=ERROR")
			require.Contains(t, said.String(), "the server is asked for all that is open")
			require.Empty(t, s.lastEventID())
			require.True(t, s.finished[anOrder(1).DeliveryID])
			require.Equal(t, name == "a line amid others", s.finished[anOrder(2).DeliveryID])
			require.False(t, s.finished[anOrder(4).DeliveryID])
			aside, err := os.ReadFile(path + corruptSuffix)
			require.NoError(t, err)
			require.True(t, bytes.Equal(bad, aside))
			s.play(5)
			want := s.content(t)
			s.kill()
			s, said = openAt(t, dir)
			require.Empty(t, said.String(), "it is said once")
			require.Equal(t, want, s.content(t))
			s.kill()
		})
	}
}

// A state whose disk takes nothing at all lives on in memory, and is written when it can be.
func TestAStateThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := MemoryDir(t)
	s, said := openAt(t, dir)
	s.play(1)
	away := dir + ".away"
	require.NoError(t, os.Rename(dir, away)) // the journal that is open is all that there is
	for id := 2; !s.unsaved; id++ {
		s.play(id)
	}
	require.True(t, s.cramped)
	require.Greater(t, s.journal.at, int64(journalBytes-2000), "all of the journal is used")
	s.accept("9", anOrder(1_000_000))
	require.Error(t, s.catchUp())
	require.Contains(t, said.String(), "journal=true")
	require.Contains(t, said.String(), "journal=false")
	require.NoError(t, os.Rename(away, dir))
	require.NoError(t, s.catchUp())
	require.False(t, s.unsaved || s.cramped)
	s.accept("10", anOrder(1_000_001))
	want := s.content(t)
	s.kill()
	s, _ = openAt(t, dir)
	require.Equal(t, want, s.content(t))
	s.kill()
}

var manyDeliveries = flag.Int("deliveries", 13_000, "how many deliveries a state is put through")

// Neither the files nor the memory of a state grow with the deliveries that it has seen.
func TestAStateDoesNotGrow(t *testing.T) {
	dir := MemoryDir(t)
	s, err := openState(dir, "http://server.example", "dev_x", slog.New(slog.NewTextHandler(io.Discard, nil)))
	require.NoError(t, err)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const bound = journalBytes + (maxFinished+finishedStep)*50 + 2000
	for id := range *manyDeliveries {
		if id%(*manyDeliveries/10) == 0 {
			begun, total := time.Now(), onDisk(t, dir)
			for more := range 100 {
				s.play(-1 - id - more)
			}
			t.Logf("after %d: %d bytes on the disk, %d in memory, %s a delivery", id, total, heap(), time.Since(begun)/100)
			require.LessOrEqual(t, total, int64(bound))
		}
		s.play(id)
	}
	require.LessOrEqual(t, onDisk(t, dir), int64(bound))
	require.Less(t, len(s.finished), maxFinished+finishedStep)
	require.Len(t, s.kept.Finished, len(s.finished))
	require.True(t, s.finished[anOrder(*manyDeliveries-maxFinished/2).DeliveryID])
	require.Empty(t, s.kept.Orders)
	require.Empty(t, s.kept.Reports)
	s.close()
}
