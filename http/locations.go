package httpapi

import (
	"encoding/json"
	"net/http"
	"slices"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/projections/locations"
	"github.com/musique/musique/projections/sends"
)

type channelData struct {
	Type string `json:"type"`
	URL  string `json:"url,omitempty"`
	// Secret is shown in the answer to the request that had the server make it, and in no other.
	Secret string `json:"secret,omitempty"`
}

type locationData struct {
	ExternalID string      `json:"externalId"`
	UserID     int64       `json:"userId"`
	Name       string      `json:"name"`
	Timezone   string      `json:"timezone"`
	Tags       []string    `json:"tags"`
	Channel    channelData `json:"channel"`
	Online     bool        `json:"online"`
	LastSeenAt *timestamp  `json:"lastSeenAt"`
	CreatedAt  timestamp   `json:"createdAt"`
	// Stats are not in lists.
	Stats *locationStats `json:"stats,omitempty"`
}

// locationStats tells what became of the sends to a location.
type locationStats struct {
	TimesPlayed  int          `json:"timesPlayed"`
	LastPlayedAt *timestamp   `json:"lastPlayedAt"`
	Deliveries   deliveryTell `json:"deliveries"`
}

func locationOf(l locations.Location) locationData {
	return locationData{
		ExternalID: l.ExternalID, UserID: l.UserID, Name: l.Name, Timezone: l.Timezone, Tags: orEmpty(l.Tags), Channel: channelOf(l.Channel, ""),
		Online: l.Online, LastSeenAt: optionalTime(l.LastSeenAt), CreatedAt: timestamp(l.CreatedAt),
	}
}

func channelOf(c location.Channel, secret string) channelData {
	return channelData{Type: c.Type, URL: c.URL, Secret: secret}
}

// orEmpty makes JSON write [] and not null.
func orEmpty(texts []string) []string {
	if texts == nil {
		return []string{}
	}
	return texts
}

// createLocation makes a location.
func (s *Server) createLocation(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	cmd := commands.RegisterLocation{Caller: caller, ExternalID: o.text("externalId"), Details: readDetails(o)}
	if err := o.err(func(fields *fault.Fields) { location.CheckExternalID("externalId", cmd.ExternalID, fields) }, s.checkDetails(cmd.Details)); err != nil {
		return err
	}
	made, err := s.commands.RegisterLocation.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(made.Replayed)
	return c.data(http.StatusCreated, locationData{
		ExternalID: made.ExternalID, UserID: made.UserID, Name: made.Name, Timezone: made.Timezone, Tags: orEmpty(made.Tags),
		Channel: channelOf(made.Channel, made.Secret), CreatedAt: timestamp(made.CreatedAt),
	})
}

func readDetails(o *object) location.Details {
	details := location.Details{Name: o.text("name"), Timezone: o.text("timezone"), Tags: o.texts("tags")}
	if channel, secret := readChannel(o); channel != nil {
		details.Channel, details.Secret = *channel, secret
	}
	return details
}

// checkDetails notes what is wrong with details.
func (s *Server) checkDetails(details location.Details) func(*fault.Fields) {
	return func(fields *fault.Fields) { s.commands.RegisterLocation.CheckDetails(details, fields) }
}

// readChannel reads how a location gets its audio; nil if it is not given.
func readChannel(o *object) (channel *location.Channel, secret string) {
	inner := o.object("channel")
	if inner == nil {
		return nil, ""
	}
	channel, secret = &location.Channel{Type: inner.filled("type"), URL: inner.filled("url")}, inner.filled("secret")
	if !inner.has("type") {
		inner.fail("type", fault.MissingField, "channel.type is player or http.")
	}
	inner.refuseUnknown()
	return channel, secret
}

// listLocations lists the locations.
func (s *Server) listLocations(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	filter := locations.Filter{Tag: q.text("tag"), Online: q.flag("online"), Query: q.open("q")}
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := locations.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, filter, cursor, limit, s.now())
	if err != nil {
		return err
	}
	all := make([]locationData, len(found))
	for i, l := range found {
		all[i] = locationOf(l)
	}
	return c.list(all, limit, next)
}

// getLocation shows one location.
func (s *Server) getLocation(c *call) error { return s.showLocation(c, "") }

// showLocation shows the location of the path, with the secret of its channel if that was made just now.
func (s *Server) showLocation(c *call, secret string) error {
	l, err := locations.Get(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, c.pathVar("externalId"), s.now())
	if err != nil {
		return err
	}
	stats, err := sends.At(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, l.UserID)
	if err != nil {
		return err
	}
	answer := locationOf(l)
	answer.Channel.Secret = secret
	answer.Stats = &locationStats{stats.Played, optionalTime(stats.LastPlayedAt), deliveryTell(stats.Counts)}
	return c.data(http.StatusOK, answer)
}

// changeLocation changes the fields that it is given.
func (s *Server) changeLocation(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	cmd := commands.ChangeLocation{Caller: caller, ExternalID: c.pathVar("externalId"), Name: o.optionalText("name"), Timezone: o.optionalText("timezone")}
	cmd.Channel, cmd.Secret = readChannel(o)
	if tags := o.texts("tags"); tags != nil {
		cmd.Tags = &tags
	}
	unchanged := location.Details{Name: "as it is"} // what is not given has been checked before
	if err := o.err(s.checkDetails(cmd.Onto(unchanged))); err != nil {
		return err
	}
	changed, err := s.commands.ChangeLocation.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	return s.showLocation(c, changed.Secret)
}

// deleteLocation removes a location, and signs its players out.
func (s *Server) deleteLocation(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	id := c.pathVar("externalId")
	if err := s.commands.RemoveLocation.Handle(c.ctx(), commands.RemoveLocation{Caller: caller, ExternalID: id}); err != nil {
		return err
	}
	s.streams.look()
	return c.data(http.StatusOK, map[string]any{"deleted": true, "externalId": id})
}

type importResultData struct {
	ExternalID string       `json:"externalId"`
	Status     string       `json:"status"`
	Secret     string       `json:"secret,omitempty"` // as that of channelData
	Error      *importError `json:"error,omitempty"`
}

// importError says why one row of an import failed.
type importError struct {
	Code    fault.Code    `json:"code"`
	Message string        `json:"message"`
	Param   string        `json:"param,omitempty"`
	Fields  []fault.Field `json:"fields,omitempty"`
}

// importLocations makes or changes many locations.
func (s *Server) importLocations(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	cmd := commands.ImportLocations{Caller: caller}
	rows, raw := o.rows("locations", commands.MaxImport)
	for i, row := range rows {
		cmd.Locations = append(cmd.Locations, s.readRow(row, raw[i]))
	}
	if err := o.err(); err != nil {
		return err
	}
	results, replayed, err := s.commands.ImportLocations.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(replayed)
	answer := struct {
		Created int                `json:"created"`
		Updated int                `json:"updated"`
		Failed  int                `json:"failed"`
		Results []importResultData `json:"results"`
	}{Results: make([]importResultData, len(results))}
	for i, r := range results {
		answer.Results[i] = importResultData{ExternalID: r.ExternalID, Status: r.Status, Secret: r.Secret}
		switch r.Status {
		case commands.ImportCreated:
			answer.Created++
		case commands.ImportUpdated:
			answer.Updated++
		default:
			answer.Failed++
		}
		if r.Err != nil {
			answer.Results[i].Error = rowError(r.Err)
		}
	}
	return c.data(http.StatusOK, answer)
}

// readRow reads a row of an import; row is nil if it is no object.
func (s *Server) readRow(row *object, raw json.RawMessage) commands.ImportedLocation {
	if row == nil {
		return commands.ImportedLocation{Refused: fault.New(fault.InvalidFormat, "A row must be an object such as a location is made of."), Given: canonical(raw)}
	}
	read := commands.ImportedLocation{ExternalID: row.text("externalId"), Details: readDetails(row)}
	read.Refused = row.err(func(fields *fault.Fields) { location.CheckExternalID("externalId", read.ExternalID, fields) }, s.checkDetails(read.Details))
	if read.Refused != nil {
		read.Given = canonical(raw)
	}
	return read
}

// rowError tells why a row failed. Its fields stand beside the message.
func rowError(err *fault.Error) *importError {
	told := &importError{Code: err.Code, Message: err.Message, Param: err.Param, Fields: slices.Clone(err.Fields)}
	if len(err.Fields) > 1 {
		told.Message = fault.Summary(err.Fields, "fields")
	}
	return told
}
