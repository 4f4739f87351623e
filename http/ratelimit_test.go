package httpapi

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/projections/tokens"
)

func TestRateHeadersTellTheTightestWindow(t *testing.T) {
	now := time.Date(2026, 5, 1, 10, 0, 15, 500e6, time.UTC)
	minute := tokens.Window{Name: "minute", Length: time.Minute, Limit: 100, Used: 60, Reset: now.Truncate(time.Minute).Add(time.Minute)}
	hour := tokens.Window{Name: "hour", Length: time.Hour, Limit: 1000, Used: 100, Reset: now.Truncate(time.Hour).Add(time.Hour)}
	used := func(w tokens.Window, used int64) tokens.Window {
		w.Used = used
		return w
	}
	for name, test := range map[string]struct {
		windows   []tokens.Window
		limit     string
		remaining string
		reset     string
		rateLimit string
	}{
		"the minute has fewest left": {[]tokens.Window{minute, hour}, "100", "40", "1777629660", `"minute";r=40;t=45`},
		"the hour is nearly used up": {[]tokens.Window{minute, used(hour, 997)}, "1000", "3", "1777633200", `"hour";r=3;t=3585`},
		"both used up: the longer one binds": {
			[]tokens.Window{used(minute, 100), used(hour, 1000)}, "1000", "0", "1777633200", `"hour";r=0;t=3585`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			setRateHeaders(h, test.windows, now)
			require.Equal(t, test.limit, h.Get("X-RateLimit-Limit"))
			require.Equal(t, test.remaining, h.Get("X-RateLimit-Remaining"))
			require.Equal(t, test.reset, h.Get("X-RateLimit-Reset"))
			require.Equal(t, test.rateLimit, h.Get("RateLimit"))
			require.Equal(t, `"minute";q=100;w=60, "hour";q=1000;w=3600`, h.Get("RateLimit-Policy"))
		})
	}
}
