package audiolibrary

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/projections/readmodel"
)

// Item is a piece of audio in the library.
type Item struct {
	AudioID     string
	Name        string
	Description string
	Category    string
	Format      string
	ContentType string
	Duration    time.Duration
	Size        int64 // bytes
	SHA256      string
	BlobKey     string
	CreatedAt   time.Time
	Stats       Stats
	position    int64
}

// Stats is what became of a piece of audio.
type Stats struct {
	TimesPlayed int64
	// LastPlayedAt is nil for audio that was never played.
	LastPlayedAt *time.Time
	// TotalRecipients counts each location of each send.
	TotalRecipients int64
}

const selection = `
	SELECT audio_id, name, description, category, format, content_type, duration_ms, size, sha256, blob_key, created_at, position,
		times_played, last_played_at, total_recipients
	FROM audio.item WHERE company_id = $1 AND environment = $2`

func scan(row pgx.CollectableRow) (i Item, err error) {
	var ms int64
	err = row.Scan(&i.AudioID, &i.Name, &i.Description, &i.Category, &i.Format, &i.ContentType, &ms, &i.Size, &i.SHA256, &i.BlobKey, &i.CreatedAt, &i.position,
		&i.Stats.TimesPlayed, &i.Stats.LastPlayedAt, &i.Stats.TotalRecipients)
	i.Duration = time.Duration(ms) * time.Millisecond
	return i, err
}

// Get finds a piece of audio. Errors: NotFound, also for another company's.
func Get(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, audioID string) (Item, error) {
	rows, _ := pool.Query(ctx, selection+` AND audio_id = $3`, companyID, env, audioID) // an error shows in rows
	i, err := pgx.CollectExactlyOneRow(rows, scan)
	if errors.Is(err, pgx.ErrNoRows) {
		return Item{}, audio.NotFound()
	}
	if err != nil {
		return Item{}, fmt.Errorf("get audio: %w", err)
	}
	return i, nil
}

// Filter says which audio a list shows; the zero Filter is all.
type Filter struct {
	Category      string
	Format        string
	Query         string // with this in the name, whatever its case
	CreatedAfter  *time.Time
	CreatedBefore *time.Time
}

const listed = 'a'

// List gives audio, newest first, from a cursor on ("" is the beginning). Next is empty on the last page. The error for a cursor that is none is
// InvalidFormat. Walking the pages gives each item that was there all along once: the order is that of the uploads in the event store.
func List(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, f Filter, cursor string, limit int) (items []Item, next string, err error) {
	from, err := readmodel.ParseCursor(cursor, listed, 1)
	if err != nil {
		return nil, "", err
	}
	const query = selection + `
		AND position < $3
		AND ($4 = '' OR category = $4)
		AND ($5 = '' OR format = $5)
		AND ($6 = '' OR name ILIKE $6)
		AND ($7::timestamptz IS NULL OR created_at > $7)
		AND ($8::timestamptz IS NULL OR created_at < $8)
		ORDER BY position DESC LIMIT $9`
	rows, _ := pool.Query(ctx, query, companyID, env, from.Key(0, math.MaxInt64), f.Category, f.Format, readmodel.Containing(f.Query), f.CreatedAfter, f.CreatedBefore, limit+1)
	found, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, "", fmt.Errorf("list audio: %w", err)
	}
	items, next = readmodel.Next(listed, found, limit, func(i Item) []uint64 { return []uint64{uint64(i.position)} })
	return items, next, nil
}
