package commands

import (
	"context"

	"github.com/musique/musique/infra/telemetry"
)

// TestToken asks who a token belongs to, which the caller knows; it changes nothing.
type TestToken struct {
	Caller  Caller `json:"-"`
	TokenID string
}

// TestTokenHandler carries out TestToken.
type TestTokenHandler struct{ *tools }

// Handle takes the request's Idempotency-Key, if it has one, and tells whether the same token asked with it before.
func (h TestTokenHandler) Handle(ctx context.Context, cmd TestToken) (replayed bool, err error) {
	ctx, span := telemetry.Start(ctx, "command TestToken")
	defer span.End()
	identity, err := h.identify(cmd.Caller, "test token", cmd)
	if err != nil {
		return false, err
	}
	return h.claim(ctx, cmd.Caller, identity, "test token")
}
