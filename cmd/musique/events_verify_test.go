package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
	"github.com/cockroachdb/pebble/v2"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/musique/musique/infra/translog"
)

// eventStoreOf is the address of a server's event store.
func eventStoreOf(t *testing.T, s *server) string {
	t.Helper()
	var ready struct{ EventStore string }
	require.NoError(t, json.Unmarshal([]byte(s.awaits(&s.stderr, `(?m)^\{.*"msg":"ready".*\}$`)[0]), &ready))
	return ready.EventStore
}

// A server signs its history as it goes. An operator verifies it, has proofs of single events, and is told what somebody changed in the store's own files.
func TestTheHistoryIsSignedAndVerified(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serveOn(t, dir, "--heads-every", "100ms")
	made := operator[companyMade](s, "company", "create", "--name", "Acme")
	operator[companyMade](s, "company", "create", "--name", "Other")
	store := eventStoreOf(t, s)

	verify := func(store string, more ...string) (report translog.Report, code int) {
		stdout, stderr, code := musique(t, append([]string{"events", "verify", "--data-dir", dir, "--eventstore", store, "--output", "json"}, more...)...)
		require.NoError(t, json.Unmarshal([]byte(stdout), &report), "%s%s", stdout, stderr)
		return report, code
	}
	var report translog.Report
	covered := func() bool {
		if _, err := os.Stat(filepath.Join(dir, "heads", "checkpoint")); err != nil {
			return false
		}
		var code int
		report, code = verify(store)
		require.Zero(t, code, "%+v", report)
		return report.Uncovered == 0
	}
	require.Eventually(t, covered, patience, 100*time.Millisecond)
	older := report.Size
	operator[companyMade](s, "company", "create", "--name", "Later")
	require.Eventually(t, covered, patience, 100*time.Millisecond)
	require.Greater(t, report.Size, older)
	require.Equal(t, translog.Verified, report.Verdict)
	require.Equal(t, report.Size, report.Proven)
	require.Empty(t, report.Warnings)
	info, err := os.Stat(filepath.Join(dir, "heads.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	// Another's key proves nothing.
	stranger, err := translog.OpenKey(filepath.Join(t.TempDir(), "heads.key"))
	require.NoError(t, err)
	report, code := verify(store, "--key", stranger.Public[0])
	require.Equal(t, exitCannotTell, code)
	require.Equal(t, translog.CannotTell, report.Verdict)

	// A proof needs the public key and nothing else.
	stdout, stderr, code := musique(t, "events", "prove", "--data-dir", dir, "--position", "1")
	require.Zero(t, code, stderr)
	proof := filepath.Join(t.TempDir(), "proof.json")
	require.NoError(t, os.WriteFile(proof, []byte(stdout), 0o600))
	stdout, stderr, code = musique(t, "events", "verify", "--proof", proof, "--key", filepath.Join(dir, "heads.pub"))
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "position 1,")
	var shown translog.Proof
	require.NoError(t, json.Unmarshal([]byte(readFile(t, proof)), &shown))
	head := filepath.Join(t.TempDir(), "head")
	require.NoError(t, os.WriteFile(head, []byte(shown.Head), 0o600))
	_, stderr, code = musique(t, "events", "verify", "--proof", proof, "--head", head, "--key", filepath.Join(dir, "heads.pub"))
	require.Zero(t, code, stderr)
	own, err := translog.OpenKey(filepath.Join(dir, "heads.key"))
	require.NoError(t, err)
	before, err := translog.HeadOf(filepath.Join(dir, "heads"), older, own.Public)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(head, before.Note, 0o600))
	_, stderr, code = musique(t, "events", "verify", "--proof", proof, "--head", head, "--key", filepath.Join(dir, "heads.pub"))
	require.Equal(t, 1, code)
	require.Contains(t, stderr, fmt.Sprint("--to ", older))

	// Another shows that one head goes on from another.
	stdout, stderr, code = musique(t, "events", "prove", "--data-dir", dir, "--from", fmt.Sprint(older))
	require.Zero(t, code, stderr)
	between := filepath.Join(t.TempDir(), "between.json")
	require.NoError(t, os.WriteFile(between, []byte(stdout), 0o600))
	stdout, stderr, code = musique(t, "events", "verify", "--proof", between, "--key", filepath.Join(dir, "heads.pub"))
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, fmt.Sprintf("goes on from the head of %d events", older))

	require.NoError(t, os.WriteFile(proof, []byte(strings.Replace(readFile(t, proof), `"index": 0`, `"index": 1`, 1)), 0o600))
	_, _, code = musique(t, "events", "verify", "--proof", proof, "--key", filepath.Join(dir, "heads.pub"))
	require.Equal(t, exitTampered, code)

	// A store that is away leaves it open.
	s.kill()
	_, stderr, code = musique(t, "events", "verify", "--data-dir", dir, "--eventstore", store)
	require.Equal(t, exitCannotTell, code, stderr)

	// Somebody renames a company in the store's files, and takes another event out of them.
	renamed, removed := tamperWithStore(t, filepath.Join(dir, "events"), made.CompanyID)
	s = serveOn(t, dir, "--heads-every", "100ms")
	report, code = verify(eventStoreOf(t, s))
	require.Equal(t, exitTampered, code)
	require.Equal(t, translog.Tampered, report.Verdict)
	require.Len(t, report.Differences, 2, "%+v", report)
	for _, d := range report.Differences {
		switch d.Kind {
		case translog.Changed:
			require.Equal(t, renamed, d.Event.Position)
			require.Equal(t, "CompanyRegistered", d.Event.Type)
			require.Equal(t, "company-"+made.CompanyID, d.Event.Stream)
			require.Equal(t, []string{"data"}, d.Fields)
		default:
			require.Equal(t, translog.Missing, d.Kind)
			require.Equal(t, removed, d.Event.Position)
		}
	}
	stdout, _, code = musique(t, "events", "verify", "--data-dir", dir, "--eventstore", eventStoreOf(t, s))
	require.Equal(t, exitTampered, code)
	require.Contains(t, stdout, "changed: CompanyRegistered 0@company-"+made.CompanyID)
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(raw)
}

// tamperWithStore changes the first event of a company in the files of an embedded event store, and removes the one of another company; it gives their positions.
func tamperWithStore(t *testing.T, dir, companyID string) (renamed, removed uint64) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{FormatMajorVersion: pebble.FormatNewest})
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	events, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{'e'}, UpperBound: []byte{'f'}})
	require.NoError(t, err)
	for ok := events.First(); ok; ok = events.Next() {
		key := append([]byte(nil), events.Key()...)
		var e streams.ReadResp_ReadEvent_RecordedEvent
		require.NoError(t, proto.Unmarshal(events.Value(), &e))
		if e.Metadata["type"] != "CompanyRegistered" {
			continue
		}
		if string(e.StreamIdentifier.StreamName) == "company-"+companyID {
			renamed = binary.BigEndian.Uint64(key[1:])
			e.Data = []byte(strings.Replace(string(e.Data), "Acme", "Evil", 1))
			raw, err := proto.Marshal(&e)
			require.NoError(t, err)
			require.NoError(t, db.Set(key, raw, pebble.Sync))
		} else if strings.Contains(string(e.Data), "Other") {
			removed = binary.BigEndian.Uint64(key[1:])
			require.NoError(t, db.Delete(key, pebble.Sync))
		}
	}
	require.NoError(t, events.Close())
	require.NotZero(t, renamed)
	require.NotZero(t, removed)
	return renamed, removed
}
