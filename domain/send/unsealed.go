package send

import (
	"bytes"

	"github.com/musique/musique/domain/event"
)

// unsealed is the mark of the parts of a large send, as they are recorded.
var unsealed = []byte(`"unsealed":true`)

// IsUnsealed tells a part of a large send, which counts for nothing before the event that closes it. Whoever records events another way, with spaces say, has
// the parts taken for whole, which is right for all who only want to know whether to wait for more.
func IsUnsealed(e event.Recorded) bool {
	return (e.Type == AudioSent{}.EventType() || e.Type == Scheduled{}.EventType()) && bytes.Contains(e.Data, unsealed)
}
