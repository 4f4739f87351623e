package delivery

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

// Status is where a delivery is.
type Status string

// The statuses in the order that a delivery goes through them; the last three are the other ends.
const (
	StatusQueued    Status = "queued"
	StatusDelivered Status = "delivered"
	StatusPlaying   Status = "playing"
	StatusPlayed    Status = "played"
	StatusFailed    Status = "failed"
	StatusExpired   Status = "expired"
	StatusCancelled Status = "cancelled"
)

// CalledOff is the reason of the deliveries of a send that was cancelled.
const CalledOff = "the send was cancelled"

const (
	// maxReasonRunes bounds the reason that a player gives.
	maxReasonRunes = 500
	noReason       = "the player gave no reason"
)

// Ended reports whether nothing changes the status any more.
func (s Status) Ended() bool {
	return s == StatusPlayed || s == StatusFailed || s == StatusExpired || s == StatusCancelled
}

func (s Status) rank() int {
	switch s {
	case StatusDelivered:
		return 1
	case StatusPlaying:
		return 2
	case StatusPlayed, StatusFailed, StatusExpired, StatusCancelled:
		return 3
	default:
		return 0
	}
}

// statusAfter is the status that an event of this package leaves.
var statusAfter = map[string]Status{
	Delivered{}.EventType():       StatusDelivered,
	PlaybackStarted{}.EventType(): StatusPlaying,
	Played{}.EventType():          StatusPlayed,
	Failed{}.EventType():          StatusFailed,
	Expired{}.EventType():         StatusExpired,
	Cancelled{}.EventType():       StatusCancelled,
}

// StatusAfter gives the status that an event type leaves, or ok false for a type of another package.
func StatusAfter(eventType string) (s Status, ok bool) {
	s, ok = statusAfter[eventType]
	return s, ok
}

// Stream names the stream of a delivery.
func Stream(sendID string, userID int64) string {
	return "delivery-" + sendID + "-" + strconv.FormatInt(userID, 10)
}

const (
	deliveryPrefix = "dlv_"
	sendPrefix     = "snd_"
)

// ID names a send at one location: `dlv_<what follows snd_>_<user ID>`.
func ID(sendID string, userID int64) string {
	return deliveryPrefix + strings.TrimPrefix(sendID, sendPrefix) + "_" + strconv.FormatInt(userID, 10)
}

// ParseID reads a delivery's ID.
func ParseID(id string) (sendID string, userID int64, ok bool) {
	rest, found := strings.CutPrefix(id, deliveryPrefix)
	if !found {
		return "", 0, false
	}
	name, number, found := strings.Cut(rest, "_")
	userID, err := strconv.ParseInt(number, 10, 64)
	if !found || name == "" || err != nil || userID < 1 {
		return "", 0, false
	}
	sendID = sendPrefix + name
	return sendID, userID, ID(sendID, userID) == id
}

// Delivery is the state of a delivery. The zero Delivery is one that is queued.
type Delivery struct {
	status Status
	// at is when that was reached.
	at time.Time
	// failedOn are the players that will not play it, and why is the word of the last of them.
	failedOn []string
	why      string
}

// Load folds a history into the state.
func Load(history []event.Recorded) Delivery {
	d := Delivery{status: StatusQueued}
	for _, e := range history {
		if e.Type == (DeviceFailed{}).EventType() {
			var f DeviceFailed
			_ = json.Unmarshal(e.Data, &f) // what does not read names no player
			d.failedOn, d.why = append(d.failedOn, f.DeviceID), f.Reason
		}
		if after, ok := statusAfter[e.Type]; ok {
			var reached struct{ At time.Time }
			_ = json.Unmarshal(e.Data, &reached) // what does not read has no time
			d.status, d.at = after, reached.At
		}
	}
	return d
}

// Status is where the delivery is.
func (d Delivery) Status() Status {
	if d.status == "" {
		return StatusQueued
	}
	return d.status
}

// Report takes a player's word. One that is late or repeated changes nothing: a delivery never moves backwards, and its end is its end.
func (d Delivery) Report(ref Ref, status string, at time.Time, reason string) ([]event.Payload, error) {
	if utf8.RuneCountInString(reason) > maxReasonRunes {
		return nil, fault.ForField("reason", fault.OutOfRange, "The reason has at most %d characters.", maxReasonRunes)
	}
	if at.Before(d.at) { // clocks differ; steps are in order
		at = d.at
	}
	var next event.Payload
	switch Status(status) {
	case StatusDelivered:
		next = Delivered{Ref: ref, At: at}
	case StatusPlaying:
		next = PlaybackStarted{Ref: ref, At: at}
	case StatusPlayed:
		next = Played{Ref: ref, At: at}
	case StatusFailed:
		next = Failed{Ref: ref, At: at, Reason: cmp.Or(reason, noReason)}
	case "":
		return nil, fault.ForField("status", fault.MissingField, "Give the status: delivered, playing, played or failed.")
	default:
		return nil, fault.ForField("status", fault.InvalidFormat, "The status is delivered, playing, played or failed.")
	}
	if d.Status().Ended() || Status(status).rank() <= d.Status().rank() {
		return nil, nil
	}
	return []event.Payload{next}, nil
}

// FailedOn takes the word of one of a location's players that it will not play. As long as another of them may, that ends nothing: one that plays is enough.
func (d Delivery) FailedOn(ref Ref, deviceID string, devices []string, at time.Time, reason string) ([]event.Payload, error) {
	payloads, err := d.Report(ref, string(StatusFailed), at, reason)
	if err != nil || len(payloads) == 0 {
		return nil, err
	}
	for _, other := range devices {
		if other == deviceID || slices.Contains(d.failedOn, other) {
			continue
		}
		if slices.Contains(d.failedOn, deviceID) {
			return nil, nil
		}
		return []event.Payload{DeviceFailed{Ref: ref, DeviceID: deviceID, At: at, Reason: cmp.Or(reason, noReason)}}, nil
	}
	return payloads, nil
}

// Expire ends a delivery whose time is over. One that is playing is let finish; the final call ends it too, since its player never came back.
func (d Delivery) Expire(ref Ref, at time.Time, final bool) []event.Payload {
	switch {
	case d.Status().Ended():
		return nil
	case d.Status() != StatusPlaying && d.why != "":
		return []event.Payload{Failed{Ref: ref, At: at, Reason: d.why}}
	case d.Status() != StatusPlaying:
		return []event.Payload{Expired{Ref: ref, At: at}}
	case final:
		return []event.Payload{Failed{Ref: ref, At: at, Reason: cmp.Or(d.why, "the player did not report the end of the playback")}}
	}
	return nil
}

// GiveUp ends a delivery that could not be handed over in time, with what stood in the way. One that was handed over is not affected.
func (d Delivery) GiveUp(ref Ref, at time.Time, reason string) []event.Payload {
	if d.Status() != StatusQueued {
		return nil
	}
	return []event.Payload{Failed{Ref: ref, At: at, Reason: reason}}
}

// Cancel ends a delivery that was not played yet.
func (d Delivery) Cancel(ref Ref, at time.Time, reason string) []event.Payload {
	if d.Status().Ended() {
		return nil
	}
	return []event.Payload{Cancelled{Ref: ref, At: at, Reason: reason}}
}

// String implements fmt.Stringer.
func (r Ref) String() string { return fmt.Sprintf("%s (%s)", r.DeliveryID, r.ExternalID) }
