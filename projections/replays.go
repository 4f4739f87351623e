package projections

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Replays lie in databases of their own beside the serving one, in its server: their schemas have the same names, so the same statements ask them, and
// nothing that serves knows of them. What is known of a replay stands in the comment on its database.

const (
	// replayConns bounds the connections to a replay, beside those that fill it.
	replayConns = 4
	// duplicateDatabase is the SQLSTATE of a database that is there already.
	duplicateDatabase = "42P04"
)

// ReplayInfo is what is known of a replay.
type ReplayInfo struct {
	Name string `json:"name"`
	// AsOf is the moment that the read models are as of.
	AsOf    time.Time `json:"asOf"`
	BegunAt time.Time `json:"begunAt"`
	// FinishedAt is nil for one that is not, and shows less than there was.
	FinishedAt *time.Time `json:"finishedAt"`
	// Through is the position of the last event in it.
	Through uint64 `json:"through"`
}

var (
	// ErrNoReplay says that there is no replay of a name.
	ErrNoReplay = errors.New("there is no such replay")
	// ErrReplayTaken says that a name has a replay as of another moment.
	ErrReplayTaken = errors.New("there is a replay of this name as of another moment")
	// ErrFuture says that not everything has happened yet that a replay would have to show.
	ErrFuture = errors.New("the moment is still to come: what will have happened by then cannot be replayed yet")
)

var replayName = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// ReplayName is the name that a replay as of a moment has unless it is given another.
func ReplayName(asOf time.Time) string {
	asOf = asOf.UTC()
	name := asOf.Format("20060102t150405")
	if fraction := strings.TrimRight(fmt.Sprintf("%09d", asOf.Nanosecond()), "0"); fraction != "" {
		name += "_" + fraction
	}
	return name + "z"
}

// replayPrefix is what the names of the databases begin with that are beside the one which a pool reaches. It is short, however long that one's name is.
func replayPrefix(serving *pgxpool.Pool) string {
	sum := sha256.Sum256([]byte(serving.Config().ConnConfig.Database))
	return "musique_replay_" + hex.EncodeToString(sum[:4]) + "_"
}

func replayDatabase(serving *pgxpool.Pool, name string) (string, error) {
	if !replayName.MatchString(name) {
		return "", fmt.Errorf("the name of a replay has 1 to 32 of a-z, 0-9 and _, unlike %q", name)
	}
	return replayPrefix(serving) + name, nil
}

// CreateReplay makes an empty database for a replay, with a pool for it that the caller closes. One that is there is gone on with: its info says whether it is
// finished. Errors: ErrReplayTaken, ErrFuture.
func CreateReplay(ctx context.Context, serving *pgxpool.Pool, name string, asOf, now time.Time) (ReplayInfo, *pgxpool.Pool, error) {
	database, err := replayDatabase(serving, name)
	if err != nil {
		return ReplayInfo{}, nil, err
	}
	if asOf.After(now) {
		return ReplayInfo{}, nil, ErrFuture
	}
	asOf = asOf.UTC()
	info := ReplayInfo{Name: name, AsOf: asOf, BegunAt: now.UTC()}
	var encoding, collate, ctype string
	const likewise = `SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()`
	if err := serving.QueryRow(ctx, likewise).Scan(&encoding, &collate, &ctype); err != nil {
		return ReplayInfo{}, nil, fmt.Errorf("make a replay: %w", err)
	}
	quote := func(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
	_, err = serving.Exec(ctx, `CREATE DATABASE `+pgx.Identifier{database}.Sanitize()+` TEMPLATE template0 ENCODING `+quote(encoding)+` LC_COLLATE `+quote(collate)+` LC_CTYPE `+quote(ctype))
	if there, ok := errors.AsType[*pgconn.PgError](err); ok && there.Code == duplicateDatabase {
		known, described, err := findReplay(ctx, serving, name)
		if err != nil {
			return ReplayInfo{}, nil, err
		}
		if described { // a process that died in between left one that is not
			if !known.AsOf.Equal(asOf) {
				return known, nil, fmt.Errorf("%w: %s is as of %s", ErrReplayTaken, name, known.AsOf.Format(time.RFC3339Nano))
			}
			pool, err := poolOfReplay(ctx, serving, database)
			return known, pool, err
		}
	} else if err != nil {
		return ReplayInfo{}, nil, fmt.Errorf("make a database for the replay: %w", err)
	}
	if err := describeReplay(ctx, serving, info); err != nil {
		return ReplayInfo{}, nil, err
	}
	pool, err := poolOfReplay(ctx, serving, database)
	return info, pool, err
}

// describeReplay keeps what is known of a replay.
func describeReplay(ctx context.Context, serving *pgxpool.Pool, info ReplayInfo) error {
	database, err := replayDatabase(serving, info.Name)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if _, err := serving.Exec(ctx, `COMMENT ON DATABASE `+pgx.Identifier{database}.Sanitize()+` IS '`+strings.ReplaceAll(string(raw), "'", "''")+`'`); err != nil {
		return fmt.Errorf("describe the replay: %w", err)
	}
	return nil
}

// FinishReplay notes that a replay is as of its moment.
func FinishReplay(ctx context.Context, serving *pgxpool.Pool, info ReplayInfo, through uint64, now time.Time) (ReplayInfo, error) {
	now = now.UTC()
	info.FinishedAt, info.Through = &now, through
	return info, describeReplay(ctx, serving, info)
}

// OpenReplay gives a pool for a replay that is there, which the caller closes. Errors: ErrNoReplay.
func OpenReplay(ctx context.Context, serving *pgxpool.Pool, name string) (ReplayInfo, *pgxpool.Pool, error) {
	info, _, err := findReplay(ctx, serving, name)
	if err != nil {
		return ReplayInfo{}, nil, err
	}
	database, err := replayDatabase(serving, name)
	if err != nil {
		return ReplayInfo{}, nil, err
	}
	pool, err := poolOfReplay(ctx, serving, database)
	return info, pool, err
}

func poolOfReplay(ctx context.Context, serving *pgxpool.Pool, database string) (*pgxpool.Pool, error) {
	config := serving.Config()
	config.ConnConfig.Database, config.MaxConns, config.MinConns, config.MinIdleConns = database, replayConns, 0, 0
	return pgxpool.NewWithConfig(ctx, config)
}

func findReplay(ctx context.Context, serving *pgxpool.Pool, name string) (info ReplayInfo, described bool, err error) {
	if _, err := replayDatabase(serving, name); err != nil {
		return ReplayInfo{}, false, err
	}
	all, err := Replays(ctx, serving)
	if err != nil {
		return ReplayInfo{}, false, err
	}
	i := slices.IndexFunc(all, func(r ReplayInfo) bool { return r.Name == name })
	if i < 0 {
		return ReplayInfo{}, false, fmt.Errorf("%w: %s", ErrNoReplay, name)
	}
	return all[i], !all[i].AsOf.IsZero(), nil
}

// Replays lists the replays beside the serving database, the earliest moment first.
func Replays(ctx context.Context, serving *pgxpool.Pool) ([]ReplayInfo, error) {
	prefix := replayPrefix(serving)
	const list = `SELECT datname, coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE starts_with(datname, $1) ORDER BY datname`
	rows, _ := serving.Query(ctx, list, prefix) // an error shows in rows
	found := []ReplayInfo{}
	var database, comment string
	_, err := pgx.ForEachRow(rows, []any{&database, &comment}, func() error {
		var info ReplayInfo
		if err := json.Unmarshal([]byte(comment), &info); err != nil {
			info = ReplayInfo{} // its process died before it was described
		}
		info.Name = strings.TrimPrefix(database, prefix)
		found = append(found, info)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the replays: %w", err)
	}
	slices.SortStableFunc(found, func(a, b ReplayInfo) int { return a.AsOf.Compare(b.AsOf) })
	return found, nil
}

// DropReplay drops a replay, whoever still reads it. Errors: ErrNoReplay.
func DropReplay(ctx context.Context, serving *pgxpool.Pool, name string) error {
	if _, _, err := findReplay(ctx, serving, name); err != nil {
		return err
	}
	database, err := replayDatabase(serving, name)
	if err != nil {
		return err
	}
	if _, err := serving.Exec(ctx, `DROP DATABASE IF EXISTS `+pgx.Identifier{database}.Sanitize()+` WITH (FORCE)`); err != nil {
		return fmt.Errorf("drop the replay: %w", err)
	}
	return nil
}
