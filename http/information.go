package httpapi

import (
	"net/http"

	"github.com/musique/musique/domain/event"
)

// features are what the API can do, in the words of its overview.
var features = []string{
	"token-authentication", "audio-management", "single-send", "broadcast", "scheduled-send", "locations", "players", "sandbox", "idempotency", "usage-logs", "rate-limits",
}

type informationData struct {
	Version     string            `json:"version"`
	Integration integrationData   `json:"integration"`
	Features    []string          `json:"features"`
	Endpoints   map[string]string `json:"endpoints"`
}

type integrationData struct {
	ExternalID  string            `json:"externalId"`
	UserID      int64             `json:"userId"`
	Permissions []string          `json:"permissions"`
	AccountType string            `json:"accountType"`
	Environment event.Environment `json:"environment"`
	Plan        string            `json:"plan"`
	CreatedAt   timestamp         `json:"createdAt"`
}

// information tells the caller what this API is and who it is to the API.
func (s *Server) information(c *call) error {
	endpoints := map[string]string{}
	for _, r := range s.routes() {
		if r.access == byToken || r.operation == "GenerateToken" {
			endpoints[r.operation] = r.method + " " + r.paths[0]
		}
	}
	return c.data(http.StatusOK, informationData{
		Version: s.version,
		Integration: integrationData{
			ExternalID: c.caller.ExternalID, UserID: c.caller.UserID, Permissions: c.caller.Permissions, AccountType: "partner",
			Environment: c.caller.Environment, Plan: c.caller.Plan, CreatedAt: timestamp(c.caller.CreatedAt),
		},
		Features: features, Endpoints: endpoints,
	})
}
