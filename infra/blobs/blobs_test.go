package blobs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/blobs"
)

// openFolder opens a store in a folder that does not exist yet.
func openFolder(t *testing.T) (*blobs.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "made", "blobs")
	address, err := blobs.FolderURL(dir)
	require.NoError(t, err)
	store, err := blobs.Open(t.Context(), address)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return store, dir
}

// keyOf is a key as audio has them.
func keyOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "audio/co_1/live/aud_1/" + hex.EncodeToString(sum[:])
}

// files lists what lies in a folder, by path from it.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			found = append(found, filepath.ToSlash(rel))
		}
		return err
	}))
	return found
}

func TestPutOpenDelete(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, dir := openFolder(t)
	body := bytes.Repeat([]byte("musique "), 50_000)
	key := keyOf(body)

	_, err := store.Open(ctx, key)
	require.ErrorIs(t, err, blobs.ErrNotFound)
	ok, err := store.Exists(ctx, key)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, store.Delete(ctx, key), "deleting nothing is no error")

	begun := time.Now().Add(-2 * time.Second)
	require.NoError(t, store.Put(ctx, key, bytes.NewReader(body), "audio/mpeg"))
	require.Equal(t, []string{key}, files(t, dir), "one file, without leavings")
	r, err := store.Open(ctx, key)
	require.NoError(t, err)
	require.EqualValues(t, len(body), r.Size())
	require.True(t, r.ModTime().After(begun))
	require.NoError(t, iotest.TestReader(r, body))
	_, err = r.Seek(-1, io.SeekStart)
	require.Error(t, err)
	_, err = r.Seek(1, io.SeekEnd)
	require.Error(t, err)
	require.NoError(t, r.Close())

	require.NoError(t, store.Put(ctx, key, strings.NewReader("anew"), "audio/mpeg"))
	r, err = store.Open(ctx, key)
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "anew", string(got))
	require.NoError(t, r.Close())

	require.NoError(t, store.Delete(ctx, key))
	require.NoError(t, store.Delete(ctx, key))
	ok, err = store.Exists(ctx, key)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoDirExists(t, filepath.Dir(filepath.Join(dir, key)), "the audio's own folder goes with it")
}

func TestWhatWasPutIsThereAfterReopening(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	require.NoError(t, store.Put(t.Context(), "audio/a", strings.NewReader("kept"), "audio/wav"))
	again, err := blobs.Open(t.Context(), "file://"+filepath.ToSlash(dir))
	require.NoError(t, err)
	defer again.Close()
	r, err := again.Open(t.Context(), "audio/a")
	require.NoError(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "kept", string(got))
}

// A write that breaks off shows nothing, changes nothing, leaves nothing, and tells the reader's own error.
func TestBrokenWriteLeavesNothing(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	broken := errors.New("the upload broke off")
	half := func() io.Reader {
		return io.MultiReader(strings.NewReader(strings.Repeat("x", 300_000)), iotest.ErrReader(broken))
	}
	err := store.Put(t.Context(), "audio/a", half(), "audio/mpeg")
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, blobs.ErrUnavailable)
	require.Empty(t, files(t, dir))

	require.NoError(t, store.Put(t.Context(), "audio/a", strings.NewReader("whole"), "audio/mpeg"))
	require.ErrorIs(t, store.Put(t.Context(), "audio/a", half(), "audio/mpeg"), broken)
	require.Equal(t, []string{"audio/a"}, files(t, dir))
	r, err := store.Open(t.Context(), "audio/a")
	require.NoError(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "whole", string(got))
}

func TestEndedContextWritesNothing(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(strings.NewReader("first"), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }))
	require.ErrorIs(t, store.Put(ctx, "audio/a", r, "audio/mpeg"), context.Canceled)
	require.Empty(t, files(t, dir))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Whoever reads while the same key is written again and again sees one whole version.
func TestReadersSeeWholeObjects(t *testing.T) {
	t.Parallel()
	store, _ := openFolder(t)
	version := func(c byte) []byte { return bytes.Repeat([]byte{c}, 40_000) }
	require.NoError(t, store.Put(t.Context(), "audio/a", bytes.NewReader(version('a')), "audio/mpeg"))
	var writers sync.WaitGroup
	done := make(chan struct{})
	for _, c := range []byte("bc") {
		writers.Go(func() {
			for range 40 {
				if err := store.Put(t.Context(), "audio/a", bytes.NewReader(version(c)), "audio/mpeg"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { writers.Wait(); close(done) }()
	for reads := 0; ; reads++ {
		r, err := store.Open(t.Context(), "audio/a")
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Len(t, got, 40_000)
		require.Equal(t, version(got[0]), got)
		select {
		case <-done:
			require.Positive(t, reads)
			return
		default:
		}
	}
}

func TestKeysLeadNowhereElse(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	secret := filepath.Join(filepath.Dir(dir), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for _, key := range []string{
		"", "/", "../secret", "audio/../../secret", "audio/..", "./secret", "a//b", "/etc/passwd", "a/", ".hidden", "a/.hidden",
		"a\x00b", `..\secret`, "a b", "ä", "a%2fb", "x.tmp", "x.attrs", strings.Repeat("k", 513),
	} {
		require.ErrorIs(t, store.Put(t.Context(), key, strings.NewReader("x"), "audio/mpeg"), blobs.ErrKey, "%q", key)
		require.ErrorIs(t, store.Delete(t.Context(), key), blobs.ErrKey, "%q", key)
		_, err := store.Open(t.Context(), key)
		require.ErrorIs(t, err, blobs.ErrNotFound, "%q", key)
		ok, err := store.Exists(t.Context(), key)
		require.NoError(t, err)
		require.False(t, ok, "%q", key)
	}
	require.FileExists(t, secret)
	require.Empty(t, files(t, dir))
}

func TestAbsentFolderIsUnavailable(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	require.NoError(t, store.Ping(t.Context()))
	require.NoError(t, store.Put(t.Context(), "audio/a", strings.NewReader("x"), "audio/mpeg"))
	away := dir + ".away"
	require.NoError(t, os.Rename(dir, away))

	require.ErrorIs(t, store.Ping(t.Context()), blobs.ErrUnavailable)
	_, err := store.Open(t.Context(), "audio/a")
	require.ErrorIs(t, err, blobs.ErrUnavailable)
	_, err = store.Exists(t.Context(), "audio/a")
	require.ErrorIs(t, err, blobs.ErrUnavailable)
	require.ErrorIs(t, store.Put(t.Context(), "audio/b", strings.NewReader("x"), "audio/mpeg"), blobs.ErrUnavailable)
	require.ErrorIs(t, store.Delete(t.Context(), "audio/a"), blobs.ErrUnavailable)
	require.NoDirExists(t, dir)

	require.NoError(t, os.Rename(away, dir), "and it is well again without a restart")
	require.NoError(t, store.Ping(t.Context()))
	ok, err := store.Exists(t.Context(), "audio/a")
	require.NoError(t, err)
	require.True(t, ok)
}

func TestEachAndSweep(t *testing.T) {
	t.Parallel()
	store, dir := openFolder(t)
	keys := []string{"audio/a/1", "audio/a/2", "audio/b/1"}
	for _, k := range keys {
		require.NoError(t, store.Put(t.Context(), k, strings.NewReader(k), "audio/mpeg"))
	}
	now := time.Now()
	old, young := filepath.Join(dir, "audio", "a", "1.17.tmp"), filepath.Join(dir, "audio", "a", "1.18.tmp")
	for _, path := range []string{old, young} {
		require.NoError(t, os.WriteFile(path, []byte("half"), 0o600))
	}
	require.NoError(t, os.Chtimes(old, now, now.Add(-2*time.Hour)))

	var seen []string
	collect := func(key string, changed time.Time) error {
		require.WithinDuration(t, now, changed, time.Minute)
		seen = append(seen, key)
		return nil
	}
	require.NoError(t, store.Each(t.Context(), "audio/", collect))
	require.Equal(t, keys, seen, "unfinished writes are not listed")
	enough := errors.New("enough")
	require.ErrorIs(t, store.Each(t.Context(), "", func(string, time.Time) error { return enough }), enough)

	removed, err := store.Sweep(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, 1, removed)
	require.NoFileExists(t, old)
	require.FileExists(t, young, "its writer may be alive")
}

func TestOpenRefusesWhatItCannotHold(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, address := range []string{
		"", "mem://", "folder", "file:///x?metadata=", "file://elsewhere/x", "file:relative", "gs://b", "s3://b?nonsense=1", "http://h/b", "://", "file://" + file,
	} {
		_, err := blobs.Open(t.Context(), address)
		require.Error(t, err, "%q", address)
	}
}
