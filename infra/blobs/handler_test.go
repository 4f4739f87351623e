package blobs_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/blobs"
)

type media struct {
	server *httptest.Server
	store  *blobs.Store
	signer blobs.Signer
	now    time.Time
	body   []byte
	key    string
}

// startMedia serves one WAV-like object of 100,000 bytes at a fixed time.
func startMedia(t *testing.T) *media {
	t.Helper()
	m := &media{signer: blobs.NewSigner([][]byte{keyOne}), now: time.Unix(1_800_000_000, 500)}
	m.store, _ = openFolder(t)
	m.body = make([]byte, 100_000)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range m.body {
		m.body[i] = byte(random.Uint32())
	}
	copy(m.body, "RIFF....WAVE")
	m.key = keyOf(m.body)
	require.NoError(t, m.store.Put(t.Context(), m.key, bytes.NewReader(m.body), "audio/wav"))
	m.server = httptest.NewServer(blobs.Handler(m.store, m.signer, func() time.Time { return m.now }, nil))
	t.Cleanup(m.server.Close)
	return m
}

func (m *media) url() string { return m.server.URL + m.signer.Path(m.key, m.now.Add(time.Minute)) }

func (m *media) etag() string { return `"` + path.Base(m.key) + `"` }

func do(t *testing.T, method, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	return answer, body
}

func TestMediaWhole(t *testing.T) {
	t.Parallel()
	m := startMedia(t)
	answer, body := do(t, http.MethodGet, m.url())
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Equal(t, m.body, body)
	require.Equal(t, "audio/wav", answer.Header.Get("Content-Type"))
	require.Equal(t, "100000", answer.Header.Get("Content-Length"))
	require.Equal(t, "bytes", answer.Header.Get("Accept-Ranges"))
	require.Equal(t, m.etag(), answer.Header.Get("ETag"))
	require.Equal(t, "private, max-age=60", answer.Header.Get("Cache-Control"))
	require.Equal(t, "nosniff", answer.Header.Get("X-Content-Type-Options"))

	answer, body = do(t, http.MethodHead, m.url())
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Empty(t, body)
	require.Equal(t, "100000", answer.Header.Get("Content-Length"))
}

// RFC 9110 §13 and 14.
func TestMediaRangesAndConditions(t *testing.T) {
	t.Parallel()
	m := startMedia(t)
	for _, c := range []struct {
		name   string
		header []string
		status int
		body   []byte
		ranges string
	}{
		{"first bytes", []string{"Range", "bytes=0-9"}, 206, m.body[:10], "bytes 0-9/100000"},
		{"from the middle", []string{"Range", "bytes=70000-"}, 206, m.body[70000:], "bytes 70000-99999/100000"},
		{"the last bytes", []string{"Range", "bytes=-5"}, 206, m.body[99995:], "bytes 99995-99999/100000"},
		{"beyond the end", []string{"Range", "bytes=100000-"}, 416, nil, "bytes */100000"},
		{"the same version", []string{"Range", "bytes=5-6", "If-Range", m.etag()}, 206, m.body[5:7], "bytes 5-6/100000"},
		{"another version", []string{"Range", "bytes=5-6", "If-Range", `"other"`}, 200, m.body, ""},
		{"known", []string{"If-None-Match", m.etag()}, 304, []byte{}, ""},
		{"known among others", []string{"If-None-Match", `"x", W/` + m.etag()}, 304, []byte{}, ""},
		{"not known", []string{"If-None-Match", `"x"`}, 200, m.body, ""},
		{"not the one wanted", []string{"If-Match", `"x"`}, 412, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer, body := do(t, http.MethodGet, m.url(), c.header...)
			require.Equal(t, c.status, answer.StatusCode)
			require.Equal(t, c.ranges, answer.Header.Get("Content-Range"))
			if c.body != nil {
				require.Equal(t, c.body, body)
			}
		})
	}
}

func TestMediaRefusals(t *testing.T) {
	t.Parallel()
	m := startMedia(t)
	status := func(method, url string) int {
		answer, body := do(t, method, url)
		require.Empty(t, body)
		require.Empty(t, answer.Header.Get("ETag"))
		return answer.StatusCode
	}
	good := m.url()
	require.Equal(t, http.StatusForbidden, status(http.MethodGet, strings.Replace(good, "live", "test", 1)))
	require.Equal(t, http.StatusForbidden, status(http.MethodGet, m.server.URL+"/media/"+m.key))
	require.Equal(t, http.StatusForbidden, status(http.MethodGet, m.server.URL+m.signer.Path(m.key, m.now.Add(-time.Second))))
	require.Equal(t, http.StatusForbidden, status(http.MethodGet, m.server.URL+m.signer.Path("../../etc/passwd", m.now.Add(time.Hour))))
	require.Equal(t, http.StatusNotFound, status(http.MethodGet, m.server.URL+m.signer.Path("audio/none", m.now.Add(time.Hour))))
	require.Equal(t, http.StatusMethodNotAllowed, status(http.MethodPost, good))
	require.NoError(t, m.store.Delete(t.Context(), m.key))
	require.Equal(t, http.StatusNotFound, status(http.MethodGet, good))
}

// The caller's own answer is the only one: nothing was written before it.
func TestMediaErrorsAreTheCallersToTell(t *testing.T) {
	t.Parallel()
	m := startMedia(t)
	h := blobs.Handler(m.store, m.signer, func() time.Time { return m.now }, func(w http.ResponseWriter, _ *http.Request, err error) {
		require.ErrorIs(t, err, blobs.ErrNotFound)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"error":{}}`)
	})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, m.signer.Path("audio/none", m.now.Add(time.Hour)), nil))
	require.Equal(t, http.StatusNotFound, w.Code)
	require.Equal(t, `{"error":{}}`, w.Body.String())
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	m := startMedia(t)
	for head, want := range map[string]string{
		"RIFF....WAVEfmt ":         "audio/wav",
		"OggS\x00\x02":             "audio/ogg",
		"\x00\x00\x00\x1cftypM4A ": "audio/mp4",
		"\xff\xf1\x50\x40":         "audio/aac",
		"\xff\xfb\x70\x00":         "audio/mpeg",
		"ID3\x04\x00":              "audio/mpeg",
		"ID3\x04\x00\x00\x00\x00\x00\x02..\xff\xf1\x50\x40":           "audio/aac",
		"ID3\x04\x00\x10\x00\x00\x00\x02..3DI-------RIFF....WAVEfmt ": "audio/wav",
		"ID3\x04\x00\x00\x00\x00\x00\x02..\xff\xfb\x70\x00":           "audio/mpeg",
		"ID3\x04\x00\x00\x00\x00\x00\x7f..":                           "audio/mpeg",
		"plain":                                                       "application/octet-stream",
		"":                                                            "application/octet-stream",
	} {
		require.NoError(t, m.store.Put(t.Context(), "audio/kind", strings.NewReader(head), "audio/x"))
		answer, body := do(t, http.MethodGet, m.server.URL+m.signer.Path("audio/kind", m.now.Add(time.Minute)))
		require.Equal(t, http.StatusOK, answer.StatusCode)
		require.Equal(t, want, answer.Header.Get("Content-Type"), "%q", head)
		require.Equal(t, head, string(body))
		require.Empty(t, answer.Header.Get("ETag"), "a key without a hash has no entity tag")
	}
}
