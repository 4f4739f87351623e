package httpapi

import (
	"net/http"
	"time"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/blobs"
)

// mediaTimeout bounds the transfer of one file to a player, which may be at the end of a slow line.
const mediaTimeout = 10 * time.Minute

// mediaURL is a URL that lets its bearer read a blob for a while.
func (s *Server) mediaURL(c *call, blobKey string, lifetime time.Duration) string {
	return s.baseURL(c.r).String() + s.signer.Path(blobKey, s.now().Add(lifetime))
}

// media serves the audio that a signed URL names. It needs no token: the signature is what lets in.
func (s *Server) media(c *call) error {
	var failed error
	blobs.Handler(s.blobs, s.signer, s.now, func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err }).ServeHTTP(c.w, c.r)
	return failed
}

// errNoMedia is told for a wrong signature and for bytes that are gone, so that who guesses learns nothing.
var errNoMedia = fault.New(fault.NotFound, "There is nothing at this URL, or its time is over; get the audio again for a fresh one.")
