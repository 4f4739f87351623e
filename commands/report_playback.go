package commands

import (
	"context"
	"time"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
)

// ReportPlayback takes a player's word of what became of a delivery.
type ReportPlayback struct {
	Caller Caller
	// UserID is the location that the player is signed in for.
	UserID     int64
	DeliveryID string
	Status     string
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
		return "", fault.New(fault.NotFound, "There is no such delivery at this location.")
	}
	ref, cancelledAt, err := h.ref(ctx, cmd, sendID)
	if err != nil {
		return "", err
	}
	at := h.now()
	if cmd.At != nil && cmd.At.Before(at) {
		at = cmd.At.UTC() // a clock that is ahead of ours is not believed
	}
	var status delivery.Status
	position, err := h.changeDelivery(ctx, cmd.Caller, ref, func(d delivery.Delivery) ([]event.Payload, error) {
		payloads, err := d.Report(ref, cmd.Status, at, cmd.Reason)
		if err == nil && cancelledAt != nil && !at.Before(*cancelledAt) && d.Status() != delivery.StatusPlaying {
			payloads = d.Cancel(ref, h.now(), delivery.CalledOff) // its send was cancelled, and the worker has not come to it yet
		}
		status = d.Status()
		for _, p := range payloads {
			status, _ = delivery.StatusAfter(p.EventType())
		}
		return payloads, err
	})
	if err != nil {
		return "", err
	}
	h.settle(ctx, position, Sends)
	return status, nil
}

// ref finds what the delivery is about, and since when it is cancelled. A player can be faster than the read model; then the send's own stream is asked.
func (h ReportPlaybackHandler) ref(ctx context.Context, cmd ReportPlayback, sendID string) (ref delivery.Ref, cancelledAt *time.Time, err error) {
	ref, cancelledAt, found, err := h.Reads.Delivery(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, cmd.DeliveryID)
	if err != nil || found {
		return ref, cancelledAt, err
	}
	history, err := h.Store.Load(ctx, send.Stream(sendID))
	if err != nil {
		return delivery.Ref{}, nil, err
	}
	s, err := send.Load(history)
	if err != nil {
		return delivery.Ref{}, nil, err
	}
	if s.BelongsTo(cmd.Caller.CompanyID, cmd.Caller.Environment) && !s.Open {
		for _, sent := range s.Sent {
			if sent.UserID == cmd.UserID {
				return delivery.Ref{DeliveryID: sent.DeliveryID, SendID: s.ID, AudioID: sent.AudioID, ExternalID: sent.ExternalID, UserID: sent.UserID}, nil, nil
			}
		}
	}
	return delivery.Ref{}, nil, fault.New(fault.NotFound, "There is no such delivery at this location.")
}
