package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

// SuspendCompany ends the acceptance of all tokens of a company.
type SuspendCompany struct {
	Caller    Caller
	CompanyID string
	// Reason goes into the history; it may be empty.
	Reason string
}

// SuspendCompanyHandler carries out SuspendCompany.
type SuspendCompanyHandler struct{ *tools }

// Handle suspends the company; one that is suspended already stays so.
func (h SuspendCompanyHandler) Handle(ctx context.Context, cmd SuspendCompany) error {
	ctx, span := telemetry.Start(ctx, "command SuspendCompany")
	defer span.End()
	return h.changeCompany(ctx, cmd.Caller, cmd.CompanyID, func(c company.Company) ([]event.Payload, error) { return c.Suspend(cmd.Reason) })
}
