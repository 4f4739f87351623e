package keys_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/keys"
)

// Programs that start at the same moment on a new folder all get the secret that stays there: one that went on with another would hash tokens
// that nobody knows after its next start.
func TestOpenTogetherMakesOneSecret(t *testing.T) {
	t.Parallel()
	for range 20 {
		dir := filepath.Join(t.TempDir(), "data")
		hashes := make([]string, 16)
		begin := make(chan struct{})
		var all sync.WaitGroup
		for i := range hashes {
			all.Go(func() {
				<-begin
				ring, err := keys.Open(dir, "")
				if err != nil {
					t.Error(err)
					return
				}
				hashes[i] = ring.HashToken("token")
			})
		}
		close(begin)
		all.Wait()
		stays, err := keys.Open(dir, "")
		require.NoError(t, err)
		for _, hash := range hashes {
			require.Equal(t, stays.HashToken("token"), hash)
		}
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, left, 1, "nothing half made stays behind")
		info, err := left[0].Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
}

// After a rotation tokens are hashed with the new secret, and those of the old one are still found; signatures likewise.
func TestRotation(t *testing.T) {
	t.Parallel()
	older, newer := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	before, err := keys.Open("", older)
	require.NoError(t, err)
	after, err := keys.Open("", newer+","+older)
	require.NoError(t, err)
	require.NotEqual(t, before.HashToken("token"), after.HashToken("token"))
	require.Equal(t, []string{after.HashToken("token"), before.HashToken("token")}, after.Hashes("token"))
	require.Equal(t, before.SigningKeys("media")[0], after.SigningKeys("media")[1])
	require.NotEqual(t, after.SigningKeys("media")[0], after.SigningKeys("other")[0])
	require.Len(t, after.Derive("a", "b"), 2)
	require.Equal(t, before.Derive("a", "b")[0], after.Derive("a", "b")[1])
	require.NotEqual(t, after.Derive("a", "b")[0], after.Derive("a", "b")[1])
	require.NotEqual(t, after.Derive("a", "bc"), after.Derive("ab", "c"), "no two lists of parts look alike")

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret.key"), []byte(newer+"\n"+older+"\n"), 0o600))
	fromFile, err := keys.Open(dir, "")
	require.NoError(t, err)
	require.Equal(t, after.Hashes("token"), fromFile.Hashes("token"), "the file has a secret on each line")
}

func TestWhatIsNoSecretIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"x", strings.Repeat("a1", 31), strings.Repeat("a1", 33), strings.Repeat(strings.Repeat("a1", 32)+",", 9), ","} {
		_, err := keys.Open("", text)
		require.Error(t, err, text)
		if len(text) > 4 {
			require.NotContains(t, err.Error(), text[:4], "an error shows nothing of a secret")
		}
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret.key"), nil, 0o600))
	_, err := keys.Open(dir, "")
	require.ErrorContains(t, err, "secret.key", "a file without a secret is not replaced: tokens may be hashed with the one that was there")
}
