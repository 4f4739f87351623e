package projections

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/tokens"
)

// Whose guesses are too many, is refused for the rest of the minute; nobody else is.
func TestGuessesOfCompaniesAndAddressesAreCountedApart(t *testing.T) {
	t.Parallel()
	pool, ctx := database(t), t.Context()
	for range 20 {
		require.NoError(t, tokens.CheckRevocations(ctx, pool, "co_one", event.Live, epoch))
		require.NoError(t, tokens.CountWrongRevocation(ctx, pool, "co_one", event.Live, epoch))
	}
	for _, err := range []error{
		tokens.CheckRevocations(ctx, pool, "co_one", event.Live, epoch.Add(50*time.Second)), tokens.CountWrongRevocation(ctx, pool, "co_one", event.Live, epoch.Add(50*time.Second)),
	} {
		require.Equal(t, fault.RateLimitExceeded, fault.CodeOf(err))
		require.Equal(t, 10*time.Second, err.(*fault.Error).RetryAfter) //nolint:errorlint // made there
	}
	for _, err := range []error{
		tokens.CheckRevocations(ctx, pool, "co_one", event.Test, epoch), tokens.CheckRevocations(ctx, pool, "co_two", event.Live, epoch),
		tokens.CheckGuesses(ctx, pool, "co_one", epoch), tokens.CheckGuesses(ctx, pool, "192.0.2.1", epoch),
		tokens.CheckRevocations(ctx, pool, "co_one", event.Live, epoch.Add(time.Minute)),
	} {
		require.NoError(t, err)
	}
	for range 20 {
		require.NoError(t, tokens.CountGuess(ctx, pool, "192.0.2.1", epoch.Add(time.Minute)))
	}
	require.Error(t, tokens.CheckGuesses(ctx, pool, "192.0.2.1", epoch.Add(time.Minute)))
	require.NoError(t, tokens.CheckRevocations(ctx, pool, "co_one", event.Live, epoch.Add(time.Minute)))
}
