package commands

import (
	"context"
	"errors"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/telemetry"
)

// RevokeToken ends a token of the caller's company and environment, named by its ID or by the token itself.
type RevokeToken struct {
	Caller  Caller
	TokenID string
	Token   string
}

// ErrUnknownToken is the InvalidToken for a token that is none of the caller's company and environment: one that was guessed, maybe. A token that was
// revoked already is no guess.
var ErrUnknownToken = fault.New(fault.InvalidToken, "The token is unknown or revoked already, and nothing is left to do.")

// RevokeTokenHandler carries out RevokeToken.
type RevokeTokenHandler struct{ *tools }

// Handle revokes the token, and answers when no process accepts it any more.
func (h RevokeTokenHandler) Handle(ctx context.Context, cmd RevokeToken) (tokenID string, err error) {
	ctx, span := telemetry.Start(ctx, "command RevokeToken")
	defer span.End()
	id := cmd.TokenID
	if id == "" {
		var found bool
		if id, found, err = h.Reads.TokenByHash(ctx, cmd.Caller.CompanyID, h.Keys.Hashes(cmd.Token)); err != nil {
			return "", err
		}
		if !found {
			return "", ErrUnknownToken
		}
	}
	position, err := h.change(ctx, token.Stream(id), h.metadata(cmd.Caller), func(history []event.Recorded) ([]event.Payload, error) {
		t, err := token.Load(history)
		if err != nil {
			return nil, err
		}
		if t.CompanyID != cmd.Caller.CompanyID || t.Environment != cmd.Caller.Environment {
			return nil, ErrUnknownToken // another company's token is, for this one, as if it had never been; the sandbox's is for live, and live's for the sandbox
		}
		revoked, err := t.Revoke()
		return []event.Payload{revoked}, err
	})
	if errors.Is(err, ErrUnknownToken) {
		return "", err
	}
	return id, h.mustHold(ctx, position, err, Tokens)
}
