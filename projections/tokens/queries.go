package tokens

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/readmodel"
)

// Company is a partner.
type Company struct {
	CompanyID string
	Name      string
	Plan      string
	Prefix    string
	Suspended bool
	CreatedAt time.Time
}

const companyColumns = `company_id, name, plan, prefix, suspended, created_at`

// Companies lists all partners in the order that they came in.
func Companies(ctx context.Context, pool *pgxpool.Pool) ([]Company, error) {
	rows, _ := pool.Query(ctx, `SELECT `+companyColumns+` FROM tokens.company ORDER BY position`) // an error shows in rows
	companies, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Company])
	if err != nil {
		return nil, fmt.Errorf("list companies: %w", err)
	}
	return companies, nil
}

// CompanyByTokenHash finds whose company token one of the hashes is. That of a suspended company is nobody's.
func CompanyByTokenHash(ctx context.Context, pool *pgxpool.Pool, hashes []string) (c Company, found bool, err error) {
	rows, _ := pool.Query(ctx, `SELECT `+companyColumns+` FROM tokens.company WHERE token_hash = ANY($1) AND NOT suspended`, hashes)
	return one[Company](rows, "find a company")
}

// Token is an API token as its owner sees it.
type Token struct {
	TokenID     string
	Environment event.Environment
	ExternalID  string
	UserID      int64
	Name        string
	Permissions []string
	ExpiresAt   *time.Time
	RevokedAt   *time.Time
	CreatedAt   time.Time
	position    int64
}

const tokenColumns = `token_id, environment, external_id, user_id, name, permissions, expires_at, revoked_at, created_at, position` //nolint:gosec // names of columns

func scanToken(row pgx.CollectableRow) (t Token, err error) {
	err = row.Scan(&t.TokenID, &t.Environment, &t.ExternalID, &t.UserID, &t.Name, &t.Permissions, &t.ExpiresAt, &t.RevokedAt, &t.CreatedAt, &t.position)
	return t, err
}

const tokenList = 't'

// List gives a company's tokens that were not revoked, newest first, from a cursor on ("" is the beginning). Next is empty on the last page. The error for a
// cursor that is none is InvalidFormat.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, cursor string, limit int) (tokens []Token, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, tokenList, 1)
	if err != nil {
		return nil, "", err
	}
	const query = `SELECT ` + tokenColumns + ` FROM tokens.token
		WHERE company_id = $1 AND environment = $2 AND revoked_at IS NULL AND position < $3
		ORDER BY position DESC LIMIT $4`
	rows, _ := pool.Query(ctx, query, companyID, env, from.Key(0, math.MaxInt64), limit+1)
	found, err := pgx.CollectRows(rows, scanToken)
	if err != nil {
		return nil, "", fmt.Errorf("list tokens: %w", err)
	}
	tokens, next = readmodel.Next(tokenList, found, limit, func(t Token) []uint64 { return []uint64{uint64(t.position)} })
	return tokens, next, nil
}

// Get finds one of a company's tokens, revoked or not. Errors: NotFound.
func Get(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, tokenID string) (Token, error) {
	rows, _ := pool.Query(ctx, `SELECT `+tokenColumns+` FROM tokens.token WHERE token_id = $1 AND company_id = $2 AND environment = $3`, tokenID, companyID, env)
	t, err := pgx.CollectExactlyOneRow(rows, scanToken)
	if errors.Is(err, pgx.ErrNoRows) {
		return Token{}, NotFound()
	}
	if err != nil {
		return Token{}, fmt.Errorf("get a token: %w", err)
	}
	return t, nil
}

// NotFound is the answer for a token that is not there.
func NotFound() error {
	return fault.New(fault.NotFound, "There is no such token; find its ID in the list of tokens.")
}

// ByHash finds a company's token by any of its hashes, revoked or not.
func ByHash(ctx context.Context, pool *pgxpool.Pool, companyID string, hashes []string) (tokenID string, found bool, err error) {
	err = pool.QueryRow(ctx, `SELECT token_id FROM tokens.token WHERE hash = ANY($1) AND company_id = $2`, hashes, companyID).Scan(&tokenID)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("find a token: %w", err)
	}
	return tokenID, true, nil
}

// Device is a player that may sign in.
type Device struct {
	DeviceID    string
	CompanyID   string
	Environment event.Environment
	ExternalID  string
	UserID      int64
	// Hash is that of its token; with another token it is another sign-in of the same device.
	Hash string
}

// AuthenticateDevice finds a device by any of its token's hashes. Errors: InvalidToken (unknown, revoked, or of a suspended company).
func AuthenticateDevice(ctx context.Context, pool *pgxpool.Pool, hashes []string) (Device, error) {
	const query = `SELECT d.device_id, d.company_id, d.environment, d.external_id, d.user_id, d.hash
		FROM locations.device d JOIN tokens.company c ON c.company_id = d.company_id
		WHERE d.hash = ANY($1) AND NOT c.suspended`
	rows, _ := pool.Query(ctx, query, hashes)
	d, found, err := one[Device](rows, "find a device")
	if err == nil && !found {
		err = fault.New(fault.InvalidToken, "The device token is unknown or revoked; enrol the device again.")
	}
	return d, err
}

// ActiveSignIns tells which of the hashes are those of device tokens that may still sign in; a player's stream asks for its own.
func ActiveSignIns(ctx context.Context, pool *pgxpool.Pool, hashes []string) (map[string]bool, error) {
	const query = `SELECT d.hash FROM locations.device d JOIN tokens.company c ON c.company_id = d.company_id
		WHERE d.hash = ANY($1) AND NOT c.suspended`
	rows, _ := pool.Query(ctx, query, hashes)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("find devices: %w", err)
	}
	active := make(map[string]bool, len(found))
	for _, hash := range found {
		active[hash] = true
	}
	return active, nil
}

// one reads at most one row.
func one[T any](rows pgx.Rows, what string) (item T, found bool, err error) {
	item, err = pgx.CollectOneRow(rows, pgx.RowToStructByPos[T])
	if errors.Is(err, pgx.ErrNoRows) {
		return item, false, nil
	}
	if err != nil {
		return item, false, fmt.Errorf("%s: %w", what, err)
	}
	return item, true, nil
}
