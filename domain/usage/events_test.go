package usage_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
)

func TestADayIsOneOfUTC(t *testing.T) {
	t.Parallel()
	honolulu := time.FixedZone("", -10*3600)
	require.Equal(t, "usage-co_one-live-2026-03-01", usage.Stream("co_one", event.Live, time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)))
	require.Equal(t, "usage-co_one-live-2026-03-01", usage.Stream("co_one", event.Live, time.Date(2026, 3, 1, 23, 59, 59, 999_999_999, time.UTC)))
	require.Equal(t, "usage-co_one-test-2026-03-02", usage.Stream("co_one", event.Test, time.Date(2026, 3, 1, 14, 0, 0, 0, honolulu)))
}

// Two requests are in one stream if and only if they are of one company, one environment and one day.
func TestStreamsAreApart(t *testing.T) {
	t.Parallel()
	type of struct {
		company string
		env     event.Environment
		day     int
	}
	rapid.Check(t, func(t *rapid.T) {
		draw := func() (of, string) {
			o := of{rapid.SampledFrom([]string{"co_one", "co_two"}).Draw(t, "company"), rapid.SampledFrom([]event.Environment{event.Live, event.Test}).Draw(t, "environment"), 0}
			second := rapid.IntRange(0, 4*86_400).Draw(t, "second")
			o.day = second / 86_400
			zone := time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, "offset")*3600)
			return o, usage.Stream(o.company, o.env, time.Date(2026, 2, 27, 0, 0, second, 0, time.UTC).In(zone))
		}
		one, streamOfOne := draw()
		other, streamOfOther := draw()
		require.Equal(t, one == other, streamOfOne == streamOfOther)
	})
}
