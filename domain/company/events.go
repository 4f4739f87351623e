// Package company is the aggregate of a partner: its name, plan, token prefix and the company token that its own tokens are asked
// for with. Stream: `company-{companyId}`.
package company

// Registered says that an operator created a partner.
type Registered struct {
	CompanyID string `json:"companyId"`
	Name      string `json:"name"`
	Plan      string `json:"plan"`
	Prefix    string `json:"prefix"`
	// TokenHash is the keyed hash of the company token; the token itself is nowhere.
	TokenHash string `json:"tokenHash"`
}

// TokenRotated says that a new company token replaced the old one.
type TokenRotated struct {
	CompanyID string `json:"companyId"`
	TokenHash string `json:"tokenHash"`
}

// PlanChanged says that the company is on another plan.
type PlanChanged struct {
	CompanyID string `json:"companyId"`
	Plan      string `json:"plan"`
}

// Suspended says that none of the company's tokens is accepted any more.
type Suspended struct {
	CompanyID string `json:"companyId"`
	// Reason is the operator's, if one was given.
	Reason string `json:"reason,omitempty"`
}

// EventType implements event.Payload.
func (Registered) EventType() string { return "CompanyRegistered" }

// EventType implements event.Payload.
func (TokenRotated) EventType() string { return "CompanyTokenRotated" }

// EventType implements event.Payload.
func (PlanChanged) EventType() string { return "CompanyPlanChanged" }

// EventType implements event.Payload.
func (Suspended) EventType() string { return "CompanySuspended" }
