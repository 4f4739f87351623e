package inbox

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
)

const (
	// bucketLockClass is the first half of the advisory locks under which a bucket's rows are written.
	bucketLockClass = 0x6d757362
	// maxNotifyBytes is below PostgreSQL's limit of 8,000 bytes for the payload of one notification.
	maxNotifyBytes = 7_900
	channel        = "inbox"
)

// Entry is an item for a location.
type Entry struct {
	Location   Location
	ExternalID string
	Delivery   Delivery
}

// What changes inboxes is queued: a batch is one round trip and, without statements that begin or end one, one transaction.

// Put adds deliveries to inboxes, in their order. One that is there already, or has ended, is left out, so putting again changes nothing.
func Put(batch *pgx.Batch, entries []Entry) error {
	const insert = `
INSERT INTO workers.inbox (company_id, environment, user_id, external_id, kind, delivery_id, play_at, expires_at, payload)
SELECT e.company_id, e.environment, e.user_id, e.external_id, 'deliver', e.delivery_id, e.play_at, e.expires_at, e.payload
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::jsonb[])
     WITH ORDINALITY AS e (company_id, environment, user_id, external_id, delivery_id, play_at, expires_at, payload, place)
WHERE NOT EXISTS (SELECT FROM workers.inbox_closed c WHERE c.delivery_id = e.delivery_id)
ORDER BY e.place
ON CONFLICT (delivery_id, kind) DO NOTHING`
	return write(batch, insert, entries)
}

// Close ends deliveries, each at its time: they leave the inboxes and do not come back.
func Close(batch *pgx.Batch, ended []Entry, at []time.Time) {
	const closing = `
WITH closed AS (
    INSERT INTO workers.inbox_closed (delivery_id, closed_at) SELECT * FROM unnest($1::text[], $2::timestamptz[])
    ON CONFLICT DO NOTHING
)
DELETE FROM workers.inbox WHERE kind = 'deliver' AND delivery_id = ANY($1)`
	deliveryIDs := make([]string, len(ended))
	for i, e := range ended {
		deliveryIDs[i] = e.Delivery.DeliveryID
	}
	// Without the locks a Put of the same moment would not see the end, nor the end what was put.
	Lock(batch, ended)
	batch.Queue(closing, deliveryIDs, at)
}

// Wake wakes the players' streams of the entries' locations when the transaction commits. A commit that notifies holds a lock of the whole database until
// it is over, so one that waits for the disk makes all others wait with it: what is synced is put in one transaction, and woken for in the next.
func Wake(batch *pgx.Batch, entries []Entry) {
	for _, payload := range notifications(entries) {
		batch.Queue("SELECT pg_notify($1, $2)", channel, payload)
	}
}

// PutCancels tells players that deliveries were called off. ExpiresAt says how long a player that is away still has to learn of it.
func PutCancels(batch *pgx.Batch, entries []Entry) error {
	const insert = `
INSERT INTO workers.inbox (company_id, environment, user_id, external_id, kind, delivery_id, play_at, expires_at, payload)
SELECT e.company_id, e.environment, e.user_id, e.external_id, 'cancel', e.delivery_id, e.play_at, e.expires_at, e.payload
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::jsonb[])
     WITH ORDINALITY AS e (company_id, environment, user_id, external_id, delivery_id, play_at, expires_at, payload, place)
ORDER BY e.place
ON CONFLICT (delivery_id, kind) DO NOTHING`
	return write(batch, insert, entries)
}

// Lock queues the taking of the locks of the entries' buckets, in one order for all, so that two writers never wait for each other.
func Lock(batch *pgx.Batch, entries []Entry) {
	buckets := make([]int32, len(entries))
	for i, e := range entries {
		buckets[i] = int32(location.Bucket(e.Location.CompanyID, e.Location.UserID))
	}
	slices.Sort(buckets)
	batch.Queue("SELECT pg_advisory_xact_lock($1, bucket) FROM unnest($2::int[]) AS bucket", bucketLockClass, slices.Compact(buckets))
}

// write queues the insert under the locks.
func write(batch *pgx.Batch, insert string, entries []Entry) error {
	n := len(entries)
	companies, environments, users, externals := make([]string, n), make([]string, n), make([]int64, n), make([]string, n)
	deliveries, playAts, expires, payloads := make([]string, n), make([]*time.Time, n), make([]time.Time, n), make([]string, n)
	for i, e := range entries {
		payload, err := json.Marshal(e.Delivery)
		if err != nil {
			return fmt.Errorf("inbox entry: %w", err)
		}
		companies[i], environments[i], users[i], externals[i] = e.Location.CompanyID, string(e.Location.Environment), e.Location.UserID, e.ExternalID
		deliveries[i], playAts[i], expires[i], payloads[i] = e.Delivery.DeliveryID, e.Delivery.PlayAt, e.Delivery.ExpiresAt, string(payload)
	}
	Lock(batch, entries)
	batch.Queue(insert, companies, environments, users, externals, deliveries, playAts, expires, payloads)
	return nil
}

// notifications names the entries' locations, as many in one payload as fit.
func notifications(entries []Entry) []string {
	var payloads []string
	var b strings.Builder
	named := map[Location]bool{}
	for _, e := range entries {
		if named[e.Location] {
			continue
		}
		named[e.Location] = true
		key := e.Location.key()
		if b.Len()+1+len(key) > maxNotifyBytes {
			payloads = append(payloads, b.String())
			b.Reset()
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(key)
	}
	if b.Len() > 0 {
		payloads = append(payloads, b.String())
	}
	return payloads
}

func (l Location) key() string {
	return l.CompanyID + "/" + string(l.Environment) + "/" + strconv.FormatInt(l.UserID, 10)
}

func parseKey(key string) (Location, bool) {
	company, rest, ok := strings.Cut(key, "/")
	environment, user, ok2 := strings.Cut(rest, "/")
	userID, err := strconv.ParseInt(user, 10, 64)
	return Location{company, event.Environment(environment), userID}, ok && ok2 && err == nil
}
