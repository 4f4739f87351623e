package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
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

// Handle registers the company.
func (h RegisterCompanyHandler) Handle(ctx context.Context, cmd RegisterCompany) (CompanyRegistered, error) {
	identity, err := h.identify(cmd.Caller, "register company", cmd)
	if err != nil {
		return CompanyRegistered{}, err
	}
	id, secret := identity.id("co_"), "comp_"+h.secret(identity, "company token")
	registered, err := company.Register(id, cmd.Name, cmd.Plan, cmd.Prefix, h.Keys.HashToken(secret), h.Plans)
	if err != nil {
		return CompanyRegistered{}, err
	}
	meta := h.metadata(cmd.Caller)
	meta.CompanyID = id
	position, history, err := h.create(ctx, identity, company.Stream(id), meta, registered)
	if err != nil {
		return CompanyRegistered{}, err
	}
	h.settle(ctx, position, Tokens)
	return CompanyRegistered{CompanyID: id, CompanyToken: secret, Name: registered.Name, Plan: registered.Plan, Prefix: registered.Prefix, Replayed: history != nil}, nil
}
