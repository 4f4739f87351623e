package audiolibrary

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
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
	Duration    time.Duration
	Size        int64 // bytes
	SHA256      string
	BlobKey     string
	CreatedAt   time.Time
	Stats       Stats // zero in a list
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

const (
	columns = `audio_id, name, description, category, format, duration_ms, size, sha256, blob_key, created_at, position`
	of      = ` FROM audio.item WHERE company_id = $1 AND environment = $2`
)

func (i *Item) fields() []any {
	return []any{&i.AudioID, &i.Name, &i.Description, &i.Category, &i.Format, (*milliseconds)(&i.Duration), &i.Size, &i.SHA256, &i.BlobKey, &i.CreatedAt, &i.position}
}

// milliseconds reads a duration.
type milliseconds time.Duration

// ScanInt64 implements pgtype.Int64Scanner.
func (m *milliseconds) ScanInt64(v pgtype.Int8) error {
	*m = milliseconds(time.Duration(v.Int64) * time.Millisecond)
	return nil
}

// Get finds a piece of audio. Errors: NotFound, also for another company's.
func Get(ctx context.Context, pool *pgxpool.Pool, companyID string, env event.Environment, audioID string) (Item, error) {
	var i Item
	fields := append(i.fields(), &i.Stats.TimesPlayed, &i.Stats.LastPlayedAt, &i.Stats.TotalRecipients)
	err := pool.QueryRow(ctx, `SELECT `+columns+`, times_played, last_played_at, total_recipients`+of+` AND audio_id = $3`, companyID, env, audioID).Scan(fields...)
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
	query := readmodel.NewQuery(`SELECT `+columns+of, companyID, env).And(`position < $?`, from.Key(0, math.MaxInt64))
	if f.Category != "" {
		query.And(`category = $?`, f.Category)
	}
	if f.Format != "" {
		query.And(`format = $?`, f.Format)
	}
	if f.Query != "" {
		query.And(`search LIKE $?`, readmodel.Containing(readmodel.Fold(f.Query)))
	}
	if f.CreatedAfter != nil {
		query.And(`created_at > $?`, f.CreatedAfter)
	}
	if f.CreatedBefore != nil {
		query.And(`created_at < $?`, f.CreatedBefore)
	}
	query.End(`ORDER BY position DESC LIMIT $?`, limit+1)
	rows, _ := pool.Query(ctx, query.Statement(), query.Args()...) // an error shows in rows
	found := make([]Item, 0, limit+1)
	var item Item
	_, err = pgx.ForEachRow(rows, item.fields(), func() error {
		found = append(found, item)
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list audio: %w", err)
	}
	items, next = readmodel.Next(listed, found, limit, func(i Item) []uint64 { return []uint64{uint64(i.position)} })
	return items, next, nil
}
