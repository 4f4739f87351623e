// Package event holds the envelope that every domain event travels in: who it concerns, who caused it, when, and where it
// stands in the store. The payloads themselves belong to the aggregates' packages.
package event

import (
	"time"

	"github.com/google/uuid"
)

// Environment tells live data from the sandbox. The two share nothing.
type Environment string

// The two environments of a company.
const (
	Live Environment = "live"
	Test Environment = "test"
)

// ParseEnvironment reads an environment by its name or its other name (`prod`, `dev`); ok is false for anything else.
func ParseEnvironment(name string) (env Environment, ok bool) {
	switch name {
	case "live", "prod":
		return Live, true
	case "test", "dev":
		return Test, true
	}
	return "", false
}

// Payload is the data of one event: one Go struct per event type and version, stored as JSON.
type Payload interface {
	// EventType is the name and version that the event is stored under: `AudioUploaded`, then `AudioUploaded.v2`.
	EventType() string
}

// Metadata goes beside each payload. It never holds a secret or personal data.
type Metadata struct {
	CompanyID   string      `json:"company,omitempty"`
	Environment Environment `json:"environment,omitempty"`
	// Actor is the ID of the token, device, operator or worker that caused the event: `tok_…`, `dvc_…`, `operator`, `worker:scheduler`.
	Actor         string `json:"actor,omitempty"`
	RequestID     string `json:"requestId,omitempty"`
	CorrelationID string `json:"$correlationId,omitempty"`
	CausationID   string `json:"$causationId,omitempty"`
	// TraceParent is the W3C Trace Context `traceparent` of the request.
	TraceParent string `json:"traceparent,omitempty"`
	// Fingerprint is the SHA-256 of the request's meaning, on the first event of what a request with an Idempotency-Key created.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Idempotency is the keyed hash of the request's Idempotency-Key.
	Idempotency string    `json:"idempotency,omitempty"`
	Time        time.Time `json:"time"`
}

// Proposed is an event that a command wants to append.
type Proposed struct {
	ID       uuid.UUID
	Payload  Payload
	Metadata Metadata
}

// Recorded is an event as the store gives it back. Data is decoded by the package of the aggregate that owns the type.
type Recorded struct {
	ID       uuid.UUID
	Stream   string
	Revision uint64
	Position Position
	Type     string
	Data     []byte
	Metadata Metadata
}

// Position is a place in the store's `$all` order.
type Position struct {
	Commit  uint64
	Prepare uint64
}

// Before reports whether p stands before q.
func (p Position) Before(q Position) bool {
	if p.Commit != q.Commit {
		return p.Commit < q.Commit
	}
	return p.Prepare < q.Prepare
}

// IsZero reports whether p is the start of the store.
func (p Position) IsZero() bool { return p == Position{} }
