package translog_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

var update = flag.Bool("update", false, "write the golden file")

// example is a history of so many events, the same each time.
func example(count int) history {
	var h history
	for i := range count {
		h = append(h, eventstore.Raw{
			Position: event.Position{Commit: uint64(i + 1), Prepare: uint64(i + 1)}, Stream: "send-snd_1", Revision: uint64(i),
			ID: uuid.NewSHA1(uuid.NameSpaceOID, []byte{byte(i), byte(i >> 8)}), Type: "AudioSent", ContentType: "application/json",
			Recorded: began.UnixNano()/100 + int64(i), Data: []byte(`{"sendId":"snd_1"}`), Metadata: []byte(`{"actor":"tok_1"}`),
		})
	}
	return h
}

// files gives the content of all files under a folder, by name.
func files(t require.TestingT, dir string) map[string][]byte {
	all := map[string][]byte{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		all[relative], err = os.ReadFile(name)
		return err
	}))
	return all
}

// put makes a folder have these files and no others.
func put(t require.TestingT, dir string, all map[string][]byte) {
	require.NoError(t, os.RemoveAll(dir))
	for name, raw := range all {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), raw, 0o600))
	}
}

// goldenKey signs the golden head. It is nobody's.
const goldenKey = "PRIVATE+KEY+musique/events/golden+fb89755b+AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB"

// What was written years ago is what auditors compute with: the format is for good.
func TestTheFormatIsForGood(t *testing.T) {
	t.Parallel()
	h := example(300)
	first := translog.NewEntry(h[0])
	raw, err := first.Marshal()
	require.NoError(t, err)
	leaf := sha256.Sum256(append([]byte{0}, raw...)) // RFC 9162 §2.1.1, without the library

	dir := t.TempDir()
	f := folder{dir: filepath.Join(dir, "heads")}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "heads.key"), []byte(goldenKey+"\n"), 0o600))
	f.key, err = translog.OpenKey(filepath.Join(dir, "heads.key"))
	require.NoError(t, err)
	f.sign(t, h.covered())
	kept := files(t, f.dir)
	got := struct {
		Entry, Leaf, VerifierKey, Checkpoint string
		Files                                map[string]string // and the SHA-256 of what is in them
	}{hex.EncodeToString(raw), hex.EncodeToString(leaf[:]), f.key.Public[0], string(kept["checkpoint"]), map[string]string{}}
	for name, content := range kept {
		if strings.HasPrefix(name, "tile") {
			sum := sha256.Sum256(content)
			got.Files[filepath.ToSlash(name)] = hex.EncodeToString(sum[:])
		}
	}
	encoded, err := json.MarshalIndent(got, "", "  ")
	require.NoError(t, err)
	const golden = "testdata/format.json"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, append(encoded, '\n'), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.JSONEq(t, string(want), string(encoded))
	require.Equal(t, leaf[:], kept[filepath.FromSlash("tile/0/000")][:sha256.Size])
}

// A process that ends between any two writes leaves what the next one goes on from, with the same heads.
func TestACrashLeavesWhatIsTakenUp(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := example(rapid.IntRange(2, 900).Draw(t, "events"))
		entries := h.covered()
		f := newFolder(t, under)
		first := rapid.IntRange(1, len(entries)-1).Draw(t, "first")
		f.sign(t, entries[:first])
		before := files(t, f.dir)
		second := rapid.IntRange(first, len(entries)).Draw(t, "second")
		f.sign(t, entries[first:second])
		after := files(t, f.dir)

		// The order of the writes is tiles, state, heads, checkpoint; the old parts go after the state.
		crashed := map[string][]byte{}
		for name, raw := range before {
			crashed[name] = raw
		}
		reached := rapid.IntRange(0, 4).Draw(t, "reached")
		for _, name := range slices.Sorted(maps.Keys(after)) {
			raw := after[name]
			step := 0
			switch {
			case name == "state":
				step = 1
			case strings.HasPrefix(name, "heads"):
				step = 2
			case name == "checkpoint":
				step = 3
			}
			switch torn := step == 2 && reached == 2 && before[name] == nil; {
			case torn:
				crashed[name] = raw[:rapid.IntRange(0, len(raw)).Draw(t, "torn")]
			case step < reached:
				crashed[name] = raw
			case step == 0 && reached == 0 && rapid.Bool().Draw(t, "written"):
				crashed[name] = raw
			}
		}
		crashed[filepath.FromSlash("tile/0/.new-1")] = []byte("half a tile")
		put(t, f.dir, crashed)

		log := f.open(t)
		require.Contains(t, []uint64{uint64(first), uint64(second)}, log.Size())
		require.NoError(t, log.Append(entries[log.Size():]...))
		_, _, err := log.Sign(began)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		report := f.verify(t, h)
		require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
		require.Equal(t, uint64(len(h)), report.Proven)
	})
}

// What is lost of the folder is a smaller proof, not an accusation, and the next process makes it anew. It signs nothing before it has come to what was signed.
func TestAFolderThatIsPartlyLost(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := example(rapid.IntRange(1, 700).Draw(t, "events"))
		entries := h.covered()
		f := newFolder(t, under)
		some := rapid.IntRange(0, len(entries)).Draw(t, "some")
		f.sign(t, entries[:some])
		f.sign(t, entries[some:])
		all := files(t, f.dir)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if rapid.Bool().Draw(t, "lose "+filepath.Dir(name)) {
				delete(all, name)
			}
		}
		put(t, f.dir, all)
		report := f.verify(t, h)
		require.Empty(t, report.Differences)
		require.Empty(t, report.Evidence)
		require.Equal(t, report.Size, report.Proven)
		require.Equal(t, report.Heads > 0, report.Verdict == translog.Verified, "%+v", report)

		log := f.open(t)
		if rest := entries[log.Size():]; len(rest) > 1 && report.Size > log.Size() {
			require.NoError(t, log.Append(rest[0]))
			if log.Size() < report.Size {
				_, signed, err := log.Sign(began)
				require.NoError(t, err)
				require.False(t, signed)
			}
		}
		require.NoError(t, log.Append(entries[log.Size():]...))
		_, _, err := log.Sign(began)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		report = f.verify(t, h)
		require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
		require.Equal(t, uint64(len(h)), report.Proven)
		require.Empty(t, report.Warnings)
	})
}

// A store that has forgotten old usage, as it may, is accused of nothing, whatever is lost of the folder.
func TestAStoreThatForgetsAndAFolderThatIsPartlyLost(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t, rapid.IntRange(1, 900).Draw(t, "events"))
		f := newFolder(t, under)
		f.sign(t, h.covered())
		all := files(t, f.dir)
		var lost bool
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if strings.HasPrefix(name, "tile") && rapid.Bool().Draw(t, "lose") {
				delete(all, name)
				lost = true
			}
		}
		put(t, f.dir, all)
		h = slices.DeleteFunc(h, func(e eventstore.Raw) bool {
			return usage.Has(translog.NewEntry(e), today) && rapid.Bool().Draw(t, "forget")
		})
		report := f.verify(t, h)
		require.Empty(t, report.Evidence)
		require.Empty(t, report.Differences)
		if !lost && report.Heads > 0 {
			require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
		}
	})
}

// Who has changed the store and takes a tile away does not have the server write over what tells the change.
func TestWhatIsMadeAnewWritesOverNothing(t *testing.T) {
	t.Parallel()
	h := example(600)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered())
	before := files(t, f.dir)
	require.NoError(t, os.Remove(filepath.Join(f.dir, translog.TilePath(0, 0, 256))))
	h[300].Data = []byte(`{}`)
	for range 3 {
		log := f.open(t)
		require.ErrorIs(t, log.Append(h.covered()...), translog.ErrChanged)
		require.NoError(t, log.Close())
	}
	aside, err := filepath.Glob(filepath.Join(f.dir, "tile-*"))
	require.NoError(t, err)
	require.Len(t, aside, 1)
	require.NoError(t, os.RemoveAll(filepath.Join(f.dir, "tile")))
	require.NoError(t, os.Rename(aside[0], filepath.Join(f.dir, "tile")))
	bundle := translog.TilePath(translog.EntriesLevel, 1, 256)
	require.Equal(t, before[bundle], files(t, f.dir)[bundle])
	report := f.verify(t, h)
	require.Len(t, report.Differences, 1)
	require.Equal(t, h[300].ID, report.Differences[0].Event.EventID)
}

// Whoever changes a byte of what is kept accuses no event, and proves nothing that is not so.
func TestAChangedFolderAccusesNoEvent(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	h := example(600)
	f := newFolder(t, under)
	f.sign(t, h.covered()[:300])
	f.sign(t, h.covered()[300:])
	all := files(t, f.dir)
	var names []string
	for name := range all {
		if name != "lock" && name != "state" {
			names = append(names, name)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		name := names[r.IntN(len(names))]
		changed := bytes.Clone(all[name])
		changed[r.IntN(len(changed))] ^= 1 << r.IntN(8)
		require.NoError(t, os.WriteFile(filepath.Join(f.dir, name), changed, 0o600))
		report := f.verify(t, h)
		require.Empty(t, report.Differences, name)
		require.Equal(t, uint64(600), report.Proven, name)
		if strings.HasPrefix(name, filepath.FromSlash("tile/0")) {
			require.Equal(t, translog.Tampered, report.Verdict, name)
			require.NotEmpty(t, report.Evidence)
		}
		require.NoError(t, os.WriteFile(filepath.Join(f.dir, name), all[name], 0o600))
	}
}

// Who can write the folder, but not sign, can bring the entries in line with a store that was changed. The heads tell.
func TestEntriesThatAgreeWithAChangedStore(t *testing.T) {
	t.Parallel()
	h := example(600)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered()[:400])
	f.sign(t, h.covered()[400:])
	tampered := example(600)
	tampered[500].Data = []byte(`{}`)
	other := folder{filepath.Join(t.TempDir(), "heads"), f.key}
	other.sign(t, tampered.covered())
	for name, raw := range files(t, other.dir) {
		if strings.HasPrefix(name, "tile") {
			require.NoError(t, os.WriteFile(filepath.Join(f.dir, name), raw, 0o600))
		}
	}
	report := f.verify(t, tampered)
	require.Equal(t, translog.Tampered, report.Verdict)
	require.NotEmpty(t, report.Evidence)
	require.Equal(t, uint64(400), report.Proven)
	require.Len(t, report.Differences, 1)
	require.Equal(t, translog.Somewhere, report.Differences[0].Kind)

	// A whole folder made anew, key and all, is given away by a head that was kept elsewhere.
	elsewhere := files(t, f.dir)["checkpoint"]
	report = other.verify(t, tampered)
	require.Equal(t, translog.Verified, report.Verdict)
	report = other.verify(t, tampered, elsewhere)
	require.Equal(t, translog.Tampered, report.Verdict)
}

// A store that somebody made anew without an event says the same of all others, at other positions and times.
func TestAStoreThatWasMadeAnew(t *testing.T) {
	t.Parallel()
	h := example(300)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered())
	var anew history
	for i, e := range h {
		if i != 100 {
			e.Position = event.Position{Commit: uint64(len(anew) + 1), Prepare: uint64(len(anew) + 1)}
			e.Recorded += 1_000
			anew = append(anew, e)
		}
	}
	report := f.verify(t, anew)
	require.Equal(t, translog.Tampered, report.Verdict)
	require.Len(t, report.Differences, 2)
	require.Equal(t, translog.Missing, report.Differences[0].Kind)
	require.Equal(t, h[100].ID, report.Differences[0].Event.EventID)
	require.Equal(t, translog.Shifted, report.Differences[1].Kind)
	require.Contains(t, report.Differences[1].Detail, "299 events")
}

// Nothing of the product has the store hide events, but usage that is old.
func TestStreamsThatTheStoreHides(t *testing.T) {
	t.Parallel()
	h := example(10)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered())
	of := func(stream, kind, data string) eventstore.Raw {
		at := uint64(len(h) + 1)
		return eventstore.Raw{Position: event.Position{Commit: at, Prepare: at}, Stream: stream, Type: kind, ContentType: "application/json", Data: []byte(data), Recorded: began.UnixNano() / 100}
	}
	h = append(h, of("$$usage-co-live-2026-01-01", "$metadata", `{"$maxAge":7776000}`), of("$$send-a", "$metadata", `{"$acl":{"$r":"ops"}}`))
	noJSON := of("$$send-snd_1", "$metadata", `{"$maxCount":1}`) // the store reads no bounds in it
	noJSON.ContentType = "application/octet-stream"
	h = append(h, noJSON)
	require.Equal(t, translog.Verified, f.verify(t, h).Verdict)
	for _, hides := range []eventstore.Raw{
		of("$$send-snd_1", "$metadata", `{"$tb":9223372036854775807}`), of("$$send-snd_1", "$metadata", `{"$maxCount":1}`),
		of("$$send-snd_1", "$metadata", `{"$maxAge":7776000}`), of("$$usage-co-live-2026-01-01", "$metadata", `{"$maxAge":60}`), of("send-snd_1", "$streamDeleted", ``),
		of("$$send-snd_1", "Renamed", `{"$maxCount":1}`), // the store does not look at the type
	} {
		report := f.verify(t, append(h[:len(h):len(h)], hides))
		require.Equal(t, translog.Tampered, report.Verdict, "%s", hides.Data)
		require.Equal(t, translog.Hidden, report.Differences[0].Kind)
		require.Contains(t, report.Differences[0].Detail, strings.TrimPrefix(hides.Stream, "$$"))
	}
}

// One process has the folder at a time.
func TestAFolderHasOneWriter(t *testing.T) {
	t.Parallel()
	f := newFolder(t, t.TempDir())
	log := f.open(t)
	_, err := translog.Open(f.dir, f.key, quiet)
	require.ErrorIs(t, err, translog.ErrInUse)
	require.NoError(t, log.Close())
	require.NoError(t, f.open(t).Close())
}

// There is never a second head of a size: what was signed of another history ends the work.
func TestNothingIsSignedOfAnotherHistory(t *testing.T) {
	t.Parallel()
	h := example(300)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered())
	all := files(t, f.dir)
	for name := range all {
		if strings.HasPrefix(name, "tile") {
			delete(all, name)
		}
	}
	put(t, f.dir, all) // so that it begins anew, with a store that was changed
	h[7].Data = []byte(`{}`)
	log := f.open(t)
	require.ErrorIs(t, log.Append(h.covered()...), translog.ErrChanged)
	require.NoError(t, log.Close())

	// The same when tiles and state were made anew below the heads.
	other := folder{filepath.Join(t.TempDir(), "heads"), f.key}
	other.sign(t, h.covered())
	for name, raw := range files(t, other.dir) {
		if !strings.HasPrefix(name, "heads") && name != "checkpoint" {
			all[name] = raw
		}
	}
	put(t, f.dir, all)
	_, err := translog.Open(f.dir, f.key, quiet)
	require.ErrorIs(t, err, translog.ErrChanged)
}

// A rotated key signs the same history; what the old one signed stays as good as its public key.
func TestTheKeyIsRotated(t *testing.T) {
	t.Parallel()
	h := example(300)
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "heads.key")
	older, err := translog.OpenKey(keyFile)
	require.NoError(t, err)
	f := folder{filepath.Join(dir, "heads"), older}
	f.sign(t, h.covered()[:200])
	require.NoError(t, os.Remove(keyFile))
	f.key, err = translog.OpenKey(keyFile)
	require.NoError(t, err)
	require.Equal(t, older.Origin(), f.key.Origin())
	require.Len(t, f.key.Public, 2)
	require.Equal(t, older.Public[0], f.key.Public[0])
	f.sign(t, h.covered()[200:])
	report := f.verify(t, h)
	require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
	require.Equal(t, uint64(300), report.Proven)
	require.Equal(t, 3, report.Heads)

	again, err := translog.OpenKey(keyFile)
	require.NoError(t, err)
	require.Equal(t, f.key.Public, again.Public)
	report = folder{f.dir, older}.verify(t, h) // who has the old public key only
	require.Equal(t, translog.Verified, report.Verdict)
	require.Equal(t, uint64(200), report.Proven)
	require.Len(t, report.Warnings, 2)
}

// Proofs hold for every event and between all heads, and for nothing else.
func TestProofs(t *testing.T) {
	t.Parallel()
	under := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := example(rapid.IntRange(1, 700).Draw(t, "events"))
		f := newFolder(t, under)
		log := f.open(t)
		var heads []translog.Head
		for rest := h.covered(); len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "page")
			require.NoError(t, log.Append(rest[:n]...))
			rest = rest[n:]
			head, signed, err := log.Sign(began)
			require.NoError(t, err)
			require.True(t, signed)
			heads = append(heads, head)
		}
		require.NoError(t, log.Close())
		head := rapid.SampledFrom(heads).Draw(t, "head")
		index := rapid.Uint64Range(0, head.Size-1).Draw(t, "index")
		found, err := translog.Find(context.Background(), f.dir, head.Size, func(e translog.Entry) bool { return e.ID == h[index].ID })
		require.NoError(t, err)
		require.Equal(t, index, found)
		proof, err := translog.ProveInclusion(f.dir, head, index)
		require.NoError(t, err)
		_, _, entry, err := proof.Check(f.key.Public)
		require.NoError(t, err)
		require.Equal(t, translog.NewEntry(h[index]), *entry)

		older := rapid.SampledFrom(heads).Draw(t, "older")
		consistency, err := translog.ProveConsistency(f.dir, older, head)
		require.Equal(t, older.Size <= head.Size, err == nil)
		if err == nil {
			_, from, _, err := consistency.Check(f.key.Public)
			require.NoError(t, err)
			require.Equal(t, older.Size, from.Size)
		}

		// Over the wire, and changed anywhere.
		raw, err := json.Marshal(proof)
		require.NoError(t, err)
		at := rapid.IntRange(0, len(raw)-1).Draw(t, "changed")
		raw[at] ^= 1 << rapid.IntRange(0, 6).Draw(t, "bit")
		var read translog.Proof
		if json.Unmarshal(raw, &read) != nil {
			return
		}
		if _, _, entry, err := read.Check(f.key.Public); err == nil {
			require.Equal(t, translog.NewEntry(h[index]), *entry)
			require.Equal(t, index, read.Index)
		}
	})
}

// Whoever has the key and the folder makes both anew for a history that he changed, and loses a part of the folder so that nothing can be said of it. A head
// that was out of his reach gives him away.
func TestAHeadFromElsewhereGivesAwayAHistoryThatWasSignedAnew(t *testing.T) {
	t.Parallel()
	h := example(600)
	before := newFolder(t, t.TempDir())
	before.sign(t, h.covered()[:300])
	elsewhere, err := os.ReadFile(filepath.Join(before.dir, "checkpoint"))
	require.NoError(t, err)
	h[7].Data = []byte(`{"n":-1}`)
	anew := folder{filepath.Join(t.TempDir(), "heads"), before.key}
	anew.sign(t, h.covered())
	for _, lost := range []string{translog.TilePath(0, 0, 256), translog.TilePath(translog.EntriesLevel, 0, 256)} {
		require.NoError(t, os.Remove(filepath.Join(anew.dir, lost)))
	}
	require.Equal(t, translog.Verified, anew.verify(t, h).Verdict)
	report := anew.verify(t, h, elsewhere)
	require.Equal(t, translog.Tampered, report.Verdict, "%+v", report)
	require.Len(t, report.Evidence, 1)
	require.Contains(t, report.Evidence[0], "the head of 300 events")
}

// Who asks whether the history is that of a head is not told yes when the head could not be believed.
func TestAGivenHeadThatCannotBeBelievedVerifiesNothing(t *testing.T) {
	t.Parallel()
	h := example(10)
	f := newFolder(t, t.TempDir())
	f.sign(t, h.covered())
	head, err := os.ReadFile(filepath.Join(f.dir, "checkpoint"))
	require.NoError(t, err)
	require.Equal(t, translog.Verified, f.verify(t, h, head).Verdict)
	another := newFolder(t, t.TempDir()) // somebody made another key, and forgets the old one
	another.sign(t, h.covered())
	for name, given := range map[string][]byte{
		"by another key": head, "nothing": nil, "torn": head[:len(head)-9], "mailed": bytes.ReplaceAll(head, []byte("\n"), []byte("\r\n")),
	} {
		report := another.verify(t, h, given)
		require.Equal(t, translog.CannotTell, report.Verdict, name)
		require.NotEmpty(t, report.Warnings, name)
	}
}

// A folder is the same however its name is written.
func TestTheNameOfAFolder(t *testing.T) {
	t.Parallel()
	f := newFolder(t, t.TempDir())
	f.dir = filepath.Dir(f.dir) + "/./heads/"
	f.sign(t, example(300).covered())
	require.Equal(t, translog.Verified, f.verify(t, example(300)).Verdict)
}

// The signing key is not written over by its public key.
func TestTheNameOfTheKey(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "heads.pub")
	_, err := translog.OpenKey(file)
	require.ErrorContains(t, err, "public keys")
	require.NoFileExists(t, file)
}

// A head of no events would agree with everything.
func TestAHeadOfNoEventsIsNone(t *testing.T) {
	t.Parallel()
	signed, err := os.ReadFile(filepath.Join("testdata", "format.json"))
	require.NoError(t, err)
	var pinned struct{ Checkpoint string }
	require.NoError(t, json.Unmarshal(signed, &pinned))
	lines := strings.SplitN(pinned.Checkpoint, "\n", 3)
	_, _, err = translog.ReadHead([]byte(pinned.Checkpoint))
	require.NoError(t, err)
	lines[1] = "0"
	_, _, err = translog.ReadHead([]byte(strings.Join(lines, "\n")))
	require.ErrorContains(t, err, "no events")
}
