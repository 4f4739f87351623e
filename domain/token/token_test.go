package token_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/token"
)

var (
	expiry = time.Date(2027, 3, 1, 9, 0, 0, 0, time.UTC)
	issued = token.Issued{
		TokenID: "tok_one", CompanyID: "co_one", Environment: event.Live, ExternalID: "store_001", UserID: 7, Name: "till", Permissions: []string{"audio.read"},
		Hash: "hash", ExpiresAt: &expiry,
	}
	revoked = token.Revoked{TokenID: "tok_one"}
)

func load(t require.TestingT, given ...event.Payload) token.Token {
	loaded, err := token.Load(eventtest.History(given...))
	require.NoError(t, err)
	return loaded
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	got, err := load(t, issued).Revoke()
	require.NoError(t, err)
	require.Equal(t, revoked, got)

	_, err = load(t, issued, revoked).Revoke()
	eventtest.Refused(t, err, fault.InvalidToken, "")

	_, err = load(t).Revoke()
	eventtest.Refused(t, err, fault.InvalidToken, "")
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.False(t, load(t).Exists())
	require.Equal(t, token.Token{Issued: issued}, load(t, issued))
	require.Equal(t, token.Token{Issued: issued, Revoked: true}, load(t, issued, revoked))
	require.Equal(t, "token-tok_one", token.Stream("tok_one"))

	history := eventtest.History(issued)
	history[0].Data = []byte(`{"userId": "seven"}`)
	_, err := token.Load(history)
	require.ErrorContains(t, err, "TokenIssued of test")
}

func TestTerms(t *testing.T) {
	t.Parallel()
	lifetime := func(d time.Duration) *time.Duration { return &d }
	for name, c := range map[string]struct {
		terms token.Terms
		want  []eventtest.Field
	}{
		"none":                    {},
		"all of them":             {terms: token.Terms{Name: strings.Repeat("é", 200), Permissions: token.Permissions, ExpiresIn: lifetime(time.Hour)}},
		"the shortest life":       {terms: token.Terms{ExpiresIn: lifetime(time.Second)}},
		"the longest life":        {terms: token.Terms{ExpiresIn: lifetime(token.MaxLifetime)}},
		"a life that is too long": {token.Terms{ExpiresIn: lifetime(token.MaxLifetime + 1)}, []eventtest.Field{{Param: "expiresIn", Code: fault.OutOfRange}}},
		"no life":                 {token.Terms{ExpiresIn: lifetime(0)}, []eventtest.Field{{Param: "expiresIn", Code: fault.OutOfRange}}},
		"a life in the past":      {token.Terms{ExpiresIn: lifetime(-time.Hour)}, []eventtest.Field{{Param: "expiresIn", Code: fault.OutOfRange}}},
		"an empty list":           {token.Terms{Permissions: []string{}}, []eventtest.Field{{Param: "permissions", Code: fault.OutOfRange}}},
		"an unknown permission":   {token.Terms{Permissions: []string{"audio.read", "audio.sing"}}, []eventtest.Field{{Param: "permissions[1]", Code: fault.InvalidFormat}}},
		"unknown permissions":     {token.Terms{Permissions: []string{"a", "audio.read", "b"}}, []eventtest.Field{{Param: "permissions[0]", Code: fault.InvalidFormat}, {Param: "permissions[2]", Code: fault.InvalidFormat}}},
		"everything wrong": {token.Terms{Name: strings.Repeat("é", 201), Permissions: []string{""}, ExpiresIn: lifetime(0)},
			[]eventtest.Field{{Param: "name", Code: fault.OutOfRange}, {Param: "expiresIn", Code: fault.OutOfRange}, {Param: "permissions[0]", Code: fault.InvalidFormat}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields fault.Fields
			c.terms.Check(&fields)
			eventtest.Failing(t, fields, c.want...)
		})
	}
}

func TestGranted(t *testing.T) {
	t.Parallel()
	require.Equal(t, token.Permissions, token.Terms{}.Granted(), "all unless fewer were asked for")
	require.Equal(t, []string{"audio.read", "tokens.manage"}, token.Terms{Permissions: []string{"tokens.manage", "audio.read", "tokens.manage"}}.Granted())

	all := token.Terms{}.Granted()
	all[0] = "changed"
	require.Equal(t, "audio.read", token.Permissions[0], "what is granted is the caller's own list")
}

// A token has what it was asked for with and nothing more.
func TestGrantedIsWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		asked := rapid.SliceOfN(rapid.SampledFrom(token.Permissions), 1, 30).Draw(t, "asked")
		var fields fault.Fields
		terms := token.Terms{Permissions: asked}
		terms.Check(&fields)
		require.Empty(t, fields)
		granted := terms.Granted()
		slices.Sort(asked)
		sorted := slices.Sorted(slices.Values(granted))
		require.Equal(t, slices.Compact(asked), sorted)
		require.Equal(t, granted, token.Terms{Permissions: granted}.Granted())
	})
}
