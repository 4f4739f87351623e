package audio_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
)

// Of a send and a deletion at the same moment, the one that was recorded later gives way.
func TestStands(t *testing.T) {
	t.Parallel()
	const before, after = 1, 3 // where the first mark of a deletion stands at 2
	for name, c := range map[string]struct {
		given    []event.Payload
		recorded uint64
		now      time.Time
		want     fault.Code
	}{
		"no deletion":                                 {given: []event.Payload{uploaded}, recorded: 2},
		"after a deletion began":                      {given: []event.Payload{uploaded, deletionStarted}, recorded: after, want: fault.Conflict},
		"before a deletion began":                     {given: []event.Payload{uploaded, deletionStarted}, recorded: before},
		"after a deletion that was cut off began":     {given: []event.Payload{uploaded, deletionStarted}, recorded: after, now: marked.Add(audio.DeletionPatience)},
		"after a deletion that gave way":              {given: []event.Payload{uploaded, deletionStarted, deletionAbandoned}, recorded: after},
		"after a deletion began that is done":         {given: []event.Payload{uploaded, deletionStarted, deleted}, recorded: after, want: fault.NotFound},
		"done, whenever it is asked":                  {given: []event.Payload{uploaded, deletionStarted, deleted}, recorded: after, now: marked.Add(time.Hour), want: fault.NotFound},
		"before a deletion began that is done":        {given: []event.Payload{uploaded, deletionStarted, deleted}, recorded: before},
		"between a deletion cut off and one done":     {given: []event.Payload{uploaded, deletionStarted, deletionStarted, deleted}, recorded: 2, now: marked.Add(time.Hour)},
		"after a deletion cut off and one that began": {given: []event.Payload{uploaded, deletionStarted, deletionStarted}, recorded: 4, now: marked.Add(time.Minute), want: fault.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			now := c.now
			if now.IsZero() {
				now = marked
			}
			err := audio.Stands(eventtest.History(c.given...), event.Position{Commit: c.recorded, Prepare: c.recorded}, now)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.want, "")
		})
	}
}
