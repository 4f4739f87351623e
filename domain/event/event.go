// Package event holds the envelope that every domain event travels in: who it concerns, who caused it, when, and where it
// stands in the store. The payloads themselves belong to the aggregates' packages.
//
// # Versions
//
// An event that was written is never written again, so what it looks like is for good. A field that may be absent can be added to a payload's struct.
// Whatever else changes is the next version, a struct of its own that is stored under a name of its own: `AudioUploaded.v2` after `AudioUploaded`
// (ParseType takes such a name apart). From then on only the newest is written, and an older one is read as the newest: infra/eventstore makes every
// Recorded there is, for the aggregates as for the subscribers, so that is where an older one is turned into the newest, and a subscription to the newest
// name asks the store for the older ones too. Neither is there while every type has one version.
//
// testdata has an event of every type and version as it is stored. A test reads each, and fails for a payload that has no file and for a file that no
// payload reads; its comment says how to add one.
package event

import (
	"regexp"
	"strconv"
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

var typePattern = regexp.MustCompile(`^([A-Z][A-Za-z0-9]*)(?:\.v([2-9]|[1-9][0-9]{1,3}))?$`)

// ParseType takes the name that a payload is stored under apart: `AudioUploaded` is version 1 of itself, `AudioUploaded.v2` is its version 2. It is not ok
// for anything that EventType must not give.
func ParseType(eventType string) (name string, version int, ok bool) {
	parts := typePattern.FindStringSubmatch(eventType)
	if parts == nil {
		return "", 0, false
	}
	if parts[2] == "" {
		return parts[1], 1, true
	}
	version, err := strconv.Atoi(parts[2])
	return parts[1], version, err == nil
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
