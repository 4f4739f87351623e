// Package projections keeps the read models in step with the event store and answers what others ask them. A read model is a PostgreSQL schema
// that follows from the order of the events alone; each has a folder with its tables, its events → rows, and its queries.
package projections

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/audit"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/quotas"
	"github.com/musique/musique/projections/sends"
	"github.com/musique/musique/projections/tokens"
	"github.com/musique/musique/projections/usagelogs"
)

// Projection is one read model. Its tables lie in a schema of its name, and its statements name them without it: a second version can be built in
// another schema while the first one serves.
type Projection struct {
	Name string
	// Types are the event types that it follows.
	Types []string
	// Migrations are the goose migrations that make its tables.
	Migrations fs.FS
	// Apply turns events, in order, into statements. It is a pure function: the same events give the same statements, and the same rows however
	// they are split into pages, but for what the usage logs do not keep any more. The statements run in one transaction. An error is an event that cannot be
	// read.
	Apply func(batch *pgx.Batch, events []event.Recorded) error
	// Beside says that nobody waits for it to pass a position: it follows at its own pace.
	Beside bool
	// Admits says that callers are let in by it. What it wrote is on the disk before anyone sees it: a crash of the database makes no token unknown that was
	// known, and none valid that was revoked, not even until the events are applied again.
	Admits bool
	// Carry takes over what the tables in one schema hold that does not follow from the events, into those that a rebuild makes in another: when it begins, and
	// in the transaction that puts them in the place of the first. It is asked again later where it answers that this is not the moment. May be nil.
	Carry func(ctx context.Context, tx pgx.Tx, from, to string) (now bool, err error)

	serving string // of a version that is being built: the name of the one that serves
}

// The names of the projections, for WaitFor.
const (
	Tokens    = "tokens"
	Locations = "locations"
	Audio     = "audio"
	Sends     = "sends"
	Usage     = "usage"
	Audit     = "audit"
)

// All lists the read models.
func All() []Projection {
	return []Projection{
		{Name: Tokens, Types: tokens.Types, Migrations: tokens.Migrations, Apply: tokens.Apply, Admits: true},
		{Name: Locations, Types: locations.Types, Migrations: locations.Migrations, Apply: locations.Apply, Admits: true},
		{Name: Audio, Types: audiolibrary.Types, Migrations: audiolibrary.Migrations, Apply: audiolibrary.Apply},
		{Name: Sends, Types: sends.Types, Migrations: sends.Migrations, Apply: sends.Apply},
		{Name: Usage, Types: usagelogs.Types, Migrations: usagelogs.Migrations, Apply: usagelogs.Apply, Beside: true, Carry: usagelogs.Carry},
		{Name: Audit, Types: audit.Types, Migrations: audit.Migrations, Apply: audit.Apply},
	}
}

//go:embed migrations/*.sql
var migrations embed.FS

// schemaLockClass is the first half of the advisory lock under which schemas are made; it is used for nothing else.
const schemaLockClass = 0x6d757372

// Migrate makes the tables of all read models and of what stands beside them (rate counters, reservations, presence), or brings them up to date. Any number of
// processes may call it at the same moment.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	if err := postgres.Migrate(ctx, pool, sub(migrations), "projections_migrations"); err != nil {
		return err
	}
	for _, p := range All() {
		if err := migrateSchema(ctx, pool, p.Name, p.Migrations); err != nil {
			return err
		}
	}
	if err := migrateSchema(ctx, pool, "counters", tokens.CounterMigrations); err != nil {
		return err
	}
	if err := migrateSchema(ctx, pool, "quota", quotas.Migrations); err != nil {
		return err
	}
	return migrateSchema(ctx, pool, "presence", locations.PresenceMigrations)
}

// migrateSchema runs migrations whose statements name no schema in a schema.
func migrateSchema(ctx context.Context, pool *pgxpool.Pool, schema string, migrations fs.FS) error {
	if err := makeSchema(ctx, pool, schema); err != nil {
		return fmt.Errorf("schema %s: %w", schema, err)
	}
	config := pool.Config()
	config.MinConns, config.MinIdleConns = 0, 0
	config.ConnConfig.RuntimeParams["search_path"] = schema
	inSchema, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("schema %s: %w", schema, err)
	}
	defer inSchema.Close()
	return postgres.Migrate(ctx, inSchema, sub(migrations), schema+".migrations")
}

func makeSchema(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// CREATE SCHEMA IF NOT EXISTS fails where two transactions run it at once.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, hashtext($2))", schemaLockClass, schema); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+pgx.Identifier{schema}.Sanitize())
		return err
	})
}

// sub is the one folder in a file system of migrations.
func sub(migrations fs.FS) fs.FS {
	folders, err := fs.ReadDir(migrations, ".")
	if err != nil || len(folders) != 1 {
		panic("a file system of migrations has one folder") // it is embedded: this fails in every test or in none
	}
	inner, err := fs.Sub(migrations, folders[0].Name())
	if err != nil {
		panic(err) // only for a malformed name
	}
	return inner
}
