package commands

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
)

const (
	// abandonAfter is how old a large broadcast is that was never closed before others take its writer for dead.
	abandonAfter = 30 * time.Second
	// sealPoll is how often a repeat looks whether the first request has closed its broadcast.
	sealPoll = 50 * time.Millisecond
)

// SendAudio sends audio to one, some or all locations, now or later.
type SendAudio struct {
	Caller  Caller `json:"-"`
	AudioID string
	Request send.Request
}

// normal is the command without what goes without saying.
func (cmd SendAudio) normal() SendAudio {
	cmd.Request = cmd.Request.Normal()
	return cmd
}

// AudioSent is the send as it was accepted.
type AudioSent struct {
	send.Send
	Replayed bool
}

// SendAudioHandler carries out SendAudio.
type SendAudioHandler struct{ *tools }

// Handle accepts the send for all of its locations or for none.
func (h SendAudioHandler) Handle(ctx context.Context, cmd SendAudio) (_ AudioSent, err error) {
	ctx, span := telemetry.Start(ctx, "command SendAudio")
	defer span.End()
	var fields fault.Fields
	cmd.Request.Check(h.now(), &fields)
	identity, err := h.identify(cmd.Caller, "send audio", cmd.normal())
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
	to, release, err := h.allowed(ctx, cmd, id)
	if err != nil {
		return AudioSent{}, err
	}
	defer func() { release(err) }()
	meta := h.metadata(cmd.Caller)
	payloads, err := send.Plan(id, cmd.Request.Terms(cmd.AudioID), cmd.Request, to, meta.Time)
	if err != nil {
		return AudioSent{}, err
	}
	// From here on the caller's leaving stops nothing: a send is accepted whole.
	ctx = context.WithoutCancel(ctx)
	recorded, position, err := h.record(ctx, id, expected, identity.mark(meta), payloads)
	if errors.Is(err, eventstore.ErrConflict) && identity.keyed() {
		if _, earlier, err = h.before(ctx, identity, id); err == nil && !earlier.Exists() {
			err = &fault.Error{Code: fault.Conflict, Message: "Another request with this Idempotency-Key is being carried out; try again.", RetryAfter: retryAfter}
		}
		return AudioSent{Send: earlier, Replayed: true}, err
	}
	if errors.Is(err, eventstore.ErrConflict) { // it took so long that others took us for dead and abandoned it
		err = fmt.Errorf("%w: %w", &fault.Error{Code: fault.ServiceUnavailable, Message: "The send could not be recorded in time, and nothing was sent; try again.", RetryAfter: retryAfter}, err)
	}
	if err != nil {
		return AudioSent{}, err
	}
	stands := make(chan error, 1)
	go func() { stands <- h.stands(ctx, cmd.AudioID, recorded) }()
	shown := []string{Sends}
	if cmd.Request.ScheduleAt == nil && cmd.Request.LocalTime == "" { // the audio has its recipients already
		shown = append(shown, Library)
	}
	h.settle(ctx, position, shown...)
	if err := <-stands; err != nil {
		return AudioSent{}, h.undo(ctx, id, meta, err)
	}
	accepted, err := stateAfter(id, meta, payloads, cmd.Request)
	return AudioSent{Send: accepted}, err
}

// before finds what an earlier request with the same key left: an accepted send, or the revision that one has to begin at. A large broadcast that is being
// recorded it waits for; one whose writer is taken for dead it abandons.
func (h SendAudioHandler) before(ctx context.Context, identity identity, id string) (eventstore.Expected, send.Send, error) {
	if !identity.keyed() {
		return eventstore.NoStream, send.Send{}, nil
	}
	var history []event.Recorded
	var state send.Send
	for {
		more, err := h.Store.Page(ctx, send.Stream(id), uint64(len(history)), math.MaxInt)
		if err != nil {
			return eventstore.Expected{}, send.Send{}, err
		}
		if history = append(history, more...); len(history) == 0 {
			return eventstore.NoStream, send.Send{}, nil
		}
		if err := identity.same(history); err != nil {
			return eventstore.Expected{}, send.Send{}, err
		}
		if len(more) > 0 {
			if state, err = send.Load(history); err != nil {
				return eventstore.Expected{}, send.Send{}, err
			}
		}
		switch {
		case !state.Exists(): // abandoned before: this request begins it again
			return eventstore.ExpectedAfter(history), send.Send{}, nil
		case state.Refused:
			return eventstore.Expected{}, send.Send{}, fault.New(fault.Conflict, "The request with this Idempotency-Key was refused, since its audio was being deleted; use a new key.")
		case !state.Open:
			// Whoever recorded it may have died before it looked for a deletion.
			err := h.stands(ctx, state.Terms.AudioID, state.Recorded())
			if fault.CodeOf(err) != fault.Internal {
				err = h.undo(context.WithoutCancel(ctx), id, history[0].Metadata, err)
			}
			if err != nil {
				return eventstore.Expected{}, send.Send{}, err
			}
			h.settle(ctx, end(history), Sends)
			state, err = send.LoadAccepted(history)
			return eventstore.Expected{}, state, err
		case h.now().Sub(history[len(history)-1].Metadata.Time) > abandonAfter:
			if _, err := h.abandon(ctx, id, history); err != nil && !errors.Is(err, eventstore.ErrConflict) {
				return eventstore.Expected{}, send.Send{}, err
			}
			continue
		}
		select {
		case <-time.After(sealPoll):
		case <-ctx.Done():
			return eventstore.Expected{}, send.Send{}, ctx.Err()
		}
	}
}

// allowed finds the locations that the send goes to, if its audio, its targets and the plan's quota allow it. The store and the read models are asked at the
// same time. The room in the quota is held until release.
func (h SendAudioHandler) allowed(ctx context.Context, cmd SendAudio, id string) (to []send.Location, release func(error), err error) {
	sendable := make(chan error, 1)
	go func() { sendable <- h.sendable(ctx, cmd) }()
	c := cmd.Caller
	found, unknown, used, err := h.Reads.DestinationsAndQuota(ctx, c.CompanyID, c.Environment, cmd.Request.Targets, h.now())
	if err := <-sendable; err != nil {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	if to, err = h.destinations(ctx, cmd, found, unknown); err != nil {
		return nil, nil, err
	}
	release, err = h.reserve(ctx, c, id, used, Used{Sends: 1})
	return to, release, err
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

// stands reports, as an error, why a send that was recorded at a position has to be taken back: a deletion of its audio at the same moment did not see it.
func (h SendAudioHandler) stands(ctx context.Context, audioID string, recorded event.Position) error {
	history, err := h.Store.Load(ctx, audio.Stream(audioID))
	if err != nil {
		return err
	}
	return audio.Stands(history, recorded, h.now())
}

// maxDoubted bounds the external IDs that are looked for in the store before they are said to be unknown.
const maxDoubted = 20

// destinations are the locations that were found. Before it says that one is unknown it asks the store, which the read model may lag behind.
func (h SendAudioHandler) destinations(ctx context.Context, cmd SendAudio, found []send.Location, unknown []string) ([]send.Location, error) {
	for caughtUp := false; ; caughtUp = true {
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
				if found, unknown, err = h.Reads.Destinations(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.Request.Targets); err != nil {
					return nil, err
				}
				continue
			}
		}
		if len(unknown) == 0 {
			return nil, fault.New(fault.NotFound, "No location matches, and nothing was sent; register one, or choose other targets.")
		}
		refused := fault.New(fault.NotFound, "%d of the external IDs are no locations, and nothing was sent; register them, or leave them out.", len(unknown))
		if len(unknown) == 1 {
			refused = fault.New(fault.NotFound, "%q is no location, and nothing was sent; register it, or leave it out.", unknown[0])
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

// record appends the send's events: in one append if they fit, else in parts that a BroadcastSealed closes. Begun is where the first append is, position
// where the last is.
func (h SendAudioHandler) record(ctx context.Context, id string, expected eventstore.Expected, meta event.Metadata, payloads []event.Payload) (begun, position event.Position, err error) {
	stream := send.Stream(id)
	parts := appends(meta, payloads)
	if len(parts) == 1 {
		position, err = h.Store.Append(ctx, stream, expected, parts[0]...)
		return position, position, err
	}
	send.Unseal(payloads)
	parts = appends(meta, payloads)
	total := 0
	for _, part := range parts {
		if position, err = h.Store.Append(ctx, stream, expected, part...); err != nil {
			return begun, position, err
		}
		if begun.IsZero() {
			begun = position
		}
		total += len(part)
		expected = after(expected, len(part))
	}
	position, err = h.Store.Append(ctx, stream, expected, propose(meta, send.BroadcastSealed{SendID: id, Total: total})...)
	return begun, position, err
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

// undo takes back a send that nobody was told of, and gives the reason. Where it cannot, the repeat of the request or the deletion's worker will.
func (h SendAudioHandler) undo(ctx context.Context, id string, meta event.Metadata, reason error) error {
	meta.Idempotency, meta.Fingerprint, meta.Time = "", "", h.now()
	position, err := h.change(ctx, send.Stream(id), meta, func(history []event.Recorded) ([]event.Payload, error) {
		s, err := send.Load(history)
		if err != nil || s.Refused {
			return nil, err
		}
		return []event.Payload{send.Cancelled{SendID: id, Refused: true}}, nil
	})
	if err != nil {
		return fmt.Errorf("take back a send: %w", err)
	}
	h.settle(ctx, position, Sends)
	return reason
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
