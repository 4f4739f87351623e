package commands_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/tokens"
)

// What a command answers, its caller reads at once.
func TestACallerReadsItsOwnWrites(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	h, operator := p.Commands, commands.Caller{Actor: "operator"}
	place := func() (locations.Location, error) {
		return locations.Get(t.Context(), p.Pool, p.CompanyID, event.Live, "hall", time.Now())
	}
	companyToken := p.CompanyToken
	for round := range 10 {
		made, err := h.RegisterLocation.Handle(t.Context(), commands.RegisterLocation{Caller: p.Caller(), ExternalID: "hall", Details: location.Details{Name: "Hall"}})
		require.NoError(t, err)
		shown, err := place()
		require.NoError(t, err)
		require.Equal(t, made.UserID, shown.UserID)
		_, err = h.ChangeLocation.Handle(t.Context(), commands.ChangeLocation{Caller: p.Caller(), ExternalID: "hall", Tags: &[]string{"a"}})
		require.NoError(t, err)
		shown, err = place()
		require.NoError(t, err)
		require.Equal(t, []string{"a"}, shown.Tags)

		device, err := h.EnrolDevice.Handle(t.Context(), commands.EnrolDevice{Caller: p.Caller(), ExternalID: "hall"})
		require.NoError(t, err)
		signedIn := func() error {
			return second(tokens.AuthenticateDevice(t.Context(), p.Pool, p.Keys.Hashes(device.Token)))
		}
		require.NoError(t, signedIn())
		if round%2 == 0 {
			require.NoError(t, h.RevokeDevice.Handle(t.Context(), commands.RevokeDevice{Caller: p.Caller(), ExternalID: "hall", DeviceID: device.DeviceID}))
			refused(t, signedIn(), fault.InvalidToken)
		}

		id := p.Upload(t, p.Caller())
		_, err = audiolibrary.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id)
		require.NoError(t, err)
		sent := p.Send(t, id, "hall")
		status := func() string {
			shown, err := sends.Get(t.Context(), p.Pool, p.CompanyID, event.Live, sent.ID)
			require.NoError(t, err)
			return shown.Status
		}
		require.Equal(t, "queued", status())
		used, err := p.Reads.Quota(t.Context(), p.CompanyID, event.Live, time.Now())
		require.NoError(t, err)
		require.EqualValues(t, round+1, used.Sends)
		require.EqualValues(t, round+1, used.Uploads)
		if round%2 == 0 {
			require.NoError(t, h.CancelSend.Handle(t.Context(), commands.CancelSend{Caller: p.Caller(), SendID: sent.ID}))
			require.Equal(t, "cancelled", status())
		} else {
			_, err := played{p, sent.Sent[0]}.report(t, "played")
			require.NoError(t, err)
			require.Equal(t, "sent", status())
			ended, err := p.Reads.SendEnded(t.Context(), sent.ID)
			require.NoError(t, err)
			require.True(t, ended)
		}
		require.NoError(t, h.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: p.Caller(), AudioID: id}))
		refused(t, second(audiolibrary.Get(t.Context(), p.Pool, p.CompanyID, event.Live, id)), fault.NotFound)

		issued, err := h.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: companyToken, ExternalID: "till"})
		require.NoError(t, err)
		plan := []string{"plus", "standard"}[round%2]
		require.NoError(t, h.ChangePlan.Handle(t.Context(), commands.ChangePlan{Caller: operator, CompanyID: p.CompanyID, Plan: plan}))
		caller, err := tokens.NewAuthenticator(p.Pool, p.Plans, time.Now).Authenticate(t.Context(), p.Keys.Hashes(issued.Token))
		require.NoError(t, err)
		require.Equal(t, plan, caller.Plan)
		old := companyToken
		rotated, err := h.RotateCompanyToken.Handle(t.Context(), commands.RotateCompanyToken{Caller: operator, CompanyID: p.CompanyID})
		require.NoError(t, err)
		companyToken = rotated.CompanyToken
		for secret, known := range map[string]bool{old: false, companyToken: true} {
			_, found, err := p.Reads.CompanyByTokenHash(t.Context(), p.Keys.Hashes(secret))
			require.NoError(t, err)
			require.Equal(t, known, found)
		}

		require.NoError(t, h.RemoveLocation.Handle(t.Context(), commands.RemoveLocation{Caller: p.Caller(), ExternalID: "hall"}))
		refused(t, second(place()), fault.NotFound)
		refused(t, signedIn(), fault.InvalidToken)
		_, unknown, err := p.Reads.Destinations(t.Context(), p.CompanyID, event.Live, send.Targets{ExternalIDs: []string{"hall"}})
		require.NoError(t, err)
		require.Equal(t, []string{"hall"}, unknown)
	}
	require.NoError(t, h.SuspendCompany.Handle(t.Context(), commands.SuspendCompany{Caller: operator, CompanyID: p.CompanyID}))
	_, err := h.IssueToken.Handle(t.Context(), commands.IssueToken{CompanyToken: companyToken, ExternalID: "till"})
	refused(t, err, fault.InvalidToken)
}

// Usage goes to the stream of its company's day, in the order that it is told.
func TestUsageIsRecordedByCompanyAndDay(t *testing.T) {
	t.Parallel()
	p, other := world.Partner(t), world.Partner(t)
	today := time.Now().UTC().Truncate(24 * time.Hour)
	var requests []commands.ServedRequest
	for i := range 12 {
		at := today.Add(time.Duration(i%3) * 24 * time.Hour)
		c := []commands.Caller{p.Caller(), p.Sandbox(), other.Caller()}[i/4]
		requests = append(requests, commands.ServedRequest{ID: uuid.New(), Caller: c, Served: usage.ApiRequestServed{RequestID: string(rune('a' + i)), Timestamp: at}})
	}
	for range 2 { // a repeat, by who does not know what became of the first, records nothing twice
		require.NoError(t, p.Commands.RecordUsage.Handle(t.Context(), commands.RecordUsage{Requests: requests}))
	}
	recorded := map[uuid.UUID]int{}
	for _, r := range requests {
		stream := usage.Stream(r.Caller.CompanyID, r.Caller.Environment, r.Served.Timestamp)
		history := p.History(t, stream)
		require.NotEmpty(t, history)
		for _, e := range history {
			require.Equal(t, r.Caller.CompanyID, e.Metadata.CompanyID)
			require.Equal(t, r.Caller.Environment, e.Metadata.Environment)
			require.True(t, e.Metadata.Time.Equal(r.Served.Timestamp))
			if e.ID == r.ID {
				recorded[r.ID]++
			}
		}
	}
	for _, r := range requests {
		require.Equal(t, 1, recorded[r.ID])
	}
	require.NoError(t, p.Commands.RecordUsage.Handle(t.Context(), commands.RecordUsage{}))
}
