package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/eventstore"
)

// ampleRequests is how many requests like one must find room for no reservation to be made: more than are under way at the same moment.
const ampleRequests = 10_000

// reserve refuses what the plan's month has no room for, and holds the room for the rest: callers at the same moment, of any process, get no more than there
// is. Used is what a read model says. Release is to be called with the outcome, once the read models have it.
func (t *tools) reserve(ctx context.Context, c Caller, id string, used, more Used) (release func(error), err error) {
	limits := Used{c.Plan.MonthlySends, c.Plan.MonthlyUploads, c.Plan.StorageBytes}
	if err := t.withinQuota(c, used, more); err != nil {
		return nil, err
	}
	if roomFor(limits.Sends-used.Sends, more.Sends) && roomFor(limits.Uploads-used.Uploads, more.Uploads) && roomFor(limits.StorageBytes-used.StorageBytes, more.StorageBytes) {
		return func(error) {}, nil
	}
	withOthers, reserved, err := t.Reads.Reserve(ctx, Reservation{ID: id, CompanyID: c.CompanyID, Environment: c.Environment, More: more, Limits: limits, At: t.now()})
	if err != nil {
		return nil, err
	}
	if !reserved {
		return nil, t.withinQuota(c, withOthers, more)
	}
	return func(outcome error) {
		if errors.Is(outcome, eventstore.ErrUnavailable) || errors.Is(outcome, context.DeadlineExceeded) {
			return // it may have been made; the room is held for a while
		}
		made := outcome == nil || fault.CodeOf(outcome) == fault.Conflict // by another request with the same Idempotency-Key
		if err := t.Reads.Release(context.WithoutCancel(ctx), id, made); err != nil {
			t.Log.WarnContext(ctx, "room in a quota is held longer than it is needed", "id", id, "error", err)
		}
	}, nil
}

// roomFor reports whether there is room for ample requests like one.
func roomFor(left, more int64) bool { return more == 0 || left/more >= ampleRequests }

// withinQuota refuses what the plan's month has no room for beside what was used.
func (t *tools) withinQuota(c Caller, used, more Used) error {
	now := t.now()
	reset := time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	for _, q := range []struct {
		name              string
		limit, used, more int64
		remedy            string
		renewed           time.Duration // from now; 0 for what no month renews
		resetAt           any           // null, in JSON, for that
	}{
		{"sends", c.Plan.MonthlySends, used.Sends, more.Sends, "it is renewed at " + reset.Format(time.RFC3339), reset.Sub(now), reset},
		{"uploads", c.Plan.MonthlyUploads, used.Uploads, more.Uploads, "it is renewed at " + reset.Format(time.RFC3339), reset.Sub(now), reset},
		{"storageBytes", c.Plan.StorageBytes, used.StorageBytes, more.StorageBytes, "delete audio to make room", 0, nil},
	} {
		if q.more > 0 && q.used+q.more > q.limit {
			return &fault.Error{
				Code:       fault.QuotaExceeded,
				Message:    fmt.Sprintf("The plan's quota of %s is used up; %s.", q.name, q.remedy),
				Details:    map[string]any{"quota": q.name, "limit": q.limit, "used": q.used, "resetAt": q.resetAt},
				RetryAfter: q.renewed,
			}
		}
	}
	return nil
}
