// Package sends is the read model of sends and their deliveries: what was asked for, and what became of it at each location.
package sends

import (
	"embed"

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
			batch.Queue(`DELETE FROM delivery WHERE send_id = $1`, p.SendID)
			batch.Queue(refuse, p.SendID)
			return nil
		}
		// What was not sent yet ends here; what was has a delivery that ends by an event of its own.
		const cancel = `
			WITH ended AS (
				UPDATE delivery SET status = 'cancelled', rank = $3, ended_at = $2, reason = 'the send was cancelled'
				WHERE send_id = $1 AND status = 'scheduled' RETURNING 1
			), n AS (SELECT count(*) AS ended FROM ended)
			UPDATE send SET cancelled_at = coalesce(cancelled_at, $2), scheduled = scheduled - n.ended, cancelled = cancelled + n.ended FROM n WHERE send_id = $1`
		batch.Queue(cancel, p.SendID, e.Metadata.Time, rankEnded)
	}
	return nil
}
