package commands_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/endpoint"
)

const radio = "https://radio.example/in"

// withEndpoint are the details of a location that has an endpoint.
func withEndpoint(secret string) location.Details {
	return location.Details{Name: "Hall", Channel: location.Channel{Type: location.ChannelHTTP, URL: radio}, Secret: secret}
}

// secretOf is the secret of a location's channel, as it is opened to sign with.
func secretOf(t *testing.T, p commandstest.Partner, userID int64) string {
	t.Helper()
	l, err := location.Load(p.History(t, location.Stream(p.CompanyID, userID, event.Live)))
	require.NoError(t, err)
	secret, err := commands.ChannelSecret(p.Keys, p.CompanyID, event.Live, userID, l.Channel.Secret)
	require.NoError(t, err)
	return secret
}

func TestTheSecretOfAChannelIsNowhereInClear(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	const given, later = "a secret of the partner's own", "another secret of the partner's"
	made, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Keyed("hall"), ExternalID: "hall", Details: withEndpoint(given)})
	require.NoError(t, err)
	require.Empty(t, made.Secret, "the partner knows it")
	require.Equal(t, given, secretOf(t, p, made.UserID))
	_, err = p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Channel: &location.Channel{Type: "http", URL: radio}, Secret: later})
	require.NoError(t, err)
	require.Equal(t, later, secretOf(t, p, made.UserID))
	for _, e := range p.History(t, location.Stream(p.CompanyID, made.UserID, event.Live)) {
		require.NotContains(t, string(e.Data)+text(t, e.Metadata), "secret of")
	}
}

func TestAChannelKeepsItsSecretUntilItGetsAnother(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	made, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Keyed("hall"), ExternalID: "hall", Details: withEndpoint("")})
	require.NoError(t, err)
	require.Len(t, endpoint.Key(made.Secret), 32, "one is made where none is given")
	require.Equal(t, made.Secret, secretOf(t, p, made.UserID))
	again, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Keyed("hall"), ExternalID: "hall", Details: withEndpoint("")})
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, made.Secret, again.Secret, "a repeat shows it again")

	events := func() int { return len(p.History(t, location.Stream(p.CompanyID, made.UserID, event.Live))) }
	change := func(cmd commands.ChangeLocation) string {
		cmd.Caller, cmd.ExternalID = p.Caller(), "hall"
		changed, err := p.Commands.ChangeLocation.Handle(t.Context(), cmd)
		require.NoError(t, err)
		return changed.Secret
	}
	http := func(url string) *location.Channel { return &location.Channel{Type: "http", URL: url} }
	require.Empty(t, change(commands.ChangeLocation{Name: new("Foyer")}))
	require.Empty(t, change(commands.ChangeLocation{Channel: http("https://radio.example/other")}))
	require.Equal(t, made.Secret, secretOf(t, p, made.UserID))
	require.Empty(t, change(commands.ChangeLocation{Channel: http(radio), Secret: "a secret"}))
	before := events()
	require.Empty(t, change(commands.ChangeLocation{Channel: http(radio), Secret: "a secret"}))
	require.Equal(t, before, events(), "what is so already is not written again")
	require.Equal(t, "a secret", secretOf(t, p, made.UserID))

	require.Empty(t, change(commands.ChangeLocation{Channel: &location.Channel{Type: "player"}}))
	anew := change(commands.ChangeLocation{Channel: http(radio)})
	require.NotEmpty(t, anew, "a player's channel had none to keep")
	require.Equal(t, anew, secretOf(t, p, made.UserID))

	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"}))
	once, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: "hall", Details: withEndpoint("")})
	require.NoError(t, err)
	require.NotEmpty(t, once.Secret)
	require.NotEqual(t, anew, once.Secret)
}

func TestAnotherSecretIsAnotherRequest(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	register := func(secret string) error {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Keyed("k"), ExternalID: "hall", Details: withEndpoint(secret)})
		return err
	}
	require.NoError(t, register("the first secret"))
	require.NoError(t, register("the first secret"))
	require.Equal(t, fault.Conflict, fault.CodeOf(register("another secret")))
}

func TestAnImportOfEndpoints(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	load := func(key string, secrets ...string) []commands.ImportResult {
		cmd := commands.ImportLocations{Caller: p.Keyed(key)}
		for i, secret := range secrets {
			cmd.Locations = append(cmd.Locations, commands.ImportedLocation{ExternalID: string(rune('a' + i)), Details: withEndpoint(secret)})
		}
		results, _, err := p.Commands.ImportLocations.Handle(t.Context(), cmd)
		require.NoError(t, err)
		return results
	}
	first := load("one", "", "a given secret")
	require.NotEmpty(t, first[0].Secret)
	require.Empty(t, first[1].Secret)
	require.Equal(t, first, load("one", "", "a given secret"), "a repeat shows it again")
	kept := load("two", "", "")
	require.Equal(t, []string{commands.ImportUpdated, commands.ImportUpdated}, []string{kept[0].Status, kept[1].Status})
	require.Empty(t, kept[0].Secret+kept[1].Secret)
	require.Equal(t, "a given secret", secretOf(t, p, location.UserIDCandidate(p.CompanyID, "b", 0)))
	require.Equal(t, first[0].Secret, secretOf(t, p, location.UserIDCandidate(p.CompanyID, "a", 0)))
}

// While secret keys change, what was sealed under the older one opens; when that is taken away, the channel can get another.
func TestASecretAmidARotation(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	register := func(w *commandstest.World) (commands.LocationRegistered, error) {
		return w.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Keyed("k"), ExternalID: "hall", Details: withEndpoint("")})
	}
	made, err := register(under(t, older))
	require.NoError(t, err)
	both := under(t, newer, older)
	again, err := register(both)
	require.NoError(t, err)
	require.Equal(t, made.Secret, again.Secret)
	require.Equal(t, made.Secret, secretOf(t, commandstest.Partner{World: both, CompanyID: p.CompanyID}, made.UserID))
	w := under(t, newer)
	_, err = register(w)
	require.Equal(t, fault.Conflict, fault.CodeOf(err))
	_, err = w.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Channel: &location.Channel{Type: "http", URL: radio}, Secret: "the next one"})
	require.NoError(t, err)
	require.Equal(t, "the next one", secretOf(t, commandstest.Partner{World: w, CompanyID: p.CompanyID}, made.UserID))
}

func TestPrivateEndpointsNeedTheOperator(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	lax := p.Deps
	lax.Endpoints.AllowPrivate = true
	at := func(url string) location.Details {
		return location.Details{Name: "x", Channel: location.Channel{Type: location.ChannelHTTP, URL: url}}
	}
	for _, url := range []string{"http://radio.example/", "https://10.0.0.1/", "https://[::1]:8443/", "https://localhost/"} {
		_, err := p.Commands.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: "hall", Details: at(url)})
		refused(t, err, fault.InvalidFormat)
		results, _, err := p.Commands.ImportLocations.Handle(t.Context(), commands.ImportLocations{Caller: p.Caller(), Locations: []commands.ImportedLocation{{ExternalID: "hall", Details: at(url)}}})
		require.NoError(t, err)
		require.Equal(t, "channel.url", results[0].Err.Param)
	}
	h := commands.New(lax)
	_, err := h.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: "hall", Details: at("http://10.0.0.1/")})
	require.NoError(t, err)
	_, err = p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Name: new("Foyer")})
	require.NoError(t, err, "what it was let be it may stay")
	_, err = p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Channel: &location.Channel{Type: "http", URL: "http://10.0.0.1/"}})
	refused(t, err, fault.InvalidFormat)
	for _, c := range []location.Details{
		{Name: "x", Channel: location.Channel{Type: "http", URL: "https://user:p%40ss@radio.example/in"}},
		{Name: "x", Channel: location.Channel{Type: "http", URL: "https://radio.example/in"}, Secret: "whsec_xyz"},
	} {
		_, err := h.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: "bar", Details: c})
		refused(t, err, fault.InvalidFormat)
	}
}

// A command with a secret has the same fingerprint as one without: it is no part of what is stored of a request.
func TestACommandIsStoredWithoutItsSecret(t *testing.T) {
	t.Parallel()
	raw, err := json.Marshal([]any{commands.RegisterLocation{Details: withEndpoint("the secret")}, commands.ImportLocations{Locations: []commands.ImportedLocation{{Details: withEndpoint("the secret")}}}})
	require.NoError(t, err)
	require.NotContains(t, string(raw), "the secret")
}
