package httpapi

import (
	"net/http"

	"github.com/google/uuid"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections"
)

// listProjections tells how the projections are doing.
func (s *Server) listProjections(c *call) error {
	all, err := projections.Statuses(c.ctx(), s.pool, s.store)
	if err != nil {
		return err
	}
	return c.data(http.StatusOK, all)
}

// rebuildProjection has a rebuild begin, or go on. Processes that run projections carry it out; ListProjections tells how far they are.
func (s *Server) rebuildProjection(c *call) error {
	o, err := c.readOptionalObject()
	if err != nil {
		return err
	}
	fresh := o.flag("fresh")
	if err := o.err(); err != nil {
		return err
	}
	name := c.pathVar("projection")
	if err := projections.StartRebuild(c.ctx(), s.pool, name, fresh); err != nil {
		return err
	}
	s.log.InfoContext(c.ctx(), "an operator had a projection rebuilt", "projection", name, "fresh", fresh, "requestId", c.id)
	return c.data(http.StatusAccepted, map[string]any{"name": name, "building": true})
}

// pauseRebuild has a rebuild stop where it is.
func (s *Server) pauseRebuild(c *call) error {
	name := c.pathVar("projection")
	if err := projections.PauseRebuild(c.ctx(), s.pool, name); err != nil {
		return err
	}
	s.log.InfoContext(c.ctx(), "an operator paused the rebuild of a projection", "projection", name, "requestId", c.id)
	return c.data(http.StatusAccepted, map[string]any{"name": name, "building": false})
}

// skipEvent has a projection pass the event that it stands at.
func (s *Server) skipEvent(c *call) error {
	o, err := c.readObject()
	if err != nil {
		return err
	}
	text, by, reason := o.text("event"), o.text("by"), o.text("reason")
	id, parseErr := uuid.Parse(text)
	o.check(func(fields *fault.Fields) {
		switch {
		case text == "":
			fields.Add("event", fault.MissingField, "Name the event by its ID.")
		case parseErr != nil:
			fields.Add("event", fault.InvalidFormat, "event is the ID of an event, a UUID.")
		}
		if by == "" {
			fields.Add("by", fault.MissingField, "Say who skips it.")
		}
	})
	if err := o.err(); err != nil {
		return err
	}
	name := c.pathVar("projection")
	skipped, err := projections.Skip(c.ctx(), s.pool, name, id, by, reason)
	if err != nil {
		return err
	}
	s.log.WarnContext(c.ctx(), "an operator had a projection skip an event", "projection", name, "event", skipped.ID, "type", skipped.Type, "stream", skipped.Stream,
		"revision", skipped.Revision, "by", by, "reason", reason, "error", skipped.Error, "requestId", c.id)
	return c.data(http.StatusOK, skipped)
}
