package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
)

// RotateCompanyToken gives a company another company token; the old one is refused from then on.
type RotateCompanyToken struct {
	Caller    Caller
	CompanyID string
}

// RotateCompanyTokenHandler carries out RotateCompanyToken.
type RotateCompanyTokenHandler struct{ *tools }

// Handle rotates the token and gives the new one, which is shown this once.
func (h RotateCompanyTokenHandler) Handle(ctx context.Context, cmd RotateCompanyToken) (companyToken string, err error) {
	identity, err := h.identify(Caller{}, "", nil) // a rotation repeated is another rotation
	if err != nil {
		return "", err
	}
	secret := "comp_" + h.secret(identity, "company token")
	err = h.changeCompany(ctx, cmd.Caller, cmd.CompanyID, func(c company.Company) ([]event.Payload, error) {
		rotated, err := c.RotateToken(h.Keys.HashToken(secret))
		return []event.Payload{rotated}, err
	})
	return secret, err
}
