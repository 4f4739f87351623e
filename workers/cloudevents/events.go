package cloudevents

import (
	"net/url"
	"strings"
	"time"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/request"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/domain/usage"
)

// A field's tag doc is its description in the schema. One that may be absent has omitempty or omitzero, and one that may be null is a pointer without.

// AudioUploaded is the data of that event.
type AudioUploaded struct {
	AudioID     string `json:"audioId" doc:"The audio."`
	Name        string `json:"name" doc:"What the partner calls it."`
	Description string `json:"description" doc:"The partner's own words; may be empty."`
	Category    string `json:"category" doc:"announcement, promotion or emergency; new ones may come."`
	Format      string `json:"format" doc:"mp3, wav, ogg or aac, as the bytes tell."`
	ContentType string `json:"contentType" doc:"The media type of the bytes."`
	DurationMs  int64  `json:"durationMs" doc:"The length in milliseconds."`
	Size        int64  `json:"size" doc:"The size in bytes."`
}

// AudioDeleted is the data of that event.
type AudioDeleted struct {
	AudioID string `json:"audioId" doc:"The audio."`
}

// Terms are what a partner asked for, the same for every location of a send.
type Terms struct {
	AudioID   string `json:"audioId" doc:"The audio."`
	Priority  string `json:"priority" doc:"low, normal, high or urgent."`
	Repeat    int    `json:"repeat" doc:"How many times it is to be played."`
	Volume    int    `json:"volume" doc:"In percent."`
	ExpiresIn int64  `json:"expiresIn" doc:"In seconds, from when the audio is due: it is not played after that."`
	Single    bool   `json:"single" doc:"Whether the send is to one location, and no broadcast."`
}

// SendScheduled is the data of that event.
type SendScheduled struct {
	SendID string `json:"sendId" doc:"The send."`
	Terms
	ScheduleAt   time.Time              `json:"scheduleAt" doc:"When the audio is due; with localTime, at the first location."`
	LocalTime    string                 `json:"localTime,omitempty" doc:"The clock time at each location, such as 2026-12-24T09:00, if the partner gave one."`
	Destinations []ScheduledDestination `json:"destinations" doc:"Locations of the send. A large send has several such events, each with some of them."`
	Total        int                    `json:"total" doc:"How many locations the whole send has."`
}

// ScheduledDestination is a location of a scheduled send.
type ScheduledDestination struct {
	ExternalID string    `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64     `json:"userId" doc:"The location's number."`
	PlayAt     time.Time `json:"playAt" doc:"When the audio is due there."`
	Timezone   string    `json:"timezone,omitempty" doc:"The location's IANA time zone at that time, where it was noted."`
}

// SendRescheduled is the data of that event.
type SendRescheduled struct {
	SendID string `json:"sendId" doc:"The send. From now on it is as this event says."`
	Terms
	ScheduleAt time.Time  `json:"scheduleAt" doc:"When the audio is due; with localTime, at the first location."`
	LocalTime  string     `json:"localTime,omitempty" doc:"The clock time at each location, if the partner gave one."`
	Times      []ZoneTime `json:"times,omitempty" doc:"When the audio is due in each time zone, for a new localTime. Absent: at scheduleAt everywhere or, with a localTime, when it was due before."`
}

// ZoneTime is when audio is due in a time zone.
type ZoneTime struct {
	Timezone string    `json:"timezone" doc:"An IANA time zone."`
	PlayAt   time.Time `json:"playAt" doc:"When the audio is due at the locations there."`
}

// AudioSent is the data of that event.
type AudioSent struct {
	SendID     string `json:"sendId" doc:"The send."`
	DeliveryID string `json:"deliveryId" doc:"The send at this location; the events of the topic of deliveries have it, too."`
	Terms
	ExternalID string     `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64      `json:"userId" doc:"The location's number."`
	Total      int        `json:"total" doc:"How many locations the whole send has; each has an event of its own."`
	PlayAt     *time.Time `json:"playAt,omitempty" doc:"When a scheduled send is due here. Absent: as soon as the priority allows."`
	ExpiresAt  time.Time  `json:"expiresAt" doc:"When the delivery ends as expired if it was not played."`
}

// SendCancelled is the data of that event.
type SendCancelled struct {
	SendID  string `json:"sendId" doc:"The send."`
	Refused bool   `json:"refused" doc:"True: the send was never accepted, and whoever asked for it was told so; take back what other events say of it, if any came. False: it was accepted, and called off."`
}

// Delivery is what each event of a delivery begins with.
type Delivery struct {
	DeliveryID string    `json:"deliveryId" doc:"The send at this location."`
	SendID     string    `json:"sendId" doc:"The send."`
	AudioID    string    `json:"audioId" doc:"The audio."`
	ExternalID string    `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64     `json:"userId" doc:"The location's number."`
	At         time.Time `json:"at" doc:"When it happened, by the clock of the player if it was told by one."`
}

// Ended is the data of the events of a delivery that give a reason.
type Ended struct {
	Delivery
	Reason string `json:"reason" doc:"Why, in words for people."`
}

// DeviceFailed is the data of DeliveryFailedOnDevice.
type DeviceFailed struct {
	Delivery
	DeviceID string `json:"deviceId" doc:"The player that will not play it."`
	Reason   string `json:"reason" doc:"Why, in words for people."`
}

// TokenIssued is the data of that event.
type TokenIssued struct {
	TokenID     string     `json:"tokenId" doc:"The token's ID, which opens nothing."`
	ExternalID  string     `json:"externalId" doc:"The external ID that it was made for."`
	UserID      int64      `json:"userId" doc:"The number of that external ID."`
	Name        string     `json:"name,omitempty" doc:"What the partner calls it, if anything."`
	Permissions []string   `json:"permissions" doc:"What it allows."`
	ExpiresAt   *time.Time `json:"expiresAt" doc:"When it ends; null is never."`
}

// TokenRevoked is the data of that event.
type TokenRevoked struct {
	TokenID string `json:"tokenId" doc:"The token's ID."`
}

// Location is the data of LocationRegistered and LocationChanged.
type Location struct {
	ExternalID string   `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64    `json:"userId" doc:"The location's number."`
	Name       string   `json:"name" doc:"What people call it."`
	Timezone   string   `json:"timezone" doc:"Its IANA time zone."`
	Tags       []string `json:"tags" doc:"The partner's own."`
	Channel    Channel  `json:"channel" doc:"How it gets its audio."`
}

// Channel is how a location gets its audio.
type Channel struct {
	Type string `json:"type" doc:"player or http."`
	Host string `json:"host,omitempty" doc:"The host of an http channel's endpoint, with its port if it has one. The rest of its URL is the partner's secret."`
}

// LocationRemoved is the data of that event.
type LocationRemoved struct {
	ExternalID string `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64  `json:"userId" doc:"The location's number."`
}

// DeviceEnrolled is the data of that event.
type DeviceEnrolled struct {
	Device
	Name string `json:"name,omitempty" doc:"What the partner calls it, if anything."`
}

// Device is the data of DeviceRevoked and DeviceTokenRotated.
type Device struct {
	ExternalID string `json:"externalId" doc:"The partner's name for the location."`
	UserID     int64  `json:"userId" doc:"The location's number."`
	DeviceID   string `json:"deviceId" doc:"The device."`
}

// RequestServed is the data of ApiRequestServed.
type RequestServed struct {
	RequestID  string    `json:"requestId" doc:"The request's ID, as its answer had it."`
	Timestamp  time.Time `json:"timestamp" doc:"When it came."`
	Method     string    `json:"method" doc:"The HTTP method."`
	Endpoint   string    `json:"endpoint" doc:"The pattern of the path, the same for both families of paths."`
	Status     int       `json:"status" doc:"The HTTP status of the answer."`
	DurationMs int64     `json:"durationMs" doc:"How long it took, in milliseconds."`
	ExternalID string    `json:"externalId" doc:"The external ID of the token."`
	TokenID    string    `json:"tokenId" doc:"The ID of the token."`
	ErrorCode  string    `json:"errorCode,omitempty" doc:"The code of the error, if it was one."`
}

func terms(t send.Terms) Terms {
	return Terms{AudioID: t.AudioID, Priority: t.Priority, Repeat: t.Repeat, Volume: t.Volume, ExpiresIn: t.ExpiresIn, Single: t.Single}
}

// locationKey is the ID of a location: that of its stream, so that the sandbox's is another one.
func locationKey(m event.Metadata, userID int64) string {
	return strings.TrimPrefix(location.Stream(m.CompanyID, userID, m.Environment), "location-")
}

func deliveryOf(m event.Metadata, r delivery.Ref, at time.Time) (key, subject string, data Delivery) {
	return locationKey(m, r.UserID), r.DeliveryID, Delivery{r.DeliveryID, r.SendID, r.AudioID, r.ExternalID, r.UserID, at}
}

func channel(c location.Channel) Channel {
	public := Channel{Type: c.Type}
	if address, err := url.Parse(c.URL); err == nil { // a URL that is none has no host
		public.Host = address.Host
	}
	return public
}

func tags(given []string) []string { return append([]string{}, given...) } // an array, never null

// kinds are the public events.
var kinds = []Kind{
	public(AudioTopic, "Audio was added to the library.", func(_ event.Metadata, d audio.Uploaded) (string, string, AudioUploaded) {
		return d.AudioID, d.AudioID, AudioUploaded{d.AudioID, d.Name, d.Description, d.Category, d.Format, d.ContentType, d.DurationMs, d.Size}
	}),
	public(AudioTopic, "Audio left the library.", func(_ event.Metadata, d audio.Deleted) (string, string, AudioDeleted) {
		return d.AudioID, d.AudioID, AudioDeleted{d.AudioID}
	}),

	public(SendsTopic, "A send was accepted for later.", func(_ event.Metadata, d send.Scheduled) (string, string, SendScheduled) {
		to := make([]ScheduledDestination, len(d.Destinations))
		for i, l := range d.Destinations {
			to[i] = ScheduledDestination{l.ExternalID, l.UserID, l.PlayAt, l.Timezone}
		}
		return d.SendID, d.SendID, SendScheduled{d.SendID, terms(d.Terms), d.ScheduleAt, d.LocalTime, to, d.Total}
	}),
	public(SendsTopic, "A scheduled send was changed, before any of it went out.", func(_ event.Metadata, d send.Rescheduled) (string, string, SendRescheduled) {
		var times []ZoneTime
		for _, z := range d.Times {
			times = append(times, ZoneTime{z.Timezone, z.PlayAt})
		}
		return d.SendID, d.SendID, SendRescheduled{d.SendID, terms(d.Terms), d.ScheduleAt, d.LocalTime, times}
	}),
	public(SendsTopic, "Audio goes to one location now.", func(_ event.Metadata, d send.AudioSent) (string, string, AudioSent) {
		return d.SendID, d.SendID, AudioSent{d.SendID, d.DeliveryID, terms(d.Terms), d.ExternalID, d.UserID, d.Total, d.PlayAt, d.ExpiresAt}
	}),
	public(SendsTopic, "A send was called off, or never accepted.", func(_ event.Metadata, d send.Cancelled) (string, string, SendCancelled) {
		return d.SendID, d.SendID, SendCancelled{d.SendID, d.Refused}
	}),

	public(DeliveriesTopic, "The player has the audio.", func(m event.Metadata, d delivery.Delivered) (string, string, Delivery) {
		return deliveryOf(m, d.Ref, d.At)
	}),
	public(DeliveriesTopic, "The player began to play.", func(m event.Metadata, d delivery.PlaybackStarted) (string, string, Delivery) {
		return deliveryOf(m, d.Ref, d.At)
	}),
	public(DeliveriesTopic, "The audio was played to its end. The delivery ends so.", func(m event.Metadata, d delivery.Played) (string, string, Delivery) {
		return deliveryOf(m, d.Ref, d.At)
	}),
	public(DeliveriesTopic, "The audio will not be played. The delivery ends so.", func(m event.Metadata, d delivery.Failed) (string, string, Ended) {
		key, subject, of := deliveryOf(m, d.Ref, d.At)
		return key, subject, Ended{of, d.Reason}
	}),
	public(DeliveriesTopic, "One of the location's players will not play the audio; another one still may.", func(m event.Metadata, d delivery.DeviceFailed) (string, string, DeviceFailed) {
		key, subject, of := deliveryOf(m, d.Ref, d.At)
		return key, subject, DeviceFailed{of, d.DeviceID, d.Reason}
	}),
	public(DeliveriesTopic, "The audio was not played before its time was over. The delivery ends so.", func(m event.Metadata, d delivery.Expired) (string, string, Delivery) {
		return deliveryOf(m, d.Ref, d.At)
	}),
	public(DeliveriesTopic, "The delivery was called off before it was played. It ends so.", func(m event.Metadata, d delivery.Cancelled) (string, string, Ended) {
		key, subject, of := deliveryOf(m, d.Ref, d.At)
		return key, subject, Ended{of, d.Reason}
	}),

	public(TokensTopic, "A token was made for an external ID.", func(_ event.Metadata, d token.Issued) (string, string, TokenIssued) {
		return d.TokenID, d.TokenID, TokenIssued{d.TokenID, d.ExternalID, d.UserID, d.Name, append([]string{}, d.Permissions...), d.ExpiresAt}
	}),
	public(TokensTopic, "A token is not accepted any more.", func(_ event.Metadata, d token.Revoked) (string, string, TokenRevoked) {
		return d.TokenID, d.TokenID, TokenRevoked{d.TokenID}
	}),

	public(LocationsTopic, "A location can be sent to.", func(m event.Metadata, d location.Registered) (string, string, Location) {
		return locationKey(m, d.UserID), d.ExternalID, Location{d.ExternalID, d.UserID, d.Name, d.Timezone, tags(d.Tags), channel(d.Channel)}
	}),
	public(LocationsTopic, "A location has these details now: all of them, changed or not.", func(m event.Metadata, d location.Changed) (string, string, Location) {
		return locationKey(m, d.UserID), d.ExternalID, Location{d.ExternalID, d.UserID, d.Name, d.Timezone, tags(d.Tags), channel(d.Channel)}
	}),
	public(LocationsTopic, "A location cannot be sent to any more; its devices are revoked with it.", func(m event.Metadata, d location.Removed) (string, string, LocationRemoved) {
		return locationKey(m, d.UserID), d.ExternalID, LocationRemoved{d.ExternalID, d.UserID}
	}),
	public(LocationsTopic, "A player may sign in for a location.", func(m event.Metadata, d location.DeviceEnrolled) (string, string, DeviceEnrolled) {
		return locationKey(m, d.UserID), d.ExternalID, DeviceEnrolled{Device{d.ExternalID, d.UserID, d.DeviceID}, d.Name}
	}),
	public(LocationsTopic, "A player may not sign in any more.", func(m event.Metadata, d location.DeviceRevoked) (string, string, Device) {
		return locationKey(m, d.UserID), d.ExternalID, Device{d.ExternalID, d.UserID, d.DeviceID}
	}),
	public(LocationsTopic, "A player signs in with another token from now on.", func(m event.Metadata, d location.DeviceTokenRotated) (string, string, Device) {
		return locationKey(m, d.UserID), d.ExternalID, Device{d.ExternalID, d.UserID, d.DeviceID}
	}),

	public(UsageTopic, "A request to the API was answered.", func(m event.Metadata, d usage.ApiRequestServed) (string, string, RequestServed) {
		return m.CompanyID + "-" + string(m.Environment), d.RequestID, RequestServed{
			d.RequestID, d.Timestamp, d.Method, d.Endpoint, d.Status, d.DurationMs, d.ExternalID, d.TokenID, d.ErrorCode,
		}
	}),
}

// internal are the events that are not public, and why.
var internal = map[string]string{
	audio.DeletionStarted{}.EventType():   "a deletion in the making; what comes of it is AudioDeleted or nothing",
	audio.DeletionAbandoned{}.EventType(): "a deletion in the making",
	company.Registered{}.EventType():      "between the company and the operator",
	company.TokenRotated{}.EventType():    "between the company and the operator",
	company.PlanChanged{}.EventType():     "between the company and the operator",
	company.Suspended{}.EventType():       "between the company and the operator",
	location.Mapped{}.EventType():         "what is registered or issued for the external ID has the number, too",
	request.Claimed{}.EventType():         "how repeats of a request are told",
	request.Completed{}.EventType():       "how repeats of a request are told",
	send.BroadcastSealed{}.EventType():    "how a large send is stored; its other events go out when it is closed",
	send.BroadcastAbandoned{}.EventType(): "how a large send is stored; nothing of one that is abandoned goes out",
}
