package commands

import (
	"context"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// These are for the tests to reckon with.
const (
	AbandonAfter      = abandonAfter
	MaxDecisions      = maxDecisions
	WaitLimit         = waitLimit
	MaxLimitedStreams = maxLimitedStreams
)

// LimitedStreams is what a process remembers of its usage streams.
type LimitedStreams struct{ limitedStreams }

// Has and Add are has and add, Len is how many it remembers.
func (l *LimitedStreams) Has(stream string) bool { return l.has(stream) }
func (l *LimitedStreams) Add(stream string)      { l.add(stream) }
func (l *LimitedStreams) Len() int               { return len(l.names) }

// Begin claims the key of a request and does no more, as one does whose process dies then.
func (h RegisterLocationHandler) Begin(ctx context.Context, cmd RegisterLocation) error {
	return begin(ctx, h.tools, cmd.Caller, "register location", cmd.normal())
}

// Begin claims the key of a request and does no more.
func (h EnrolDeviceHandler) Begin(ctx context.Context, cmd EnrolDevice) error {
	return begin(ctx, h.tools, cmd.Caller, "enrol device", cmd)
}

// Begin claims the key of a request and does no more.
func (h ImportLocationsHandler) Begin(ctx context.Context, cmd ImportLocations) error {
	return begin(ctx, h.tools, cmd.Caller, "import locations", cmd.normal())
}

func begin(ctx context.Context, t *tools, c Caller, operation string, cmd any) error {
	identity, err := t.identify(c, operation, cmd)
	if err != nil {
		return err
	}
	_, err = t.claim(ctx, c, identity, operation)
	return err
}

// Identity is the ID that a send with a key has, and the metadata of its events.
func (h SendAudioHandler) Identity(cmd SendAudio) (id string, meta event.Metadata, err error) {
	identity, err := h.identify(cmd.Caller, "send audio", cmd.normal())
	return identity.id("snd_"), identity.mark(h.metadata(cmd.Caller)), err
}

// Parts splits events as a large broadcast is split.
func Parts(meta event.Metadata, payloads []event.Payload) [][]event.Proposed {
	return appends(meta, payloads)
}

// After is where a stream stands when n events were appended to it at a place.
func After(before eventstore.Expected, n int) eventstore.Expected { return after(before, n) }
