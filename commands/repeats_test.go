package commands_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/tokens"
)

// A process that dies after it claimed a key and before it changed anything leaves the change to the repeat.
func TestARequestThatDiedAfterItsClaimIsFinishedByItsRepeat(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	h, c := p.Commands, p.Keyed("died")

	register := commands.RegisterLocation{Caller: c, ExternalID: "door", Details: location.Details{Name: "Door"}}
	require.NoError(t, h.RegisterLocation.Begin(t.Context(), register))
	made, err := h.RegisterLocation.Handle(t.Context(), register)
	require.NoError(t, err)
	require.True(t, made.Registered)

	enrol := commands.EnrolDevice{Caller: c, ExternalID: "hall", Name: "One"}
	require.NoError(t, h.EnrolDevice.Begin(t.Context(), enrol))
	device, err := h.EnrolDevice.Handle(t.Context(), enrol)
	require.NoError(t, err)
	again, err := h.EnrolDevice.Handle(t.Context(), enrol)
	require.NoError(t, err)
	require.Equal(t, device.Token, again.Token)

	load := commands.ImportLocations{Caller: c, Locations: []commands.ImportedLocation{
		{ExternalID: "row_1", Details: location.Details{Name: "One"}}, {ExternalID: "row_2", Details: location.Details{Name: "Two"}},
	}}
	require.NoError(t, h.ImportLocations.Begin(t.Context(), load))
	half := load
	half.Locations = load.Locations[:1]
	half.Caller.IdempotencyKey = ""
	_, _, err = h.ImportLocations.Handle(t.Context(), half)
	require.NoError(t, err)
	results, replayed, err := h.ImportLocations.Handle(t.Context(), load)
	require.NoError(t, err)
	require.True(t, replayed)
	require.Equal(t, []commands.ImportResult{{ExternalID: "row_1", Status: commands.ImportUpdated}, {ExternalID: "row_2", Status: commands.ImportCreated}}, results)

	for _, other := range []commands.RegisterLocation{
		{Caller: c, ExternalID: "window", Details: register.Details}, {Caller: c, ExternalID: "door", Details: location.Details{Name: "Other"}},
	} {
		_, err = h.RegisterLocation.Handle(t.Context(), other)
		refused(t, err, fault.Conflict)
	}
}

// What became of a location since does not show in the answer to a repeat, and a repeat does not undo it.
func TestALateRepeatChangesNothing(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	h := p.Commands
	register := commands.RegisterLocation{Caller: p.Keyed("register"), ExternalID: "door", Details: location.Details{Name: "Door"}}
	first, err := h.RegisterLocation.Handle(t.Context(), register)
	require.NoError(t, err)
	enrol := commands.EnrolDevice{Caller: p.Keyed("enrol"), ExternalID: "door"}
	device, err := h.EnrolDevice.Handle(t.Context(), enrol)
	require.NoError(t, err)
	repeat := func() {
		t.Helper()
		before := p.Types(t, location.Stream(p.CompanyID, first.UserID, event.Live))
		again, err := h.RegisterLocation.Handle(t.Context(), register)
		require.NoError(t, err)
		require.True(t, again.Replayed)
		require.Equal(t, text(t, first.Location), text(t, again.Location))
		require.Equal(t, before, p.Types(t, location.Stream(p.CompanyID, first.UserID, event.Live)))
	}
	repeat()
	_, err = h.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "door", Name: new("Gate")})
	require.NoError(t, err)
	repeat()
	require.NoError(t, h.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "door"}))
	repeat()
	p.Locations(t, "door")
	repeat()

	// The device went with the location that it was of: its token must not come back to life.
	_, err = h.EnrolDevice.Handle(t.Context(), enrol)
	refused(t, err, fault.Conflict)
	_, err = tokens.AuthenticateDevice(t.Context(), p.Pool, p.Keys.Hashes(device.Token))
	refused(t, err, fault.InvalidToken)
}

func TestALateRepeatOfAnImportChangesNothing(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "old", "same")
	load := commands.ImportLocations{Caller: p.Keyed("import"), Locations: []commands.ImportedLocation{
		{ExternalID: "new", Details: location.Details{Name: "Imported"}},
		{ExternalID: "old", Details: location.Details{Name: "Imported"}},
		{ExternalID: "gone", Details: location.Details{Name: "Imported"}},
		{ExternalID: "same", Details: location.Details{Name: "same"}},
		{ExternalID: "bad"},
	}}
	first, replayed, err := p.Commands.ImportLocations.Handle(t.Context(), load)
	require.NoError(t, err)
	require.False(t, replayed)
	require.Equal(t, []string{"created", "updated", "created", "updated", "failed"}, statuses(first))
	for _, id := range []string{"new", "old", "same"} {
		_, err = p.Commands.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: id, Name: new("Changed since")})
		require.NoError(t, err)
	}
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "gone"}))

	again, replayed, err := p.Commands.ImportLocations.Handle(t.Context(), load)
	require.NoError(t, err)
	require.True(t, replayed)
	require.Equal(t, text(t, first), text(t, again))
	for _, id := range []string{"new", "old", "same"} {
		found, err := locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id, time.Now())
		require.NoError(t, err)
		require.Equal(t, "Changed since", found.Name)
	}
	_, err = locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, "gone", time.Now())
	refused(t, err, fault.NotFound)
}

func statuses(results []commands.ImportResult) (all []string) {
	for _, r := range results {
		all = append(all, r.Status)
	}
	return all
}

// A first request whose read models lagged leaves its caller without its own write; the repeat waits for it.
func TestARepeatReadsWhatTheFirstRequestWrote(t *testing.T) {
	t.Parallel()
	w := commandstest.New(t, commandstest.Store(t))
	p := w.Partner(t)
	p.Locations(t, "hall")
	all := slices.DeleteFunc(keyedCommands(p, p.Upload(t, p.Caller())), func(k keyed) bool { return k.name == "schedule audio" }) // it has the key of "send audio"
	release := w.Hold(t)

	results := atOnce(len(all), func(i int) (any, error) {
		result, replayed, err := all[i].run(t.Context(), w.Commands, p.Keyed("lag"), "a")
		require.False(t, replayed)
		return result, err
	})
	for i, r := range results {
		require.NoError(t, r.err, all[i].name)
		require.False(t, visible(t, p, r.result), all[i].name)
	}
	again := make(chan attempt[any], len(all))
	for i, k := range all {
		go func() {
			result, replayed, err := k.run(lasting(t.Context()), w.Commands, p.Keyed("lag"), "a")
			if err == nil && !replayed {
				t.Error(k.name, "was not replayed")
			}
			if text(t, result) != text(t, results[i].result) {
				t.Error(k.name, "answers otherwise")
			}
			if err == nil && !visible(t, p, result) {
				t.Error(k.name, "is not read by its caller")
			}
			again <- attempt[any]{result, err}
		}()
	}
	<-time.After(commands.WaitLimit / 10)
	release()
	for range all {
		require.NoError(t, (<-again).err)
	}
}

// visible reports whether the read models show what a keyed command made.
func visible(t *testing.T, p commandstest.Partner, result any) bool {
	t.Helper()
	ctx := lasting(t.Context())
	shown := func(err error) bool {
		if err != nil {
			if code := fault.CodeOf(err); code != fault.NotFound && code != fault.InvalidToken {
				t.Error(err)
			}
			return false
		}
		return true
	}
	var err error
	switch r := result.(type) {
	case commands.CompanyRegistered:
		_, found, err := p.Reads.CompanyByTokenHash(ctx, p.Keys.Hashes(r.CompanyToken))
		return shown(err) && found
	case commands.TokenIssued:
		_, err = tokens.NewAuthenticator(p.Pool, p.Plans, time.Now).Authenticate(ctx, p.Keys.Hashes(r.Token))
	case location.Location:
		_, err = locations.Get(ctx, p.Pool, p.CompanyID, event.Live, r.ExternalID, time.Now())
	case commands.DeviceEnrolled:
		_, err = tokens.AuthenticateDevice(ctx, p.Pool, p.Keys.Hashes(r.Token))
	case []commands.ImportResult:
		if len(r) == 0 {
			return false
		}
		_, err = locations.Get(ctx, p.Pool, p.CompanyID, event.Live, r[1].ExternalID, time.Now())
	case commands.AudioUploaded:
		_, err = audiolibrary.Get(ctx, p.Pool, p.CompanyID, event.Live, r.AudioID)
	case send.Send:
		_, err = sends.Get(ctx, p.Pool, p.CompanyID, event.Live, r.ID)
	default:
		t.Errorf("a %T", result)
	}
	return shown(err)
}
