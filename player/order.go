package player

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/musique/musique/domain/playback"
)

const (
	// maxRepeat, maxVolume and maxDuration are the most that a player obeys, whatever it is told.
	maxRepeat   = 10
	maxVolume   = 100
	maxDuration = 24 * time.Hour
	// usualLife is how long an order lasts that does not say, usualPriority what it has if it says none that this player knows.
	usualLife     = 24 * time.Hour
	usualPriority = "normal"
)

// traceParentPattern is what can be a header of a report.
var traceParentPattern = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// Order is what the server wants played, as it says it.
type Order struct {
	DeliveryID string     `json:"deliveryId"`
	SendID     string     `json:"sendId"`
	Audio      Audio      `json:"audio"`
	Priority   string     `json:"priority"`
	Repeat     int        `json:"repeat"`
	Volume     int        `json:"volume"` // percent
	PlayAt     *time.Time `json:"playAt"`
	ExpiresAt  time.Time  `json:"expiresAt"`
	// TraceParent is the delivery's place in the trace of its send (W3C Trace Context), if there is one; reports go on from there.
	TraceParent string `json:"traceparent,omitempty"`
}

// Audio is what an order plays.
type Audio struct {
	Name     string  `json:"name"`
	URL      string  `json:"url"`
	SHA256   string  `json:"sha256"`
	Format   string  `json:"format"`
	Duration float64 `json:"duration"` // seconds
	Size     int64   `json:"size"`     // bytes; 0 is not known
}

// parseOrder reads an order. With an error it still names the delivery, if that much can be read.
func parseOrder(data []byte, now time.Time) (Order, error) {
	o := Order{Volume: maxVolume}
	if err := json.Unmarshal(data, &o); err != nil {
		return Order{DeliveryID: parseDeliveryID(data)}, fmt.Errorf("the order cannot be read: %w", err)
	}
	if o.DeliveryID == "" {
		return Order{}, errors.New("the order names no delivery")
	}
	if !digestPattern.MatchString(o.Audio.SHA256) || !formatPattern.MatchString(o.Audio.Format) {
		return o, errors.New("the order names no usable hash and format of the audio")
	}
	if _, known := playback.ParsePriority(o.Priority); !known {
		o.Priority = usualPriority
	}
	o.Repeat = min(max(o.Repeat, 1), maxRepeat)
	o.Volume = min(max(o.Volume, 0), maxVolume)
	o.Audio.Duration = min(max(o.Audio.Duration, 0), maxDuration.Seconds())
	if !traceParentPattern.MatchString(o.TraceParent) {
		o.TraceParent = ""
	}
	if o.ExpiresAt.IsZero() {
		o.ExpiresAt = now.Add(usualLife)
	}
	return o, nil
}

// parseDeliveryID reads no more of an order, or of its cancellation, than which one it is.
func parseDeliveryID(data []byte) string {
	var named struct {
		DeliveryID string `json:"deliveryId"`
	}
	if json.Unmarshal(data, &named) != nil {
		return ""
	}
	return named.DeliveryID
}

func (o Order) priority() playback.Priority {
	p, _ := playback.ParsePriority(o.Priority) // parseOrder leaves only those that are known
	return p
}

func (o Order) length() time.Duration { return time.Duration(o.Audio.Duration * float64(time.Second)) }

func (o Order) title() string {
	name := o.Audio.Name
	if name == "" {
		name = o.DeliveryID
	}
	return fmt.Sprintf("%q (%.1f s)", name, o.Audio.Duration)
}
