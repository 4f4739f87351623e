package send_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/send"
)

func TestASendThatIsRefusedIsCancelled(t *testing.T) {
	t.Parallel()
	refused := send.Cancelled{SendID: "snd_one", Refused: true}
	s := load(t, scheduled(), refused)
	require.True(t, s.Cancelled && s.Refused)
	require.Empty(t, s.Start(due))

	called := load(t, scheduled(), cancelled)
	require.True(t, called.Cancelled && !called.Refused)

	require.False(t, load(t, append(unsealed(scheduled()), refused, abandoned, scheduled())...).Refused, "what stands before an abandonment counts for nothing")

	history := eventtest.History(refused)
	history[0].Data = []byte(`{"refused": 1}`)
	_, err := send.Load(history)
	require.ErrorContains(t, err, "SendCancelled of test")
}

// A send is recorded where its first event is, which tells it from a deletion of its audio at the same moment.
func TestRecorded(t *testing.T) {
	t.Parallel()
	require.Equal(t, event.Position{Commit: 1, Prepare: 1}, load(t, sentTo(first, 2), sentTo(second, 2)).Recorded())
	parts := unsealed(sentTo(first, 2), sentTo(second, 2))
	require.Equal(t, event.Position{Commit: 3, Prepare: 3}, load(t, parts[0], abandoned, parts[0], parts[1], sealed).Recorded(), "where it was begun again")
	require.True(t, load(t).Recorded().IsZero())
}
