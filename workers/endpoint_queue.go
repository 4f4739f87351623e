package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/workers/inbox"
)

// leaseTime is how long a process has an endpoint for itself. It is renewed before each request, which is over, recorded or given up within workTime: a
// process that died or stands still makes others wait, and two never ask at the same time.
const (
	leaseTime = 30 * time.Second
	workTime  = 25 * time.Second
)

// What a delivery at an endpoint came to.
const (
	stateTrying   = "trying"
	stateAccepted = "accepted"
	statePlayed   = "played"
	stateFailed   = "failed"
)

// follow keeps the table of endpoints in step with the locations. Those of the sandbox are played by simulated players, whatever their channel.
func (w *Endpoints) follow(_ context.Context, batch *pgx.Batch, events []event.Recorded) error {
	last := map[inbox.Location]*location.Channel{}
	externalIDs := map[inbox.Location]string{}
	for _, e := range events {
		if e.Metadata.Environment != event.Live {
			continue
		}
		var l struct {
			ExternalID string           `json:"externalId"`
			UserID     int64            `json:"userId"`
			Channel    location.Channel `json:"channel"`
		}
		if err := json.Unmarshal(e.Data, &l); err != nil {
			return fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		at := inbox.Location{CompanyID: e.Metadata.CompanyID, Environment: e.Metadata.Environment, UserID: l.UserID}
		last[at], externalIDs[at] = &l.Channel, l.ExternalID
	}
	var with, without []inbox.Entry
	var urls, secrets, names []string
	for at, channel := range last {
		if channel.Type != location.ChannelHTTP { // also of a location that was removed
			without = append(without, inbox.Entry{Location: at})
			continue
		}
		with = append(with, inbox.Entry{Location: at})
		urls, secrets, names = append(urls, channel.URL), append(secrets, channel.Secret), append(names, externalIDs[at])
	}
	inbox.Lock(batch, slices.Concat(with, without))
	if len(with) > 0 {
		const upsert = `
INSERT INTO workers.endpoint AS e (company_id, environment, user_id, external_id, url, secret, active, due_at)
SELECT l.*, true, $7 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[]) AS l
ON CONFLICT (company_id, environment, user_id) DO UPDATE SET
    external_id = excluded.external_id, url = excluded.url, secret = excluded.secret, active = true, due_at = excluded.due_at, wakes = e.wakes + 1`
		companies, environments, users := keysOf(with)
		batch.Queue(upsert, companies, environments, users, names, urls, secrets, w.Now())
	}
	if len(without) > 0 {
		// What still waits there is for a player now. Its players may have been told of what was called off behind it, so it comes anew, in its order.
		const leave = `
WITH leaving AS (
    UPDATE workers.endpoint e SET active = false, due_at = $4, wakes = e.wakes + 1
    FROM unnest($1::text[], $2::text[], $3::bigint[]) AS l (company_id, environment, user_id)
    WHERE e.active AND e.company_id = l.company_id AND e.environment = l.environment AND e.user_id = l.user_id
    RETURNING e.company_id, e.environment, e.user_id
), waits AS (
    DELETE FROM workers.inbox i USING leaving l
    WHERE i.kind = 'deliver' AND i.company_id = l.company_id AND i.environment = l.environment AND i.user_id = l.user_id
    RETURNING i.*
)
INSERT INTO workers.inbox (company_id, environment, user_id, external_id, kind, delivery_id, play_at, expires_at, overdue, payload)
SELECT company_id, environment, user_id, external_id, kind, delivery_id, play_at, expires_at, overdue, payload FROM waits ORDER BY seq`
		companies, environments, users := keysOf(without)
		batch.Queue(leave, companies, environments, users, w.Now())
		inbox.Wake(batch, without)
	}
	return nil
}

// keysOf names the entries' locations, each once.
func keysOf(entries []inbox.Entry) (companies, environments []string, users []int64) {
	named := map[inbox.Location]bool{}
	for _, e := range entries {
		if named[e.Location] {
			continue
		}
		named[e.Location] = true
		companies, environments, users = append(companies, e.Location.CompanyID), append(environments, string(e.Location.Environment)), append(users, e.Location.UserID)
	}
	return companies, environments, users
}

// wakeEndpoints makes the endpoints among the entries' locations due. It goes into the transaction that puts the entries into the inboxes.
func wakeEndpoints(batch *pgx.Batch, entries []inbox.Entry, now time.Time) {
	const wake = `
UPDATE workers.endpoint e SET due_at = $4, wakes = e.wakes + 1
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS l (company_id, environment, user_id)
WHERE e.active AND e.company_id = l.company_id AND e.environment = l.environment AND e.user_id = l.user_id`
	companies, environments, users := keysOf(entries)
	batch.Queue(wake, companies, environments, users, now)
}

// closeAtEndpoints takes note that deliveries have ended. One that was called off and that the endpoint has, or may have, is to be called off there. It goes
// behind the Close of the same deliveries: an attempt that begins at this moment is seen here, or sees that there is nothing to deliver any more.
func closeAtEndpoints(batch *pgx.Batch, ended, cancelled []inbox.Entry, now time.Time) {
	const closing = `
WITH gone AS (
    DELETE FROM workers.endpoint_attempt WHERE delivery_id = ANY($1) AND NOT (delivery_id = ANY($2) AND (may_have OR asked))
    RETURNING company_id, environment, user_id, state
), called_off AS (
    UPDATE workers.endpoint_attempt SET kind = 'cancel', state = 'trying', attempts = 0, next_at = $3, reason = ''
    WHERE delivery_id = ANY($2) AND (may_have OR asked) AND kind = 'deliver'
    RETURNING company_id, environment, user_id, state
)
UPDATE workers.endpoint e SET due_at = $3, wakes = e.wakes + 1
FROM (SELECT * FROM gone UNION SELECT * FROM called_off) AS l
WHERE (l.state = 'trying' OR NOT e.active) AND e.company_id = l.company_id AND e.environment = l.environment AND e.user_id = l.user_id`
	// An attempt that ends at this moment is over first, so that both parts of the statement see what it came to, and none leaves it to the other.
	const settled = `SELECT FROM workers.endpoint_attempt WHERE delivery_id = ANY($1) ORDER BY delivery_id FOR UPDATE`
	ids := func(entries []inbox.Entry) []string {
		all := make([]string, len(entries))
		for i, e := range entries {
			all[i] = e.Delivery.DeliveryID
		}
		return all
	}
	batch.Queue(settled, ids(ended))
	batch.Queue(closing, ids(ended), ids(cancelled), now)
}

// lane is an endpoint that this process has for itself.
type lane struct {
	inbox.Location
	holder uuid.UUID
	// What follows is as the last look found it.
	externalID string
	url        string
	secret     string
	active     bool
	wakes      int64
}

// claim takes up to maxClaim endpoints that are due, none of them of some companies. The limit is a constant, by which the statement is planned for a few.
func (w *Endpoints) claim(ctx context.Context, but []string) ([]*lane, error) {
	claim := `
UPDATE workers.endpoint e SET holder = $1, leased_until = clock_timestamp() + $2
FROM (
    SELECT company_id, environment, user_id FROM workers.endpoint WHERE due_at <= $3 AND leased_until <= clock_timestamp() AND company_id <> ALL($4)
    ORDER BY due_at LIMIT ` + strconv.Itoa(maxClaim) + ` FOR UPDATE SKIP LOCKED
) AS due
WHERE e.company_id = due.company_id AND e.environment = due.environment AND e.user_id = due.user_id
RETURNING e.company_id, e.environment, e.user_id`
	holder := uuid.New()
	rows, err := w.Pool.Query(ctx, claim, holder, leaseTime, w.Now(), but)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*lane, error) {
		l := &lane{holder: holder}
		return l, row.Scan(&l.CompanyID, &l.Environment, &l.UserID)
	})
}

// telling is something to tell an endpoint, or to record of it.
type telling struct {
	deliveryID string
	kind       string
	state      string
	reason     string
	attempts   int
	nextAt     time.Time
	expiresAt  time.Time
	payload    []byte     // of a delivery that is still to be told
	answeredAt *time.Time // of what is to be recorded
}

// delivery is what is to be told; nothing of one that is over.
func (t *telling) delivery() (d inbox.Delivery) {
	if json.Unmarshal(t.payload, &d) != nil {
		return inbox.Delivery{} // of one that cannot be read the message to the endpoint tells
	}
	return d
}

// look renews the lease and finds what there is: what an endpoint's answer came to and is not recorded, what was called off, and the first delivery of each
// priority, the highest first. What a player of the location has, or the endpoint reports on, is left to them. Held is false where another process has the endpoint now, or it is gone.
func (w *Endpoints) look(ctx context.Context, l *lane) (found []telling, held bool, err error) {
	const (
		renew = `
UPDATE workers.endpoint SET leased_until = clock_timestamp() + $5
WHERE company_id = $1 AND environment = $2 AND user_id = $3 AND holder = $4
RETURNING external_id, url, secret, active AND NOT EXISTS (SELECT FROM tokens.company c WHERE c.company_id = $1 AND c.suspended), wakes`
		begun = `
SELECT delivery_id, kind, state, reason, attempts, next_at, expires_at, NULL::jsonb, answered_at FROM workers.endpoint_attempt
WHERE company_id = $1 AND environment = $2 AND user_id = $3 AND (kind = 'cancel' OR state <> 'trying' AND NOT recorded)
ORDER BY kind = 'cancel', next_at LIMIT $4`
		heads = `
SELECT h.* FROM unnest(ARRAY['urgent', 'high', 'normal', 'low']) WITH ORDINALITY AS p (priority, rank)
CROSS JOIN LATERAL (
    SELECT i.delivery_id, i.kind, 'trying', coalesce(a.reason, ''), coalesce(a.attempts, 0), coalesce(a.next_at, $4), i.expires_at, i.payload, NULL::timestamptz
    FROM workers.inbox i LEFT JOIN workers.endpoint_attempt a ON a.delivery_id = i.delivery_id
    WHERE i.company_id = $1 AND i.environment = $2 AND i.user_id = $3 AND i.kind = 'deliver' AND i.payload->>'priority' = p.priority
      AND NOT i.overdue AND i.expires_at > $4 AND coalesce(a.kind = 'deliver' AND a.state = 'trying', true)
      AND NOT EXISTS (SELECT FROM workers.inbox_closed c WHERE c.delivery_id = i.delivery_id)
      AND NOT EXISTS (SELECT FROM sends.send s WHERE s.send_id = i.payload->>'sendId' AND s.cancelled_at IS NOT NULL)
      AND NOT EXISTS (SELECT FROM sends.delivery d
                      WHERE d.send_id = i.payload->>'sendId' AND d.user_id = i.user_id AND d.status IN ('delivered', 'playing'))
    ORDER BY i.seq LIMIT 1
) AS h ORDER BY p.rank`
	)
	batch := &pgx.Batch{}
	batch.Queue(renew, l.CompanyID, l.Environment, l.UserID, l.holder, leaseTime).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			held = true
			if err := rows.Scan(&l.externalID, &l.url, &l.secret, &l.active, &l.wakes); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	collect := func(rows pgx.Rows) error {
		more, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t telling, err error) {
			err = row.Scan(&t.deliveryID, &t.kind, &t.state, &t.reason, &t.attempts, &t.nextAt, &t.expiresAt, &t.payload, &t.answeredAt)
			return t, err
		})
		found = append(found, more...)
		return err
	}
	batch.Queue(begun, l.CompanyID, l.Environment, l.UserID, maxBegun).Query(collect)
	batch.Queue(heads, l.CompanyID, l.Environment, l.UserID, w.Now()).Query(collect)
	err = w.Pool.SendBatch(ctx, batch).Close()
	return found, held, err
}

// begin notes that a request is about to be made. It is not where the delivery has ended at this moment, or was called off. The number of the attempt is what
// finish knows it by.
func (w *Endpoints) begin(ctx context.Context, t *telling) (attempt int, ok bool, err error) {
	const (
		deliver = `
INSERT INTO workers.endpoint_attempt AS a (delivery_id, company_id, environment, user_id, kind, state, asked, attempts, next_at, expires_at)
SELECT i.delivery_id, i.company_id, i.environment, i.user_id, 'deliver', 'trying', true, 1, $2, i.expires_at
FROM workers.inbox i WHERE i.delivery_id = $1 AND i.kind = 'deliver' FOR SHARE
ON CONFLICT (delivery_id) DO UPDATE SET may_have = a.may_have OR a.asked, asked = true, attempts = a.attempts + 1 WHERE a.kind = 'deliver' AND a.state = 'trying'
RETURNING attempts`
		cancel = `UPDATE workers.endpoint_attempt SET attempts = attempts + 1 WHERE delivery_id = $1 AND kind = 'cancel' RETURNING attempts`
	)
	query, args := cancel, []any{t.deliveryID}
	if t.kind == inbox.Deliver {
		query, args = deliver, append(args, w.Now())
	}
	rows, err := w.Pool.Query(ctx, query, args...)
	if err != nil {
		return 0, false, err
	}
	attempts, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil || len(attempts) == 0 {
		return 0, false, err
	}
	return attempts[0], true, nil
}

// finish notes what an attempt came to, and reports whether the delivery still waited for it.
func (w *Endpoints) finish(ctx context.Context, t *telling, attempt int, a answer) (bool, error) {
	const (
		deliver = `
UPDATE workers.endpoint_attempt SET state = $3, reason = $4, next_at = $5, may_have = may_have OR $6, asked = false, answered_at = $7
WHERE delivery_id = $1 AND kind = 'deliver' AND attempts = $2 AND state = 'trying'`
		cancelAgain = `UPDATE workers.endpoint_attempt SET next_at = $3 WHERE delivery_id = $1 AND kind = 'cancel' AND attempts = $2`
		cancelled   = `DELETE FROM workers.endpoint_attempt WHERE delivery_id = $1 AND kind = 'cancel'`
	)
	query, args := cancelled, []any{t.deliveryID}
	switch {
	case t.kind == inbox.Deliver:
		query, args = deliver, []any{t.deliveryID, attempt, a.state, a.reason, a.nextAt, a.mayHave, a.at}
	case a.state == stateTrying && a.nextAt.Before(t.expiresAt):
		query, args = cancelAgain, []any{t.deliveryID, attempt, a.nextAt}
	}
	tag, err := w.Pool.Exec(ctx, query, args...)
	return tag.RowsAffected() > 0, err
}

// recorded notes that what an attempt came to is in the event store.
func (w *Endpoints) recorded(ctx context.Context, deliveryID string) error {
	_, err := w.Pool.Exec(ctx, `UPDATE workers.endpoint_attempt SET recorded = true WHERE delivery_id = $1 AND state <> 'trying'`, deliveryID)
	return err
}

// rest gives an endpoint back that has nothing to be told before a time, nil if nothing waits. It is not given back where something came since the look.
func (w *Endpoints) rest(ctx context.Context, l *lane, until *time.Time) (rests bool, err error) {
	const (
		forget = `
DELETE FROM workers.endpoint e WHERE company_id = $1 AND environment = $2 AND user_id = $3 AND holder = $4 AND wakes = $5 AND NOT active
AND NOT EXISTS (SELECT FROM workers.endpoint_attempt a WHERE a.company_id = e.company_id AND a.environment = e.environment AND a.user_id = e.user_id)`
		giveBack = `
UPDATE workers.endpoint SET holder = NULL, leased_until = '-infinity', due_at = $6
WHERE company_id = $1 AND environment = $2 AND user_id = $3 AND holder = $4 AND wakes = $5`
	)
	batch := &pgx.Batch{}
	note := func(tag pgconn.CommandTag) error {
		rests = rests || tag.RowsAffected() > 0
		return nil
	}
	batch.Queue(forget, l.CompanyID, l.Environment, l.UserID, l.holder, l.wakes).Exec(note)
	batch.Queue(giveBack, l.CompanyID, l.Environment, l.UserID, l.holder, l.wakes, until).Exec(note)
	err = w.Pool.SendBatch(ctx, batch).Close()
	return rests, err
}

// release gives an endpoint back that is to be looked at again at a time.
func (w *Endpoints) release(ctx context.Context, l *lane, at time.Time) error {
	_, err := w.Pool.Exec(ctx, `
UPDATE workers.endpoint SET holder = NULL, leased_until = '-infinity', due_at = $5
WHERE company_id = $1 AND environment = $2 AND user_id = $3 AND holder = $4`, l.CompanyID, l.Environment, l.UserID, l.holder, at)
	return err
}
