package send_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
)

func TestPartsOfALargeSendAreTold(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		payload event.Payload
		want    bool
	}{
		"a part":           {send.AudioSent{SendID: "snd_1", Unsealed: true}, true},
		"a part for later": {send.Scheduled{SendID: "snd_1", Unsealed: true}, true},
		"whole":            {send.AudioSent{SendID: "snd_1"}, false},
		"whole, for later": {send.Scheduled{SendID: "snd_1"}, false},
		"words like it":    {send.AudioSent{SendID: `"unsealed":true`}, false},
		"what closes it":   {send.BroadcastSealed{SendID: "snd_1"}, false},
	} {
		data, err := json.Marshal(c.payload)
		require.NoError(t, err)
		require.Equal(t, c.want, send.IsUnsealed(event.Recorded{Type: c.payload.EventType(), Data: data}), name)
	}
}
