package inbox

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// slowRead is after how long those who came meanwhile wait no longer for the round trip that is under way: its connection may hang.
	slowRead = 50 * time.Millisecond
	// maxReads bounds the inboxes that are read in one round trip.
	maxReads = 256
	// readTimeout bounds one round trip.
	readTimeout = 5 * time.Second
)

// reader reads inboxes. Those who come while others are on their way to the database share the next round trip: one player that is woken is told at once,
// and of a broadcast's thousands each few hundred cost what one does.
type reader struct {
	pool *pgxpool.Pool

	mu      sync.Mutex
	waiting []*reading
	working bool // a round trip is under way that is not slow
}

// reading is what one reader wants to know.
type reading struct {
	ctx   context.Context //nolint:containedctx // it is asked whether the reader is still there
	of    Location
	after int64
	limit int
	done  chan struct{} // closed when items and err are there
	items []Item
	err   error
}

// After gives up to limit items of a location that come after seq, the oldest first. Deliveries that have ended, or expired, or whose send is cancelled, are not
// among them, nor those that the location's endpoint has; and none is while it has an endpoint. From seq 0 on it is all that is open.
func (h *Hub) After(ctx context.Context, l Location, seq int64, limit int) ([]Item, error) {
	return h.reads.read(ctx, l, seq, limit)
}

// After is Hub.After for whoever reads alone.
func After(ctx context.Context, pool *pgxpool.Pool, l Location, seq int64, limit int) ([]Item, error) {
	return (&reader{pool: pool}).read(ctx, l, seq, limit)
}

func (r *reader) read(ctx context.Context, l Location, seq int64, limit int) ([]Item, error) {
	one := &reading{ctx: ctx, of: l, after: seq, limit: limit, done: make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, one)
	if !r.working {
		r.working = true
		go r.work()
	}
	r.mu.Unlock()
	select {
	case <-one.done:
		return one.items, one.err
	case <-ctx.Done():
		return nil, fmt.Errorf("inbox: %w", context.Cause(ctx))
	}
}

// work makes round trips until nobody waits, or until one was slow and another works in its place.
func (r *reader) work() {
	for {
		r.mu.Lock()
		if len(r.waiting) == 0 {
			r.waiting, r.working = nil, false // what thousands waited in is not kept
			r.mu.Unlock()
			return
		}
		most := min(len(r.waiting), maxReads)
		taken := r.waiting[:most:most]
		r.waiting = r.waiting[most:]
		r.mu.Unlock()
		slow := time.AfterFunc(slowRead, r.work)
		r.roundTrip(taken)
		if !slow.Stop() {
			return
		}
	}
}

// roundTrip reads all of these inboxes in one statement. Those who left meanwhile are left out.
func (r *reader) roundTrip(all []*reading) {
	const query = `
SELECT q.n, i.seq, i.kind, i.payload
FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::int[]) AS q (n, company_id, environment, user_id, after, most)
CROSS JOIN LATERAL (
    SELECT i.seq, i.kind, i.payload FROM workers.inbox i
    WHERE i.company_id = q.company_id AND i.environment = q.environment AND i.user_id = q.user_id AND i.seq > q.after
      AND (i.kind = 'cancel' AND q.after > 0
           OR i.kind = 'deliver' AND NOT i.overdue AND i.expires_at > now()
              AND NOT EXISTS (SELECT FROM workers.inbox_closed c WHERE c.delivery_id = i.delivery_id)
              AND NOT EXISTS (SELECT FROM sends.send s WHERE s.send_id = i.payload->>'sendId' AND s.cancelled_at IS NOT NULL)
              AND NOT EXISTS (SELECT FROM workers.endpoint_attempt a WHERE a.delivery_id = i.delivery_id AND a.state <> 'trying')
              AND NOT EXISTS (SELECT FROM workers.endpoint e
                              WHERE e.company_id = q.company_id AND e.environment = q.environment AND e.user_id = q.user_id AND e.active))
    ORDER BY i.seq LIMIT q.most
) i
ORDER BY q.n, i.seq`
	var numbers, limits []int32
	var companies, environments []string
	var users, afters []int64
	for n, one := range all {
		if one.ctx.Err() != nil {
			continue
		}
		numbers, companies, environments = append(numbers, int32(n)), append(companies, one.of.CompanyID), append(environments, string(one.of.Environment))
		users, afters, limits = append(users, one.of.UserID), append(afters, one.after), append(limits, int32(one.limit))
	}
	err := func() error {
		if len(numbers) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
		defer cancel()
		rows, err := r.pool.Query(ctx, query, numbers, companies, environments, users, afters, limits)
		if err != nil {
			return err
		}
		var n int32
		var i Item
		var payload []byte
		_, err = pgx.ForEachRow(rows, []any{&n, &i.Seq, &i.Kind, &payload}, func() error {
			i.Delivery = Delivery{}
			if err := json.Unmarshal(payload, &i.Delivery); err != nil {
				return fmt.Errorf("item %d: %w", i.Seq, err)
			}
			all[n].items = append(all[n].items, i)
			return nil
		})
		return err
	}()
	for _, one := range all {
		if err != nil {
			one.items, one.err = nil, fmt.Errorf("inbox: %w", err)
		}
		close(one.done)
	}
}
