package eventstore

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The pattern is what it is made for: names that do not begin so, the store's own left out.
func TestNotBeginning(t *testing.T) {
	t.Parallel()
	letter := rapid.SampledFrom([]rune(`ab-$.*+?()[]{}^|\&~é世`))
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.StringOfN(letter, 1, 6, -1).Draw(t, "prefix")
		pattern := regexp.MustCompile(notBeginning(prefix))
		for range 20 {
			// Most names have much of the prefix, or are shorter than it.
			all := []rune(prefix)
			name := string(all[:rapid.IntRange(0, len(all)).Draw(t, "common")]) + rapid.StringOfN(letter, 0, 3, -1).Draw(t, "rest")
			if name == "" {
				continue // no stream has that name
			}
			wanted := !strings.HasPrefix(name, "$") && !strings.HasPrefix(name, prefix)
			require.Equal(t, wanted, pattern.MatchString(name), "%q, of %s", name, pattern)
			require.Equal(t, wanted, SubscriberConfig{SkipStreams: prefix}.sent("Noted", name), "%q, without %q", name, prefix)
		}
	})
}
