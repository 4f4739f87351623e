package httpapi

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/fault"
)

func TestTheAddressOfACallerIsOne(t *testing.T) {
	s := &Server{trustForwarded: true}
	for forwarded, want := range map[string]string{
		"198.51.100.7":                    "198.51.100.7",
		"::ffff:198.51.100.7":             "198.51.100.7", // or all of IPv4 would be one network
		"203.0.113.9, 198.51.100.7":       "198.51.100.7", // what the client says of itself comes first
		"2001:db8:1:2:3:4:5:6":            "2001:db8:1:2::/64",
		"2001:db8:1:2:3:4:5:6%eth0":       "2001:db8:1:2::/64",
		"nonsense":                        "192.0.2.1",
		"":                                "192.0.2.1",
		"198.51.100.7, nonsense":          "192.0.2.1",
		"198.51.100.7,,2001:db8:1:2::abc": "2001:db8:1:2::/64",
	} {
		r := &http.Request{RemoteAddr: "[::ffff:192.0.2.1]:4711", Header: http.Header{"X-Forwarded-For": {forwarded}}}
		require.Equal(t, want, network(s.clientAddr(r)), forwarded)
	}
	r := &http.Request{RemoteAddr: "192.0.2.1:4711", Header: http.Header{"X-Forwarded-For": {"198.51.100.7"}}}
	require.Equal(t, "192.0.2.1", network((&Server{}).clientAddr(r)), "who is not told to trust does not")
}

// Whatever is of use to be asked again after a while, says after which.
func TestWhatPassesSaysWhen(t *testing.T) {
	s := &Server{now: time.Now, log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		err  *fault.Error
		says string
	}{
		{&fault.Error{Code: fault.Conflict, RetryAfter: 1500 * time.Millisecond}, "2"},
		{&fault.Error{Code: fault.Conflict}, ""},
		{&fault.Error{Code: fault.QuotaExceeded, RetryAfter: time.Hour}, "3600"},
		{&fault.Error{Code: fault.QuotaExceeded}, ""},
		{&fault.Error{Code: fault.ServiceUnavailable}, "1"},
	} {
		w := httptest.NewRecorder()
		(&call{server: s, w: &responseWriter{ResponseWriter: w}, r: httptest.NewRequest(http.MethodGet, "/", nil)}).fail(c.err)
		require.Equal(t, c.says, w.Header().Get("Retry-After"), c.err.Code)
		var body struct {
			Error struct{ RetryAfter json.Number }
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		require.Equal(t, c.says, body.Error.RetryAfter.String())
	}
}

func TestARequestIDIsKeptUnlessItIsUnsafe(t *testing.T) {
	token := "msk_live_" + strings.Repeat("aB3", 15)[:43]
	for id, kept := range map[string]bool{
		"mine-42": true, "req_" + strings.Repeat("0f", 32): true, strings.Repeat("x", 128): true, "a/b.c:d=e+f@g_h": true,
		"": false, strings.Repeat("x", 129): false, "a b": false, "a\"b": false, "é": false, "retry of " + token: false, "retry-of-" + token: false, token: false,
	} {
		h := http.Header{"X-Request-Id": {id}, "X-Api-Key": {token}}
		require.Equal(t, kept, requestID(h) == id, id)
	}
	require.Equal(t, "ab", requestID(http.Header{"X-Request-Id": {"ab"}, "X-Api-Key": {"a"}}))
	for id, kept := range map[string]bool{
		token: false, "comp_" + token[9:]: false, "x_dev_" + token[9:] + "-1": false, "req_" + token[9:]: true, token + "0": true, token[:51]: true,
	} {
		require.Equal(t, kept, requestID(http.Header{"X-Request-Id": {id}}) == id, "%s, which was not presented", id)
	}
}
