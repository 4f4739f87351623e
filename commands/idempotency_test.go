package commands_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/token"
)

// keyed is a command that takes an Idempotency-Key.
type keyed struct {
	name string
	// run carries it out; wish is what requests with another body differ in.
	run func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (result any, replayed bool, err error)
	// stream and types are what it leaves in the event store.
	stream func(result any) string
	types  []string
}

// keyedCommands are all of them, for a partner with the live location "hall" and a piece of audio. Times that a request names are the same in each.
func keyedCommands(p commandstest.Partner, audioID string) []keyed {
	later := time.Now().Add(time.Hour)
	return []keyed{
		{
			name: "register company",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				c.CompanyID, c.Environment = "", ""
				c.IdempotencyKey += p.CompanyID // operators have one company together: nobody else is to have this key
				r, err := h.RegisterCompany.Handle(ctx, commands.RegisterCompany{Caller: c, Name: "Second " + wish, Prefix: "second"})
				replayed := r.Replayed
				r.Replayed = false
				return r, replayed, err
			},
			stream: func(r any) string { return company.Stream(r.(commands.CompanyRegistered).CompanyID) },
			types:  []string{company.Registered{}.EventType()},
		},
		{
			name: "issue token",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				lifetime := time.Hour
				r, err := h.IssueToken.Handle(ctx, commands.IssueToken{
					Caller: c, CompanyToken: p.CompanyToken, Environment: string(c.Environment), ExternalID: "till_" + wish, ExpiresIn: &lifetime,
				})
				replayed := r.Replayed
				r.Replayed = false
				return r, replayed, err
			},
			stream: func(r any) string { return token.Stream(r.(commands.TokenIssued).TokenID) },
			types:  []string{token.Issued{}.EventType()},
		},
		{
			name: "register location",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				r, err := h.RegisterLocation.Handle(ctx, commands.RegisterLocation{
					Caller: c, ExternalID: "door_" + c.IdempotencyKey, Details: location.Details{Name: wish, Tags: []string{"north", "a b"}},
				})
				return r.Location, r.Replayed, err
			},
			stream: func(r any) string {
				return location.Stream(p.CompanyID, r.(location.Location).UserID, event.Live)
			},
			types: []string{location.Registered{}.EventType()},
		},
		{
			name: "enrol device",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				r, err := h.EnrolDevice.Handle(ctx, commands.EnrolDevice{Caller: c, ExternalID: "hall", Name: wish})
				replayed := r.Replayed
				r.Replayed = false
				return r, replayed, err
			},
			stream: func(any) string {
				return location.Stream(p.CompanyID, location.UserIDCandidate(p.CompanyID, "hall", 0), event.Live)
			},
			types: []string{location.Registered{}.EventType(), location.DeviceEnrolled{}.EventType()},
		},
		{
			name: "import locations",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				return h.ImportLocations.Handle(ctx, commands.ImportLocations{Caller: c, Locations: []commands.ImportedLocation{
					{ExternalID: "row_1" + c.IdempotencyKey, Details: location.Details{Name: wish}},
					{ExternalID: "row_2" + c.IdempotencyKey, Details: location.Details{Name: wish}},
					{ExternalID: "row_1" + c.IdempotencyKey, Details: location.Details{Name: wish}},
					{ExternalID: "no name"},
				}})
			},
			stream: func(r any) string {
				first := r.([]commands.ImportResult)[0].ExternalID
				return location.Stream(p.CompanyID, location.UserIDCandidate(p.CompanyID, first, 0), event.Live)
			},
			types: []string{location.Registered{}.EventType()},
		},
		{
			name: "upload audio",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				cmd := commandstest.Uploading(c, commandstest.Sound(200*time.Millisecond))
				cmd.Details.Name = wish
				r, err := h.UploadAudio.Handle(ctx, cmd)
				replayed := r.Replayed
				r.Replayed = false
				return r, replayed, err
			},
			stream: func(r any) string { return audio.Stream(r.(commands.AudioUploaded).AudioID) },
			types:  []string{audio.Uploaded{}.EventType()},
		},
		{
			name: "send audio",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				r, err := h.SendAudio.Handle(ctx, commands.SendAudio{Caller: c, AudioID: audioID, Request: send.Request{
					Targets: send.Targets{ExternalIDs: []string{"hall"}}, ExpiresIn: new(int64(len(wish) + 1)),
				}})
				return r.Send, r.Replayed, err
			},
			stream: func(r any) string { return send.Stream(r.(send.Send).ID) },
			types:  []string{send.AudioSent{}.EventType()},
		},
		{
			name: "schedule audio",
			run: func(ctx context.Context, h *commands.Handlers, c commands.Caller, wish string) (any, bool, error) {
				r, err := h.SendAudio.Handle(ctx, commands.SendAudio{Caller: c, AudioID: audioID, Request: send.Request{
					Targets: send.Targets{All: true}, ScheduleAt: new(later.Add(time.Duration(len(wish)) * time.Second)),
				}})
				return r.Send, r.Replayed, err
			},
			stream: func(r any) string { return send.Stream(r.(send.Send).ID) },
			types:  []string{send.Scheduled{}.EventType()},
		},
	}
}

// each runs a test for each keyed command, with a partner of its own.
func each(t *testing.T, test func(t *testing.T, p commandstest.Partner, k keyed)) {
	t.Helper()
	for i := range keyedCommands(commandstest.Partner{}, "") {
		t.Run(keyedCommands(commandstest.Partner{}, "")[i].name, func(t *testing.T) {
			t.Parallel()
			p := world.Partner(t)
			p.Locations(t, "hall")
			test(t, p, keyedCommands(p, p.Upload(t, p.Caller()))[i])
		})
	}
}

type answer struct {
	result   any
	replayed bool
}

func TestAKeyRunsARequestOnceHoweverManyArriveAtOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p commandstest.Partner, k keyed) {
		first := 0
		var results []string
		for _, a := range atOnce(50, func(int) (answer, error) {
			result, replayed, err := k.run(lasting(t.Context()), p.Commands, p.Keyed("once"), "a")
			return answer{result, replayed}, err
		}) {
			require.NoError(t, a.err)
			if !a.result.replayed {
				first++
			}
			results = append(results, text(t, a.result.result))
			require.Equal(t, results[0], results[len(results)-1], "each caller gets the same answer, secrets and times included")
			require.Equal(t, k.types, p.Types(t, k.stream(a.result.result)))
		}
		require.Equal(t, 1, first, "one ran it, and the others are told that they did not")

		result, replayed, err := k.run(t.Context(), p.Commands, p.Keyed("once"), "a")
		require.NoError(t, err)
		require.True(t, replayed)
		require.Equal(t, results[0], text(t, result))

		_, _, err = k.run(t.Context(), p.Commands, p.Keyed("once"), "bb")
		refused(t, err, fault.Conflict)
		require.Equal(t, k.types, p.Types(t, k.stream(result)))
	})
}

func TestOneOfTwoBodiesWithAKeyWins(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p commandstest.Partner, k keyed) {
		won := map[int]string{}
		for i, a := range atOnce(20, func(i int) (answer, error) {
			result, replayed, err := k.run(lasting(t.Context()), p.Commands, p.Keyed("one"), []string{"a", "bb"}[i%2])
			return answer{result, replayed}, err
		}) {
			if a.err != nil {
				refused(t, a.err, fault.Conflict)
				continue
			}
			won[i%2] = text(t, a.result.result)
		}
		require.Len(t, won, 1, "only one of the bodies was carried out")
	})
}

func TestAKeyIsThatOfACompanyAnEnvironmentAndAnOperation(t *testing.T) {
	t.Parallel()
	one, two := world.Partner(t), world.Partner(t)
	seen := map[string]string{}
	for _, p := range []commandstest.Partner{one, two} {
		for _, env := range []event.Environment{event.Live, event.Test} {
			c := p.Keyed("same")
			c.Environment = env
			p.Register(t, commands.Caller{CompanyID: p.CompanyID, Environment: env}, "hall")
			audioID := p.Upload(t, commands.Caller{CompanyID: p.CompanyID, Environment: env, Plan: c.Plan})
			for _, k := range keyedCommands(p, audioID) {
				if k.name == "schedule audio" || k.name == "register company" && env == event.Test {
					continue // the same operation as one that is there
				}
				result, replayed, err := k.run(t.Context(), p.Commands, c, "a")
				require.NoError(t, err, k.name)
				require.False(t, replayed, k.name)
				who := fmt.Sprint(k.name, p.CompanyID, env)
				if k.name != "import locations" && k.name != "register location" { // their answers are what was asked for
					require.Empty(t, seen[text(t, result)], who)
					seen[text(t, result)] = who
				}
			}
		}
	}
}

func TestRequestsWithoutAKeyAreEachCarriedOut(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	for _, k := range keyedCommands(p, p.Upload(t, p.Caller())) {
		if k.name == "register location" || k.name == "import locations" || k.name == "register company" {
			continue // what they make has the caller's name, or a key of its own here
		}
		a, _, err := k.run(t.Context(), p.Commands, p.Caller(), "a")
		require.NoError(t, err)
		b, replayed, err := k.run(t.Context(), p.Commands, p.Caller(), "a")
		require.NoError(t, err)
		require.False(t, replayed)
		require.NotEqual(t, text(t, a), text(t, b), k.name)
	}
}
