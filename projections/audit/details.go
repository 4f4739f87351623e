package audit

import (
	"strings"
	"time"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
)

// What is told of events beside what they happened to. Hashes, sealed secrets, URLs of endpoints, keys of blobs and operators' notes are in none of them.

type issued struct {
	Name        string     `json:"name,omitempty"`
	Permissions []string   `json:"permissions"`
	ExpiresAt   *time.Time `json:"expiresAt"`
}

type place struct {
	Name     string   `json:"name"`
	Timezone string   `json:"timezone"`
	Tags     []string `json:"tags"`
	Channel  string   `json:"channel"`
}

type uploaded struct {
	Name       string `json:"name"`
	Category   string `json:"category"`
	Format     string `json:"format"`
	DurationMs int64  `json:"durationMs"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
}

type terms struct {
	Priority   string     `json:"priority"`
	Repeat     int        `json:"repeat"`
	Volume     int        `json:"volume"`
	ExpiresIn  int64      `json:"expiresIn"`
	ScheduleAt *time.Time `json:"scheduleAt,omitempty"`
	LocalTime  string     `json:"localTime,omitempty"`
}

func asked(t send.Terms) terms {
	return terms{Priority: t.Priority, Repeat: t.Repeat, Volume: t.Volume, ExpiresIn: t.ExpiresIn}
}

// refusal marks a send that was taken back when it was made: whoever asked for it was told that nothing was sent.
type refusal struct {
	Refused bool `json:"refused,omitempty"`
}

type happened struct {
	At       time.Time `json:"at"`
	Reason   string    `json:"reason,omitempty"`
	DeviceID string    `json:"deviceId,omitempty"`
}

// The actors that have no ID. Which worker it was is no partner's business.
const (
	ActorOperator = "operator" // of Musique
	ActorCompany  = "company"  // who has the company token
	ActorEndpoint = "endpoint" // the HTTP endpoint of a location, at a signed URL
	ActorSystem   = "system"   // Musique by itself
)

// actor is who caused an event, as it is shown.
func actor(m event.Metadata) string {
	switch id := m.Actor; {
	case strings.HasPrefix(id, "tok_"), strings.HasPrefix(id, "dvc_"), id == ActorOperator, id == ActorEndpoint:
		return id
	case id != "" && id == m.CompanyID:
		return ActorCompany
	default:
		return ActorSystem
	}
}
