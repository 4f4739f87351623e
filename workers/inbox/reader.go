package inbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// maxReads bounds the inboxes that are read in one round trip: of a broadcast's thousands of players each few hundred cost what one does.
	maxReads = 256
	// readTimeout bounds one round trip.
	readTimeout = 5 * time.Second
)

// reading is what one reader wants to know, and what there is.
type reading struct {
	of    Location
	after int64
	limit int
	items []Item
	err   error
}

// After gives up to limit items of a location that come after seq, the oldest first. Deliveries that have ended, or expired, or whose send is cancelled, are not
// among them, nor those that the location's endpoint has; and none is while it has an endpoint. From seq 0 on it is all that is open.
func (h *Hub) After(ctx context.Context, l Location, seq int64, limit int) ([]Item, error) {
	one := &reading{of: l, after: seq, limit: limit}
	if err := h.reads.Ask(ctx, one); err != nil {
		return nil, fmt.Errorf("inbox: %w", err)
	}
	return one.items, one.err
}

// read reads all of these inboxes in one statement.
func (h *Hub) read(all []*reading) {
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
		numbers, companies, environments = append(numbers, int32(n)), append(companies, one.of.CompanyID), append(environments, string(one.of.Environment))
		users, afters, limits = append(users, one.of.UserID), append(afters, one.after), append(limits, int32(one.limit))
	}
	err := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
		defer cancel()
		rows, err := h.pool.Query(ctx, query, numbers, companies, environments, users, afters, limits)
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
	if err == nil {
		return
	}
	for _, one := range all {
		one.items, one.err = nil, fmt.Errorf("inbox: %w", err)
	}
}
