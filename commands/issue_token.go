package commands

import (
	"context"
	"time"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/infra/telemetry"
)

// IssueToken makes an API token for an external ID of the company whose company token is given.
type IssueToken struct {
	Caller       Caller `json:"-"`
	CompanyToken string `json:"-"`
	ExternalID   string
	// Environment is a name of one: live, test, prod, dev; empty is live.
	Environment string
	Name        string
	// Permissions are all if nil.
	Permissions []string
	// ExpiresIn is nil for a token that never expires.
	ExpiresIn *time.Duration
}

// TokenIssued is the new token. Its secret is shown this once.
type TokenIssued struct {
	token.Issued
	Token    string
	Replayed bool
}

// IssueTokenHandler carries out IssueToken.
type IssueTokenHandler struct{ *tools }

// Handle checks the company token first, so that who has none learns nothing of the rest.
func (h IssueTokenHandler) Handle(ctx context.Context, cmd IssueToken) (TokenIssued, error) {
	ctx, span := telemetry.Start(ctx, "command IssueToken")
	defer span.End()
	owner, err := h.companyOf(ctx, cmd.CompanyToken)
	if err != nil {
		return TokenIssued{}, err
	}
	env, terms := event.Live, token.Terms{Name: cmd.Name, Permissions: cmd.Permissions, ExpiresIn: cmd.ExpiresIn}
	var fields fault.Fields
	location.CheckExternalID("externalId", cmd.ExternalID, &fields)
	if cmd.Environment != "" {
		parsed, ok := event.ParseEnvironment(cmd.Environment)
		if !ok {
			fields.Add("environment", fault.InvalidFormat, "The environment is live or test.")
		}
		env = parsed
	}
	terms.Check(&fields)
	if err := fields.Err(); err != nil {
		return TokenIssued{}, err
	}
	caller := cmd.Caller
	caller.CompanyID, caller.Environment, caller.Actor = owner.ID, env, owner.ID
	cmd.Environment, cmd.Permissions = string(env), terms.Granted()
	identity, err := h.identify(caller, "issue token", cmd)
	if err != nil {
		return TokenIssued{}, err
	}
	id, secrets := identity.id("tok_"), h.secrets(identity, "token", owner.Prefix+"_"+string(env)+"_")
	history, err := h.earlier(ctx, identity, token.Stream(id))
	if err != nil {
		return TokenIssued{}, err
	}
	if history == nil {
		userID, err := h.mapUser(ctx, caller, cmd.ExternalID)
		if err != nil {
			return TokenIssued{}, err
		}
		issued := token.Issued{
			TokenID: id, CompanyID: owner.ID, Environment: env, ExternalID: cmd.ExternalID, UserID: userID,
			Name: cmd.Name, Permissions: terms.Granted(), Hash: h.Keys.HashToken(secrets[0]),
		}
		if cmd.ExpiresIn != nil {
			at := h.now().Add(*cmd.ExpiresIn).Truncate(time.Millisecond)
			issued.ExpiresAt = &at
		}
		position, raced, err := h.create(ctx, identity, token.Stream(id), h.metadata(caller), issued)
		if err != nil {
			return TokenIssued{}, err
		}
		h.settle(ctx, position, Tokens)
		if raced == nil {
			return TokenIssued{Issued: issued, Token: secrets[0]}, nil
		}
		history = raced
	}
	state, err := token.Load(history)
	if err != nil {
		return TokenIssued{}, err
	}
	secret, err := h.shownAgain(secrets, state.Hash, "make another with a new key")
	if err != nil {
		return TokenIssued{}, err
	}
	h.settle(ctx, history[len(history)-1].Position, Tokens)
	return TokenIssued{Issued: state.Issued, Token: secret, Replayed: true}, nil
}

// companyOf finds whose company token it is. The stream has the last word, since the read model may not know of a rotation yet.
func (h IssueTokenHandler) companyOf(ctx context.Context, companyToken string) (company.Company, error) {
	refused := fault.New(fault.InvalidToken, "The company token is unknown; ask Musique for it.")
	refused.Param = "companyToken"
	hashes := h.Keys.Hashes(companyToken)
	id, found, err := h.Reads.CompanyByTokenHash(ctx, hashes)
	if err != nil {
		return company.Company{}, err
	}
	if !found {
		return company.Company{}, refused
	}
	history, err := h.Store.Load(ctx, company.Stream(id))
	if err != nil {
		return company.Company{}, err
	}
	c, err := company.Load(history)
	if err != nil {
		return company.Company{}, err
	}
	for _, hash := range hashes {
		if hash == c.TokenHash && !c.Suspended {
			return c, nil
		}
	}
	return company.Company{}, refused
}
