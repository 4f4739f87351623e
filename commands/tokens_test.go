package commands_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/projections/tokens"
)

func issue(t *testing.T, p commandstest.Partner) commands.TokenIssued {
	t.Helper()
	made, err := p.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: p.CompanyToken, ExternalID: "till"})
	require.NoError(t, err)
	return made
}

func TestATokenIsRevokedOnceAndAcceptedNowhereFromThenOn(t *testing.T) {
	t.Parallel()
	p, stranger := world.Partner(t), world.Partner(t)
	for round := range 20 {
		made := issue(t, p)
		_, err := tokens.NewAuthenticator(p.Pool, p.Plans, time.Now).Authenticate(t.Context(), p.Keys.Hashes(made.Token))
		require.NoError(t, err)
		for _, cmd := range []commands.RevokeToken{
			{Caller: stranger.Caller(), TokenID: made.TokenID}, {Caller: stranger.Caller(), Token: made.Token},
			{Caller: p.Caller(), TokenID: "tok_none"}, {Caller: p.Caller(), Token: made.Token + "x"},
		} {
			_, err := p.Commands.RevokeToken.Handle(t.Context(), cmd)
			refused(t, err, fault.InvalidToken)
		}
		revoked := 0
		for _, a := range atOnce(6, func(i int) (string, error) {
			cmd := commands.RevokeToken{Caller: p.Caller(), TokenID: made.TokenID}
			if (i+round)%2 == 0 {
				cmd.TokenID, cmd.Token = "", made.Token
			}
			id, err := p.Commands.RevokeToken.Handle(lasting(t.Context()), cmd)
			// Whatever the answer is, from it on the token is nobody's.
			_, used := tokens.NewAuthenticator(p.Pool, p.Plans, time.Now).Authenticate(lasting(t.Context()), p.Keys.Hashes(made.Token))
			if fault.CodeOf(used) != fault.InvalidToken {
				t.Errorf("a revoked token is accepted: %v", used)
			}
			return id, err
		}) {
			if a.err != nil {
				refused(t, a.err, fault.InvalidToken)
				continue
			}
			revoked++
			require.Equal(t, made.TokenID, a.result)
		}
		require.Equal(t, 1, revoked)
		require.Equal(t, []string{token.Issued{}.EventType(), token.Revoked{}.EventType()}, p.Types(t, token.Stream(made.TokenID)))
	}
}

// As long as a revocation does not hold everywhere nobody is told that it does: not who asked for it, nor who asks again.
func TestARevocationThatDoesNotHoldYetIsNotAnswered(t *testing.T) {
	t.Parallel()
	w := commandstest.Still(t, commandstest.Store(t))
	stop := w.Project(t)
	p, suspended := w.Partner(t), w.Partner(t)
	p.Locations(t, "hall", "gone")
	made := issue(t, p)
	device, err := w.Commands.EnrolDevice.Handle(t.Context(), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall"})
	require.NoError(t, err)
	turned, err := w.Commands.EnrolDevice.Handle(t.Context(), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall"})
	require.NoError(t, err)
	stop()
	operator := commands.Caller{Actor: "operator"}
	revocations := []struct {
		revoke func() error
		again  fault.Code
	}{
		{func() error {
			_, err := w.Commands.RevokeToken.Handle(lasting(t.Context()), commands.RevokeToken{Caller: p.Caller(), TokenID: made.TokenID})
			return err
		}, fault.InvalidToken},
		{func() error {
			return w.Commands.RevokeDevice.Handle(lasting(t.Context()), commands.RevokeDevice{Caller: p.Caller(), ExternalID: "hall", DeviceID: device.DeviceID})
		}, fault.NotFound},
		{func() error {
			_, err := w.Commands.RotateDeviceToken.Handle(lasting(t.Context()), commands.RotateDeviceToken{Caller: p.Keyed("turn"), ExternalID: "hall", DeviceID: turned.DeviceID})
			return err
		}, ""},
		{func() error {
			return w.Commands.RemoveLocation.Handle(lasting(t.Context()), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "gone"})
		}, fault.NotFound},
		{func() error {
			return w.Commands.SuspendCompany.Handle(lasting(t.Context()), commands.SuspendCompany{Caller: operator, CompanyID: suspended.CompanyID})
		}, ""},
		{func() error {
			return w.Commands.ChangePlan.Handle(lasting(t.Context()), commands.ChangePlan{Caller: operator, CompanyID: p.CompanyID, Plan: "plus"})
		}, ""},
	}
	revoke := func() []attempt[struct{}] {
		return atOnce(len(revocations), func(i int) (struct{}, error) { return struct{}{}, revocations[i].revoke() })
	}
	for range 2 {
		for _, a := range revoke() {
			require.NotZero(t, refused(t, a.err, fault.ServiceUnavailable).RetryAfter)
		}
	}
	w.Project(t)
	require.Eventually(t, func() bool {
		held := 0
		for i, a := range revoke() {
			if a.err == nil && revocations[i].again == "" || a.err != nil && fault.CodeOf(a.err) == revocations[i].again {
				held++
			}
		}
		return held == len(revocations)
	}, commandstest.Patience, time.Millisecond)
	for _, err := range []error{
		second(tokens.NewAuthenticator(w.Pool, w.Plans, time.Now).Authenticate(t.Context(), w.Keys.Hashes(made.Token))),
		second(tokens.AuthenticateDevice(t.Context(), w.Pool, w.Keys.Hashes(device.Token))),
		second(tokens.AuthenticateDevice(t.Context(), w.Pool, w.Keys.Hashes(turned.Token))),
		second(w.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: suspended.CompanyToken, ExternalID: "till"})),
	} {
		refused(t, err, fault.InvalidToken)
	}
}

func second[T any](_ T, err error) error { return err }

func TestTokensAreWhatWasAskedFor(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	ask := func(cmd commands.IssueToken) (commands.TokenIssued, error) {
		cmd.CompanyToken, cmd.ExternalID = p.CompanyToken, "till"
		return p.Commands.IssueToken.Handle(t.Context(), cmd)
	}
	for name, prefix := range map[string]string{"": "msk_live_", "prod": "msk_live_", "test": "msk_test_", "dev": "msk_test_"} {
		made, err := ask(commands.IssueToken{Environment: name})
		require.NoError(t, err)
		require.Regexp(t, "^"+prefix+"[0-9A-Za-z]{43}$", made.Token)
		require.Equal(t, token.Permissions, made.Permissions)
		require.Nil(t, made.ExpiresAt)
		env, _ := event.ParseEnvironment(prefix[4:8])
		require.Equal(t, env, made.Environment)
		for _, e := range p.History(t, token.Stream(made.TokenID)) {
			require.NotContains(t, string(e.Data)+text(t, e.Metadata), made.Token[len(prefix):], "the secret is stored nowhere")
		}
	}
	made, err := ask(commands.IssueToken{Permissions: []string{"audio.send", "audio.read", "audio.send"}, ExpiresIn: new(time.Hour), Name: "till"})
	require.NoError(t, err)
	require.Equal(t, []string{"audio.read", "audio.send"}, made.Permissions)
	require.WithinDuration(t, time.Now().Add(time.Hour), *made.ExpiresAt, commandstest.Patience)

	_, err = ask(commands.IssueToken{Environment: "staging", Permissions: []string{"root"}, ExpiresIn: new(time.Nanosecond)})
	require.Len(t, refused(t, err, fault.InvalidFormat).Fields, 3, "all that is wrong is told at once")
	_, err = p.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: "comp_wrong", Environment: "staging"})
	refused(t, err, fault.InvalidToken) // and nothing of the rest
}
