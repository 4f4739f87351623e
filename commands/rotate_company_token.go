package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

// RotateCompanyToken gives a company another company token; the old one is refused from then on.
type RotateCompanyToken struct {
	Caller    Caller
	CompanyID string
}

// CompanyTokenRotated is the new company token, which is shown this once.
type CompanyTokenRotated struct {
	CompanyToken string
	Replayed     bool
}

// RotateCompanyTokenHandler carries out RotateCompanyToken.
type RotateCompanyTokenHandler struct{ *tools }

// Handle rotates the token, and answers when the old one is accepted nowhere any more. A rotation that is repeated without an Idempotency-Key is another one.
func (h RotateCompanyTokenHandler) Handle(ctx context.Context, cmd RotateCompanyToken) (CompanyTokenRotated, error) {
	ctx, span := telemetry.Start(ctx, "command RotateCompanyToken")
	defer span.End()
	of := cmd.Caller
	of.CompanyID = cmd.CompanyID
	identity, err := h.identify(of, "rotate company token", nil)
	if err != nil {
		return CompanyTokenRotated{}, err
	}
	secrets := h.secrets(identity, "company token", "comp_")
	answer := CompanyTokenRotated{CompanyToken: secrets[0]}
	position, err := h.change(ctx, company.Stream(cmd.CompanyID), identity.mark(h.metadata(of)), func(history []event.Recorded) ([]event.Payload, error) {
		if before := identity.done(history); before != nil {
			then, err := company.Load(before)
			if err != nil {
				return nil, err
			}
			answer.Replayed = true
			answer.CompanyToken, err = h.shownAgain(secrets, then.TokenHash, "rotate it again with a new key")
			return nil, err
		}
		c, err := company.Load(history)
		if err != nil {
			return nil, err
		}
		rotated, err := c.RotateToken(h.Keys.HashToken(secrets[0]))
		return []event.Payload{rotated}, err
	})
	if err := h.mustHold(ctx, position, err, Tokens); err != nil {
		return CompanyTokenRotated{}, err
	}
	return answer, nil
}
