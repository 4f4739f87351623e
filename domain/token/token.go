package token

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

// Permissions are all that a token can be allowed, in the order that they are shown in.
var Permissions = []string{
	"audio.read", "audio.write", "audio.delete", "audio.send", "locations.read", "locations.write",
	"logs.read", "audit.read", "webhooks.manage", "tokens.manage",
}

const (
	maxNameRunes = 200
	// MaxLifetime bounds the expiry that can be asked for.
	MaxLifetime = 10 * 365 * 24 * time.Hour
)

// Token is the state of an API token.
type Token struct {
	Issued
	Revoked bool
}

// Stream names the stream of a token.
func Stream(tokenID string) string { return "token-" + tokenID }

// Load folds a history into the state; the zero Token is one that does not exist.
func Load(history []event.Recorded) (Token, error) {
	var t Token
	for _, e := range history {
		switch e.Type {
		case Issued{}.EventType():
			if err := json.Unmarshal(e.Data, &t.Issued); err != nil {
				return Token{}, fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
			}
		case Revoked{}.EventType():
			t.Revoked = true
		}
	}
	return t, nil
}

// Exists reports whether the token was issued.
func (t Token) Exists() bool { return t.TokenID != "" }

// Terms are what a token is asked for with.
type Terms struct {
	Name        string
	Permissions []string
	// ExpiresIn is nil for a token that never expires.
	ExpiresIn *time.Duration
}

// Check notes what is wrong with the terms.
func (t Terms) Check(fields *fault.Fields) {
	if utf8.RuneCountInString(t.Name) > maxNameRunes {
		fields.Add("name", fault.OutOfRange, "The name has at most %d characters.", maxNameRunes)
	}
	if t.ExpiresIn != nil && (*t.ExpiresIn < time.Second || *t.ExpiresIn > MaxLifetime) {
		fields.Add("expiresIn", fault.OutOfRange, "expiresIn is between 1 and %d seconds.", int64(MaxLifetime.Seconds()))
	}
	if t.Permissions != nil && len(t.Permissions) == 0 {
		fields.Add("permissions", fault.OutOfRange, "Ask for one permission at least, or leave the field out for all.")
	}
	for i, p := range t.Permissions {
		if !slices.Contains(Permissions, p) {
			fields.Add(fmt.Sprintf("permissions[%d]", i), fault.InvalidFormat, "There is no permission %q; choose from %s.", p, strings.Join(Permissions, ", "))
		}
	}
}

// Granted gives the permissions that a token with these terms has: those asked for, each once and in the usual order, or all.
func (t Terms) Granted() []string {
	if t.Permissions == nil {
		return slices.Clone(Permissions)
	}
	var granted []string
	for _, p := range Permissions {
		if slices.Contains(t.Permissions, p) {
			granted = append(granted, p)
		}
	}
	return granted
}

// Revoke ends the token. One that is revoked already, or never was, is an invalid token.
func (t Token) Revoke() (Revoked, error) {
	if !t.Exists() || t.Revoked {
		return Revoked{}, fault.New(fault.InvalidToken, "The token is unknown or revoked already, and nothing is left to do.")
	}
	return Revoked{TokenID: t.TokenID}, nil
}
