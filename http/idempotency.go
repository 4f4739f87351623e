package httpapi

import (
	"net/http"
	"strings"

	"github.com/musique/musique/domain/fault"
)

// maxIdempotencyKey is the longest Idempotency-Key, in characters.
const maxIdempotencyKey = 255

// idempotencyKey reads the header of that name; "" if there is none.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	switch {
	case len(values) > 1:
		return "", fault.ForField("Idempotency-Key", fault.InvalidFormat, "Idempotency-Key is given %d times; give it once.", len(values))
	case key == "", len(key) > maxIdempotencyKey:
		return "", fault.ForField("Idempotency-Key", fault.OutOfRange, "Idempotency-Key must have 1 to %d characters.", maxIdempotencyKey)
	case strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }):
		return "", fault.ForField("Idempotency-Key", fault.InvalidFormat, "Idempotency-Key must be printable ASCII.")
	}
	return key, nil
}

// replayed marks an answer that an earlier request with the same Idempotency-Key made.
func (c *call) replayed(yes bool) {
	if yes {
		c.w.Header().Set("Idempotency-Replayed", "true")
	}
}
