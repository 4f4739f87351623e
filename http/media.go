package httpapi

import (
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
	blobs.Handler(s.blobs, s.signer, s.now, func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err }).ServeHTTP(c.w, c.r)
	return failed
}

// errNoMedia is told for a wrong signature and for bytes that are gone, so that who guesses learns nothing.
var errNoMedia = fault.New(fault.NotFound, "There is nothing at this URL, or its time is over; get the audio again for a fresh one.")
