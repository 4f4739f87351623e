package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/infra/telemetry"
)

// RegisterCompany makes a partner. Only an operator does.
type RegisterCompany struct {
	Caller Caller `json:"-"`
	Name   string
	Plan   string
	Prefix string
}

// CompanyRegistered is the new partner. The token is shown this once.
type CompanyRegistered struct {
	CompanyID    string
	CompanyToken string
	Name         string
	Plan         string
	Prefix       string
	Replayed     bool
}

// RegisterCompanyHandler carries out RegisterCompany.
type RegisterCompanyHandler struct{ *tools }

// Handle registers the company. Its ID is random also where the request has an Idempotency-Key: operators of several installations may use the same keys,
// and the bytes of companies lie by their IDs in storage that installations may share.
func (h RegisterCompanyHandler) Handle(ctx context.Context, cmd RegisterCompany) (CompanyRegistered, error) {
	ctx, span := telemetry.Start(ctx, "command RegisterCompany")
	defer span.End()
	identity, err := h.identify(cmd.Caller, "register company", cmd)
	if err != nil {
		return CompanyRegistered{}, err
	}
	id := randomIdentity().id("co_")
	if identity.keyed() {
		if id, err = h.claimFor(ctx, cmd.Caller, identity, "register company", id); err != nil {
			return CompanyRegistered{}, err
		}
	}
	secrets := h.secrets(identity, "company token", "comp_")
	registered, err := company.Register(id, cmd.Name, cmd.Plan, cmd.Prefix, h.Keys.HashToken(secrets[0]), h.Plans)
	if err != nil {
		return CompanyRegistered{}, err
	}
	meta := h.metadata(cmd.Caller)
	meta.CompanyID = id
	position, history, err := h.create(ctx, identity, company.Stream(id), meta, registered)
	if err != nil {
		return CompanyRegistered{}, err
	}
	secret := secrets[0]
	if history != nil {
		made, err := company.Load(history[:1])
		if err != nil {
			return CompanyRegistered{}, err
		}
		if secret, err = h.shownAgain(secrets, made.TokenHash, "rotate the token of the company, "+id); err != nil {
			return CompanyRegistered{}, err
		}
	}
	h.settle(ctx, position, Tokens)
	return CompanyRegistered{CompanyID: id, CompanyToken: secret, Name: registered.Name, Plan: registered.Plan, Prefix: registered.Prefix, Replayed: history != nil}, nil
}
