package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/projections/tokens"
)

type issuedTokenData struct {
	Token       string            `json:"token"`
	TokenID     string            `json:"tokenId"`
	ExpiresAt   *timestamp        `json:"expires_at"`
	ExternalID  string            `json:"externalId"`
	UserID      int64             `json:"userId"`
	Environment event.Environment `json:"environment"`
	Permissions []string          `json:"permissions"`
}

// generateToken makes a token for whoever knows a company token.
func (s *Server) generateToken(c *call) error {
	if err := tokens.CheckGuesses(c.ctx(), s.pool, network(c.from), s.now()); err != nil {
		return err
	}
	cmd, err := readIssueToken(c)
	if err != nil {
		return err
	}
	made, err := s.commands.IssueToken.Handle(c.ctx(), cmd)
	if fault.CodeOf(err) == fault.InvalidToken {
		if limited := tokens.CountGuess(c.ctx(), s.pool, network(c.from), s.now()); limited != nil {
			return limited
		}
	}
	if err != nil {
		return err
	}
	c.caller = tokens.Caller{CompanyID: made.CompanyID, Environment: made.Environment, TokenID: made.TokenID, ExternalID: made.ExternalID, UserID: made.UserID}
	c.replayed(made.Replayed)
	return c.data(http.StatusCreated, issuedTokenData{
		Token: made.Token, TokenID: made.TokenID, ExpiresAt: optionalTime(made.ExpiresAt), ExternalID: made.ExternalID, UserID: made.UserID,
		Environment: made.Environment, Permissions: made.Permissions,
	})
}

func readIssueToken(c *call) (commands.IssueToken, error) {
	caller, err := c.partner()
	if err != nil {
		return commands.IssueToken{}, err
	}
	o, err := c.readObject()
	if err != nil {
		return commands.IssueToken{}, err
	}
	cmd := commands.IssueToken{
		Caller: caller, CompanyToken: o.text("companyToken"), ExternalID: o.text("externalId"), Environment: o.filled("environment"), Name: o.text("name"),
		Permissions: o.texts("permissions"),
	}
	if seconds := o.integer("expiresIn"); seconds != nil {
		lifetime := time.Duration(min(max(*seconds, 0), int64(token.MaxLifetime/time.Second)+1)) * time.Second // one that overflowed would be in range
		cmd.ExpiresIn = &lifetime
	}
	// The command tells of the fields only to who has a company token; a body that cannot be right is told of before anything is looked up.
	o.check(func(fields *fault.Fields) {
		location.CheckExternalID("externalId", cmd.ExternalID, fields)
		if cmd.CompanyToken == "" {
			fields.Add("companyToken", fault.MissingField, "Give companyToken, which Musique handed over to your company.")
		}
		if _, ok := event.ParseEnvironment(cmd.Environment); cmd.Environment != "" && !ok {
			fields.Add("environment", fault.InvalidFormat, "The environment is live or test.")
		}
		token.Terms{Name: cmd.Name, Permissions: cmd.Permissions, ExpiresIn: cmd.ExpiresIn}.Check(fields)
	})
	return cmd, o.err()
}

// testToken tells the caller who it is.
func (s *Server) testToken(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readOptionalObject()
	if err != nil {
		return err
	}
	if err := o.err(); err != nil {
		return err
	}
	replayed, err := s.commands.TestToken.Handle(c.ctx(), commands.TestToken{Caller: caller, TokenID: c.caller.TokenID})
	if err != nil {
		return err
	}
	c.replayed(replayed)
	return c.data(http.StatusOK, struct {
		Valid       bool              `json:"valid"`
		TokenID     string            `json:"tokenId"`
		ExternalID  string            `json:"externalId"`
		UserID      int64             `json:"userId"`
		Permissions []string          `json:"permissions"`
		Environment event.Environment `json:"environment"`
		ExpiresAt   *timestamp        `json:"expires_at"`
	}{true, c.caller.TokenID, c.caller.ExternalID, c.caller.UserID, c.caller.Permissions, c.caller.Environment, optionalTime(c.caller.ExpiresAt)})
}

// revokeToken revokes the calling token, or another one of the company for callers with tokens.manage.
func (s *Server) revokeToken(c *call) error {
	o, err := c.readOptionalObject()
	if err != nil {
		return err
	}
	// With neither, the calling token is revoked: a program that has lost the one that it means is not to lose its own.
	o.refuseNull("token", "tokenId")
	secret, id := o.filled("token"), o.filled("tokenId")
	if secret != "" && id != "" {
		o.fail("tokenId", fault.InvalidFormat, "Give token or tokenId, not both.")
	}
	if err := o.err(); err != nil {
		return err
	}
	own := secret == "" && id == "" || id == c.caller.TokenID || secret != "" && secret == presentedToken(c.r.Header)
	if own {
		return s.revoke(c, commands.RevokeToken{TokenID: c.caller.TokenID})
	}
	if err := c.requireScope("tokens.manage"); err != nil {
		return err
	}
	if id != "" {
		return s.revokeByID(c, id)
	}
	if err := tokens.CheckRevocations(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, s.now()); err != nil {
		return err
	}
	err = s.revoke(c, commands.RevokeToken{Token: secret})
	if errors.Is(err, commands.ErrUnknownToken) {
		if limited := tokens.CountWrongRevocation(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, s.now()); limited != nil {
			return limited
		}
	}
	return err
}

// revokeTokenByID revokes one token of the company.
func (s *Server) revokeTokenByID(c *call) error { return s.revokeByID(c, c.pathVar("tokenId")) }

// revokeByID revokes the token with an ID. The ID of a token that was revoked is that of an invalid token; any other is that of none.
func (s *Server) revokeByID(c *call, id string) error {
	if !nameable(id) {
		return tokens.NotFound()
	}
	if _, err := tokens.Get(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, id); err != nil {
		return err
	}
	return s.revoke(c, commands.RevokeToken{TokenID: id})
}

func (s *Server) revoke(c *call, cmd commands.RevokeToken) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	cmd.Caller = caller
	id, err := s.commands.RevokeToken.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	return c.data(http.StatusOK, struct {
		Revoked bool   `json:"revoked"`
		Message string `json:"message"`
		TokenID string `json:"tokenId"`
	}{true, "The token is revoked and is not accepted any more.", id})
}

type tokenData struct {
	TokenID     string            `json:"tokenId"`
	Name        *string           `json:"name"`
	ExternalID  string            `json:"externalId"`
	UserID      int64             `json:"userId"`
	Environment event.Environment `json:"environment"`
	Permissions []string          `json:"permissions"`
	ExpiresAt   *timestamp        `json:"expires_at"`
	CreatedAt   timestamp         `json:"createdAt"`
}

// listTokens lists the company's tokens that are not revoked, without their secrets.
func (s *Server) listTokens(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := tokens.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, cursor, limit)
	if err != nil {
		return err
	}
	all := make([]tokenData, len(found))
	for i, t := range found {
		all[i] = tokenData{
			TokenID: t.TokenID, Name: optionalText(t.Name), ExternalID: t.ExternalID, UserID: t.UserID, Environment: t.Environment,
			Permissions: t.Permissions, ExpiresAt: optionalTime(t.ExpiresAt), CreatedAt: timestamp(t.CreatedAt),
		}
	}
	return c.list(all, limit, next)
}
