package httpapi

import (
	"net/http"

	"github.com/musique/musique/domain/fault"
)

// BackupParts are where the parts lie that a backup is copied from.
type BackupParts struct {
	// DataDir is the data folder.
	DataDir string `json:"dataDir"`
	// Events is a folder in it with the events as they were a moment ago, which nobody writes to. The next backup replaces it.
	Events string `json:"events"`
}

// backup makes what a backup is copied from.
func (s *Server) backup(c *call) error {
	if s.makeBackup == nil {
		return fault.New(fault.Conflict, "The event store is a server of its own: back it up with its own tools.")
	}
	parts, err := s.makeBackup()
	if err != nil {
		return err
	}
	s.log.InfoContext(c.ctx(), "an operator makes a backup", "events", parts.Events, "requestId", c.id)
	return c.data(http.StatusCreated, parts)
}
