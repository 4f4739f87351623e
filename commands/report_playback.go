package commands

import (
	"context"
	"time"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/telemetry"
)

// ReportPlayback takes a player's word of what became of a delivery.
type ReportPlayback struct {
	Caller Caller
	// UserID is the location that the player is signed in for.
	UserID     int64
	DeliveryID string
	// DeviceID is the player; empty where the location has no other.
	DeviceID string
	Status   string
	// At is when it happened by the player's clock; nil is now.
	At     *time.Time
	Reason string
}

// ReportPlaybackHandler carries out ReportPlayback.
type ReportPlaybackHandler struct{ *tools }

// Handle records the report. One that is repeated or late changes nothing and is no error. It gives the status that the delivery has now.
func (h ReportPlaybackHandler) Handle(ctx context.Context, cmd ReportPlayback) (delivery.Status, error) {
	sendID, userID, ok := delivery.ParseID(cmd.DeliveryID)
	if !ok || userID != cmd.UserID {
		return "", errNoDelivery
	}
	known, err := h.known(ctx, cmd, sendID)
	if err != nil {
		return "", err
	}
	ctx, span := telemetry.Continue(ctx, known.TraceParent, "command ReportPlayback")
	defer span.End()
	telemetry.Attribute(span, "musique.delivery_id", known.DeliveryID)
	telemetry.Attribute(span, "musique.status", cmd.Status)
	ref, cancelledAt, at := known.Ref, known.CancelledAt, h.now()
	if cmd.At != nil && cmd.At.Before(at) { // a clock that is ahead of ours is not believed,
		at = cmd.At.UTC()
		if at.Before(known.SentAt) { // and neither is one by which it happened before there was anything to play
			at = known.SentAt.UTC()
		}
	}
	devices, err := h.devices(ctx, cmd)
	if err != nil {
		return "", err
	}
	var status delivery.Status
	position, err := h.changeDelivery(ctx, cmd.Caller, ref, func(d delivery.Delivery) ([]event.Payload, error) {
		payloads, err := d.Report(ref, cmd.Status, at, cmd.Reason)
		if len(devices) > 0 {
			payloads, err = d.FailedOn(ref, cmd.DeviceID, devices, at, cmd.Reason)
		}
		if err == nil && cancelledAt != nil && !at.Before(*cancelledAt) && d.Status() != delivery.StatusPlaying {
			payloads = d.Cancel(ref, h.now(), delivery.CalledOff) // its send was cancelled, and the worker has not come to it yet
		}
		status = d.Status()
		for _, p := range payloads {
			if after, ok := delivery.StatusAfter(p.EventType()); ok {
				status = after
			}
		}
		return payloads, err
	})
	if err != nil {
		return "", err
	}
	h.settle(ctx, position, Sends)
	return status, nil
}

// known finds the delivery. A player can be faster than the read model; then the send's own stream is asked.
func (h ReportPlaybackHandler) known(ctx context.Context, cmd ReportPlayback, sendID string) (KnownDelivery, error) {
	known, found, err := h.Reads.Delivery(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.DeliveryID)
	if err != nil || found {
		return known, err
	}
	history, err := h.Store.Load(ctx, send.Stream(sendID))
	if err != nil {
		return KnownDelivery{}, err
	}
	s, err := send.Load(history)
	if err != nil {
		return KnownDelivery{}, err
	}
	if s.BelongsTo(cmd.Caller.CompanyID, cmd.Caller.Environment) && !s.Open {
		for _, sent := range s.Sent {
			if sent.UserID == cmd.UserID {
				ref := delivery.Ref{DeliveryID: sent.DeliveryID, SendID: s.ID, AudioID: sent.AudioID, ExternalID: sent.ExternalID, UserID: sent.UserID}
				trace := telemetry.Followed(history[0].Metadata.TraceParent, s.Total)
				return KnownDelivery{Ref: ref, SentAt: s.SentAt(sent), TraceParent: trace}, nil
			}
		}
	}
	return KnownDelivery{}, errNoDelivery
}

var errNoDelivery = fault.New(fault.NotFound, "There is no such delivery at this location; report those that its stream brings.")

// devices are the players of the location, where they are asked for: by one that will not play.
func (h ReportPlaybackHandler) devices(ctx context.Context, cmd ReportPlayback) (ids []string, err error) {
	if cmd.DeviceID == "" || delivery.Status(cmd.Status) != delivery.StatusFailed {
		return nil, nil
	}
	history, err := h.Store.Load(ctx, location.Stream(cmd.Caller.CompanyID, cmd.UserID, cmd.Caller.Environment))
	if err != nil {
		return nil, err
	}
	l, err := location.Load(history)
	for _, d := range l.Devices {
		if !d.Revoked {
			ids = append(ids, d.ID)
		}
	}
	return ids, err
}
