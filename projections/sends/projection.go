// Package sends is the read model of sends and their deliveries: what was asked for, and what became of it at each location.
package sends

import (
	"embed"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Types are the events that the read model follows.
var Types = []string{
	send.Scheduled{}.EventType(),
	send.Rescheduled{}.EventType(),
	send.AudioSent{}.EventType(),
	send.BroadcastSealed{}.EventType(),
	send.BroadcastAbandoned{}.EventType(),
	send.Cancelled{}.EventType(),
	delivery.Delivered{}.EventType(),
	delivery.PlaybackStarted{}.EventType(),
	delivery.Played{}.EventType(),
	delivery.Failed{}.EventType(),
	delivery.Expired{}.EventType(),
	delivery.Cancelled{}.EventType(),
	// These change no rows. A projection passes at once only what it follows, and who deletes audio or removes a location has to know that every send
	// before that is here.
	audio.DeletionStarted{}.EventType(),
	location.Removed{}.EventType(),
}

// Apply turns events into statements. What a run of events does to deliveries is folded first and written together; an event about a send as a whole
// ends the run.
func Apply(batch *pgx.Batch, events []event.Recorded) error {
	run := newRun()
	for _, e := range events {
		taken, err := run.take(e)
		if err != nil {
			return err
		}
		if taken {
			continue
		}
		run.write(batch)
		run = newRun()
		if err := apply(batch, e); err != nil {
			return err
		}
	}
	run.write(batch)
	return nil
}

func apply(batch *pgx.Batch, e event.Recorded) error {
	switch e.Type {
	case send.Rescheduled{}.EventType():
		p, err := readmodel.Decode[send.Rescheduled](e)
		if err != nil {
			return err
		}
		reschedule(batch, p)
	case send.BroadcastSealed{}.EventType():
		p, err := readmodel.Decode[send.BroadcastSealed](e)
		if err != nil {
			return err
		}
		const accept = `
			WITH accepted_now AS (UPDATE send SET sealed = true WHERE send_id = $1 AND NOT sealed RETURNING company_id, environment)
			INSERT INTO accepted AS a (company_id, environment, month, sends) SELECT company_id, environment, $2, 1 FROM accepted_now
			ON CONFLICT (company_id, environment, month) DO UPDATE SET sends = a.sends + 1`
		batch.Queue(accept, p.SendID, readmodel.Month(e.Metadata.Time))
	case send.BroadcastAbandoned{}.EventType():
		p, err := readmodel.Decode[send.BroadcastAbandoned](e)
		if err != nil {
			return err
		}
		batch.Queue(uncount, p.SendID)
		batch.Queue(`DELETE FROM delivery WHERE send_id = $1`, p.SendID)
		batch.Queue(`DELETE FROM send WHERE send_id = $1`, p.SendID)
	case send.Cancelled{}.EventType():
		p, err := readmodel.Decode[send.Cancelled](e)
		if err != nil {
			return err
		}
		if p.Refused {
			// Whoever asked for it was told that nothing was sent.
			const refuse = `
				WITH gone AS (DELETE FROM send WHERE send_id = $1 RETURNING company_id, environment, created_at, sealed)
				UPDATE accepted a SET sends = a.sends - 1 FROM gone
				WHERE gone.sealed AND a.company_id = gone.company_id AND a.environment = gone.environment
					AND a.month = date_trunc('month', gone.created_at AT TIME ZONE 'UTC')::date`
			batch.Queue(uncount, p.SendID)
			batch.Queue(`DELETE FROM delivery WHERE send_id = $1`, p.SendID)
			batch.Queue(refuse, p.SendID)
			return nil
		}
		// What was not sent yet ends here. What was sent and does not play yet ends by an event of its own, and is shown as cancelled from here on; that it began to
		// play at this very moment is of a higher rank.
		const cancel = `
			WITH ended AS (
				UPDATE delivery SET status = 'cancelled', rank = $3, ended_at = $2, reason = 'the send was cancelled'
				WHERE send_id = $1 AND status = 'scheduled' RETURNING user_id
			), queued AS (
				UPDATE delivery SET status = 'cancelled', rank = $4, ended_at = $2, reason = 'the send was cancelled'
				WHERE send_id = $1 AND status = 'queued' RETURNING user_id
			), delivered AS (
				UPDATE delivery SET status = 'cancelled', ended_at = $2, reason = 'the send was cancelled'
				WHERE send_id = $1 AND status = 'delivered' RETURNING user_id
			), located AS (
				INSERT INTO location AS l (user_id, company_id, environment, cancelled)
				SELECT e.user_id, s.company_id, s.environment, 1 FROM ended e JOIN send s ON s.send_id = $1
				ON CONFLICT (user_id, company_id, environment) DO UPDATE SET cancelled = l.cancelled + 1
			), n AS (
				SELECT (SELECT count(*) FROM ended) AS ended, (SELECT count(*) FROM queued) AS queued, (SELECT count(*) FROM delivered) AS delivered
			)
			UPDATE send SET cancelled_at = coalesce(cancelled_at, $2), scheduled = scheduled - n.ended, queued = send.queued - n.queued,
				delivered = send.delivered - n.delivered, cancelled = cancelled + n.ended + n.queued + n.delivered
			FROM n WHERE send_id = $1`
		batch.Queue(cancel, p.SendID, e.Metadata.Time, rankEnded, rankDelivered)
	}
	return nil
}

// uncount takes what has ended of a send that was never accepted out of the counts of its locations.
const uncount = `
	UPDATE location l SET played = l.played - n.played, failed = l.failed - n.failed, expired = l.expired - n.expired, cancelled = l.cancelled - n.cancelled
	FROM (
		SELECT d.user_id, s.company_id, s.environment,
			count(*) FILTER (WHERE d.status = 'played') AS played, count(*) FILTER (WHERE d.status = 'failed') AS failed,
			count(*) FILTER (WHERE d.status = 'expired') AS expired, count(*) FILTER (WHERE d.status = 'cancelled') AS cancelled
		FROM delivery d JOIN send s ON s.send_id = d.send_id
		WHERE d.send_id = $1 AND d.rank = 4 -- rankEnded: a cancellation that is shown before its own event is not counted yet
		GROUP BY d.user_id, s.company_id, s.environment
	) n WHERE l.user_id = n.user_id AND l.company_id = n.company_id AND l.environment = n.environment`

// reschedule queues the statement that changes a scheduled send and when it is due at those of its locations that it still goes to.
func reschedule(batch *pgx.Batch, p send.Rescheduled) {
	const (
		change = ` UPDATE send SET priority = $2, repeat = $3, volume = $4, expires_in = $5, schedule_at = $6, local_time = $7 WHERE send_id = $1`

		everywhere = `WITH moved AS (UPDATE delivery SET play_at = $6 WHERE send_id = $1 AND status = 'scheduled' AND play_at IS DISTINCT FROM $6)` + change

		byZone = `
			WITH moved AS (
				UPDATE delivery d SET play_at = t.play_at FROM unnest($8::text[], $9::timestamptz[]) AS t (timezone, play_at)
				WHERE d.send_id = $1 AND d.status = 'scheduled' AND d.timezone = t.timezone AND d.play_at IS DISTINCT FROM t.play_at
			)` + change
	)
	args := []any{p.SendID, p.Priority, p.Repeat, p.Volume, p.ExpiresIn, p.ScheduleAt, p.LocalTime}
	switch {
	case p.KeepsTimes():
		batch.Queue(change, args...)
	case p.LocalTime == "":
		batch.Queue(everywhere, args...)
	default:
		zones, times := make([]string, len(p.Times)), make([]time.Time, len(p.Times))
		for i, t := range p.Times {
			zones[i], times[i] = t.Timezone, t.PlayAt
		}
		batch.Queue(byZone, append(args, zones, times)...)
	}
}
