// Package audit is the read model of what happened in a company and environment, as its owner may see it: who did what to what, and when.
package audit

import (
	"embed"
	"encoding/json"
	"fmt"
	"strings"
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

// Migrations make the read model's tables.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Kind is an event type that is shown.
type Kind struct {
	// Type is its name.
	Type string
	// Resource is the type of what it happened to.
	Resource string
}

// The types of resources.
const (
	Company  = "company"
	Token    = "token"
	Location = "location"
	Device   = "device"
	Audio    = "audio"
	Send     = "send"
	Delivery = "delivery"
)

// Resources lists the types of resources.
var Resources = []string{Company, Token, Location, Device, Audio, Send, Delivery}

// ResourceOf tells what an ID is of, by how it begins. External IDs of locations begin as their partner likes, so one that begins as another kind of ID
// is taken for that.
func ResourceOf(id string) string {
	prefix, _, _ := strings.Cut(id, "_")
	switch prefix {
	case "co":
		return Company
	case "tok":
		return Token
	case "dvc":
		return Device
	case "aud":
		return Audio
	case "snd":
		return Send
	case "dlv":
		return Delivery
	default:
		return Location
	}
}

// Kinds lists what is shown: each change that a partner can make or see. API requests are in the usage logs.
var Kinds = []Kind{
	{company.Registered{}.EventType(), Company},
	{company.TokenRotated{}.EventType(), Company},
	{company.PlanChanged{}.EventType(), Company},
	{company.Suspended{}.EventType(), Company},
	{token.Issued{}.EventType(), Token},
	{token.Revoked{}.EventType(), Token},
	{location.Registered{}.EventType(), Location},
	{location.Changed{}.EventType(), Location},
	{location.Removed{}.EventType(), Location},
	{location.DeviceEnrolled{}.EventType(), Device},
	{location.DeviceTokenRotated{}.EventType(), Device},
	{location.DeviceRevoked{}.EventType(), Device},
	{audio.Uploaded{}.EventType(), Audio},
	{audio.Deleted{}.EventType(), Audio},
	{send.Scheduled{}.EventType(), Send},
	{send.Rescheduled{}.EventType(), Send},
	{send.AudioSent{}.EventType(), Send},
	{send.Cancelled{}.EventType(), Send},
	{delivery.Delivered{}.EventType(), Delivery},
	{delivery.PlaybackStarted{}.EventType(), Delivery},
	{delivery.Played{}.EventType(), Delivery},
	{delivery.DeviceFailed{}.EventType(), Delivery},
	{delivery.Failed{}.EventType(), Delivery},
	{delivery.Expired{}.EventType(), Delivery},
	{delivery.Cancelled{}.EventType(), Delivery},
}

// Types are the events that the read model follows: what is shown, and what tells when a large send has happened.
var Types = append(typesOf(""), send.BroadcastSealed{}.EventType(), send.BroadcastAbandoned{}.EventType())

// typesOf lists the types of events that happen to a type of resource; "" is any.
func typesOf(resource string) []string {
	var types []string
	for _, k := range Kinds {
		if resource == "" || k.Resource == resource {
			types = append(types, k.Type)
		}
	}
	return types
}

// Apply turns events into statements. The rows of many events are written together; what depends on earlier rows ends such a run.
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

// apply is for the events whose rows depend on those of earlier ones.
func apply(batch *pgx.Batch, e event.Recorded) error {
	m := e.Metadata
	switch e.Type {
	case token.Revoked{}.EventType():
		p, err := readmodel.Decode[token.Revoked](e)
		if err != nil {
			return err
		}
		const revoked = `
			INSERT INTO entry (company_id, environment, occurred_at, position, event_id, type, actor, resource_type, resource_id, request_id, details, external_id)
			VALUES ($1, $2, $3, $4, $5, $6, $7, 'token', $8, $9, '{}',
				(SELECT external_id FROM entry WHERE company_id = $1 AND environment = $2 AND resource_type = 'token' AND resource_id = $8
					ORDER BY occurred_at, position LIMIT 1))`
		batch.Queue(revoked, m.CompanyID, m.Environment, m.Time, int64(e.Position.Commit), uid(e), e.Type, actor(m), p.TokenID, optional(m.RequestID))
	case send.Cancelled{}.EventType():
		p, err := readmodel.Decode[send.Cancelled](e)
		if err != nil {
			return err
		}
		const cancelled = `
			INSERT INTO entry (company_id, environment, occurred_at, position, event_id, type, actor, resource_type, resource_id, request_id, details, send_id, audio_id)
			VALUES ($1, $2, $3, $4, $5, $6, $7, 'send', $8, $9, $10, $8,
				(SELECT audio_id FROM entry WHERE company_id = $1 AND environment = $2 AND resource_type = 'send' AND resource_id = $8
					ORDER BY occurred_at, position LIMIT 1))`
		told, err := detailed(e, refusal{p.Refused})
		if err != nil {
			return err
		}
		batch.Queue(cancelled, m.CompanyID, m.Environment, m.Time, int64(e.Position.Commit), uid(e), e.Type, actor(m), p.SendID, optional(m.RequestID), told)
	case send.BroadcastSealed{}.EventType():
		p, err := readmodel.Decode[send.BroadcastSealed](e)
		if err != nil {
			return err
		}
		// It is shown as what it is that was sealed, by who asked for it: a worker may have sealed it.
		const seal = `
			WITH whole AS (DELETE FROM unsealed WHERE send_id = $1 RETURNING *)
			INSERT INTO entry AS e (company_id, environment, occurred_at, position, event_id, type, actor, resource_type, resource_id, send_id, audio_id, request_id, locations, details)
			SELECT company_id, environment, $2, $3, $4, type, actor, 'send', send_id, send_id, audio_id, request_id, locations, details FROM whole
			ON CONFLICT (send_id, occurred_at) WHERE type = 'AudioSent' DO UPDATE SET locations = e.locations + excluded.locations`
		batch.Queue(seal, p.SendID, m.Time, int64(e.Position.Commit), uid(e))
	case send.BroadcastAbandoned{}.EventType():
		p, err := readmodel.Decode[send.BroadcastAbandoned](e)
		if err != nil {
			return err
		}
		batch.Queue(`DELETE FROM unsealed WHERE send_id = $1`, p.SendID)
	}
	return nil
}

func uid(e event.Recorded) pgtype.UUID { return pgtype.UUID{Bytes: e.ID, Valid: true} }

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// detailed writes what is told of an event.
func detailed(e event.Recorded, told any) (string, error) {
	raw, err := json.Marshal(told)
	if err != nil {
		return "", fmt.Errorf("tell of %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	return string(raw), nil
}

// row is an entry in the making.
type row struct {
	companyID   string
	environment event.Environment
	at          time.Time
	position    int64
	eventID     pgtype.UUID
	kind        string
	actor       string
	resource    string
	resourceID  string
	sendID      *string
	audioID     *string
	externalID  *string
	requestID   *string
	locations   *int32
	details     string
}

func newRow(e event.Recorded, resource, id string) row {
	m := e.Metadata
	return row{
		companyID: m.CompanyID, environment: m.Environment, at: m.Time, position: int64(e.Position.Commit), eventID: uid(e), kind: e.Type, actor: actor(m),
		resource: resource, resourceID: id, requestID: optional(m.RequestID), details: "{}",
	}
}
