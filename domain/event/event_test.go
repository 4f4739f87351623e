package event_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
)

func TestParseEnvironment(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]event.Environment{"live": event.Live, "prod": event.Live, "test": event.Test, "dev": event.Test} {
		env, ok := event.ParseEnvironment(name)
		require.True(t, ok, name)
		require.Equal(t, want, env)
	}
	for _, name := range []string{"", "Live", "production", "sandbox", "live "} {
		_, ok := event.ParseEnvironment(name)
		require.False(t, ok, name)
	}
}

func TestParseType(t *testing.T) {
	t.Parallel()
	for eventType, want := range map[string]int{"AudioUploaded": 1, "AudioUploaded.v2": 2, "AudioUploaded.v10": 10} {
		name, version, ok := event.ParseType(eventType)
		require.True(t, ok, eventType)
		require.Equal(t, "AudioUploaded", name)
		require.Equal(t, want, version)
	}
	for _, eventType := range []string{
		"", ".v2", "audioUploaded", "AudioUploaded.v1", "AudioUploaded.v0", "AudioUploaded.v02", "AudioUploaded.v-2", "AudioUploaded.v", "AudioUploaded.2", "AudioUploaded.v2.v3",
		"AudioUploaded.v2\n", "$metadata", "Audio Uploaded", "AudioUploaded.v99999999999999999999",
	} {
		_, _, ok := event.ParseType(eventType)
		require.False(t, ok, eventType)
	}
}

// FuzzParseType: a name and a version have one spelling.
func FuzzParseType(f *testing.F) {
	for _, eventType := range []string{"AudioUploaded", "AudioUploaded.v2", "AudioUploaded.v1", "AudioUploaded.v02", "A.v2.v2", ".v2", ""} {
		f.Add(eventType)
	}
	f.Fuzz(func(t *testing.T, eventType string) {
		name, version, ok := event.ParseType(eventType)
		if !ok {
			return
		}
		spelled := name
		if version > 1 {
			spelled = fmt.Sprintf("%s.v%d", name, version)
		}
		require.Equal(t, eventType, spelled)
		require.Positive(t, version)
	})
}

func TestPositions(t *testing.T) {
	t.Parallel()
	require.True(t, event.Position{}.IsZero())
	require.False(t, event.Position{Commit: 1}.IsZero())
	require.False(t, event.Position{Prepare: 1}.IsZero())
	rapid.Check(t, func(t *rapid.T) {
		position := rapid.Custom(func(t *rapid.T) event.Position {
			return event.Position{Commit: rapid.Uint64Range(0, 3).Draw(t, "commit"), Prepare: rapid.Uint64Range(0, 3).Draw(t, "prepare")}
		})
		p, q, r := position.Draw(t, "p"), position.Draw(t, "q"), position.Draw(t, "r")
		require.Equal(t, p != q, p.Before(q) || q.Before(p), "of two positions one is before the other")
		require.False(t, p.Before(q) && q.Before(p))
		require.True(t, !p.Before(q) || !q.Before(r) || p.Before(r))
		require.Equal(t, !p.IsZero(), event.Position{}.Before(p), "nothing is before the start")
		require.True(t, p.Commit >= q.Commit || p.Before(q), "the commit position counts first")
	})
}
