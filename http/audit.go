package httpapi

import (
	"encoding/json"
	"strings"

	"github.com/musique/musique/projections"
	"github.com/musique/musique/projections/audit"
)

type auditData struct {
	EventID   string          `json:"eventId"`
	Type      string          `json:"type"`
	Timestamp timestamp       `json:"timestamp"`
	Actor     actorData       `json:"actor"`
	Resource  resourceData    `json:"resource"`
	Related   relatedData     `json:"related"`
	RequestID *string         `json:"requestId"`
	Details   json.RawMessage `json:"details"`
}

type actorData struct {
	Type string  `json:"type"`
	ID   *string `json:"id"`
}

type resourceData struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

// relatedData is what an event has to do with beside its resource, and how many locations that is.
type relatedData struct {
	SendID     *string `json:"sendId,omitempty"`
	AudioID    *string `json:"audioId,omitempty"`
	ExternalID *string `json:"externalId,omitempty"`
	Locations  *int    `json:"locations,omitempty"`
}

// auditTypes are the types of events that the list can be filtered by.
var auditTypes = func() []string {
	types := make([]string, len(audit.Kinds))
	for i, k := range audit.Kinds {
		types[i] = k.Type
	}
	return types
}()

// listAudit lists what happened in the company and environment, newest first. No writer waits for the audit trail, so its reader does: until it has all that
// anyone was answered.
func (s *Server) listAudit(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	filter := audit.Filter{
		Actor: q.text("actor"), Type: q.oneOf("type", auditTypes...), ResourceType: q.oneOf("resourceType", audit.Resources...), ResourceID: q.text("resourceId"),
		From: q.day("from", false), To: q.day("to", true),
	}
	if _, typed := q.values["resourceType"]; filter.ResourceID != "" && !typed {
		filter.ResourceType = audit.ResourceOf(filter.ResourceID)
	}
	if err := q.err(); err != nil {
		return err
	}
	if s.reads != nil {
		written, err := projections.Written(c.ctx(), s.pool)
		if err != nil {
			return err
		}
		if err := s.reads.WaitFor(c.ctx(), written, projections.Audit); err != nil {
			return err
		}
	}
	found, next, err := audit.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, filter, cursor, limit)
	if err != nil {
		return err
	}
	all := make([]auditData, len(found))
	for i, e := range found {
		all[i] = auditData{
			EventID: e.EventID.String(), Type: e.Type, Timestamp: timestamp(e.At), Actor: actorOf(e.Actor), Resource: resourceData{e.ResourceType, e.ResourceID},
			Related: relatedTo(e), RequestID: e.RequestID, Details: e.Details,
		}
	}
	return c.list(all, limit, next)
}

// actorOf tells what kind of actor it is, and its ID if it has one.
func actorOf(actor string) actorData {
	switch {
	case strings.HasPrefix(actor, "tok_"):
		return actorData{"token", &actor}
	case strings.HasPrefix(actor, "dvc_"):
		return actorData{"device", &actor}
	}
	return actorData{actor, nil}
}

// relatedTo leaves out what the resource says itself.
func relatedTo(e audit.Entry) relatedData {
	related := relatedData{SendID: e.SendID, AudioID: e.AudioID, ExternalID: e.ExternalID, Locations: e.Locations}
	switch e.ResourceType {
	case audit.Send:
		related.SendID = nil
	case audit.Audio:
		related.AudioID = nil
	case audit.Location:
		related.ExternalID = nil
	}
	return related
}
