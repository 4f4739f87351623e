// Package token is the aggregate of an API token. Stream: `token-{tokenId}`.
package token

import (
	"time"

	"github.com/musique/musique/domain/event"
)

// Issued says that a token was made for an external ID.
type Issued struct {
	TokenID     string            `json:"tokenId"`
	CompanyID   string            `json:"companyId"`
	Environment event.Environment `json:"environment"`
	ExternalID  string            `json:"externalId"`
	UserID      int64             `json:"userId"`
	Name        string            `json:"name,omitempty"`
	Permissions []string          `json:"permissions"`
	// Hash is the keyed hash of the token; the token itself is nowhere.
	Hash      string     `json:"hash"`
	ExpiresAt *time.Time `json:"expiresAt"`
}

// Revoked says that the token is not accepted any more.
type Revoked struct {
	TokenID string `json:"tokenId"`
}

// EventType implements event.Payload.
func (Issued) EventType() string { return "TokenIssued" }

// EventType implements event.Payload.
func (Revoked) EventType() string { return "TokenRevoked" }
