package keys_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/infra/keys"
)

func ring(t require.TestingT, secrets ...string) *keys.Ring {
	r, err := keys.Open("", strings.Join(secrets, ","))
	require.NoError(t, err)
	return r
}

var one, two = strings.Repeat("1a", 32), strings.Repeat("2b", 32)

func TestWhatIsSealedOpensForItsPurposeAndContext(t *testing.T) {
	t.Parallel()
	r := ring(t, one)
	sealed := r.Seal("channel", "a secret of ours", "co_1", "7")
	require.NotContains(t, sealed, "secret")
	require.NotEqual(t, sealed, r.Seal("channel", "a secret of ours", "co_1", "7"), "two that are sealed do not tell that they are the same")
	text, err := r.Unseal("channel", sealed, "co_1", "7")
	require.NoError(t, err)
	require.Equal(t, "a secret of ours", text)
	for name, open := range map[string]func() (string, error){
		"another purpose":     func() (string, error) { return r.Unseal("webhook", sealed, "co_1", "7") },
		"another location":    func() (string, error) { return r.Unseal("channel", sealed, "co_1", "8") },
		"no context":          func() (string, error) { return r.Unseal("channel", sealed) },
		"parts put otherwise": func() (string, error) { return r.Unseal("channel", sealed, "co_", "17") },
		"another secret":      func() (string, error) { return ring(t, two).Unseal("channel", sealed, "co_1", "7") },
		"cut":                 func() (string, error) { return r.Unseal("channel", sealed[:len(sealed)-1], "co_1", "7") },
		"not sealed":          func() (string, error) { return r.Unseal("channel", "a secret of ours", "co_1", "7") },
		"nothing":             func() (string, error) { return r.Unseal("channel", "", "co_1", "7") },
	} {
		_, err := open()
		require.ErrorIs(t, err, keys.ErrSealed, name)
	}
}

func TestWhatIsSealedOpensAfterARotation(t *testing.T) {
	t.Parallel()
	before := ring(t, one).Seal("channel", "kept", "co_1")
	for _, r := range []*keys.Ring{ring(t, two, one), ring(t, one, two)} {
		text, err := r.Unseal("channel", before, "co_1")
		require.NoError(t, err)
		require.Equal(t, "kept", text)
	}
	after := ring(t, two, one).Seal("channel", "kept", "co_1")
	_, err := ring(t, one).Unseal("channel", after, "co_1")
	require.ErrorIs(t, err, keys.ErrSealed)
}

func TestEveryTextOpensAgain(t *testing.T) {
	t.Parallel()
	r := ring(t, one, two)
	rapid.Check(t, func(t *rapid.T) {
		text, context := rapid.String().Draw(t, "text"), rapid.SliceOf(rapid.String()).Draw(t, "context")
		opened, err := r.Unseal("channel", r.Seal("channel", text, context...), context...)
		require.NoError(t, err)
		require.Equal(t, text, opened)
	})
}

func TestWhatIsSealedAlikeLooksTheSame(t *testing.T) {
	t.Parallel()
	r := ring(t, one)
	rapid.Check(t, func(t *rapid.T) {
		text, context := rapid.String().Draw(t, "text"), rapid.SliceOf(rapid.String()).Draw(t, "context")
		sealed := r.SealAlike("cursor", text, context...)
		require.Equal(t, sealed, r.SealAlike("cursor", text, context...))
		require.Regexp(t, `^[0-9a-v]+$`, sealed)
		for _, after := range []*keys.Ring{r, ring(t, two, one)} {
			opened, err := after.UnsealAlike("cursor", sealed, context...)
			require.NoError(t, err)
			require.Equal(t, text, opened)
		}
		for name, open := range map[string]func() (string, error){
			"another purpose": func() (string, error) { return r.UnsealAlike("other", sealed, context...) },
			"another context": func() (string, error) { return r.UnsealAlike("cursor", sealed, append(context, "")...) },
			"another secret":  func() (string, error) { return ring(t, two).UnsealAlike("cursor", sealed, context...) },
			"cut":             func() (string, error) { return r.UnsealAlike("cursor", sealed[:len(sealed)-1], context...) },
			"nothing":         func() (string, error) { return r.UnsealAlike("cursor", "", context...) },
		} {
			_, err := open()
			require.ErrorIs(t, err, keys.ErrSealed, name)
		}
	})
	// What differs in anything looks different altogether, so that nothing shows which of two positions is the later.
	all := []string{
		r.SealAlike("cursor", "100", "co_1"), r.SealAlike("cursor", "101", "co_1"), r.SealAlike("cursor", "100", "co_2"),
		r.SealAlike("other", "100", "co_1"), ring(t, two).SealAlike("cursor", "100", "co_1"),
	}
	for i, sealed := range all {
		for _, other := range all[:i] {
			require.NotEqual(t, sealed[:16], other[:16])
			require.NotEqual(t, sealed[16:20], other[16:20])
		}
	}
}

func FuzzUnsealAlike(f *testing.F) {
	r := ring(f, one)
	f.Add(r.SealAlike("cursor", "text"))
	f.Add("aaaa")
	f.Fuzz(func(t *testing.T, sealed string) {
		if text, err := r.UnsealAlike("cursor", sealed); err == nil {
			require.Equal(t, "text", text, "nobody makes one without the secret")
		}
	})
}

func FuzzUnseal(f *testing.F) {
	r := ring(f, one)
	f.Add(r.Seal("channel", "text"))
	f.Add(":")
	f.Fuzz(func(t *testing.T, sealed string) {
		if text, err := r.Unseal("channel", sealed); err == nil {
			require.Equal(t, "text", text, "nobody makes one without the secret")
		}
	})
}
