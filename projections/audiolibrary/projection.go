// Package audiolibrary is the read model of a company's audio, with how often it was played and what it takes of the plan's quotas.
package audiolibrary

import (
	"embed"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/readmodel"
)

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Types are the events that the read model follows.
var Types = []string{
	audio.Uploaded{}.EventType(),
	audio.Deleted{}.EventType(),
	send.AudioSent{}.EventType(),
	send.BroadcastSealed{}.EventType(),
	send.BroadcastAbandoned{}.EventType(),
	delivery.Played{}.EventType(),
}

// Apply turns events into statements.
func Apply(batch *pgx.Batch, events []event.Recorded) error {
	counts := newCounts()
	for _, e := range events {
		switch e.Type {
		case send.AudioSent{}.EventType():
			p, err := readmodel.Decode[send.AudioSent](e)
			if err != nil {
				return err
			}
			counts.sent(p)
		case delivery.Played{}.EventType():
			p, err := readmodel.Decode[delivery.Played](e)
			if err != nil {
				return err
			}
			counts.played(p)
		default:
			counts.write(batch)
			counts = newCounts()
			if err := apply(batch, e); err != nil {
				return err
			}
		}
	}
	counts.write(batch)
	return nil
}

func apply(batch *pgx.Batch, e event.Recorded) error {
	switch e.Type {
	case audio.Uploaded{}.EventType():
		p, err := readmodel.Decode[audio.Uploaded](e)
		if err != nil {
			return err
		}
		const insert = `
			INSERT INTO item (audio_id, company_id, environment, name, description, category, format, content_type, duration_ms, size, sha256, blob_key, created_at, position, search)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`
		m := e.Metadata
		batch.Queue(insert, p.AudioID, m.CompanyID, m.Environment, p.Name, p.Description, p.Category, p.Format, p.ContentType, p.DurationMs, p.Size, p.SHA256,
			p.BlobKey, m.Time, int64(e.Position.Commit), readmodel.Fold(p.Name))
		const upload = `
			INSERT INTO uploads AS u (company_id, environment, month, uploads) VALUES ($1, $2, $3, 1)
			ON CONFLICT (company_id, environment, month) DO UPDATE SET uploads = u.uploads + 1`
		batch.Queue(upload, m.CompanyID, m.Environment, readmodel.Month(m.Time))
		const store = `
			INSERT INTO storage AS s (company_id, environment, bytes) VALUES ($1, $2, $3)
			ON CONFLICT (company_id, environment) DO UPDATE SET bytes = s.bytes + excluded.bytes`
		batch.Queue(store, m.CompanyID, m.Environment, p.Size)
	case audio.Deleted{}.EventType():
		p, err := readmodel.Decode[audio.Deleted](e)
		if err != nil {
			return err
		}
		const remove = `
			WITH gone AS (DELETE FROM item WHERE audio_id = $1 RETURNING company_id, environment, size)
			UPDATE storage s SET bytes = s.bytes - gone.size FROM gone WHERE s.company_id = gone.company_id AND s.environment = gone.environment`
		batch.Queue(remove, p.AudioID)
	case send.BroadcastSealed{}.EventType():
		p, err := readmodel.Decode[send.BroadcastSealed](e)
		if err != nil {
			return err
		}
		const count = `
			WITH sealed AS (DELETE FROM unsealed WHERE send_id = $1 RETURNING audio_id, recipients)
			UPDATE item i SET total_recipients = i.total_recipients + sealed.recipients FROM sealed WHERE i.audio_id = sealed.audio_id`
		batch.Queue(count, p.SendID)
	case send.BroadcastAbandoned{}.EventType():
		p, err := readmodel.Decode[send.BroadcastAbandoned](e)
		if err != nil {
			return err
		}
		batch.Queue(`DELETE FROM unsealed WHERE send_id = $1`, p.SendID)
	}
	return nil
}

// counts are what a run of events adds up to, so that a broadcast to thousands changes its audio's row once.
type counts struct {
	order    []string // of the audio, as first met
	items    map[string]*count
	sends    []unsealed // in the order as first met
	unsealed map[unsealed]int64
}

type count struct {
	played, recipients int64
	last               *time.Time
}

type unsealed struct{ sendID, audioID string }

func newCounts() *counts {
	return &counts{items: map[string]*count{}, unsealed: map[unsealed]int64{}}
}

func (c *counts) of(audioID string) *count {
	n, ok := c.items[audioID]
	if !ok {
		n = &count{}
		c.items[audioID] = n
		c.order = append(c.order, audioID)
	}
	return n
}

func (c *counts) sent(p send.AudioSent) {
	if !p.Unsealed {
		c.of(p.AudioID).recipients++
		return
	}
	key := unsealed{p.SendID, p.AudioID}
	if c.unsealed[key]++; c.unsealed[key] == 1 {
		c.sends = append(c.sends, key)
	}
}

func (c *counts) played(p delivery.Played) {
	n := c.of(p.AudioID)
	n.played++
	if n.last == nil || n.last.Before(p.At) {
		n.last = &p.At
	}
}

func (c *counts) write(batch *pgx.Batch) {
	for _, id := range c.order {
		const update = `
			UPDATE item SET times_played = times_played + $2, last_played_at = greatest(last_played_at, $3), total_recipients = total_recipients + $4
			WHERE audio_id = $1`
		n := c.items[id]
		batch.Queue(update, id, n.played, n.last, n.recipients)
	}
	for _, key := range c.sends {
		const insert = `
			INSERT INTO unsealed AS u (send_id, audio_id, recipients) VALUES ($1, $2, $3)
			ON CONFLICT (send_id, audio_id) DO UPDATE SET recipients = u.recipients + excluded.recipients`
		batch.Queue(insert, key.sendID, key.audioID, c.unsealed[key])
	}
}
