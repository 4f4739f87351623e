package company_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
)

var (
	plans      = company.DefaultPlans()
	registered = company.Registered{CompanyID: "co_one", Name: "Radio One", Plan: "standard", Prefix: "msk", TokenHash: "hash"}
	suspended  = company.Suspended{CompanyID: "co_one"}
	onPlus     = company.PlanChanged{CompanyID: "co_one", Plan: "plus"}
)

func load(t require.TestingT, given ...event.Payload) company.Company {
	c, err := company.Load(eventtest.History(given...))
	require.NoError(t, err)
	return c
}

func TestRegister(t *testing.T) {
	t.Parallel()
	registered, err := company.Register("co_one", "  Radio One ", "plus", "radio1", "hash", plans)
	require.NoError(t, err)
	require.Equal(t, company.Registered{CompanyID: "co_one", Name: "Radio One", Plan: "plus", Prefix: "radio1", TokenHash: "hash"}, registered)
	registered, err = company.Register("co_one", "Radio One", "", "", "hash", plans)
	require.NoError(t, err)
	require.Equal(t, company.Registered{CompanyID: "co_one", Name: "Radio One", Plan: "standard", Prefix: "msk", TokenHash: "hash"}, registered)
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		name, plan, prefix string
		want               fault.Code
		param              string
	}{
		"no name":                     {"", "", "", fault.MissingField, "name"},
		"a name of spaces":            {" \t ", "", "", fault.MissingField, "name"},
		"a long name":                 {strings.Repeat("é", 201), "", "", fault.OutOfRange, "name"},
		"a plan that there is not":    {"Radio", "gold", "", fault.InvalidFormat, "plan"},
		"a prefix of one letter":      {"Radio", "", "m", fault.OutOfRange, "prefix"},
		"a prefix of 11":              {"Radio", "", "abcdefghijk", fault.OutOfRange, "prefix"},
		"a prefix with an underline":  {"Radio", "", "m_k", fault.OutOfRange, "prefix"},
		"a prefix in capitals":        {"Radio", "", "MSK", fault.OutOfRange, "prefix"},
		"a prefix with a digit first": {"Radio", "", "1msk", fault.OutOfRange, "prefix"},
		"a prefix and a line break":   {"Radio", "", "msk\n", fault.OutOfRange, "prefix"},
		"the company tokens' prefix":  {"Radio", "", "comp", fault.OutOfRange, "prefix"},
		"the device tokens' prefix":   {"Radio", "", "dev", fault.OutOfRange, "prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := company.Register("co_one", c.name, c.plan, c.prefix, "hash", plans)
			eventtest.Refused(t, err, c.want, c.param)
		})
	}
}

func TestRegisterTellsEveryFailingField(t *testing.T) {
	t.Parallel()
	_, err := company.Register("co_one", "", "gold", "M", "hash", plans)
	var refused *fault.Error
	require.ErrorAs(t, err, &refused)
	eventtest.Failing(t, refused.Fields, eventtest.Field{Param: "name", Code: fault.MissingField}, eventtest.Field{Param: "plan", Code: fault.InvalidFormat},
		eventtest.Field{Param: "prefix", Code: fault.OutOfRange})
}

func TestANameOf200Characters(t *testing.T) {
	t.Parallel()
	registered, err := company.Register("co_one", strings.Repeat("é", 200), "", "", "hash", plans)
	require.NoError(t, err)
	require.Len(t, []rune(registered.Name), 200)
}

func TestRotateToken(t *testing.T) {
	t.Parallel()
	rotated, err := load(t, registered).RotateToken("another hash")
	require.NoError(t, err)
	require.Equal(t, company.TokenRotated{CompanyID: "co_one", TokenHash: "another hash"}, rotated)
	require.Equal(t, "another hash", load(t, registered, rotated).TokenHash)

	_, err = load(t).RotateToken("another hash")
	eventtest.Refused(t, err, fault.NotFound, "")
}

func TestChangePlan(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given []event.Payload
		plan  string
		want  []event.Payload
		code  fault.Code
		param string
	}{
		"to another":                  {given: []event.Payload{registered}, plan: "plus", want: []event.Payload{onPlus}},
		"back again":                  {given: []event.Payload{registered, onPlus}, plan: "standard", want: []event.Payload{company.PlanChanged{CompanyID: "co_one", Plan: "standard"}}},
		"of a suspended company":      {given: []event.Payload{registered, suspended}, plan: "plus", want: []event.Payload{onPlus}},
		"to where it is":              {given: []event.Payload{registered, onPlus}, plan: "plus"},
		"to one that there is not":    {given: []event.Payload{registered}, plan: "gold", code: fault.InvalidFormat, param: "plan"},
		"of a company that is not so": {plan: "plus", code: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, c.given...).ChangePlan(c.plan, plans)
			require.Equal(t, c.want, got)
			if c.code == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.code, c.param)
		})
	}
}

func TestSuspend(t *testing.T) {
	t.Parallel()
	got, err := load(t, registered).Suspend("")
	require.NoError(t, err)
	require.Equal(t, []event.Payload{suspended}, got)

	got, err = load(t, registered).Suspend("three invoices are unpaid")
	require.NoError(t, err)
	require.Equal(t, []event.Payload{company.Suspended{CompanyID: suspended.CompanyID, Reason: "three invoices are unpaid"}}, got)

	_, err = load(t, registered).Suspend(strings.Repeat("ü", 501))
	eventtest.Refused(t, err, fault.OutOfRange, "reason")

	got, err = load(t, registered, suspended).Suspend("")
	require.NoError(t, err)
	require.Empty(t, got, "it is suspended already")

	_, err = load(t).Suspend("")
	eventtest.Refused(t, err, fault.NotFound, "")
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.False(t, load(t).Exists())
	require.Equal(t, company.Company{ID: "co_one", Name: "Radio One", Plan: "plus", Prefix: "msk", TokenHash: "another hash", Suspended: true},
		load(t, registered, onPlus, company.TokenRotated{CompanyID: "co_one", TokenHash: "another hash"}, suspended))
	require.Equal(t, "company-co_one", company.Stream("co_one"))
}

func TestLoadNamesTheEventThatDoesNotRead(t *testing.T) {
	t.Parallel()
	for _, p := range []event.Payload{registered, company.TokenRotated{}, onPlus} {
		history := eventtest.History(p)
		history[0].Data = []byte(`{"companyId": 5}`)
		_, err := company.Load(history)
		require.ErrorContains(t, err, p.EventType()+" of test")
	}
}

// Whatever happened before, what was decided holds, and deciding it again changes nothing.
func TestDecidingAgainChangesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		history := []event.Payload{registered}
		for range rapid.IntRange(1, 20).Draw(t, "decisions") {
			decide := func(c company.Company) ([]event.Payload, error) { return c.Suspend("") }
			if rapid.Bool().Draw(t, "plan") {
				plan := rapid.SampledFrom(plans.Names()).Draw(t, "to")
				decide = func(c company.Company) ([]event.Payload, error) { return c.ChangePlan(plan, plans) }
			}
			decided, err := decide(load(t, history...))
			require.NoError(t, err)
			history = append(history, decided...)
			again, err := decide(load(t, history...))
			require.NoError(t, err)
			require.Empty(t, again)
		}
	})
}

func TestPlans(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"plus", "standard", "unlimited"}, plans.Names())
	standard := plans[company.Standard]
	require.Equal(t, []int{100, 1_000, 10_000}, []int{standard.PerMinute, standard.PerHour, standard.PerDay}, "the limits of the contract")
	for _, name := range plans.Names() {
		p := plans[name]
		require.EqualValues(t, 10<<20, p.UploadBytes, "%s: the largest upload of the contract", name)
		require.Less(t, p.PerMinute, p.PerHour+1, name)
		require.Less(t, p.PerHour, p.PerDay+1, name)
	}
}
