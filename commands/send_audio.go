package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
)

const (
	// abandonAfter is how old a large broadcast is that was never closed before others take its writer for dead.
	abandonAfter = 30 * time.Second
	// sealPatience bounds how long a repeat waits for the first request to close its broadcast, sealPoll how often it looks.
	sealPatience = 5 * time.Second
	sealPoll     = 50 * time.Millisecond
)

// SendAudio sends audio to one, some or all locations, now or later.
type SendAudio struct {
	Caller  Caller `json:"-"`
	AudioID string
	Request send.Request
}

// AudioSent is the send as it was accepted.
type AudioSent struct {
	send.Send
	Replayed bool
}

// SendAudioHandler carries out SendAudio.
type SendAudioHandler struct{ *tools }

// Handle accepts the send for all of its locations or for none.
func (h SendAudioHandler) Handle(ctx context.Context, cmd SendAudio) (AudioSent, error) {
	var fields fault.Fields
	cmd.Request.Check(h.now(), &fields)
	identity, err := h.identify(cmd.Caller, "send audio", cmd)
	if err != nil {
		return AudioSent{}, err
	}
	id := identity.id("snd_")
	expected, earlier, err := h.before(ctx, identity, id)
	if err != nil || earlier.Exists() {
		return AudioSent{Send: earlier, Replayed: true}, err
	}
	if err := fields.Err(); err != nil {
		return AudioSent{}, err
	}
	if err := h.sendable(ctx, cmd); err != nil {
		return AudioSent{}, err
	}
	to, err := h.destinations(ctx, cmd)
	if err != nil {
		return AudioSent{}, err
	}
	if err := h.withinQuota(ctx, cmd.Caller, Used{Sends: 1}); err != nil {
		return AudioSent{}, err
	}
	meta := h.metadata(cmd.Caller)
	payloads, err := send.Plan(id, cmd.Request.Terms(cmd.AudioID), cmd.Request, to, meta.Time)
	if err != nil {
		return AudioSent{}, err
	}
	// From here on the caller's leaving stops nothing: a send is accepted whole.
	ctx = context.WithoutCancel(ctx)
	position, err := h.record(ctx, id, expected, identity.mark(meta), payloads)
	if errors.Is(err, eventstore.ErrConflict) && identity.keyed() {
		if _, earlier, err = h.before(ctx, identity, id); err == nil && !earlier.Exists() {
			err = fault.New(fault.Conflict, "Another request with this Idempotency-Key is being carried out; try again.")
		}
		return AudioSent{Send: earlier, Replayed: true}, err
	}
	if err != nil {
		return AudioSent{}, err
	}
	if err := h.sendable(ctx, cmd); err != nil {
		// A deletion of the audio began at the same moment and may not have seen the send.
		return AudioSent{}, errors.Join(err, h.undo(ctx, id, meta))
	}
	h.settle(ctx, position, Sends)
	accepted, err := stateAfter(id, meta, payloads, cmd.Request)
	return AudioSent{Send: accepted}, err
}

// before finds what an earlier request with the same key left: an accepted send, or the revision that one has to begin at.
func (h SendAudioHandler) before(ctx context.Context, identity identity, id string) (eventstore.Expected, send.Send, error) {
	deadline := h.now().Add(sealPatience)
	for {
		history, err := h.earlier(ctx, identity, send.Stream(id))
		if err != nil || len(history) == 0 {
			return eventstore.NoStream, send.Send{}, err
		}
		state, err := send.Load(history)
		switch {
		case err != nil:
			return eventstore.Expected{}, send.Send{}, err
		case !state.Exists(): // abandoned before: this request begins it again
			return eventstore.ExpectedAfter(history), send.Send{}, nil
		case !state.Open:
			h.settle(ctx, history[len(history)-1].Position, Sends)
			return eventstore.Expected{}, state, nil
		case h.now().Sub(history[len(history)-1].Metadata.Time) > abandonAfter:
			if _, err := h.abandon(ctx, id, history); err != nil {
				return eventstore.Expected{}, send.Send{}, err
			}
			continue
		case h.now().After(deadline):
			return eventstore.Expected{}, send.Send{}, fault.New(fault.Conflict, "Another request with this Idempotency-Key is being carried out; try again.")
		}
		select {
		case <-time.After(sealPoll):
		case <-ctx.Done():
			return eventstore.Expected{}, send.Send{}, ctx.Err()
		}
	}
}

// sendable asks the audio's stream whether it can be sent.
func (h SendAudioHandler) sendable(ctx context.Context, cmd SendAudio) error {
	history, err := h.Store.Load(ctx, audio.Stream(cmd.AudioID))
	if err != nil {
		return err
	}
	a, err := audio.Load(history)
	if err != nil {
		return err
	}
	return a.Sendable(cmd.Caller.CompanyID, cmd.Caller.Environment, h.now())
}

// maxDoubted bounds the external IDs that are looked for in the store before they are said to be unknown.
const maxDoubted = 20

// destinations finds the locations. Before it says that one is unknown it asks the store, which the read model may lag behind.
func (h SendAudioHandler) destinations(ctx context.Context, cmd SendAudio) ([]send.Location, error) {
	for caughtUp := false; ; caughtUp = true {
		found, unknown, err := h.Reads.Destinations(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.Request.Targets)
		if err != nil {
			return nil, err
		}
		if len(unknown) == 0 && len(found) > 0 {
			return found, nil
		}
		if !caughtUp {
			registered, err := h.registered(ctx, cmd.Caller, unknown)
			if err != nil {
				return nil, err
			}
			if !registered.IsZero() {
				h.settle(ctx, registered, Locations)
				continue
			}
		}
		if len(unknown) == 0 {
			return nil, fault.New(fault.NotFound, "No location matches; nothing was sent.")
		}
		refused := fault.New(fault.NotFound, "%d of the external IDs are no locations; nothing was sent.", len(unknown))
		if len(unknown) == 1 {
			refused = fault.New(fault.NotFound, "%q is no location; nothing was sent.", unknown[0])
		}
		refused.Param, refused.Details = "externalIds", map[string]any{"externalIds": unknown}
		return nil, refused
	}
}

// registered looks for external IDs among the locations in the store. The position is that of the newest that is there, zero if none is.
func (h SendAudioHandler) registered(ctx context.Context, c Caller, externalIDs []string) (newest event.Position, err error) {
	for _, externalID := range externalIDs[:min(len(externalIDs), maxDoubted)] {
		if !location.ValidExternalID(externalID) {
			continue
		}
		userID, found, err := h.findUser(ctx, c.CompanyID, externalID)
		if err != nil {
			return event.Position{}, err
		}
		if !found {
			continue
		}
		history, err := h.Store.Load(ctx, location.Stream(c.CompanyID, userID, c.Environment))
		if err != nil {
			return event.Position{}, err
		}
		l, err := location.Load(history)
		if err != nil {
			return event.Position{}, err
		}
		if l.Registered && newest.Before(history[len(history)-1].Position) {
			newest = history[len(history)-1].Position
		}
	}
	return newest, nil
}

// record appends the send's events: in one append if they fit, else in parts that a BroadcastSealed closes.
func (h SendAudioHandler) record(ctx context.Context, id string, expected eventstore.Expected, meta event.Metadata, payloads []event.Payload) (event.Position, error) {
	stream := send.Stream(id)
	parts := appends(meta, payloads)
	if len(parts) == 1 {
		return h.Store.Append(ctx, stream, expected, parts[0]...)
	}
	send.Unseal(payloads)
	total := 0
	for _, part := range appends(meta, payloads) {
		if _, err := h.Store.Append(ctx, stream, expected, part...); err != nil {
			return event.Position{}, err
		}
		total += len(part)
		expected = after(expected, len(part))
	}
	return h.Store.Append(ctx, stream, expected, propose(meta, send.BroadcastSealed{SendID: id, Total: total})...)
}

// after is where a stream stands after events were appended to it where it was expected to be.
func after(before eventstore.Expected, appended int) eventstore.Expected {
	if revision, ok := before.Revision(); ok {
		return eventstore.Exact(revision + uint64(appended))
	}
	return eventstore.Exact(uint64(appended) - 1) // the stream did not exist
}

// appends splits events into as many as fit one append each.
func appends(meta event.Metadata, payloads []event.Payload) [][]event.Proposed {
	var parts [][]event.Proposed
	size := eventstore.MaxAppendBytes + 1
	for _, e := range propose(meta, payloads...) {
		n := eventstore.EncodedSize(e)
		if size+n > eventstore.MaxAppendBytes {
			parts, size = append(parts, nil), 0
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], e)
		size += n
	}
	return parts
}

// undo takes back a send that nobody was told of.
func (h SendAudioHandler) undo(ctx context.Context, id string, meta event.Metadata) error {
	position, err := h.change(ctx, send.Stream(id), meta, func(history []event.Recorded) ([]event.Payload, error) {
		s, err := send.Load(history)
		if err != nil || s.Cancelled {
			return nil, err
		}
		return []event.Payload{send.Cancelled{SendID: id}}, nil
	})
	if err == nil {
		h.settle(ctx, position, Sends)
	}
	return err
}

// stateAfter is the state of a send that consists of these events.
func stateAfter(id string, meta event.Metadata, payloads []event.Payload, r send.Request) (send.Send, error) {
	s := send.Send{ID: id, CompanyID: meta.CompanyID, Environment: meta.Environment, AcceptedAt: meta.Time, LocalTime: r.LocalTime}
	for _, p := range payloads {
		switch p := p.(type) {
		case send.AudioSent:
			s.Terms, s.Total, s.Sent = p.Terms, p.Total, append(s.Sent, p)
		case send.Scheduled:
			s.Terms, s.Total, s.ScheduleAt, s.Planned = p.Terms, p.Total, p.ScheduleAt, append(s.Planned, p.Destinations...)
		default:
			return send.Send{}, fmt.Errorf("a new send has a %s", p.EventType())
		}
	}
	return s, nil
}
