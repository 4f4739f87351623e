package commands_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
)

// However many ask at the same moment, the month gives what the plan has and no more; who is refused gets what others give back.
func TestQuotasHoldAmidManyAtOnce(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	p.Locations(t, "a")
	c := p.Caller()
	file := commandstest.Sound(200 * time.Millisecond)
	id := p.Upload(t, c)
	unsent, err := p.Commands.UploadAudio.Handle(t.Context(), commandstest.Uploading(c, file))
	require.NoError(t, err)
	there, err := p.Reads.Quota(t.Context(), p.CompanyID, event.Live, time.Now())
	require.NoError(t, err)
	c.Plan.MonthlySends, c.Plan.MonthlyUploads, c.Plan.StorageBytes = 5, 100, there.StorageBytes+3*int64(len(file))
	granted := func(outcomes []error) (n int) {
		t.Helper()
		for _, err := range outcomes {
			if err == nil {
				n++
				continue
			}
			refused(t, err, fault.QuotaExceeded)
		}
		return n
	}
	failures := func(call func() error) []error {
		var all []error
		for _, a := range atOnce(40, func(int) (struct{}, error) { return struct{}{}, call() }) {
			all = append(all, a.err)
		}
		return all
	}
	require.Equal(t, 5, granted(failures(func() error {
		_, err := p.Commands.SendAudio.Handle(lasting(t.Context()), commands.SendAudio{Caller: c, AudioID: id, Request: send.Request{Targets: send.Targets{All: true}}})
		return err
	})))
	upload := func() error {
		_, err := p.Commands.UploadAudio.Handle(lasting(t.Context()), commandstest.Uploading(c, file))
		return err
	}
	require.Equal(t, 3, granted(failures(upload)))
	used, err := p.Reads.Quota(t.Context(), p.CompanyID, event.Live, time.Now())
	require.NoError(t, err)
	require.Equal(t, commands.Used{Sends: 5, Uploads: 5, StorageBytes: c.Plan.StorageBytes}, used)
	require.NoError(t, p.Commands.DeleteAudio.Handle(t.Context(), commands.DeleteAudio{Caller: c, AudioID: unsent.AudioID}))
	require.Equal(t, 1, granted(failures(upload)))
	var held int
	require.NoError(t, p.Pool.QueryRow(t.Context(), "SELECT count(*) FROM quota.reservation WHERE company_id = $1", p.CompanyID).Scan(&held))
	require.Zero(t, held)
}

// Room that a process held when it died is free again after a while, and so is at once what a request held that made nothing.
func TestRoomIsNotHeldForEver(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	now := time.Now()
	reserve := func(id string, at time.Time) bool {
		t.Helper()
		_, reserved, err := p.Reads.Reserve(t.Context(), commands.Reservation{
			ID: id, CompanyID: p.CompanyID, Environment: event.Live, More: commands.Used{Sends: 1}, Limits: commands.Used{Sends: 1}, At: at,
		})
		require.NoError(t, err)
		return reserved
	}
	require.True(t, reserve("snd_one", now))
	require.True(t, reserve("snd_one", now), "the same request once more")
	require.False(t, reserve("snd_two", now.Add(time.Minute)))
	require.NoError(t, p.Reads.Release(t.Context(), "snd_one", true))
	require.False(t, reserve("snd_two", now.Add(time.Minute)), "it was made, and is not counted yet")
	require.NoError(t, p.Reads.Release(t.Context(), "snd_one", false))
	require.True(t, reserve("snd_two", now.Add(time.Minute)))
	require.True(t, reserve("snd_three", now.Add(7*time.Minute)))
}
