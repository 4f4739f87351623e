// Package usage holds what is recorded of each API request. Stream: `usage-{companyId}-{environment}-{day}`; it has no aggregate,
// because nothing is ever decided from it.
package usage

import (
	"time"

	"github.com/musique/musique/domain/event"
)

// ApiRequestServed says that a partner's request was answered.
type ApiRequestServed struct {
	RequestID string    `json:"requestId"`
	Timestamp time.Time `json:"timestamp"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	// Endpoint is the route's pattern, the same for both path families.
	Endpoint   string `json:"endpoint"`
	Status     int    `json:"status"`
	DurationMs int64  `json:"durationMs"`
	ExternalID string `json:"externalId"`
	TokenID    string `json:"tokenId"`
	IP         string `json:"ip"`
	UserAgent  string `json:"userAgent"`
	ErrorCode  string `json:"errorCode,omitempty"`
}

// EventType implements event.Payload.
func (ApiRequestServed) EventType() string { return "ApiRequestServed" }

// StreamPrefix begins the names of all streams of usage, and of no other.
const StreamPrefix = "usage-"

// Stream names the stream that a company's requests of a day (UTC) are noted in.
func Stream(companyID string, env event.Environment, at time.Time) string {
	return StreamPrefix + companyID + "-" + string(env) + "-" + at.UTC().Format(time.DateOnly)
}
