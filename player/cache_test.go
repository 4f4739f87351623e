package player

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// shelf serves audio by its name, and counts how often.
type shelf struct {
	url     string
	fetched atomic.Int64
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fetched.Add(1)
		if r.Header.Get("Authorization") != "" {
			t.Error("the device token is nobody's business here")
		}
		_, _ = w.Write(bytesOf(strings.TrimPrefix(r.URL.Path, "/"))) // the player may have gone
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// bytesOf are 1,000 bytes.
func bytesOf(name string) []byte { return bytes.Repeat([]byte(name[:1]), 1000) }

func (s *shelf) audio(name string) Audio {
	sum := sha256.Sum256(bytesOf(name))
	return Audio{Name: name, URL: s.url + "/" + name, SHA256: hex.EncodeToString(sum[:]), Format: "wav"}
}

func newCache(t *testing.T, maxBytes int64, needed func() []Audio) *cache {
	s, err := newServer("http://server.example", "dev_x", http.DefaultClient)
	require.NoError(t, err)
	c, err := openCache(t.TempDir(), s, maxBytes, needed)
	require.NoError(t, err)
	return c
}

func nothing() []Audio { return nil }

// names lists the audio that is kept.
func (c *cache) names(t *testing.T, s *shelf) (names []string) {
	files, _, err := c.files()
	require.NoError(t, err)
	for _, f := range files {
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			if f.Name() == s.audio(name).SHA256+".wav" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	require.Len(t, names, len(files), "nothing else is there")
	return names
}

// use makes audio the one that was used at a moment.
func (c *cache) use(t *testing.T, a Audio, at time.Time) {
	require.NoError(t, os.Chtimes(c.file(a), at, at))
}

func TestTheAudioThatWasUsedLongestAgoGoesFirst(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	var needed []Audio
	c := newCache(t, 3500, func() []Audio { return needed })
	begun := time.Now().Add(-time.Hour)
	for i, name := range []string{"a", "b", "c"} {
		path, err := c.fetch(t.Context(), s.audio(name))
		require.NoError(t, err)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, bytesOf(name), content)
		c.use(t, s.audio(name), begun.Add(time.Duration(i)*time.Minute))
	}
	_, err := c.fetch(t.Context(), s.audio("a")) // is there, and is used now
	require.NoError(t, err)
	require.Equal(t, int64(3), s.fetched.Load())
	needed = []Audio{s.audio("b")} // is still to be played
	_, err = c.fetch(t.Context(), s.audio("d"))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "d"}, c.names(t, s))

	// When all is needed, what is needed later makes room for what is needed before, and never the other way round.
	needed = []Audio{s.audio("a"), s.audio("b"), s.audio("e"), s.audio("d"), s.audio("c")}
	_, err = c.fetch(t.Context(), s.audio("e"))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "e"}, c.names(t, s))
	before := s.fetched.Load()
	for _, size := range []int64{0, 1000} { // told before, or not
		late := s.audio("d")
		late.Size = size
		_, err = c.fetch(t.Context(), late)
		require.ErrorIs(t, err, errNoRoom)
	}
	require.Equal(t, before+1, s.fetched.Load(), "nothing is asked for that has no room")
	require.Equal(t, []string{"a", "b", "e"}, c.names(t, s))
	needed = needed[1:] // it was played
	_, err = c.fetch(t.Context(), s.audio("d"))
	require.NoError(t, err)
	require.Equal(t, []string{"b", "d", "e"}, c.names(t, s))

	vast := s.audio("c")
	for size, says := range map[int64]string{4000: "the audio has 4000 bytes, and the cache takes 3500 in all", maxAudioBytes + 1: "larger than 67108864 bytes"} {
		vast.Size = size
		_, err = c.fetch(t.Context(), vast)
		require.ErrorContains(t, err, says)
	}
}

// Whatever is fetched at the same time, the bound holds, downloads that are under way included.
func TestTheCacheIsBoundedAmidDownloads(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content := bytesOf(strings.TrimPrefix(r.URL.Path, "/"))
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		for i := range content {
			_, _ = w.Write(content[i : i+1])
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(slow.Close)
	c := newCache(t, 2500, nothing)
	over, most := make(chan struct{}), make(chan int64)
	go func() {
		for found := int64(0); ; found = max(found, onDisk(t, c.dir)) {
			select {
			case <-over:
				most <- found
				return
			default:
			}
		}
	}()
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		all.Go(func() {
			a := s.audio(name)
			a.URL = slow.URL + "/" + name
			if _, err := c.fetch(t.Context(), a); err != nil && !errors.Is(err, errNoRoom) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	close(over)
	require.LessOrEqual(t, <-most, int64(2500))
	require.Positive(t, onDisk(t, c.dir))
	require.Zero(t, c.coming)
}

// onDisk is how many bytes a folder has.
func onDisk(t *testing.T, dir string) (total int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
	}
	return total
}

// However audio is used, the bound holds and what was fetched last is there.
func TestTheCacheIsBounded(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	rapid.Check(t, func(r *rapid.T) {
		c := newCache(t, 1000*rapid.Int64Range(1, 4).Draw(r, "kilobytes"), nothing)
		for _, name := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}), 1, 12).Draw(r, "audio") {
			path, err := c.fetch(t.Context(), s.audio(name))
			require.NoError(r, err)
			require.FileExists(r, path)
			_, total, err := c.files()
			require.NoError(r, err)
			require.LessOrEqual(r, total, c.maxBytes)
		}
	})
}

// Cheap memory cards forget.
func TestAFileThatChangedIsFetchedAgain(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	c := newCache(t, DefaultCacheBytes, nothing)
	path, err := c.fetch(t.Context(), s.audio("a"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, bytesOf("x"), 0o600))
	_, err = c.fetch(t.Context(), s.audio("a"))
	require.NoError(t, err)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, bytesOf("a"), content)
	require.Equal(t, int64(2), s.fetched.Load())
}

func TestNothingIsKeptOfADownloadThatFailed(t *testing.T) {
	t.Parallel()
	endless := bytes.Repeat([]byte("x"), 1<<20)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/endless":
			for {
				if _, err := w.Write(endless); err != nil {
					return
				}
			}
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(bytesOf("a")[:500])
		case "/teapot":
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	t.Cleanup(server.Close)
	s := newShelf(t)
	c := newCache(t, DefaultCacheBytes, nothing)
	for path, want := range map[string]string{
		"/endless": "larger than 67108864 bytes", "/cut": "unexpected EOF", "/teapot": "418", "/empty": "hash",
	} {
		a := s.audio("a")
		a.URL = server.URL + path
		_, err := c.fetch(t.Context(), a)
		require.ErrorContains(t, err, want)
	}
	left, err := os.ReadDir(filepath.Join(c.dir))
	require.NoError(t, err)
	require.Empty(t, left)
}
