package company

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

const (
	// maxNameRunes bounds a company's name.
	maxNameRunes = 200
	// maxReasonRunes bounds the reason of a suspension.
	maxReasonRunes = 500
	// DefaultPrefix is what the API tokens of a company begin with unless it has its own.
	DefaultPrefix = "msk"
)

var prefixPattern = regexp.MustCompile(`^[a-z][a-z0-9]{1,9}$`)

// reservedPrefixes begin tokens of other kinds.
var reservedPrefixes = map[string]bool{"comp": true, "dev": true}

// Company is the state of a partner.
type Company struct {
	ID        string
	Name      string
	Plan      string
	Prefix    string
	TokenHash string
	Suspended bool
}

// Stream names the stream of a company.
func Stream(companyID string) string { return "company-" + companyID }

// Load folds a history into the state; the zero Company is one that does not exist.
func Load(history []event.Recorded) (Company, error) {
	var c Company
	for _, e := range history {
		if err := c.apply(e); err != nil {
			return Company{}, fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
		}
	}
	return c, nil
}

func (c *Company) apply(e event.Recorded) error {
	switch e.Type {
	case Registered{}.EventType():
		var r Registered
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return err
		}
		*c = Company{ID: r.CompanyID, Name: r.Name, Plan: r.Plan, Prefix: r.Prefix, TokenHash: r.TokenHash}
	case TokenRotated{}.EventType():
		var r TokenRotated
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return err
		}
		c.TokenHash = r.TokenHash
	case PlanChanged{}.EventType():
		var r PlanChanged
		if err := json.Unmarshal(e.Data, &r); err != nil {
			return err
		}
		c.Plan = r.Plan
	case Suspended{}.EventType():
		c.Suspended = true
	}
	return nil
}

// Exists reports whether the company was registered.
func (c Company) Exists() bool { return c.ID != "" }

// Register makes a company. Name, plan and prefix are checked here.
func Register(id, name, plan, prefix, tokenHash string, plans Plans) (Registered, error) {
	var fields fault.Fields
	name = strings.TrimSpace(name)
	switch n := utf8.RuneCountInString(name); {
	case n == 0:
		fields.Add("name", fault.MissingField, "Give the company's name.")
	case n > maxNameRunes:
		fields.Add("name", fault.OutOfRange, "The name has at most %d characters.", maxNameRunes)
	}
	if plan == "" {
		plan = Standard
	}
	if _, ok := plans[plan]; !ok {
		fields.Add("plan", fault.InvalidFormat, "There is no plan %q; choose one of %s.", plan, strings.Join(plans.Names(), ", "))
	}
	if prefix == "" {
		prefix = DefaultPrefix
	}
	if !prefixPattern.MatchString(prefix) || reservedPrefixes[prefix] {
		fields.Add("prefix", fault.OutOfRange, "The prefix is 2 to 10 lower-case letters and digits, beginning with a letter, and not 'comp' or 'dev'.")
	}
	if err := fields.Err(); err != nil {
		return Registered{}, err
	}
	return Registered{CompanyID: id, Name: name, Plan: plan, Prefix: prefix, TokenHash: tokenHash}, nil
}

// RotateToken replaces the company token.
func (c Company) RotateToken(tokenHash string) (TokenRotated, error) {
	if !c.Exists() {
		return TokenRotated{}, notFound()
	}
	return TokenRotated{CompanyID: c.ID, TokenHash: tokenHash}, nil
}

// ChangePlan moves the company to another plan; nil is that it is there already.
func (c Company) ChangePlan(plan string, plans Plans) ([]event.Payload, error) {
	if !c.Exists() {
		return nil, notFound()
	}
	if _, ok := plans[plan]; !ok {
		return nil, fault.ForField("plan", fault.InvalidFormat, "There is no plan %q; choose one of %s.", plan, strings.Join(plans.Names(), ", "))
	}
	if plan == c.Plan {
		return nil, nil
	}
	return []event.Payload{PlanChanged{CompanyID: c.ID, Plan: plan}}, nil
}

// Suspend ends the acceptance of the company's tokens; nil is that it had ended already. The reason, which may be empty, is for the history.
func (c Company) Suspend(reason string) ([]event.Payload, error) {
	if !c.Exists() {
		return nil, notFound()
	}
	if utf8.RuneCountInString(reason) > maxReasonRunes {
		return nil, fault.ForField("reason", fault.OutOfRange, "The reason has at most %d characters.", maxReasonRunes)
	}
	if c.Suspended {
		return nil, nil
	}
	return []event.Payload{Suspended{CompanyID: c.ID, Reason: reason}}, nil
}

func notFound() error {
	return fault.New(fault.NotFound, "There is no such company; find its ID in the list of companies.")
}
