package blobs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// MediaPath is the path under which signed URLs stand.
const MediaPath = "/media/"

// ErrSignature says that a URL was not signed by us as it stands, or is past its time.
var ErrSignature = errors.New("the signature of this URL is wrong or past its time")

// SignerKeyBytes is the length of a signer's key.
const SignerKeyBytes = 32

// Signer makes and checks URLs that let their bearer read one blob until a given second.
type Signer struct{ keys []*signingKey }

// signingKey is a key with the states that were derived from it, so that one signature does not cost what a list of them needs once.
type signingKey struct{ states sync.Pool } // of hash.Hash

// NewSigner returns a signer that signs with the first key and takes signatures of each, so that keys can be changed. It panics without
// a key or with one that has not SignerKeyBytes: that is a fault in the program.
func NewSigner(keys [][]byte) Signer {
	if len(keys) == 0 {
		panic("blobs: a signer needs a key")
	}
	s := Signer{}
	for _, k := range keys {
		if len(k) != SignerKeyBytes {
			panic(fmt.Sprintf("blobs: a signer's key has %d bytes, not %d", len(k), SignerKeyBytes))
		}
		s.keys = append(s.keys, &signingKey{states: sync.Pool{New: func() any { return hmac.New(sha256.New, k) }}})
	}
	return s
}

// The query of a signed URL, in this order and with nothing else in it.
const (
	expiresParam   = "expires="
	signatureParam = "&signature="
)

// Path returns the path and query under which a blob can be read up to a moment, rounded up to the second.
func (s Signer) Path(key string, expires time.Time) string {
	seconds := expires.Unix()
	if expires.Nanosecond() > 0 {
		seconds++
	}
	until := strconv.FormatInt(seconds, 10)
	return MediaPath + key + "?" + expiresParam + until + signatureParam + s.keys[0].signature(key, until)
}

// Verify returns the key that a signed URL names and when the URL expires, or ErrSignature. Not one byte of the path, as it was received, or of the query
// may differ from what Path made. A URL with a scheme is one of http or https, which have a host (RFC 9110 §4.2).
func (s Signer) Verify(u *url.URL, now time.Time) (key string, expires time.Time, err error) {
	key, ok := strings.CutPrefix(u.EscapedPath(), MediaPath)
	rest, ok2 := strings.CutPrefix(u.RawQuery, expiresParam)
	until, signed, ok3 := strings.Cut(rest, signatureParam)
	ours := u.Scheme == "" || (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
	if !ok || !ok2 || !ok3 || !ours || checkKey(key) != nil {
		return "", time.Time{}, ErrSignature
	}
	right := false
	for _, k := range s.keys {
		// The encoded forms are compared: base64 has several forms of the same bytes, and one is enough.
		if hmac.Equal([]byte(k.signature(key, until)), []byte(signed)) {
			right = true
		}
	}
	seconds, err := strconv.ParseInt(until, 10, 64)
	if !right || err != nil || now.Unix() >= seconds {
		return "", time.Time{}, ErrSignature
	}
	return key, time.Unix(seconds, 0).UTC(), nil
}

// signature is HMAC-SHA256 (RFC 2104) in base64url without padding (RFC 4648 §5). A line feed, which neither part can hold, keeps the parts apart; the first
// line keeps these signatures apart from any other use of the key.
func (k *signingKey) signature(blobKey, until string) string {
	mac := k.states.Get().(hash.Hash) //nolint:forcetypeassert // the pool holds nothing else
	defer k.states.Put(mac)
	mac.Reset()
	text := make([]byte, 0, 256)
	text = append(text, "musique media v1\n"...)
	text = append(text, blobKey...)
	text = append(text, '\n')
	mac.Write(append(text, until...))
	var sum [sha256.Size]byte
	return base64.RawURLEncoding.EncodeToString(mac.Sum(sum[:0]))
}
