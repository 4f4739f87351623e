package httpapi

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/tokens"
)

// opsRoutes is everything that operators can ask for in the API's form.
func (s *Server) opsRoutes() []*route {
	get, post := http.MethodGet, http.MethodPost
	at := func(path string) []string { return []string{path} }
	return []*route{
		{operation: "CreateCompany", method: post, paths: at("/ops/companies"), handle: s.createCompany},
		{operation: "ListCompanies", method: get, paths: at("/ops/companies"), handle: s.listCompanies},
		{operation: "RotateCompanyToken", method: post, paths: at("/ops/companies/{companyId}/rotate-token"), handle: s.rotateCompanyToken},
		{operation: "SetCompanyPlan", method: post, paths: at("/ops/companies/{companyId}/set-plan"), handle: s.setCompanyPlan},
		{operation: "SuspendCompany", method: post, paths: at("/ops/companies/{companyId}/suspend"), handle: s.suspendCompany},
		{operation: "ListProjections", method: get, paths: at("/ops/projections"), handle: s.listProjections},
		{operation: "RebuildProjection", method: post, paths: at("/ops/projections/{projection}/rebuild"), handle: s.rebuildProjection},
		{operation: "PauseRebuild", method: post, paths: at("/ops/projections/{projection}/pause-rebuild"), handle: s.pauseRebuild},
		{operation: "Backup", method: post, paths: at("/ops/backup"), handle: s.backup},
		{operation: "SkipEvent", method: post, paths: at("/ops/projections/{projection}/skip"), handle: s.skipEvent},
	}
}

func (s *Server) newOpsAPI() http.Handler {
	serve := func(c *call) error {
		if err := s.admitOperator(c.r); err != nil {
			return err
		}
		if err := refuseConditions(c.r); err != nil {
			return err
		}
		return c.route.handle(c)
	}
	lost := func(c *call, err error) error {
		if !strings.HasPrefix(c.r.URL.Path, "/ops/") {
			return err
		}
		return cmp.Or(s.admitOperator(c.r), err)
	}
	router := s.newRouter(s.opsRoutes(), serve, lost)
	router.Path("/livez").Methods(http.MethodGet, http.MethodHead).HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "alive") })
	router.Path("/readyz").Methods(http.MethodGet, http.MethodHead).HandlerFunc(s.ready)
	router.Path("/metrics").Methods(http.MethodGet, http.MethodHead).Handler(promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{Timeout: requestTimeout}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limitConnection(w, requestTimeout)
		router.ServeHTTP(w, r)
	})
}

// ready answers whether this process should get requests: its essential parts answer, and it is not on its way out.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	overall, each := s.checks.ask(r.Context())
	switch {
	case s.draining():
		plain(w, http.StatusServiceUnavailable, "draining")
	case overall == down, each.EventStore == down:
		plain(w, http.StatusServiceUnavailable, "not ready: database "+each.Database+", eventStore "+each.EventStore)
	default:
		plain(w, http.StatusOK, "ready")
	}
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // a prober that left needs no answer
}

// admitOperator lets in who has the ops token. Where none is set, the address is loopback and whoever reaches it is let in, but for a browser that was
// led here by a page: such a request has an Origin, or a name in Host that only resolves to loopback.
func (s *Server) admitOperator(r *http.Request) error {
	if s.opsToken == "" {
		if r.Header.Get("Origin") != "" || !loopback(r.Host) {
			return fault.New(fault.InsufficientScope, "The ops address without a token is for this machine's own programs; set MUSIQUE_OPS_TOKEN.")
		}
		return nil
	}
	given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	want, got := sha256.Sum256([]byte(s.opsToken)), sha256.Sum256([]byte(given))
	if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return fault.New(fault.InvalidToken, "Give the ops token: Authorization: Bearer <MUSIQUE_OPS_TOKEN>.")
	}
	return nil
}

func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// operator is who an operator's command is carried out for.
func (c *call) operator() commands.Caller {
	return commands.Caller{Actor: "operator", RequestID: c.id, TraceParent: c.traceParent()}
}

type companyData struct {
	CompanyID string    `json:"companyId"`
	Name      string    `json:"name"`
	Plan      string    `json:"plan"`
	Prefix    string    `json:"prefix"`
	Suspended bool      `json:"suspended"`
	CreatedAt timestamp `json:"createdAt"`
}

func (s *Server) createCompany(c *call) error {
	key, err := idempotencyKey(c.r.Header)
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	cmd := commands.RegisterCompany{Caller: c.operator(), Name: o.text("name"), Plan: o.text("plan"), Prefix: o.text("prefix")}
	cmd.Caller.IdempotencyKey = key
	if err := o.err(); err != nil {
		return err
	}
	made, err := s.commands.RegisterCompany.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(made.Replayed)
	return c.data(http.StatusCreated, struct {
		CompanyID    string `json:"companyId"`
		CompanyToken string `json:"companyToken"`
		Name         string `json:"name"`
		Plan         string `json:"plan"`
		Prefix       string `json:"prefix"`
	}{made.CompanyID, made.CompanyToken, made.Name, made.Plan, made.Prefix})
}

func (s *Server) rotateCompanyToken(c *call) error {
	key, err := idempotencyKey(c.r.Header)
	if err != nil {
		return err
	}
	cmd := commands.RotateCompanyToken{Caller: c.operator(), CompanyID: c.pathVar("companyId")}
	cmd.Caller.IdempotencyKey = key
	rotated, err := s.commands.RotateCompanyToken.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(rotated.Replayed)
	return c.data(http.StatusOK, struct {
		CompanyID    string `json:"companyId"`
		CompanyToken string `json:"companyToken"`
	}{c.pathVar("companyId"), rotated.CompanyToken})
}

func (s *Server) setCompanyPlan(c *call) error {
	o, err := c.readObject()
	if err != nil {
		return err
	}
	plan := o.text("plan")
	o.check(func(fields *fault.Fields) {
		if plan == "" {
			fields.Add("plan", fault.MissingField, "Name the plan.")
		}
	})
	if err := o.err(); err != nil {
		return err
	}
	if err := s.commands.ChangePlan.Handle(c.ctx(), commands.ChangePlan{Caller: c.operator(), CompanyID: c.pathVar("companyId"), Plan: plan}); err != nil {
		return err
	}
	return c.data(http.StatusOK, map[string]string{"companyId": c.pathVar("companyId"), "plan": plan})
}

func (s *Server) suspendCompany(c *call) error {
	o, err := c.readOptionalObject()
	if err != nil {
		return err
	}
	reason := o.text("reason")
	if err := o.err(); err != nil {
		return err
	}
	cmd := commands.SuspendCompany{Caller: c.operator(), CompanyID: c.pathVar("companyId"), Reason: reason}
	if err := s.commands.SuspendCompany.Handle(c.ctx(), cmd); err != nil {
		return err
	}
	return c.data(http.StatusOK, map[string]any{"companyId": c.pathVar("companyId"), "suspended": true})
}

// listCompanies lists all partners.
func (s *Server) listCompanies(c *call) error {
	found, err := tokens.Companies(c.ctx(), s.pool)
	if err != nil {
		return err
	}
	all := make([]companyData, len(found))
	for i, f := range found {
		all[i] = companyData{f.CompanyID, f.Name, f.Plan, f.Prefix, f.Suspended, timestamp(f.CreatedAt)}
	}
	return c.data(http.StatusOK, all)
}
