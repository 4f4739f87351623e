package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/telemetry"
	"github.com/musique/musique/workers/inbox"
)

const (
	// heartbeat is the silence after which a stream gets a comment, so that both ends notice a connection that died.
	heartbeat = 15 * time.Second
	// streamBatch is how many items are read of an inbox at once.
	streamBatch = 100
	// streamWrite bounds one write to a player.
	streamWrite = 10 * time.Second
	// streamQuery bounds one question to the database of a stream.
	streamQuery = 5 * time.Second
	// streamRetry is what players are told to wait before they connect again, and what a stream waits when the database is away.
	streamRetry = 2 * time.Second
	// minPlayerURL is the least that the URL of a delivery's audio lasts; it lasts until the delivery expires if that is later.
	minPlayerURL = time.Hour
)

// playerStream tells a player what to play, as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html), for as long as both
// sides last. Without Last-Event-ID it begins with all that is open at the location, with it after that event.
func (s *Server) playerStream(c *call) error {
	where := inbox.Location{CompanyID: c.device.CompanyID, Environment: c.device.Environment, UserID: c.device.UserID}
	// Subscribing comes before reading, so that nothing falls between the two.
	wake, stop := s.inbox.Subscribe(where)
	defer stop()
	this := s.streams.add(c.device)
	defer s.streams.remove(this)
	after, err := s.resumeAt(c)
	if err != nil {
		return err
	}
	w := &eventWriter{call: c, control: http.NewResponseController(c.w)}
	if err := w.begin(); err != nil {
		return nil // the player has gone, and is nobody to be told of it
	}
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	s.beat(this.presence())
	defer s.leave(this)
	silence := time.NewTimer(0)
	defer silence.Stop()
	for {
		if after, err = s.tell(c, w, where, after); err != nil {
			return nil // as above
		}
		silence.Reset(heartbeat)
		select {
		case <-wake:
		case <-silence.C:
			if w.comment("heartbeat") != nil {
				return nil
			}
		case <-this.revoked:
			return nil
		case <-s.drained:
			return nil
		case <-c.ctx().Done():
			return nil
		}
	}
}

// resumeAt is the seq of the last event that the player has. One that the inbox has not given yet comes from before the database went back to a backup: in
// what there is now, everything that is open is new.
func (s *Server) resumeAt(c *call) (int64, error) {
	given := c.r.Header.Get("Last-Event-ID")
	if given == "" {
		return 0, nil
	}
	seq, err := strconv.ParseInt(given, 10, 64)
	if err != nil || seq < 0 {
		return 0, fault.ForField("Last-Event-ID", fault.InvalidFormat, "Last-Event-ID must be the id of an event of this stream.")
	}
	ctx, cancel := context.WithTimeout(c.ctx(), streamQuery)
	defer cancel()
	last, err := inbox.Last(ctx, s.pool)
	if err != nil {
		return 0, err
	}
	if seq > last {
		return 0, nil
	}
	return seq, nil
}

// tell writes what came into the inbox after a seq, and gives the seq that the player has then. While the database is away it writes nothing, and the
// next wake or heartbeat tries again. An error is the player's connection.
func (s *Server) tell(c *call, w *eventWriter, where inbox.Location, after int64) (int64, error) {
	for {
		ctx, cancel := context.WithTimeout(c.ctx(), streamQuery)
		items, err := s.inbox.After(ctx, where, after, streamBatch)
		cancel()
		if err != nil {
			if c.ctx().Err() == nil {
				s.log.WarnContext(c.ctx(), "an inbox cannot be read", "requestId", c.id, "device", c.device.DeviceID, "error", err)
			}
			return after, nil
		}
		for _, item := range items {
			if err := s.tellOne(c, w, item); err != nil {
				return after, err
			}
			after = item.Seq
		}
		if len(items) < streamBatch {
			return after, nil
		}
	}
}

// audioToPlay is the audio of a delivery.
type audioToPlay struct {
	AudioID  string  `json:"audioId"`
	Name     string  `json:"name"`
	URL      string  `json:"url"`
	SHA256   string  `json:"sha256"`
	Format   string  `json:"format"`
	Duration float64 `json:"duration"` // seconds
	Size     int64   `json:"size"`
}

type deliverEvent struct {
	DeliveryID string      `json:"deliveryId"`
	SendID     string      `json:"sendId"`
	Audio      audioToPlay `json:"audio"`
	Priority   string      `json:"priority"`
	Repeat     int         `json:"repeat"`
	Volume     int         `json:"volume"`
	PlayAt     *timestamp  `json:"playAt"`
	ExpiresAt  timestamp   `json:"expiresAt"`
	// TraceParent is the delivery's place in the trace of its send, if there is one: what a player's reports begin with as `traceparent`.
	TraceParent string `json:"traceparent,omitempty"`
}

type cancelEvent struct {
	DeliveryID string `json:"deliveryId"`
	SendID     string `json:"sendId"`
}

func (s *Server) tellOne(c *call, w *eventWriter, item inbox.Item) (err error) {
	d := item.Delivery
	ctx, span := telemetry.Continue(c.ctx(), d.TraceParent, "tell player")
	defer func() {
		telemetry.Attribute(span, "musique.delivery_id", d.DeliveryID)
		telemetry.Failed(span, err)
		span.End()
	}()
	if item.Kind == inbox.Cancel {
		return w.event(item.Seq, item.Kind, cancelEvent{d.DeliveryID, d.SendID})
	}
	until := d.ExpiresAt
	if least := s.now().Add(minPlayerURL); until.Before(least) {
		until = least
	}
	return w.event(item.Seq, item.Kind, deliverEvent{
		DeliveryID: d.DeliveryID, SendID: d.SendID,
		Audio: audioToPlay{
			AudioID: d.AudioID, Name: d.Name, URL: s.mediaURL(c, d.BlobKey, until), SHA256: d.SHA256, Format: d.Format, Duration: seconds(time.Duration(d.DurationMs) * time.Millisecond), Size: d.Size,
		},
		Priority: d.Priority, Repeat: d.Repeat, Volume: d.Volume, PlayAt: optionalTime(d.PlayAt), ExpiresAt: timestamp(d.ExpiresAt),
		TraceParent: telemetry.TraceParent(ctx),
	})
}

// eventWriter writes Server-Sent Events, each at once.
type eventWriter struct {
	call    *call
	control *http.ResponseController
}

// begin sends the head of the answer, so that the player knows that it is connected.
func (w *eventWriter) begin() error {
	h := w.call.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.call.w.WriteHeader(http.StatusOK)
	return w.send(fmt.Appendf(nil, "retry: %d\n\n", streamRetry.Milliseconds()))
}

func (w *eventWriter) comment(text string) error { return w.send([]byte(": " + text + "\n\n")) }

func (w *eventWriter) event(id int64, kind string, data any) error {
	raw, err := json.Marshal(data) // on one line
	if err != nil {
		return fmt.Errorf("encode a %s event: %w", kind, err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", id, kind, raw)
	return w.send(b.Bytes())
}

func (w *eventWriter) send(raw []byte) error {
	if err := w.control.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	if _, err := w.call.w.Write(raw); err != nil {
		return err
	}
	return w.control.Flush()
}

// reportPlayback takes a player's word of what became of a delivery.
func (s *Server) reportPlayback(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	return c.report(commands.ReportPlayback{Caller: caller, UserID: c.device.UserID, DeviceID: c.device.DeviceID, DeliveryID: c.pathVar("deliveryId")},
		"delivered", "playing", "played", "failed")
}

// report reads what became of a delivery into the command that says of which, and takes the word: one of these statuses.
func (c *call) report(cmd commands.ReportPlayback, statuses ...string) error {
	o, err := c.readObject()
	if err != nil {
		return err
	}
	cmd.Status, cmd.At, cmd.Reason = o.oneOf("status", statuses...), o.moment("at"), o.text("reason")
	o.check(func(fields *fault.Fields) {
		if cmd.Status == "" {
			last := len(statuses) - 1
			fields.Add("status", fault.MissingField, "Give the status: %s or %s.", strings.Join(statuses[:last], ", "), statuses[last])
		}
		if len(cmd.Reason) > maxReason {
			fields.Add("reason", fault.OutOfRange, "The reason has at most %d bytes.", maxReason)
		}
	})
	if err := o.err(); err != nil {
		return err
	}
	status, err := c.server.commands.ReportPlayback.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	return c.data(http.StatusOK, map[string]string{"deliveryId": cmd.DeliveryID, "status": string(status)})
}

// maxReason bounds the reason of a failed playback, in bytes.
const maxReason = 500
