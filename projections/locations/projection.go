// Package locations is the read model of the places that audio can be sent to and their devices; and, beside it, which players are connected now.
package locations

import (
	"embed"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// PresenceMigrations make the tables of who is connected, in the schema presence. They outlive a rebuild of the read model.
//
//go:embed presence/*.sql
var PresenceMigrations embed.FS

// Types are the events that the read model follows.
var Types = []string{
	location.Registered{}.EventType(),
	location.Changed{}.EventType(),
	location.Removed{}.EventType(),
	location.DeviceEnrolled{}.EventType(),
	location.DeviceRevoked{}.EventType(),
	location.DeviceTokenRotated{}.EventType(),
}

// Apply turns events into statements.
func Apply(batch *pgx.Batch, events []event.Recorded) error {
	var made []registered // an import makes thousands in a row: they are written together
	for _, e := range events {
		if e.Type == (location.Registered{}).EventType() {
			p, err := readmodel.Decode[location.Registered](e)
			if err != nil {
				return err
			}
			made = append(made, registered{p, e})
			continue
		}
		insert(batch, made)
		made = nil
		if err := apply(batch, e); err != nil {
			return err
		}
	}
	insert(batch, made)
	return nil
}

type registered struct {
	location.Registered
	recorded event.Recorded
}

func insert(batch *pgx.Batch, made []registered) {
	if len(made) == 0 {
		return
	}
	n := len(made)
	companies, environments, userIDs, externalIDs := make([]string, n), make([]string, n), make([]int64, n), make([]string, n)
	names, timezones, tags := make([]string, n), make([]string, n), make([]string, n)
	types, urls, createdAt, positions, searches := make([]string, n), make([]string, n), make([]time.Time, n), make([]int64, n), make([]string, n)
	for i, m := range made {
		companies[i], environments[i], userIDs[i], externalIDs[i] = m.CompanyID, string(m.recorded.Metadata.Environment), m.UserID, m.ExternalID
		names[i], timezones[i], tags[i] = m.Name, m.Timezone, arrayLiteral(m.Tags)
		types[i], urls[i], createdAt[i], positions[i] = m.Channel.Type, m.Channel.URL, m.recorded.Metadata.Time, int64(m.recorded.Position.Commit)
		searches[i] = readmodel.Fold(m.Name)
	}
	const statement = `
		INSERT INTO location (company_id, environment, user_id, external_id, name, timezone, tags, channel_type, channel_url, created_at, position, search)
		SELECT company_id, environment, user_id, external_id, name, timezone, tags::text[], channel_type, channel_url, created_at, position, search
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::timestamptz[], $11::bigint[], $12::text[])
			AS l (company_id, environment, user_id, external_id, name, timezone, tags, channel_type, channel_url, created_at, position, search)`
	batch.Queue(statement, companies, environments, userIDs, externalIDs, names, timezones, tags, types, urls, createdAt, positions, searches)
}

func apply(batch *pgx.Batch, e event.Recorded) error {
	env := e.Metadata.Environment
	switch e.Type {
	case location.Changed{}.EventType():
		p, err := readmodel.Decode[location.Changed](e)
		if err != nil {
			return err
		}
		const update = `
			UPDATE location SET name = $4, timezone = $5, tags = $6, channel_type = $7, channel_url = $8, search = $9
			WHERE company_id = $1 AND environment = $2 AND user_id = $3`
		tags := p.Tags
		if tags == nil {
			tags = []string{}
		}
		batch.Queue(update, p.CompanyID, env, p.UserID, p.Name, p.Timezone, tags, p.Channel.Type, p.Channel.URL, readmodel.Fold(p.Name))
	case location.Removed{}.EventType():
		p, err := readmodel.Decode[location.Removed](e)
		if err != nil {
			return err
		}
		batch.Queue(`DELETE FROM device WHERE company_id = $1 AND environment = $2 AND user_id = $3`, p.CompanyID, env, p.UserID)
		batch.Queue(`DELETE FROM location WHERE company_id = $1 AND environment = $2 AND user_id = $3`, p.CompanyID, env, p.UserID)
	case location.DeviceEnrolled{}.EventType():
		p, err := readmodel.Decode[location.DeviceEnrolled](e)
		if err != nil {
			return err
		}
		batch.Queue(`INSERT INTO device (device_id, company_id, environment, user_id, external_id, name, hash, created_at, position) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			p.DeviceID, p.CompanyID, env, p.UserID, p.ExternalID, p.Name, p.Hash, e.Metadata.Time, int64(e.Position.Commit))
	case location.DeviceRevoked{}.EventType():
		p, err := readmodel.Decode[location.DeviceRevoked](e)
		if err != nil {
			return err
		}
		batch.Queue(`DELETE FROM device WHERE device_id = $1`, p.DeviceID)
	case location.DeviceTokenRotated{}.EventType():
		p, err := readmodel.Decode[location.DeviceTokenRotated](e)
		if err != nil {
			return err
		}
		batch.Queue(`UPDATE device SET hash = $2 WHERE device_id = $1`, p.DeviceID, p.Hash)
	}
	return nil
}
