package commands_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/projections/locations"
)

// Of many changes of one thing at once each takes effect, or its caller is told that it did not.
func TestChangesAtOnceAllTakeEffectOrSayConflict(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "hall")
	stream := location.Stream(p.CompanyID, location.UserIDCandidate(p.CompanyID, "hall", 0), event.Live)

	made := map[string]bool{}
	for _, a := range atOnce(location.MaxDevices, func(i int) (commands.DeviceEnrolled, error) {
		return p.Commands.EnrolDevice.Handle(lasting(t.Context()), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall", Name: fmt.Sprint(i)})
	}) {
		if a.err != nil {
			require.NotZero(t, refused(t, a.err, fault.Conflict).RetryAfter)
			continue
		}
		made[a.result.DeviceID] = true
	}
	require.GreaterOrEqual(t, len(made), commands.MaxDecisions, "one wins each round, so whoever says conflict lost as many")
	l, err := location.Load(p.History(t, stream))
	require.NoError(t, err)
	require.Len(t, l.Devices, len(made))
	for _, d := range l.Devices {
		require.True(t, made[d.ID])
	}

	changed := 0
	for _, a := range atOnce(40, func(i int) (commands.LocationChanged, error) {
		return p.Commands.ChangeLocation.Handle(lasting(t.Context()), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Name: new(fmt.Sprint("Hall ", i))})
	}) {
		if a.err != nil {
			refused(t, a.err, fault.Conflict)
			continue
		}
		changed++
	}
	history := p.History(t, stream)
	require.Equal(t, changed, count(history, location.Changed{}.EventType()))
	l, err = location.Load(history)
	require.NoError(t, err)
	shown, err := locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, "hall", time.Now())
	require.NoError(t, err)
	require.Equal(t, l.Name, shown.Name)
}

func TestOfCompanyTokensRotatedAtOnceTheLastHolds(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	operator := commands.Caller{Actor: "operator"}
	rotated := []string{p.CompanyToken}
	for _, a := range atOnce(20, func(int) (commands.CompanyTokenRotated, error) {
		return p.Commands.RotateCompanyToken.Handle(lasting(t.Context()), commands.RotateCompanyToken{Caller: operator, CompanyID: p.CompanyID})
	}) {
		if a.err != nil {
			refused(t, a.err, fault.Conflict)
			continue
		}
		rotated = append(rotated, a.result.CompanyToken)
	}
	history := p.History(t, company.Stream(p.CompanyID))
	require.Len(t, history, len(rotated))
	c, err := company.Load(history)
	require.NoError(t, err)
	accepted := 0
	for _, secret := range rotated {
		_, err := p.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: secret, ExternalID: "till"})
		if p.Keys.HashToken(secret) == c.TokenHash {
			require.NoError(t, err)
			accepted++
			continue
		}
		require.Equal(t, "companyToken", refused(t, err, fault.InvalidToken).Param)
	}
	require.Equal(t, 1, accepted)
}

func TestOneOfManyRegistersALocation(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	won := 0
	for _, a := range atOnce(30, func(i int) (commands.LocationRegistered, error) {
		c := p.Caller()
		if i%2 == 0 {
			c = p.Keyed(fmt.Sprint("key ", i))
		}
		return p.Commands.RegisterLocation.Handle(lasting(t.Context()), commands.RegisterLocation{Caller: c, ExternalID: "store", Details: location.Details{Name: fmt.Sprint(i)}})
	}) {
		if a.err != nil {
			require.Equal(t, "externalId", refused(t, a.err, fault.AlreadyExists).Param)
			continue
		}
		won++
		shown, err := locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, "store", time.Now())
		require.NoError(t, err)
		require.Equal(t, a.result.Name, shown.Name)
	}
	require.Equal(t, 1, won)
}

// Whoever asks first, and whatever comes and goes, an external ID has one user ID of a company, and a user ID one external ID.
func TestExternalIDsAndUserIDsAreOneToOne(t *testing.T) {
	t.Parallel()
	one, two := world.Partner(t), world.Partner(t)
	ids := names("store", 8)
	var mu sync.Mutex
	users := map[string]map[int64]bool{}   // by company and external ID
	owners := map[string]map[string]bool{} // by company and user ID
	note := func(p commandstest.Partner, externalID string, userID int64) {
		mu.Lock()
		defer mu.Unlock()
		asked, given := p.CompanyID+externalID, fmt.Sprint(p.CompanyID, userID)
		if users[asked] == nil {
			users[asked] = map[int64]bool{}
		}
		if owners[given] == nil {
			owners[given] = map[string]bool{}
		}
		users[asked][userID], owners[given][externalID] = true, true
	}
	for _, a := range atOnce(96, func(i int) (struct{}, error) {
		ctx, p, id := lasting(t.Context()), []commandstest.Partner{one, two}[i%2], ids[i/2%len(ids)]
		c := p.Caller()
		if i/16%2 == 0 {
			c = p.Sandbox()
		}
		if i%3 == 0 {
			made, err := p.Commands.IssueToken.Handle(ctx, commands.IssueToken{CompanyToken: p.CompanyToken, Environment: string(c.Environment), ExternalID: id})
			if err != nil {
				return struct{}{}, err
			}
			note(p, id, made.UserID)
			return struct{}{}, nil
		}
		for range 3 { // made, removed, made again, against all others that do so
			made, err := p.Commands.RegisterLocation.Handle(ctx, commands.RegisterLocation{Caller: c, ExternalID: id, Details: location.Details{Name: id}})
			switch {
			case err == nil:
				note(p, id, made.UserID)
			case fault.CodeOf(err) != fault.AlreadyExists && fault.CodeOf(err) != fault.Conflict:
				return struct{}{}, err
			}
			err = p.Commands.RemoveLocation.Handle(ctx, commands.RemoveLocation{Caller: c, ExternalID: id})
			if code := fault.CodeOf(err); err != nil && code != fault.NotFound && code != fault.Conflict {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	}) {
		require.NoError(t, a.err)
	}
	require.Len(t, users, 2*len(ids))
	for key, all := range users {
		require.Len(t, all, 1, key)
	}
	require.Len(t, owners, 2*len(ids))
	for key, all := range owners {
		require.Len(t, all, 1, key)
	}
	for _, id := range ids {
		stream := location.MappingStream(one.CompanyID, location.UserIDCandidate(one.CompanyID, id, 0))
		require.Equal(t, []string{location.Mapped{}.EventType()}, one.Types(t, stream), "it is mapped once")
		again, err := one.Commands.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: one.CompanyToken, ExternalID: id})
		require.NoError(t, err)
		require.True(t, users[one.CompanyID+id][again.UserID])
	}
}
