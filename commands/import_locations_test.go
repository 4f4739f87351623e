package commands_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/projections/locations"
)

func TestAnImportTellsWhatBecameOfEachRow(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "same", "other", "removed")
	require.NoError(t, p.Commands.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "removed"}))
	row := func(id, name string) commands.ImportedLocation {
		return commands.ImportedLocation{ExternalID: id, Details: location.Details{Name: name, Timezone: "Asia/Tokyo"}}
	}
	load := commands.ImportLocations{Caller: p.Caller(), Locations: []commands.ImportedLocation{
		row("new", "New"), row("same", "same"), row("other", "Other"), row("removed", "Again"), row("new", "Twice"), row("no good", ""), row("", "Nameless"),
		{ExternalID: "nowhere", Details: location.Details{Name: "Nowhere", Timezone: "Mars/Olympus"}},
	}}
	results, replayed, err := p.Commands.ImportLocations.Handle(t.Context(), load)
	require.NoError(t, err)
	require.False(t, replayed)
	require.Equal(t, []string{"created", "updated", "updated", "created", "failed", "failed", "failed", "failed"}, statuses(results))
	for i, want := range map[int]fault.Code{4: fault.AlreadyExists, 5: fault.InvalidFormat, 6: fault.MissingField, 7: fault.InvalidFormat} {
		require.Equal(t, want, results[i].Err.Code)
		require.NotEmpty(t, results[i].Err.Param)
	}
	require.Len(t, results[5].Err.Fields, 2, "a row tells all that is wrong with it")
	for id, name := range map[string]string{"new": "New", "same": "same", "other": "Other", "removed": "Again"} {
		shown, err := locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id, time.Now())
		require.NoError(t, err)
		require.Equal(t, []string{name, "Asia/Tokyo"}, []string{shown.Name, shown.Timezone})
	}
	again, _, err := p.Commands.ImportLocations.Handle(t.Context(), load)
	require.NoError(t, err)
	require.Equal(t, []string{"updated", "updated", "updated", "updated", "failed", "failed", "failed", "failed"}, statuses(again))

	for n, code := range map[int]fault.Code{0: fault.MissingField, commands.MaxImport + 1: fault.OutOfRange} {
		_, _, err := p.Commands.ImportLocations.Handle(t.Context(), commands.ImportLocations{Caller: p.Caller(), Locations: make([]commands.ImportedLocation, n)})
		require.Equal(t, "locations", refused(t, err, code).Param)
	}
}

// Imports of the same locations at once: each is created once, and what stands in the end is what one of them said.
func TestImportsAtOnceCreateEachLocationOnce(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	ids := names("store", 40)
	created := map[string]int{}
	for _, a := range atOnce(5, func(i int) ([]commands.ImportResult, error) {
		load := commands.ImportLocations{Caller: p.Caller()}
		for _, id := range ids {
			load.Locations = append(load.Locations, commands.ImportedLocation{ExternalID: id, Details: location.Details{Name: fmt.Sprint(i)}})
		}
		results, _, err := p.Commands.ImportLocations.Handle(lasting(t.Context()), load)
		return results, err
	}) {
		require.NoError(t, a.err)
		for _, r := range a.result {
			require.NotEqual(t, commands.ImportFailed, r.Status)
			if r.Status == commands.ImportCreated {
				created[r.ExternalID]++
			}
		}
	}
	require.Len(t, created, len(ids))
	for id, n := range created {
		require.Equal(t, 1, n, id)
		l, err := location.Load(p.History(t, location.Stream(p.CompanyID, location.UserIDCandidate(p.CompanyID, id, 0), event.Live)))
		require.NoError(t, err)
		shown, err := locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id, time.Now())
		require.NoError(t, err)
		require.Equal(t, l.Name, shown.Name)
	}
}
