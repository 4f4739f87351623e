package audiofile_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/audiofile"
)

// tolerance is what partners are promised: durations within 60 ms of the decoded length.
const tolerance = 60 * time.Millisecond

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return b
}

func inspect(b []byte) (audiofile.Info, error) {
	return audiofile.Inspect(bytes.NewReader(b), int64(len(b)))
}

// manifest tells the format and the decoded length in seconds of every fixture.
func manifest(t testing.TB) map[string]struct {
	Format   string
	Duration float64
} {
	t.Helper()
	var m map[string]struct {
		Format   string
		Duration float64
	}
	require.NoError(t, json.Unmarshal(fixture(t, "manifest.json"), &m))
	require.NotEmpty(t, m)
	return m
}

func TestFixtures(t *testing.T) {
	t.Parallel()
	for name, want := range manifest(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := fixture(t, name)
			got, err := inspect(b)
			require.NoError(t, err)
			t.Logf("%+v", got)
			require.Equal(t, want.Format, got.Format)
			require.InDelta(t, want.Duration, got.Duration.Seconds(), tolerance.Seconds())
			require.EqualValues(t, len(b), got.Size)
		})
	}
}
