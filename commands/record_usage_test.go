package commands_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/usage"
)

// A day's usage has a limit of age from before its first event on, whichever process records it and whichever died amid that; it is set once.
func TestUsageIsReadForALimitedTime(t *testing.T) {
	t.Parallel()
	p := world.Partner(t)
	record := func(h *commands.Handlers, c commands.Caller, at time.Time) (stream string) {
		t.Helper()
		served := commands.ServedRequest{ID: uuid.New(), Caller: c, Served: usage.ApiRequestServed{RequestID: uuid.NewString(), Timestamp: at}}
		require.NoError(t, h.RecordUsage.Handle(t.Context(), commands.RecordUsage{Requests: []commands.ServedRequest{served}}))
		return usage.Stream(c.CompanyID, c.Environment, at)
	}
	today := time.Now().UTC()
	died := usage.Stream(p.CompanyID, p.Caller().Environment, today.AddDate(0, 0, 1))
	require.NoError(t, p.Store.LimitAge(t.Context(), died, commands.UsageAge))
	for i := range 3 {
		processes := []*commands.Handlers{p.At(time.Now), p.At(time.Now)}
		for _, stream := range []string{
			record(processes[0], p.Caller(), today), record(processes[1], p.Caller(), today), record(processes[0], p.Caller(), today),
			record(processes[0], p.Sandbox(), today), record(processes[1], p.Caller(), today.AddDate(0, 0, 1)),
		} {
			metadata, history := p.History(t, "$$"+stream), p.History(t, stream)
			require.Len(t, metadata, 1)
			require.JSONEq(t, fmt.Sprintf(`{"$maxAge": %d}`, 92*24*3600), string(metadata[0].Data))
			require.Zero(t, metadata[0].Revision)
			require.GreaterOrEqual(t, len(history), i+1)
			require.True(t, metadata[0].Position.Before(history[0].Position))
		}
	}
}

func TestTheStreamsThatAreRememberedHaveABound(t *testing.T) {
	t.Parallel()
	remembered := commands.LimitedStreams{}
	for i := range 2*commands.MaxLimitedStreams + 7 {
		stream := fmt.Sprint("usage-", i)
		require.False(t, remembered.Has(stream))
		remembered.Add(stream)
		require.True(t, remembered.Has(stream))
		require.LessOrEqual(t, remembered.Len(), commands.MaxLimitedStreams)
	}
}
