// Package location is the aggregate of a place that audio can be sent to, its devices, and the mapping of a partner's external ID
// to a user ID. Streams: `location-{companyId}-{userId}` (live) and `location-{companyId}-{userId}-test` (sandbox) for locations,
// `user-{companyId}-{userId}` for the mapping.
package location

// Mapped says that an external ID of a company has this user ID, for good. It is the only event of its `user-…` stream: that
// stream's "expected: no stream" is what makes a user ID unique.
type Mapped struct {
	CompanyID  string `json:"companyId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
}

// Channel is how a location gets its audio.
type Channel struct {
	// Type is `player` or `http`.
	Type string `json:"type"`
	// URL is the endpoint of an `http` channel.
	URL string `json:"url,omitempty"`
	// Secret is what the endpoint's messages are signed with, sealed under the server's secret key: it can be read by the server alone, and stands in no answer
	// and on no topic.
	Secret string `json:"secret,omitempty"`
}

// Registered says that a location can be sent to.
type Registered struct {
	CompanyID  string   `json:"companyId"`
	ExternalID string   `json:"externalId"`
	UserID     int64    `json:"userId"`
	Name       string   `json:"name"`
	Timezone   string   `json:"timezone"`
	Tags       []string `json:"tags"`
	Channel    Channel  `json:"channel"`
}

// Changed says that a location has these details now (all of them, changed or not).
type Changed struct {
	CompanyID  string   `json:"companyId"`
	ExternalID string   `json:"externalId"`
	UserID     int64    `json:"userId"`
	Name       string   `json:"name"`
	Timezone   string   `json:"timezone"`
	Tags       []string `json:"tags"`
	Channel    Channel  `json:"channel"`
}

// Removed says that the location cannot be sent to any more; its devices are revoked with it.
type Removed struct {
	CompanyID  string `json:"companyId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
}

// DeviceEnrolled says that a player may sign in for the location.
type DeviceEnrolled struct {
	CompanyID  string `json:"companyId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
	DeviceID   string `json:"deviceId"`
	Name       string `json:"name,omitempty"`
	// Hash is the keyed hash of the device token; the token itself is nowhere.
	Hash string `json:"hash"`
}

// DeviceRevoked says that the player may not sign in any more.
type DeviceRevoked struct {
	CompanyID  string `json:"companyId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
	DeviceID   string `json:"deviceId"`
}

// DeviceTokenRotated says that the player signs in with another token from now on, and with the one before no more.
type DeviceTokenRotated struct {
	CompanyID  string `json:"companyId"`
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
	DeviceID   string `json:"deviceId"`
	// Hash is the keyed hash of the new device token; the token itself is nowhere.
	Hash string `json:"hash"`
}

// EventType implements event.Payload.
func (Mapped) EventType() string { return "ExternalIdMapped" }

// EventType implements event.Payload.
func (Registered) EventType() string { return "LocationRegistered" }

// EventType implements event.Payload.
func (Changed) EventType() string { return "LocationChanged" }

// EventType implements event.Payload.
func (Removed) EventType() string { return "LocationRemoved" }

// EventType implements event.Payload.
func (DeviceEnrolled) EventType() string { return "DeviceEnrolled" }

// EventType implements event.Payload.
func (DeviceRevoked) EventType() string { return "DeviceRevoked" }

// EventType implements event.Payload.
func (DeviceTokenRotated) EventType() string { return "DeviceTokenRotated" }
