// Package tokens is the read model of who may call: companies and their tokens; and, beside it, what tokens used of their limits.
package tokens

import (
	"embed"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// CounterMigrations make the tables of what was used, in the schema counters. They outlive a rebuild of the read model.
//
//go:embed counters/*.sql
var CounterMigrations embed.FS

// Types are the events that the read model follows.
var Types = []string{
	company.Registered{}.EventType(),
	company.TokenRotated{}.EventType(),
	company.PlanChanged{}.EventType(),
	company.Suspended{}.EventType(),
	token.Issued{}.EventType(),
	token.Revoked{}.EventType(),
}

// Apply turns events into statements.
func Apply(batch *pgx.Batch, events []event.Recorded) error {
	for _, e := range events {
		if err := apply(batch, e); err != nil {
			return err
		}
	}
	return nil
}

func apply(batch *pgx.Batch, e event.Recorded) error {
	switch e.Type {
	case company.Registered{}.EventType():
		p, err := readmodel.Decode[company.Registered](e)
		if err != nil {
			return err
		}
		batch.Queue(`INSERT INTO company (company_id, name, plan, prefix, token_hash, created_at, position) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			p.CompanyID, p.Name, p.Plan, p.Prefix, p.TokenHash, e.Metadata.Time, int64(e.Position.Commit))
	case company.TokenRotated{}.EventType():
		p, err := readmodel.Decode[company.TokenRotated](e)
		if err != nil {
			return err
		}
		batch.Queue(`UPDATE company SET token_hash = $2 WHERE company_id = $1`, p.CompanyID, p.TokenHash)
	case company.PlanChanged{}.EventType():
		p, err := readmodel.Decode[company.PlanChanged](e)
		if err != nil {
			return err
		}
		batch.Queue(`UPDATE company SET plan = $2 WHERE company_id = $1`, p.CompanyID, p.Plan)
	case company.Suspended{}.EventType():
		p, err := readmodel.Decode[company.Suspended](e)
		if err != nil {
			return err
		}
		batch.Queue(`UPDATE company SET suspended = true WHERE company_id = $1`, p.CompanyID)
	case token.Issued{}.EventType():
		p, err := readmodel.Decode[token.Issued](e)
		if err != nil {
			return err
		}
		permissions := p.Permissions
		if permissions == nil {
			permissions = []string{}
		}
		const insert = `
			INSERT INTO token (token_id, company_id, environment, external_id, user_id, name, permissions, hash, expires_at, created_at, position)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
		batch.Queue(insert, p.TokenID, p.CompanyID, p.Environment, p.ExternalID, p.UserID, p.Name, permissions, p.Hash, p.ExpiresAt,
			e.Metadata.Time, int64(e.Position.Commit))
	case token.Revoked{}.EventType():
		p, err := readmodel.Decode[token.Revoked](e)
		if err != nil {
			return err
		}
		batch.Queue(`UPDATE token SET revoked_at = coalesce(revoked_at, $2) WHERE token_id = $1`, p.TokenID, e.Metadata.Time)
	}
	return nil
}
