package blobs_test

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/infra/blobs"
)

var (
	keyOne = bytes.Repeat([]byte{1}, blobs.SignerKeyBytes)
	keyTwo = bytes.Repeat([]byte{2}, blobs.SignerKeyBytes)
)

func signedURL(t require.TestingT, path string) *url.URL {
	u, err := url.ParseRequestURI(path)
	require.NoError(t, err)
	return u
}

func TestSignedPathVerifies(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[a-zA-Z0-9_-]{1,20}(/[a-zA-Z0-9_-]{1,30}){0,4}`).Draw(t, "key")
		now := time.Unix(rapid.Int64Range(0, 1<<40).Draw(t, "now"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		life := time.Duration(rapid.Int64Range(1, int64(365*24*time.Hour)).Draw(t, "life"))
		signer := blobs.NewSigner([][]byte{keyOne})
		u := signedURL(t, signer.Path(key, now.Add(life)))

		got, expires, err := signer.Verify(u, now)
		require.NoError(t, err)
		require.Equal(t, key, got)
		require.False(t, expires.Before(now.Add(life)), "it lives no shorter than promised")
		require.Less(t, expires.Sub(now.Add(life)), time.Second)

		_, _, err = signer.Verify(u, expires)
		require.ErrorIs(t, err, blobs.ErrSignature, "at its end it is over")
		_, _, err = signer.Verify(u, expires.Add(-time.Nanosecond))
		require.NoError(t, err)

		_, _, err = blobs.NewSigner([][]byte{keyTwo}).Verify(u, now)
		require.ErrorIs(t, err, blobs.ErrSignature, "another key")
		_, _, err = blobs.NewSigner([][]byte{keyTwo, keyOne}).Verify(u, now)
		require.NoError(t, err, "an earlier key")
	})
}

// Any byte changed, put in, left out or added refuses.
func TestChangedPathRefuses(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	signer := blobs.NewSigner([][]byte{keyOne})
	path := signer.Path("audio/co_1/live/aud_1/abcdef", now.Add(time.Hour))
	refused := func(t require.TestingT, changed string) {
		u, err := url.ParseRequestURI(changed)
		if err != nil {
			return // no server would see it
		}
		key, _, err := signer.Verify(u, now)
		require.ErrorIs(t, err, blobs.ErrSignature, "%s", changed)
		require.Empty(t, key)
	}
	for i := range len(path) {
		refused(t, path[:i])
		refused(t, path[:i]+path[i+1:])
		for c := range 256 {
			if byte(c) != path[i] && c != '#' { // what follows a "#" is not sent to a server
				refused(t, path[:i]+string([]byte{byte(c)})+path[i+1:])
			}
		}
	}
	for _, more := range []string{"=", "A", "&", "&a=b", "&expires=9999999999", "%00"} {
		refused(t, path+more)
	}
	for _, prefix := range []string{"/media/%61udio", "/media/./audio", "/media/x/../audio", "//media/audio", "/MEDIA/audio"} {
		refused(t, strings.Replace(path, "/media/audio", prefix, 1))
	}
	for _, scheme := range []string{"A:", "http:", "a://b", "ftp://api.musique.app", "http://"} {
		refused(t, scheme+path)
	}
	refused(t, strings.Replace(path, "?expires=", "?expires=+", 1))
	refused(t, strings.Replace(path, "?expires=", "?expires=0", 1))
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(path)).Draw(t, "at")
		put := rapid.StringMatching(`[ -"$-~]{1,8}`).Draw(t, "put")
		refused(t, path[:at]+put+path[at:])
	})
}

// A proxy may ask for the whole URL (RFC 9112 §3.2.2).
func TestWholeURLVerifies(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	signer := blobs.NewSigner([][]byte{keyOne})
	path := signer.Path("audio/co_1", now.Add(time.Hour))
	for _, server := range []string{"http://127.0.0.1:8080", "https://api.musique.app"} {
		key, _, err := signer.Verify(signedURL(t, server+path), now)
		require.NoError(t, err)
		require.Equal(t, "audio/co_1", key)
	}
}

func TestSignerNeedsWholeKeys(t *testing.T) {
	t.Parallel()
	require.Panics(t, func() { blobs.NewSigner(nil) })
	require.Panics(t, func() { blobs.NewSigner([][]byte{keyOne[1:]}) })
}
