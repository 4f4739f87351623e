package httpapi

import (
	"net/http"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/projections/locations"
)

// createDevice lets a player sign in for a location.
func (s *Server) createDevice(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readOptionalObject()
	if err != nil {
		return err
	}
	cmd := commands.EnrolDevice{Caller: caller, ExternalID: c.pathVar("externalId"), Name: o.text("name")}
	if err := o.err(); err != nil {
		return err
	}
	made, err := s.commands.EnrolDevice.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(made.Replayed)
	return c.data(http.StatusCreated, deviceWithToken{made.DeviceID, made.Token, made.ExternalID, cmd.Name, timestamp(made.CreatedAt)})
}

// deviceWithToken is a device when its token is shown.
type deviceWithToken struct {
	DeviceID   string    `json:"deviceId"`
	Token      string    `json:"token"`
	ExternalID string    `json:"externalId"`
	Name       string    `json:"name"`
	CreatedAt  timestamp `json:"createdAt"`
}

// rotateDeviceToken gives a player another token, and closes the stream that it opened with the one before.
func (s *Server) rotateDeviceToken(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	rotated, err := s.commands.RotateDeviceToken.Handle(c.ctx(), commands.RotateDeviceToken{
		Caller: caller, ExternalID: c.pathVar("externalId"), DeviceID: c.pathVar("deviceId"),
	})
	if err != nil {
		return err
	}
	s.streams.look()
	c.replayed(rotated.Replayed)
	return c.data(http.StatusCreated, deviceWithToken{rotated.DeviceID, rotated.Token, rotated.ExternalID, rotated.Name, timestamp(rotated.CreatedAt)})
}

// deleteDevice revokes a player's sign-in and closes its stream.
func (s *Server) deleteDevice(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	id := c.pathVar("deviceId")
	if err := s.commands.RevokeDevice.Handle(c.ctx(), commands.RevokeDevice{Caller: caller, ExternalID: c.pathVar("externalId"), DeviceID: id}); err != nil {
		return err
	}
	s.streams.look()
	return c.data(http.StatusOK, map[string]any{"deleted": true, "deviceId": id})
}

type deviceData struct {
	DeviceID   string    `json:"deviceId"`
	ExternalID string    `json:"externalId"`
	Name       string    `json:"name"`
	CreatedAt  timestamp `json:"createdAt"`
}

// listDevices lists a location's devices, all on one page, without their tokens.
func (s *Server) listDevices(c *call) error {
	q := c.query()
	if err := q.err(); err != nil {
		return err
	}
	id := c.pathVar("externalId")
	found, err := locations.Devices(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, id)
	if err != nil {
		return err
	}
	all := make([]deviceData, len(found))
	for i, d := range found {
		all[i] = deviceData{d.DeviceID, id, d.Name, timestamp(d.CreatedAt)}
	}
	return c.list(all, location.MaxDevices, "")
}
