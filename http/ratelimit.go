package httpapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/musique/musique/projections/tokens"
)

// tightest is the window that will refuse first: the one with the fewest requests left, and of those the one that lasts longest.
func tightest(windows []tokens.Window) tokens.Window {
	t := windows[0]
	for _, w := range windows[1:] {
		if w.Remaining() < t.Remaining() || w.Remaining() == t.Remaining() && w.Reset.After(t.Reset) {
			t = w
		}
	}
	return t
}

// setRateHeaders tells the caller how much is left: the X-RateLimit fields for the tightest window, and RateLimit and RateLimit-Policy as
// draft-ietf-httpapi-ratelimit-headers-10 §§3–4 writes them (structured fields, RFC 9651), with every window as a policy.
func setRateHeaders(h http.Header, windows []tokens.Window, now time.Time) {
	if len(windows) == 0 {
		return
	}
	t := tightest(windows)
	h.Set("X-RateLimit-Limit", strconv.FormatInt(t.Limit, 10))
	h.Set("X-RateLimit-Remaining", strconv.FormatInt(t.Remaining(), 10))
	h.Set("X-RateLimit-Reset", strconv.FormatInt(t.Reset.Unix(), 10))
	policies := make([]string, len(windows))
	for i, w := range windows {
		policies[i] = fmt.Sprintf(`"%s";q=%d;w=%d`, w.Name, w.Limit, int64(w.Length.Seconds()))
	}
	h.Set("RateLimit-Policy", strings.Join(policies, ", "))
	h.Set("RateLimit", fmt.Sprintf(`"%s";r=%d;t=%d`, t.Name, t.Remaining(), retrySeconds(t.Reset.Sub(now))))
}
