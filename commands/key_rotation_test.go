package commands_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/projections/tokens"
)

// The secret keys of an installation, in the order that it had them.
var older, newer, newest = strings.Repeat("a1", 32), strings.Repeat("b2", 32), strings.Repeat("c3", 32)

// under is the world as a process has it whose secret keys these are, the one in use first.
func under(t *testing.T, secrets ...string) *commandstest.World {
	t.Helper()
	ring, err := keys.Open("", strings.Join(secrets, ","))
	require.NoError(t, err)
	w := *world
	w.Keys = ring
	w.Commands = commands.New(w.Deps)
	return &w
}

// makesToken are the keyed commands that show a token.
var makesToken = []string{"register company", "issue token", "enrol device"}

// eachUnder runs a test for each keyed command, with a partner of its own that was there under the older secret key.
func eachUnder(t *testing.T, test func(t *testing.T, p commandstest.Partner, audioID string, i int)) {
	t.Helper()
	for i, k := range keyedCommands(commandstest.Partner{}, "") {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			p := under(t, older).Partner(t)
			p.Locations(t, "hall")
			test(t, p, p.Upload(t, p.Caller()), i)
		})
	}
}

func TestAKeyHoldsWhenTheSecretKeyIsRotated(t *testing.T) {
	t.Parallel()
	eachUnder(t, func(t *testing.T, p commandstest.Partner, audioID string, i int) {
		k := keyedCommands(p, audioID)[i]
		first, replayed, err := k.run(t.Context(), p.Commands, p.Keyed("across"), "a")
		require.NoError(t, err)
		require.False(t, replayed)
		for _, ring := range [][]string{{older, newer}, {newer, older}, {newest, newer, older}} {
			w := under(t, ring...)
			again, replayed, err := k.run(t.Context(), w.Commands, p.Keyed("across"), "a")
			require.NoError(t, err)
			require.True(t, replayed)
			require.Equal(t, text(t, first), text(t, again), "the same, tokens included")
			_, _, err = k.run(t.Context(), w.Commands, p.Keyed("across"), "bb")
			refused(t, err, fault.Conflict)
			require.Equal(t, k.types, p.Types(t, k.stream(first)))
		}

		// Without the secret key that it follows from, a token cannot be shown again. Everything else can.
		if k.name == "issue token" {
			rotated, err := under(t, newer, older).Commands.RotateCompanyToken.Handle(t.Context(), commands.RotateCompanyToken{CompanyID: p.CompanyID})
			require.NoError(t, err)
			p.CompanyToken = rotated.CompanyToken
			k = keyedCommands(p, audioID)[i]
		}
		again, replayed, err := k.run(t.Context(), under(t, newer).Commands, p.Keyed("across"), "a")
		require.Equal(t, k.types, p.Types(t, k.stream(first)))
		if slices.Contains(makesToken, k.name) {
			require.Contains(t, refused(t, err, fault.Conflict).Message, "cannot be shown again")
			return
		}
		require.NoError(t, err)
		require.True(t, replayed)
		require.Equal(t, text(t, first), text(t, again))
	})
}

// While processes are started again one by one, some have the new secret key in use and others do not yet.
func TestAKeyRunsARequestOnceWhileTheSecretKeyIsRotated(t *testing.T) {
	t.Parallel()
	for name, rings := range map[string][2][]string{
		"all know both":        {{older, newer}, {newer, older}},
		"some know only older": {{older}, {newer, older}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachUnder(t, func(t *testing.T, p commandstest.Partner, audioID string, i int) {
				k, processes := keyedCommands(p, audioID)[i], [2]*commandstest.World{under(t, rings[0]...), under(t, rings[1]...)}
				for _, key := range []string{"one", "two", "three"} {
					p := p // with a location of its own for each key
					if k.name == "enrol device" {
						p = under(t, older).Partner(t)
						p.Locations(t, "hall")
						k = keyedCommands(p, audioID)[i]
					}
					first := 0
					var results []string
					for n, a := range atOnce(16, func(n int) (answer, error) {
						result, replayed, err := k.run(lasting(t.Context()), processes[n%2].Commands, p.Keyed(key), "a")
						return answer{result, replayed}, err
					}) {
						if len(rings[n%2]) == 1 && slices.Contains(makesToken, k.name) && a.err != nil { // the token follows from a secret key that this one lacks
							refused(t, a.err, fault.Conflict)
							continue
						}
						require.NoError(t, a.err)
						if !a.result.replayed {
							first++
						}
						results = append(results, text(t, a.result.result))
						require.Equal(t, results[0], results[len(results)-1])
						require.Equal(t, k.types, p.Types(t, k.stream(a.result.result)))
					}
					require.Equal(t, 1, first)
				}
			})
		})
	}
}

// Whichever of its secret keys a process has in use, it accepts what the others made.
func TestTokensAreAcceptedUnderEachSecretKeyOfTheRing(t *testing.T) {
	t.Parallel()
	accepting := [][]string{{older, newer}, {newer, older}, {newest, newer, older}}
	for _, making := range [][]string{{older}, {older, newer}, {newer, older}, {newer}} {
		maker := under(t, making...)
		p := maker.Partner(t)
		p.Locations(t, "hall")
		made := issue(t, p)
		device, err := maker.Commands.EnrolDevice.Handle(t.Context(), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall"})
		require.NoError(t, err)
		for _, ring := range accepting {
			w := under(t, ring...)
			id, found, err := w.Reads.TokenByHash(t.Context(), p.CompanyID, w.Keys.Hashes(made.Token))
			require.NoError(t, err)
			require.True(t, found)
			require.Equal(t, made.TokenID, id)
			signedIn, err := tokens.AuthenticateDevice(t.Context(), w.Pool, w.Keys.Hashes(device.Token))
			require.NoError(t, err)
			require.Equal(t, device.DeviceID, signedIn.DeviceID)
			_, err = w.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: p.CompanyToken, ExternalID: "till"})
			require.NoError(t, err)
		}
		lost := under(t, newest)
		_, found, err := lost.Reads.TokenByHash(t.Context(), p.CompanyID, lost.Keys.Hashes(made.Token))
		require.NoError(t, err)
		require.False(t, found)
		_, err = under(t, accepting[0]...).Commands.RevokeToken.Handle(t.Context(), commands.RevokeToken{Caller: p.Caller(), Token: made.Token})
		require.NoError(t, err)
	}
}

func TestAKeyRotatesACompanyTokenOnce(t *testing.T) {
	t.Parallel()
	p, other := under(t, older).Partner(t), under(t, older).Partner(t)
	rotate := func(w *commandstest.World, companyID, key string) (commands.CompanyTokenRotated, error) {
		return w.Commands.RotateCompanyToken.Handle(lasting(t.Context()), commands.RotateCompanyToken{
			Caller: commands.Caller{Actor: "operator", IdempotencyKey: key}, CompanyID: companyID,
		})
	}
	accepted := func(companyToken string) bool {
		_, err := p.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: companyToken, ExternalID: "till"})
		if err != nil {
			refused(t, err, fault.InvalidToken)
		}
		return err == nil
	}
	processes := []*commandstest.World{under(t, older, newer), under(t, newer, older)}
	ran, seen := 0, map[string]bool{}
	for _, a := range atOnce(16, func(i int) (commands.CompanyTokenRotated, error) {
		return rotate(processes[i%2], p.CompanyID, "leaked")
	}) {
		require.NoError(t, a.err)
		seen[a.result.CompanyToken] = true
		if !a.result.Replayed {
			ran++
		}
	}
	require.Equal(t, 1, ran)
	require.Len(t, seen, 1)
	rotations := func() int {
		return count(p.History(t, company.Stream(p.CompanyID)), company.TokenRotated{}.EventType())
	}
	require.Equal(t, 1, rotations())
	require.False(t, accepted(p.CompanyToken))

	next, err := rotate(under(t, older), p.CompanyID, "leaked again")
	require.NoError(t, err)
	require.False(t, next.Replayed)
	require.False(t, seen[next.CompanyToken])
	late, err := rotate(processes[1], p.CompanyID, "leaked")
	require.NoError(t, err)
	require.True(t, late.Replayed)
	require.True(t, seen[late.CompanyToken], "a late repeat is answered as the first was")
	require.Equal(t, 2, rotations())
	require.False(t, accepted(late.CompanyToken), "and brings nothing back to life")
	require.True(t, accepted(next.CompanyToken))
	_, err = rotate(under(t, newer), p.CompanyID, "leaked again")
	require.Contains(t, refused(t, err, fault.Conflict).Message, "cannot be shown again")

	unkeyed, err := rotate(processes[0], p.CompanyID, "")
	require.NoError(t, err)
	again, err := rotate(processes[0], p.CompanyID, "")
	require.NoError(t, err)
	require.False(t, again.Replayed)
	require.NotEqual(t, unkeyed, again)
	others, err := rotate(processes[0], other.CompanyID, "leaked")
	require.NoError(t, err)
	require.False(t, others.Replayed, "a key is that of a company")
	require.False(t, seen[others.CompanyToken])
	_, err = rotate(processes[0], "co_none", "leaked")
	refused(t, err, fault.NotFound)
}

func TestAKeyRotatesADeviceTokenOnce(t *testing.T) {
	t.Parallel()
	p := under(t, older).Partner(t)
	p.Locations(t, "hall")
	enrol := commands.EnrolDevice{Caller: p.Keyed("enrol"), ExternalID: "hall", Name: "Till"}
	device, err := p.Commands.EnrolDevice.Handle(t.Context(), enrol)
	require.NoError(t, err)
	other, err := p.Commands.EnrolDevice.Handle(t.Context(), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall"})
	require.NoError(t, err)
	rotate := func(w *commandstest.World, c commands.Caller, deviceID string) (commands.DeviceTokenRotated, error) {
		return w.Commands.RotateDeviceToken.Handle(lasting(t.Context()), commands.RotateDeviceToken{Caller: c, ExternalID: "hall", DeviceID: deviceID})
	}
	accepted := func(token string) bool {
		found, err := tokens.AuthenticateDevice(t.Context(), p.Pool, under(t, newer, older).Keys.Hashes(token))
		if err != nil {
			refused(t, err, fault.InvalidToken)
			return false
		}
		require.Equal(t, device.DeviceID, found.DeviceID)
		return true
	}
	processes := []*commandstest.World{under(t, older, newer), under(t, newer, older)}
	ran, seen := 0, map[string]bool{}
	for _, a := range atOnce(16, func(i int) (commands.DeviceTokenRotated, error) {
		return rotate(processes[i%2], p.Keyed("leaked"), device.DeviceID)
	}) {
		require.NoError(t, a.err)
		require.True(t, accepted(a.result.Token))
		seen[a.result.Token] = true
		if !a.result.Replayed {
			ran++
		}
		a.result.Token, a.result.Replayed = "", false
		require.Equal(t, commands.DeviceTokenRotated{DeviceID: device.DeviceID, ExternalID: "hall", Name: "Till", CreatedAt: device.CreatedAt}, a.result)
	}
	require.Equal(t, 1, ran)
	require.Len(t, seen, 1)
	stream := location.Stream(p.CompanyID, location.UserIDCandidate(p.CompanyID, "hall", 0), event.Live)
	rotations := func() int { return count(p.History(t, stream), location.DeviceTokenRotated{}.EventType()) }
	require.Equal(t, 1, rotations())
	require.False(t, accepted(device.Token))
	_, err = rotate(p.World, p.Keyed("leaked"), other.DeviceID)
	refused(t, err, fault.Conflict)

	next, err := rotate(under(t, older), p.Keyed("leaked again"), device.DeviceID)
	require.NoError(t, err)
	require.False(t, seen[next.Token])
	late, err := rotate(processes[1], p.Keyed("leaked"), device.DeviceID)
	require.NoError(t, err)
	require.True(t, late.Replayed)
	require.True(t, seen[late.Token], "a late repeat is answered as the first was")
	first, err := p.Commands.EnrolDevice.Handle(t.Context(), enrol)
	require.NoError(t, err)
	require.Equal(t, device.Token, first.Token, "that of the enrolment as well")
	require.Equal(t, 2, rotations())
	require.False(t, accepted(late.Token), "and brings nothing back to life")
	require.False(t, accepted(first.Token))
	require.True(t, accepted(next.Token))
	_, err = rotate(under(t, newer), p.Keyed("leaked again"), device.DeviceID)
	require.Contains(t, refused(t, err, fault.Conflict).Message, "cannot be shown again")

	unkeyed, err := rotate(processes[0], p.Caller(), device.DeviceID)
	require.NoError(t, err)
	again, err := rotate(processes[0], p.Caller(), device.DeviceID)
	require.NoError(t, err)
	require.False(t, again.Replayed)
	require.NotEqual(t, unkeyed.Token, again.Token)

	require.NoError(t, p.Commands.RevokeDevice.Handle(t.Context(), commands.RevokeDevice{Caller: p.Caller(), ExternalID: "hall", DeviceID: device.DeviceID}))
	require.False(t, accepted(again.Token))
	_, err = rotate(processes[0], p.Keyed("leaked again"), device.DeviceID)
	require.Contains(t, refused(t, err, fault.Conflict).Message, "is revoked")
	for _, deviceID := range []string{device.DeviceID, "dvc_none", ""} {
		_, err = rotate(processes[0], p.Caller(), deviceID)
		refused(t, err, fault.NotFound)
	}
}

// What a company's key makes has the same ID under every secret key, and another for each company, environment and operation: a golden one, since an ID that changed
// would make each repeat a new request.
func TestTheIDOfAKeyStaysTheSame(t *testing.T) {
	t.Parallel()
	cmd := commands.SendAudio{Caller: commands.Caller{CompanyID: "co_one", Environment: event.Live, IdempotencyKey: "order-77"}}
	for _, w := range []*commandstest.World{world, under(t, older), under(t, newer)} {
		id, meta, err := w.Commands.SendAudio.Identity(cmd)
		require.NoError(t, err)
		require.Equal(t, "snd_4touOq5qqK74JJCF2aZrdd", id)
		require.Equal(t, "16385b3a2e93937b1dea5b3cbc467357", meta.Idempotency)
	}
	apart := map[string]bool{}
	for _, c := range []commands.Caller{
		{CompanyID: "co_one", Environment: event.Live, IdempotencyKey: "order-77"}, {CompanyID: "co_one", Environment: event.Test, IdempotencyKey: "order-77"},
		{CompanyID: "co_two", Environment: event.Live, IdempotencyKey: "order-77"}, {CompanyID: "co_one", Environment: event.Live, IdempotencyKey: "order-7"},
		{CompanyID: "co_on", Environment: "elive", IdempotencyKey: "order-77"},
	} {
		id, _, err := world.Commands.SendAudio.Identity(commands.SendAudio{Caller: c})
		require.NoError(t, err)
		require.False(t, apart[id])
		apart[id] = true
	}
}
