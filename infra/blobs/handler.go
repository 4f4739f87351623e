package blobs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"time"
)

// Handler serves GET and HEAD of URLs that the signer made, with ranges and conditions as in RFC 9110 §13 and 14. What it cannot serve it
// leaves to onError, before a byte of the answer is written: ErrSignature (403), ErrNotFound (404), ErrUnavailable (503), or ErrMethod (405). A nil
// onError answers with these status codes and no body.
//
// Verification reads the path as it came, so nothing may rewrite it on the way.
func Handler(store *Store, signer Signer, now func() time.Time, onError func(http.ResponseWriter, *http.Request, error)) http.Handler {
	if onError == nil {
		onError = bareError
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := serve(store, signer, now(), w, r); err != nil {
			onError(w, r, err)
		}
	})
}

// ErrMethod says that the request's method is neither GET nor HEAD.
var ErrMethod = fmt.Errorf("media can be read with GET and HEAD: %w", http.ErrNotSupported)

func serve(store *Store, signer Signer, now time.Time, w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return ErrMethod
	}
	key, expires, err := signer.Verify(r.URL, now)
	if err != nil {
		return err
	}
	object, err := store.Open(r.Context(), key)
	if err != nil {
		return err
	}
	defer func() { _ = object.Close() }() // everything was read, or the reader has gone

	kind, err := contentType(object)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "private, max-age="+strconv.FormatInt(int64(expires.Sub(now)/time.Second), 10))
	if sum := path.Base(key); isSHA256(sum) {
		h.Set("ETag", `"`+sum+`"`)
	}
	http.ServeContent(w, r, "", object.ModTime(), object)
	return nil
}

// isSHA256 says whether the last part of a key is the hash of the bytes, in lower-case hex: then it is their strong entity tag (RFC 9110 §8.8.3).
func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && hex.EncodeToString(b) == s
}

// maxTags bounds the ID3v2 tags in front of audio that contentType looks behind.
const maxTags = 16

// contentType is the stored media type, or for folders, which keep none, that of the audio by its first bytes (IANA's registry; RFC 3003, 5334, 4337).
// An ID3v2 tag may stand in front of any of them (ID3v2.4 main structure §3.1).
func contentType(object *Reader) (string, error) {
	if stored := object.ContentType(); stored != unknownType {
		return stored, nil
	}
	kind := unknownType
	for tags, at := 0, int64(0); tags <= maxTags && at < object.Size(); tags++ {
		if _, err := object.Seek(at, io.SeekStart); err != nil {
			return "", err
		}
		var head [12]byte
		n, err := io.ReadFull(object, head[:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return "", err
		}
		if audio := audioType(head[:n]); audio != "" {
			kind = audio
			break
		}
		if n < 3 || string(head[:3]) != "ID3" {
			break
		}
		kind = "audio/mpeg" // unless something else follows
		if n < 10 {
			break
		}
		at += 10 + int64(head[6])<<21 + int64(head[7])<<14 + int64(head[8])<<7 + int64(head[9])
		if head[5]&0x10 != 0 {
			at += 10 // a footer
		}
	}
	_, err := object.Seek(0, io.SeekStart)
	return kind, err
}

// audioType tells audio by its first bytes, or "".
func audioType(head []byte) string {
	is := func(at int, magic string) bool {
		return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
	}
	switch {
	case is(0, "RIFF") && is(8, "WAVE"):
		return "audio/wav"
	case is(0, "OggS"):
		return "audio/ogg"
	case is(4, "ftyp"), is(4, "moov"), is(4, "mdat"):
		return "audio/mp4"
	case len(head) >= 2 && head[0] == 0xff && head[1]&0xf6 == 0xf0:
		return "audio/aac"
	case len(head) >= 2 && head[0] == 0xff && head[1]&0xe0 == 0xe0:
		return "audio/mpeg"
	}
	return ""
}

// bareError answers with the status code that an error of this package stands for.
func bareError(w http.ResponseWriter, _ *http.Request, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, ErrSignature):
		status = http.StatusForbidden
	case errors.Is(err, ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, ErrMethod):
		status = http.StatusMethodNotAllowed
	case errors.Is(err, ErrUnavailable):
		status = http.StatusServiceUnavailable
	}
	w.WriteHeader(status)
}
