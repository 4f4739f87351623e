package audit

import (
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/projections/readmodel"
)

// run gathers the rows of consecutive events, so that they are written by one statement.
type run struct {
	rows     []row
	sent     map[wave]int // where the row of what went out is
	unsealed []row        // the first part of each large send
	known    map[string]bool
}

// wave is what of a send went out at one moment: to all of its locations, or to those of a time zone.
type wave struct {
	sendID string
	at     int64
}

func newRun() *run { return &run{sent: map[wave]int{}, known: map[string]bool{}} }

// take gathers the row of an event, unless that depends on earlier rows.
func (r *run) take(e event.Recorded) (taken bool, err error) {
	switch e.Type {
	case company.Registered{}.EventType():
		p, err := readmodel.Decode[company.Registered](e)
		if err != nil {
			return false, err
		}
		return true, r.company(e, p.CompanyID, struct {
			Name string `json:"name"`
			Plan string `json:"plan"`
		}{p.Name, p.Plan})
	case company.TokenRotated{}.EventType():
		p, err := readmodel.Decode[company.TokenRotated](e)
		if err != nil {
			return false, err
		}
		return true, r.company(e, p.CompanyID, struct{}{})
	case company.PlanChanged{}.EventType():
		p, err := readmodel.Decode[company.PlanChanged](e)
		if err != nil {
			return false, err
		}
		return true, r.company(e, p.CompanyID, struct {
			Plan string `json:"plan"`
		}{p.Plan})
	case company.Suspended{}.EventType():
		p, err := readmodel.Decode[company.Suspended](e)
		if err != nil {
			return false, err
		}
		return true, r.company(e, p.CompanyID, struct{}{}) // the reason is the operator's own note
	case token.Issued{}.EventType():
		p, err := readmodel.Decode[token.Issued](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Token, p.TokenID)
		made.externalID = optional(p.ExternalID)
		return true, r.add(e, made, issued{p.Name, p.Permissions, p.ExpiresAt})
	case location.Registered{}.EventType():
		p, err := readmodel.Decode[location.Registered](e)
		if err != nil {
			return false, err
		}
		return true, r.location(e, p.ExternalID, place{p.Name, p.Timezone, p.Tags, p.Channel.Type})
	case location.Changed{}.EventType():
		p, err := readmodel.Decode[location.Changed](e)
		if err != nil {
			return false, err
		}
		return true, r.location(e, p.ExternalID, place{p.Name, p.Timezone, p.Tags, p.Channel.Type})
	case location.Removed{}.EventType():
		p, err := readmodel.Decode[location.Removed](e)
		if err != nil {
			return false, err
		}
		return true, r.location(e, p.ExternalID, struct{}{})
	case location.DeviceEnrolled{}.EventType():
		p, err := readmodel.Decode[location.DeviceEnrolled](e)
		if err != nil {
			return false, err
		}
		return true, r.device(e, p.DeviceID, p.ExternalID, struct {
			Name string `json:"name,omitempty"`
		}{p.Name})
	case location.DeviceRevoked{}.EventType():
		p, err := readmodel.Decode[location.DeviceRevoked](e)
		if err != nil {
			return false, err
		}
		return true, r.device(e, p.DeviceID, p.ExternalID, struct{}{})
	case location.DeviceTokenRotated{}.EventType():
		p, err := readmodel.Decode[location.DeviceTokenRotated](e)
		if err != nil {
			return false, err
		}
		return true, r.device(e, p.DeviceID, p.ExternalID, struct{}{})
	case audio.Uploaded{}.EventType():
		p, err := readmodel.Decode[audio.Uploaded](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Audio, p.AudioID)
		made.audioID = optional(p.AudioID)
		return true, r.add(e, made, uploaded{p.Name, p.Category, p.Format, p.DurationMs, p.Size, p.SHA256})
	case audio.Deleted{}.EventType():
		p, err := readmodel.Decode[audio.Deleted](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Audio, p.AudioID)
		made.audioID = optional(p.AudioID)
		return true, r.add(e, made, struct{}{})
	}
	if taken, err := r.takeSend(e); taken || err != nil {
		return taken, err
	}
	return r.takeDelivery(e)
}

// takeSend is take for the events of sends.
func (r *run) takeSend(e event.Recorded) (taken bool, err error) {
	switch e.Type {
	case send.Scheduled{}.EventType():
		p, err := readmodel.Decode[send.Scheduled](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Send, p.SendID)
		made.sendID, made.audioID, made.locations = optional(p.SendID), optional(p.AudioID), count(p.Total)
		told := asked(p.Terms)
		told.ScheduleAt, told.LocalTime = &p.ScheduleAt, p.LocalTime
		return true, r.addSend(e, made, told, p.Unsealed)
	case send.Rescheduled{}.EventType():
		p, err := readmodel.Decode[send.Rescheduled](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Send, p.SendID)
		made.sendID, made.audioID = optional(p.SendID), optional(p.AudioID)
		told := asked(p.Terms)
		told.ScheduleAt, told.LocalTime = &p.ScheduleAt, p.LocalTime
		return true, r.add(e, made, told)
	case send.AudioSent{}.EventType():
		p, err := readmodel.Decode[send.AudioSent](e)
		if err != nil {
			return false, err
		}
		made := newRow(e, Send, p.SendID)
		made.sendID, made.audioID, made.locations = optional(p.SendID), optional(p.AudioID), count(1)
		if p.Unsealed {
			made.locations = count(p.Total)
			return true, r.addSend(e, made, asked(p.Terms), true)
		}
		w := wave{p.SendID, e.Metadata.Time.UnixMicro()}
		if i, known := r.sent[w]; known {
			*r.rows[i].locations++
			return true, nil
		}
		r.sent[w] = len(r.rows)
		return true, r.add(e, made, asked(p.Terms))
	}
	return false, nil
}

// takeDelivery is take for the events of deliveries.
func (r *run) takeDelivery(e event.Recorded) (taken bool, err error) {
	switch e.Type {
	case delivery.Delivered{}.EventType():
		p, err := readmodel.Decode[delivery.Delivered](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At})
	case delivery.PlaybackStarted{}.EventType():
		p, err := readmodel.Decode[delivery.PlaybackStarted](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At})
	case delivery.Played{}.EventType():
		p, err := readmodel.Decode[delivery.Played](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At})
	case delivery.DeviceFailed{}.EventType():
		p, err := readmodel.Decode[delivery.DeviceFailed](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At, Reason: p.Reason, DeviceID: p.DeviceID})
	case delivery.Failed{}.EventType():
		p, err := readmodel.Decode[delivery.Failed](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At, Reason: p.Reason})
	case delivery.Expired{}.EventType():
		p, err := readmodel.Decode[delivery.Expired](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At})
	case delivery.Cancelled{}.EventType():
		p, err := readmodel.Decode[delivery.Cancelled](e)
		if err != nil {
			return false, err
		}
		return true, r.delivery(e, p.Ref, happened{At: p.At, Reason: p.Reason})
	}
	return false, nil
}

func count(n int) *int32 {
	narrow := int32(n)
	return &narrow
}

func (r *run) add(e event.Recorded, made row, told any) (err error) {
	if made.details, err = detailed(e, told); err == nil {
		r.rows = append(r.rows, made)
	}
	return err
}

// addSend adds a send, or keeps the first part of a large one for when it is whole.
func (r *run) addSend(e event.Recorded, made row, told terms, unsealed bool) (err error) {
	if !unsealed {
		return r.add(e, made, told)
	}
	if r.known[made.resourceID] {
		return nil
	}
	r.known[made.resourceID] = true
	if made.details, err = detailed(e, told); err == nil {
		r.unsealed = append(r.unsealed, made)
	}
	return err
}

// company adds what happened to a company as a whole, which is of interest in both of its environments.
func (r *run) company(e event.Recorded, companyID string, told any) error {
	for _, env := range []event.Environment{event.Live, event.Test} {
		made := newRow(e, Company, companyID)
		made.companyID, made.environment = companyID, env
		if err := r.add(e, made, told); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) location(e event.Recorded, externalID string, told any) error {
	made := newRow(e, Location, externalID)
	made.externalID = optional(externalID)
	return r.add(e, made, told)
}

func (r *run) device(e event.Recorded, deviceID, externalID string, told any) error {
	made := newRow(e, Device, deviceID)
	made.externalID = optional(externalID)
	return r.add(e, made, told)
}

func (r *run) delivery(e event.Recorded, ref delivery.Ref, told happened) error {
	made := newRow(e, Delivery, ref.DeliveryID)
	made.sendID, made.audioID, made.externalID = optional(ref.SendID), optional(ref.AudioID), optional(ref.ExternalID)
	return r.add(e, made, told)
}

// write queues the run's statements.
func (r *run) write(batch *pgx.Batch) {
	if len(r.unsealed) > 0 {
		const keep = `
			INSERT INTO unsealed (send_id, company_id, environment, type, actor, audio_id, request_id, locations, details)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (send_id) DO NOTHING`
		for _, u := range r.unsealed {
			batch.Queue(keep, u.resourceID, u.companyID, u.environment, u.kind, u.actor, *u.audioID, u.requestID, u.locations, u.details)
		}
	}
	if len(r.rows) == 0 {
		return
	}
	// What goes out at one moment may come in several pages, and counts on in the row of the first.
	const insert = `
		INSERT INTO entry AS e (company_id, environment, occurred_at, position, event_id, type, actor, resource_type, resource_id, send_id, audio_id, external_id, request_id, locations, details)
		SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
			$12::text[], $13::text[], $14::integer[], $15::jsonb[])
		ON CONFLICT (send_id, occurred_at) WHERE type = 'AudioSent' DO UPDATE SET locations = e.locations + excluded.locations`
	var c columns
	for i := range r.rows {
		c.add(&r.rows[i])
	}
	batch.Queue(insert, c.companyIDs, c.environments, c.times, c.positions, c.eventIDs, c.kinds, c.actors, c.resources, c.resourceIDs, c.sendIDs, c.audioIDs, c.externalIDs,
		c.requestIDs, c.locations, c.details)
}

// columns are many rows, column by column, as unnest takes them.
type columns struct {
	companyIDs, environments, kinds, actors, resources, resourceIDs, details []string
	times                                                                    []time.Time
	positions                                                                []int64
	eventIDs                                                                 []pgtype.UUID
	sendIDs, audioIDs, externalIDs, requestIDs                               []*string
	locations                                                                []*int32
}

func (c *columns) add(r *row) {
	c.companyIDs, c.environments = append(c.companyIDs, r.companyID), append(c.environments, string(r.environment))
	c.times, c.positions, c.eventIDs = append(c.times, r.at), append(c.positions, r.position), append(c.eventIDs, r.eventID)
	c.kinds, c.actors = append(c.kinds, r.kind), append(c.actors, r.actor)
	c.resources, c.resourceIDs = append(c.resources, r.resource), append(c.resourceIDs, r.resourceID)
	c.sendIDs, c.audioIDs, c.externalIDs = append(c.sendIDs, r.sendID), append(c.audioIDs, r.audioID), append(c.externalIDs, r.externalID)
	c.requestIDs, c.locations, c.details = append(c.requestIDs, r.requestID), append(c.locations, r.locations), append(c.details, r.details)
}
