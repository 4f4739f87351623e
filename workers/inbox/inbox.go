// Package inbox is what each location's players are to be told, kept until they have been: the queries of the player stream, and the hub that wakes it.
package inbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/musique/musique/domain/event"
)

// The kinds of an item.
const (
	Deliver = "deliver"
	Cancel  = "cancel"
)

// Location is whose inbox it is.
type Location struct {
	CompanyID   string
	Environment event.Environment
	UserID      int64
}

// Item is one thing to tell a player.
type Item struct {
	// Seq grows within a location; it is the player's Last-Event-ID.
	Seq      int64
	Kind     string
	Delivery Delivery
}

// Delivery is what a player needs to play audio. Of a cancelled one only the IDs are given.
type Delivery struct {
	DeliveryID string `json:"deliveryId"`
	SendID     string `json:"sendId"`
	AudioID    string `json:"audioId,omitempty"`
	// BlobKey is where the bytes lie; the stream signs a URL for it.
	BlobKey string `json:"blobKey,omitempty"`
	Name    string `json:"name,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Format  string `json:"format,omitempty"`
	// DurationMs is in milliseconds, Size in bytes, Volume in percent.
	DurationMs int64      `json:"durationMs,omitempty"`
	Size       int64      `json:"size,omitempty"`
	Priority   string     `json:"priority,omitempty"`
	Repeat     int        `json:"repeat,omitempty"`
	Volume     int        `json:"volume"`
	PlayAt     *time.Time `json:"playAt,omitempty"`
	ExpiresAt  time.Time  `json:"expiresAt,omitzero"`
	// TraceParent is the delivery's place in the trace of its send, if there is one.
	TraceParent string `json:"traceparent,omitempty"`
	// RequestID is that of the request that made the send.
	RequestID string `json:"requestId,omitempty"`
}

// Last is the highest seq that was given to any item yet, gone or not; 0 if none was.
func Last(ctx context.Context, pool *pgxpool.Pool) (int64, error) {
	var seq int64
	err := pool.QueryRow(ctx, `SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('workers.inbox', 'seq')::regclass), 0)`).Scan(&seq)
	if err != nil {
		return 0, fmt.Errorf("inbox: %w", err)
	}
	return seq, nil
}
