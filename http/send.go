package httpapi

import (
	"math"
	"net/http"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
)

// maxListedDestinations is how many destinations the answer to a send lists; its deliveries page through all.
const maxListedDestinations = 1000

type destinationData struct {
	ExternalID string `json:"externalId"`
	UserID     int64  `json:"userId"`
	Status     string `json:"status"`
}

type acceptedSendData struct {
	SendID            string            `json:"sendId"`
	AudioID           string            `json:"audioId"`
	Destinations      []destinationData `json:"destinations"`
	TotalDestinations int               `json:"totalDestinations"`
	Scheduled         bool              `json:"scheduled"`
	ScheduleAt        *timestamp        `json:"scheduleAt"`
	LocalTime         *string           `json:"localTime"`
	Priority          string            `json:"priority"`
	Repeat            int               `json:"repeat"`
	Volume            int               `json:"volume"`
	ExpiresIn         int64             `json:"expiresIn"`
	Status            string            `json:"status"`
}

// The statuses of a send that was just accepted.
const (
	statusScheduled = "scheduled"
	statusQueued    = "queued"
)

// sendAudio sends audio to one, some or all locations.
func (s *Server) sendAudio(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	request := readSend(o)
	if err := o.err(func(fields *fault.Fields) { request.Check(s.now(), fields) }); err != nil {
		return err
	}
	accepted, err := s.commands.SendAudio.Handle(c.ctx(), commands.SendAudio{Caller: caller, AudioID: c.pathVar("audioId"), Request: request})
	if err != nil {
		return err
	}
	c.replayed(accepted.Replayed)
	return c.data(http.StatusAccepted, acceptedSend(accepted.Send))
}

func readSend(o *object) send.Request {
	return send.Request{
		Targets:    send.Targets{ExternalIDs: o.distinctTexts("externalIds", send.MaxDestinations), All: o.flag("all"), Tags: o.texts("tags")},
		ScheduleAt: o.moment("scheduleAt"),
		LocalTime:  o.filled("localTime"),
		Priority:   o.oneOf("priority", send.Priorities...),
		Repeat:     narrow(o.integer("repeat")),
		Volume:     narrow(o.integer("volume")),
		ExpiresIn:  o.integer("expiresIn"),
	}
}

// narrow makes a whole number an int of any platform; what does not fit is out of every range.
func narrow(n *int64) *int {
	if n == nil {
		return nil
	}
	small := int(min(max(*n, math.MinInt32), math.MaxInt32))
	return &small
}

// acceptedSend is a send as it was accepted, whatever became of it since: a repeated request gets the answer of the first.
func acceptedSend(a send.Send) acceptedSendData {
	data := acceptedSendData{
		SendID: a.ID, AudioID: a.Terms.AudioID, TotalDestinations: a.Total, Scheduled: a.Scheduled(), ScheduleAt: optionalTime(&a.ScheduleAt),
		Priority: a.Terms.Priority, Repeat: a.Terms.Repeat, Volume: a.Terms.Volume, ExpiresIn: a.Terms.ExpiresIn, Status: statusQueued,
		Destinations: make([]destinationData, 0, min(a.Total, maxListedDestinations)),
	}
	if a.LocalTime != "" {
		data.LocalTime = &a.LocalTime
	}
	if a.Scheduled() {
		data.Status = statusScheduled
		for _, d := range a.Planned[:min(len(a.Planned), maxListedDestinations)] {
			data.Destinations = append(data.Destinations, destinationData{d.ExternalID, d.UserID, statusScheduled})
		}
		return data
	}
	for _, d := range a.Sent[:min(len(a.Sent), maxListedDestinations)] {
		data.Destinations = append(data.Destinations, destinationData{d.ExternalID, d.UserID, string(delivery.StatusQueued)})
	}
	return data
}
