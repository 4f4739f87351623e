package httpapi

import (
	"cmp"
	"net/http"
	"time"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/blobs"
)

// mediaTimeout bounds the transfer of one file to a player, which may be at the end of a slow line.
const mediaTimeout = 10 * time.Minute

const (
	// partnerURL is how long the URL of audio in an answer to a partner lasts at least.
	partnerURL = time.Hour
	// partnerURLStep is what its end is rounded up to: answers soon after each other say the same, and so have the same tag.
	partnerURLStep = 30 * time.Minute
)

// mediaURL is a URL that lets its bearer read a blob until a moment.
func (s *Server) mediaURL(c *call, blobKey string, until time.Time) string {
	return c.absolute(s.signer.Path(blobKey, until))
}

// partnerURLEnd is when the URLs end that a partner is given at a moment.
func partnerURLEnd(now time.Time) time.Time {
	return now.Add(partnerURL + partnerURLStep - 1).Truncate(partnerURLStep)
}

// media serves the audio that a signed URL names. It needs no token: the signature is what lets in.
func (s *Server) media(c *call) error {
	var failed error
	w := &contentWriter{ResponseWriter: c.w}
	blobs.Handler(s.blobs, s.signer, s.now, func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err }).ServeHTTP(w, c.r)
	return cmp.Or(failed, w.err())
}

// contentWriter is what http.ServeContent writes to. A range that there is none of is left to be told as every error is, beside the Content-Range that says how
// much there is; and what has no body has no headers about one.
type contentWriter struct {
	http.ResponseWriter
	unsatisfied bool
}

// WriteHeader implements http.ResponseWriter.
func (w *contentWriter) WriteHeader(status int) {
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		w.unsatisfied = true
		return
	case http.StatusPreconditionFailed:
		for _, name := range []string{"Content-Encoding", "Content-Length", "Content-Type"} {
			w.Header().Del(name)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *contentWriter) Write(p []byte) (int, error) {
	if w.unsatisfied {
		return len(p), nil // net/http's own words
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *contentWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// err is what is left to be told.
func (w *contentWriter) err() error {
	if !w.unsatisfied {
		return nil
	}
	err := fault.ForField("Range", fault.OutOfRange, "The Range has nothing of this file; ask for a part of the bytes that Content-Range tells of.")
	err.Status = http.StatusRequestedRangeNotSatisfiable
	return err
}

// errNoMedia is told for a wrong signature and for bytes that are gone, so that who guesses learns nothing.
var errNoMedia = fault.New(fault.NotFound, "There is nothing at this URL, or its time is over; get the audio again for a fresh one.")
