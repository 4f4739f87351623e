package httpapi

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/projections/tokens"
)

// maxTokenLength bounds what is looked up as a token, in bytes; ours are shorter.
const maxTokenLength = 128

var errNoToken = fault.New(fault.InvalidToken, "Give your API token in the X-API-Key header.")

// presentedToken is the token that a request came with, or "".
func presentedToken(h http.Header) string {
	if token := h.Get("X-API-Key"); token != "" {
		return token
	}
	return bearer(h)
}

// bearer is the token of an Authorization header (RFC 6750 §2.1), or "".
func bearer(h http.Header) string {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// servePartner lets in who may use the route, and handles the request.
func (s *Server) servePartner(c *call) error {
	c.documented = true
	switch c.route.access {
	case byAnyone:
	case byDevice:
		if err := c.authenticateDevice(); err != nil {
			return err
		}
	case byToken:
		ctx := c.ctx()
		if c.route.evenInOutage { // and not long after
			bounded, cancel := context.WithTimeout(ctx, checkTimeout)
			defer cancel()
			ctx = bounded
		}
		if err := c.authenticate(ctx); err != nil {
			if c.route.evenInOutage && fault.CodeOf(err) == fault.Internal { // not one that says who the caller is or is not
				break
			}
			return err
		}
		if err := c.requireScope(c.route.scope); err != nil {
			return err
		}
	}
	if !c.route.outside || c.route.method != http.MethodGet { // pages and audio keep to conditions by themselves
		if err := refuseConditions(c.r); err != nil {
			return err
		}
	}
	return c.route.handle(c)
}

// lostPartner answers a request for what is not there. A caller that says who it is, is counted and told its limits all the same.
func (s *Server) lostPartner(c *call, lost error) error {
	c.documented = true
	if presentedToken(c.r.Header) != "" {
		if err := c.authenticate(c.ctx()); fault.CodeOf(err) == fault.RateLimitExceeded {
			return err
		}
	}
	return lost
}

// authenticate finds out who the caller is and counts the request, in one round trip to the database, which callers at the same moment share.
func (c *call) authenticate(ctx context.Context) error {
	token := presentedToken(c.r.Header)
	if token == "" {
		return errNoToken
	}
	if len(token) > maxTokenLength {
		return fault.New(fault.InvalidToken, "The token is not one of ours; generate one.")
	}
	ctx, span := telemetry.Start(ctx, "authenticate")
	defer span.End()
	caller, err := c.server.authenticator.Authenticate(ctx, c.server.keys.Hashes(token))
	c.caller = caller
	c.windows = caller.Windows
	setRateHeaders(c.w.Header(), c.windows, c.server.now())
	return err
}

// authenticateDevice finds out which player is calling.
func (c *call) authenticateDevice() error {
	token := bearer(c.r.Header)
	if token == "" || len(token) > maxTokenLength {
		return fault.New(fault.InvalidToken, "Give the device token: Authorization: Bearer dev_….")
	}
	device, err := tokens.AuthenticateDevice(c.ctx(), c.server.pool, c.server.keys.Hashes(token))
	c.device = device
	return err
}

// requireScope answers insufficient_scope for a token without the permission.
func (c *call) requireScope(scope string) error {
	if scope == "" || slices.Contains(c.caller.Permissions, scope) {
		return nil
	}
	err := fault.New(fault.InsufficientScope, "The token lacks the permission %s; generate one that has it.", scope)
	err.Details = map[string]any{"required": []string{scope}, "granted": c.caller.Permissions}
	return err
}

// actor is the ID of who is calling, never a secret.
func (c *call) actor() string {
	if c.device.DeviceID != "" {
		return c.device.DeviceID
	}
	return c.caller.TokenID
}

// companyID is whom the caller belongs to; "" for a stranger.
func (c *call) companyID() string {
	if c.device.CompanyID != "" {
		return c.device.CompanyID
	}
	return c.caller.CompanyID
}

// commandCaller is the caller as the commands know it.
func (c *call) commandCaller() commands.Caller {
	caller := commands.Caller{
		CompanyID: c.companyID(), Environment: c.caller.Environment, Actor: c.actor(), RequestID: c.id, TraceParent: c.traceParent(),
		Plan: c.server.plan(c.caller.Plan),
	}
	if c.device.DeviceID != "" {
		caller.Environment = c.device.Environment
	}
	return caller
}

// partner is the caller with its Idempotency-Key, which only a POST has.
func (c *call) partner() (commands.Caller, error) {
	caller := c.commandCaller()
	if c.r.Method != http.MethodPost {
		return caller, nil
	}
	key, err := idempotencyKey(c.r.Header)
	caller.IdempotencyKey = key
	return caller, err
}

// network is what counts as one address of a caller: the address, but of IPv6 its /64, which is the least that anybody has.
func network(a netip.Addr) string {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
