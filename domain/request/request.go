// Package request holds the claim on an Idempotency-Key, for commands whose stream does not follow from the key. Stream: `request-{hash}`.
package request

// Claimed says that a request with this key was begun. Its fingerprint stands in the event's metadata; being the first event of its stream makes
// it the only one.
type Claimed struct {
	Operation string `json:"operation"`
	// ID names what the request makes, where that does not follow from the key.
	ID string `json:"id,omitempty"`
}

// Completed says that all that the request asks for was done, as far as it could be: a repeat has nothing to carry on.
type Completed struct{}

// EventType implements event.Payload.
func (Claimed) EventType() string { return "RequestClaimed" }

// EventType implements event.Payload.
func (Completed) EventType() string { return "RequestCompleted" }

// Stream names the stream of a claim.
func Stream(hash string) string { return "request-" + hash }
