package commands

import (
	"context"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/telemetry"
)

// ChangePlan moves a company to another plan.
type ChangePlan struct {
	Caller    Caller
	CompanyID string
	Plan      string
}

// ChangePlanHandler carries out ChangePlan.
type ChangePlanHandler struct{ *tools }

// Handle changes the plan; the plan that the company has already changes nothing.
func (h ChangePlanHandler) Handle(ctx context.Context, cmd ChangePlan) error {
	ctx, span := telemetry.Start(ctx, "command ChangePlan")
	defer span.End()
	return h.changeCompany(ctx, cmd.Caller, cmd.CompanyID, func(c company.Company) ([]event.Payload, error) { return c.ChangePlan(cmd.Plan, h.Plans) })
}
