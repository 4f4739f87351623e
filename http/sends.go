package httpapi

import (
	"net/http"
	"strconv"
	"time"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/sends"
)

// The statuses that lists can be filtered by.
var (
	sendStatuses     = []string{statusScheduled, statusQueued, "sent", "failed", "cancelled"}
	deliveryStatuses = []string{
		statusScheduled, string(delivery.StatusQueued), string(delivery.StatusDelivered), string(delivery.StatusPlaying), string(delivery.StatusPlayed),
		string(delivery.StatusFailed), string(delivery.StatusExpired), string(delivery.StatusCancelled),
	}
)

type sendData struct {
	SendID            string       `json:"sendId"`
	AudioID           string       `json:"audioId"`
	Status            string       `json:"status"`
	TotalDestinations int          `json:"totalDestinations"`
	Deliveries        deliveryTell `json:"deliveries"`
	Scheduled         bool         `json:"scheduled"`
	ScheduleAt        *timestamp   `json:"scheduleAt"`
	LocalTime         *string      `json:"localTime"`
	Priority          string       `json:"priority"`
	Repeat            int          `json:"repeat"`
	Volume            int          `json:"volume"`
	ExpiresIn         int64        `json:"expiresIn"`
	CreatedAt         timestamp    `json:"createdAt"`
	CancelledAt       *timestamp   `json:"cancelledAt"`
}

// deliveryTell is how many of a send's deliveries are where.
type deliveryTell struct {
	Scheduled int `json:"scheduled"`
	Queued    int `json:"queued"`
	Delivered int `json:"delivered"`
	Playing   int `json:"playing"`
	Played    int `json:"played"`
	Failed    int `json:"failed"`
	Expired   int `json:"expired"`
	Cancelled int `json:"cancelled"`
}

func sendOf(s sends.Send) sendData {
	return sendData{
		SendID: s.SendID, AudioID: s.AudioID, Status: s.Status, TotalDestinations: s.Total, Deliveries: deliveryTell(s.Counts),
		Scheduled: s.ScheduleAt != nil, ScheduleAt: optionalTime(s.ScheduleAt), LocalTime: optionalText(s.LocalTime), Priority: s.Priority, Repeat: s.Repeat,
		Volume: s.Volume, ExpiresIn: s.ExpiresIn, CreatedAt: timestamp(s.CreatedAt), CancelledAt: optionalTime(s.CancelledAt),
	}
}

// listSends lists the sends, newest first or, where they are asked for by their schedule, the latest schedule first.
func (s *Server) listSends(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	filter := sends.Filter{
		Status: q.oneOf("status", sendStatuses...), AudioID: q.text("audioId"), ScheduledAfter: q.moment("scheduledAfter"), ScheduledBefore: q.moment("scheduledBefore"),
		CreatedAfter: q.moment("createdAfter"), CreatedBefore: q.moment("createdBefore"),
	}
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := sends.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, filter, cursor, limit)
	if err != nil {
		return err
	}
	all := make([]sendData, len(found))
	for i, f := range found {
		all[i] = sendOf(f)
	}
	return c.list(all, limit, next)
}

// getSend shows one send.
func (s *Server) getSend(c *call) error {
	found, err := sends.Get(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, c.pathVar("sendId"))
	if err != nil {
		return err
	}
	return c.data(http.StatusOK, sendOf(found))
}

type deliveryData struct {
	DeliveryID  string     `json:"deliveryId"`
	SendID      string     `json:"sendId"`
	ExternalID  string     `json:"externalId"`
	UserID      int64      `json:"userId"`
	Status      string     `json:"status"`
	Reason      *string    `json:"reason"`
	PlayAt      *timestamp `json:"playAt"`
	ExpiresAt   *timestamp `json:"expiresAt"`
	QueuedAt    *timestamp `json:"queuedAt"`
	DeliveredAt *timestamp `json:"deliveredAt"`
	PlayingAt   *timestamp `json:"playingAt"`
	PlayedAt    *timestamp `json:"playedAt"`
	FailedAt    *timestamp `json:"failedAt"`
	ExpiredAt   *timestamp `json:"expiredAt"`
	CancelledAt *timestamp `json:"cancelledAt"`
}

func deliveryOf(d sends.Delivery) deliveryData {
	ended := func(as delivery.Status) *timestamp {
		var at *time.Time
		if d.Status == string(as) {
			at = d.EndedAt
		}
		return optionalTime(at)
	}
	return deliveryData{
		DeliveryID: d.DeliveryID(), SendID: d.SendID, ExternalID: d.ExternalID, UserID: d.UserID, Status: d.Status, Reason: d.Reason,
		PlayAt: optionalTime(d.PlayAt), ExpiresAt: optionalTime(d.ExpiresAt), QueuedAt: optionalTime(d.QueuedAt), DeliveredAt: optionalTime(d.DeliveredAt),
		PlayingAt: optionalTime(d.PlayingAt), PlayedAt: ended(delivery.StatusPlayed), FailedAt: ended(delivery.StatusFailed),
		ExpiredAt: ended(delivery.StatusExpired), CancelledAt: ended(delivery.StatusCancelled),
	}
}

// listDeliveries pages through a send's destinations, or gives all of them as a file.
func (s *Server) listDeliveries(c *call) error {
	if prefersCSV(c.r.Header.Values("Accept")) {
		return s.deliveriesInCSV(c)
	}
	q := c.query()
	limit, cursor, status := q.limit(), c.cursor(q), q.oneOf("status", deliveryStatuses...)
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := sends.Deliveries(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, c.pathVar("sendId"), status, cursor, limit)
	if err != nil {
		return err
	}
	all := make([]deliveryData, len(found))
	for i, d := range found {
		all[i] = deliveryOf(d)
	}
	return c.list(all, limit, next)
}

// deliveryColumns are the columns of deliveries in CSV: the names that they have in JSON, and what the send has.
var deliveryColumns = []string{
	"deliveryId", "sendId", "externalId", "userId", "status", "reason", "playAt", "expiresAt", "queuedAt", "deliveredAt", "playingAt", "playedAt", "failedAt",
	"expiredAt", "cancelledAt", "priority", "audioId",
}

func deliveryRow(d deliveryData, of sends.Send) []string {
	reason := ""
	if d.Reason != nil {
		reason = *d.Reason
	}
	return []string{
		d.DeliveryID, d.SendID, d.ExternalID, strconv.FormatInt(d.UserID, 10), d.Status, reason, d.PlayAt.text(), d.ExpiresAt.text(), d.QueuedAt.text(), d.DeliveredAt.text(),
		d.PlayingAt.text(), d.PlayedAt.text(), d.FailedAt.text(), d.ExpiredAt.text(), d.CancelledAt.text(), of.Priority, of.AudioID,
	}
}

// deliveriesInCSV gives all of a send's deliveries as a file.
func (s *Server) deliveriesInCSV(c *call) error {
	q := c.query()
	status := q.oneOf("status", deliveryStatuses...)
	q.refuse("%s does not go with CSV, which has all deliveries; remove it.", "limit", "cursor")
	if err := q.err(); err != nil {
		return err
	}
	found, err := sends.Get(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, c.pathVar("sendId"))
	if err != nil {
		return err
	}
	file := c.csv(found.SendID+"-deliveries.csv", deliveryColumns)
	if c.r.Method == http.MethodHead {
		return nil
	}
	return file.end(sends.EachDelivery(c.ctx(), s.pool, found.SendID, status, func(page []sends.Delivery) error {
		for _, d := range page {
			file.row(deliveryRow(deliveryOf(d), found))
		}
		return file.send()
	}))
}

// changeSend changes a send that is still to come.
func (s *Server) changeSend(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	o, err := c.readObject()
	if err != nil {
		return err
	}
	change := send.Change{
		ScheduleAt: o.moment("scheduleAt"), LocalTime: o.filled("localTime"), Priority: o.oneOf("priority", send.Priorities...),
		Repeat: narrow(o.integer("repeat")), Volume: narrow(o.integer("volume")), ExpiresIn: o.integer("expiresIn"),
	}
	if err := o.err(func(fields *fault.Fields) { change.Check(s.now(), fields) }); err != nil {
		return err
	}
	if err := s.commands.ChangeSend.Handle(c.ctx(), commands.ChangeSend{Caller: caller, SendID: c.pathVar("sendId"), Change: change}); err != nil {
		return err
	}
	return s.getSend(c)
}

// cancelSend calls a send off.
func (s *Server) cancelSend(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	id := c.pathVar("sendId")
	if err := s.commands.CancelSend.Handle(c.ctx(), commands.CancelSend{Caller: caller, SendID: id}); err != nil {
		return err
	}
	return c.data(http.StatusOK, map[string]any{"cancelled": true, "sendId": id, "status": "cancelled"})
}
