package blobs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// MediaPath is where signed URLs lie.
const MediaPath = "/media/"

// ErrSignature says that a URL was not signed here, or is past its time.
var ErrSignature = errors.New("the URL's signature is wrong or expired")

// Signer makes and checks URLs that let their bearer read one blob for a while.
type Signer struct {
	keys [][]byte // the one to sign with first
}

// NewSigner makes a signer; URLs signed with any of the keys are accepted, the first is used for new ones.
func NewSigner(keys [][]byte) Signer { return Signer{keys} }

// Path gives the path and query of a URL for a key: `/media/<key>?expires=<Unix seconds>&signature=<base64url>`.
func (s Signer) Path(key string, expires time.Time) string {
	at := strconv.FormatInt(expires.Unix(), 10)
	return (&url.URL{Path: MediaPath + key}).EscapedPath() + "?expires=" + at + "&signature=" + base64.RawURLEncoding.EncodeToString(sign(s.keys[0], key, at))
}

// Verify gives the key that a URL was signed for. Errors: ErrSignature.
func (s Signer) Verify(u *url.URL, now time.Time) (key string, err error) {
	key, ok := strings.CutPrefix(u.Path, MediaPath)
	query := u.Query()
	at, given := query.Get("expires"), query.Get("signature")
	seconds, err := strconv.ParseInt(at, 10, 64)
	mac, macErr := base64.RawURLEncoding.Strict().DecodeString(given)
	if !ok || err != nil || macErr != nil || len(query["expires"]) != 1 || len(query["signature"]) != 1 {
		return "", ErrSignature
	}
	for _, k := range s.keys {
		if hmac.Equal(mac, sign(k, key, at)) && now.Unix() < seconds {
			return key, nil
		}
	}
	return "", ErrSignature
}

func sign(secret []byte, key, expires string) []byte {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "GET\n%s\n%s", key, expires)
	return mac.Sum(nil)
}

// Handler serves the blobs that signed URLs name, with Range (RFC 9110 §14) and ETag (§8.8.3): the last part of a key is the SHA-256 of the bytes. What
// goes wrong is given to fail, which answers the request.
func Handler(store *Store, signer Signer, now func() time.Time, fail func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := signer.Verify(r.URL, now())
		if err != nil {
			fail(w, r, err)
			return
		}
		blob, err := store.Open(r.Context(), key)
		if err != nil {
			fail(w, r, err)
			return
		}
		defer blob.Close()
		header := w.Header()
		header.Set("ETag", `"`+path.Base(key)+`"`)
		header.Set("Cache-Control", "private, max-age=86400, immutable")
		header.Set("X-Content-Type-Options", "nosniff")
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", mediaType(blob))
		}
		http.ServeContent(w, r, "", blob.ModTime(), blob)
	})
}

// mediaType is the stored type, or the type of the bytes where the storage keeps none.
func mediaType(blob *Reader) string {
	if t, _, err := mime.ParseMediaType(blob.ContentType()); err == nil && t != "application/octet-stream" {
		return t
	}
	var head [12]byte
	n, _ := blob.Read(head[:])
	if _, err := blob.Seek(0, 0); err != nil {
		return "application/octet-stream"
	}
	switch h := string(head[:n]); {
	case strings.HasPrefix(h, "RIFF"):
		return "audio/wav"
	case strings.HasPrefix(h, "OggS"):
		return "audio/ogg"
	case strings.HasPrefix(h, "ID3"):
		return "audio/mpeg"
	case len(h) > 8 && h[4:8] == "ftyp":
		return "audio/mp4"
	case len(h) > 1 && h[0] == 0xFF && h[1]&0xF6 == 0xF0: // ADTS: layer bits are zero
		return "audio/aac"
	case len(h) > 1 && h[0] == 0xFF && h[1]&0xE0 == 0xE0:
		return "audio/mpeg"
	}
	return "application/octet-stream"
}
