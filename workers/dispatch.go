package workers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/kafka"
	"github.com/musique/musique/infra/telemetry"
)

const (
	// DispatchTopic carries sends to the delivery workers, keyed by bucket.
	DispatchTopic = "musique.dispatch"
	// DispatchPartitions is how many delivery workers can share the topic at most.
	DispatchPartitions = 16
	// maxDispatched bounds the destinations in one message, maxDispatchedBytes its size, below what the publisher takes.
	maxDispatched      = 1_000
	maxDispatchedBytes = kafka.MaxMessageBytes * 9 / 10
	// maxGathered bounds the destinations of broadcasts that are not closed yet which are remembered.
	maxGathered = 2 * send.MaxDestinations
	// maxCachedAudio bounds the audio that is remembered between pages.
	maxCachedAudio = 1_000
)

// Dispatched is one message of the dispatch topic: all that goes to the locations of a bucket, in the order of the events.
type Dispatched struct {
	Bucket int            `json:"bucket"`
	Sends  []DispatchSend `json:"sends"`
}

// DispatchSend is a send's share of a message.
type DispatchSend struct {
	CompanyID   string            `json:"companyId"`
	Environment event.Environment `json:"environment"`
	SendID      string            `json:"sendId"`
	// Total is how many destinations the send has in all, here and elsewhere.
	Total    int           `json:"total,omitempty"`
	Audio    DispatchAudio `json:"audio"`
	Priority string        `json:"priority"`
	Repeat   int           `json:"repeat"`
	Volume   int           `json:"volume"`
	To       []DispatchTo  `json:"to"`
	// TraceParent is the dispatch's place in the trace of the send, if there is one.
	TraceParent string `json:"traceparent,omitempty"`
	// RequestID is that of the request that made the send.
	RequestID string `json:"requestId,omitempty"`
}

// DispatchAudio is what a player needs to know of the audio.
type DispatchAudio struct {
	AudioID    string `json:"audioId"`
	Name       string `json:"name"`
	BlobKey    string `json:"blobKey"`
	SHA256     string `json:"sha256"`
	Format     string `json:"format"`
	DurationMs int64  `json:"durationMs"`
	Size       int64  `json:"size"`
}

// DispatchTo is one location.
type DispatchTo struct {
	DeliveryID string     `json:"deliveryId"`
	ExternalID string     `json:"externalId"`
	UserID     int64      `json:"userId"`
	PlayAt     *time.Time `json:"playAt,omitempty"`
	ExpiresAt  time.Time  `json:"expiresAt"`
}

// Dispatch follows AudioSent events and hands them to the delivery workers by Kafka, a message per bucket and page, and a broadcast whole. Its checkpoint
// moves after the brokers have the messages, so each is there at least once.
type Dispatch struct {
	Deps
	publisher message.Publisher
	// ahead is up to where a broadcast was dispatched with the page that it began in.
	ahead struct {
		stream   string
		revision uint64
	}

	// open are the broadcasts that are not closed yet, by stream, and gathered is how many destinations they have.
	open     map[string]*openBroadcast
	gathered int

	// doubtThrough is up to which position the inboxes may not know of what has ended.
	doubtThrough int64

	mu    sync.Mutex
	audio map[string]DispatchAudio
}

// openBroadcast is what went by of a broadcast without a gap.
type openBroadcast struct {
	sent []send.AudioSent
	next uint64 // the revision that the next part has
}

// NewDispatch makes the worker.
func NewDispatch(d Deps) *Dispatch {
	return &Dispatch{Deps: d, open: map[string]*openBroadcast{}, audio: map[string]DispatchAudio{}}
}

// Run dispatches until ctx ends.
func (w *Dispatch) Run(ctx context.Context) error {
	publisher, err := kafka.NewPublisher(w.Brokers, w.Log)
	if err != nil {
		return err
	}
	defer publisher.Close()
	w.publisher = publisher
	return follower{
		Deps: w.Deps, name: "dispatch", types: followedTypes["dispatch"],
		begin: w.begin, handle: w.handle,
	}.run(ctx)
}

func (w *Dispatch) handle(ctx context.Context, _ *pgx.Batch, events []event.Recorded) error {
	events, err := w.whole(ctx, events)
	if err != nil || len(events) == 0 {
		return err
	}
	buckets := map[int][]DispatchSend{}
	for _, e := range events {
		sent, err := w.sentBy(ctx, e)
		if err != nil {
			return err
		}
		if sent, err = w.notEnded(ctx, e, sent); err != nil {
			return err
		}
		for _, one := range sent {
			if err := w.add(ctx, buckets, e.Metadata, one); err != nil {
				return err
			}
		}
	}
	var messages []*message.Message
	for bucket, sends := range buckets {
		share, err := shareOf(ctx, bucket, sends)
		if err != nil {
			return err
		}
		messages = append(messages, share...)
	}
	// All in one call: the messages travel together, and the brokers sync once for them.
	err = w.publisher.Publish(DispatchTopic, messages...)
	if w.Metrics.tookDispatch(err); err != nil {
		return fmt.Errorf("%w: %w", errBeginAgain, err)
	}
	last := events[len(events)-1]
	w.ahead.stream, w.ahead.revision = last.Stream, last.Revision
	return nil
}

// whole leaves out of a page what was dispatched before, and adds the rest of a broadcast that goes on in the next page: it is one append, so all of it is
// in the store. Without that a broadcast would be several messages for each bucket, as its events happen to fall into pages.
func (w *Dispatch) whole(ctx context.Context, events []event.Recorded) ([]event.Recorded, error) {
	for len(events) > 0 && events[0].Stream == w.ahead.stream && events[0].Revision <= w.ahead.revision {
		events = events[1:]
	}
	if len(events) == 0 {
		return nil, nil
	}
	last := events[len(events)-1]
	if last.Type != (send.AudioSent{}).EventType() {
		return events, nil
	}
	var sent send.AudioSent
	if err := json.Unmarshal(last.Data, &sent); err != nil {
		return nil, fmt.Errorf("read %s %d@%s: %w", last.Type, last.Revision, last.Stream, err)
	}
	if sent.Unsealed || sent.PlayAt != nil || sent.Total == 1 {
		return events, nil
	}
	rest, err := w.Store.Page(ctx, last.Stream, last.Revision+1, sent.Total)
	if err != nil {
		return nil, err
	}
	for i, e := range rest {
		if e.Type != last.Type {
			rest = rest[:i]
			break
		}
	}
	return slices.Concat(events, rest), nil
}

// sentBy gives what goes out with an event: of a large broadcast nothing before it is closed, and then everything.
func (w *Dispatch) sentBy(ctx context.Context, e event.Recorded) ([]send.AudioSent, error) {
	if e.Type == (send.AudioSent{}).EventType() {
		var sent send.AudioSent
		if err := json.Unmarshal(e.Data, &sent); err != nil {
			return nil, fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
		}
		if sent.Unsealed {
			w.gather(e, sent)
			return nil, nil
		}
		return []send.AudioSent{sent}, nil
	}
	var sealed send.BroadcastSealed
	if err := json.Unmarshal(e.Data, &sealed); err != nil {
		return nil, fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	if sent := w.whatWentBy(e, sealed); sent != nil {
		return sent, nil
	}
	history, err := w.Store.Load(ctx, e.Stream)
	if err != nil {
		return nil, err
	}
	// Of a stream that went on since, only what stood there when it was closed.
	for i, h := range history {
		if h.Revision == e.Revision {
			history = history[:i+1]
			break
		}
	}
	s, err := send.Load(history)
	return s.Sent, err
}

// gather remembers a part of a broadcast, so that all of it need not be read again when it is closed.
func (w *Dispatch) gather(e event.Recorded, part send.AudioSent) {
	if w.gathered >= maxGathered { // those whose writers died are never closed
		clear(w.open)
		w.gathered = 0
	}
	b, ok := w.open[e.Stream]
	if ok && e.Revision < b.next && b.next-e.Revision <= uint64(len(b.sent)) {
		return // the page came again
	}
	if !ok || e.Revision != b.next {
		w.forget(e.Stream)
		b = &openBroadcast{}
		w.open[e.Stream] = b
	}
	b.sent, b.next = append(b.sent, part), e.Revision+1
	w.gathered++
}

// whatWentBy gives the parts of a broadcast that is closed if all of them went by, up to what closes it; nil if they did not.
func (w *Dispatch) whatWentBy(e event.Recorded, sealed send.BroadcastSealed) []send.AudioSent {
	b, ok := w.open[e.Stream]
	w.forget(e.Stream)
	if !ok || b.next != e.Revision || len(b.sent) != sealed.Total {
		return nil
	}
	return b.sent
}

func (w *Dispatch) forget(stream string) {
	if b, ok := w.open[stream]; ok {
		w.gathered -= len(b.sent)
		delete(w.open, stream)
	}
}

// add puts a location of a send into its bucket, behind the others of the same send if they are the last there.
func (w *Dispatch) add(ctx context.Context, buckets map[int][]DispatchSend, meta event.Metadata, sent send.AudioSent) error {
	bucket := location.Bucket(meta.CompanyID, sent.UserID)
	sends := buckets[bucket]
	if n := len(sends); n == 0 || sends[n-1].SendID != sent.SendID || len(sends[n-1].To) >= maxDispatched {
		details, err := w.details(ctx, sent.AudioID)
		if err != nil {
			return err
		}
		sends = append(sends, DispatchSend{
			CompanyID: meta.CompanyID, Environment: meta.Environment, SendID: sent.SendID, Total: sent.Total, Audio: details,
			Priority: sent.Priority, Repeat: sent.Repeat, Volume: sent.Volume, TraceParent: telemetry.Next(ctx, meta.TraceParent), RequestID: meta.RequestID,
		})
	}
	last := &sends[len(sends)-1]
	last.To = append(last.To, DispatchTo{sent.DeliveryID, sent.ExternalID, sent.UserID, sent.PlayAt, sent.ExpiresAt})
	buckets[bucket] = sends
	return nil
}

// details finds what players need to know of the audio. It never changes, so it is remembered.
func (w *Dispatch) details(ctx context.Context, audioID string) (DispatchAudio, error) {
	w.mu.Lock()
	known, ok := w.audio[audioID]
	w.mu.Unlock()
	if ok {
		return known, nil
	}
	history, err := w.Store.Load(ctx, audio.Stream(audioID))
	if err != nil {
		return DispatchAudio{}, err
	}
	a, err := audio.Load(history)
	if err != nil {
		return DispatchAudio{}, err
	}
	known = DispatchAudio{AudioID: a.AudioID, Name: a.Name, BlobKey: a.BlobKey, SHA256: a.SHA256, Format: a.Format, DurationMs: a.DurationMs, Size: a.Size}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.audio) >= maxCachedAudio {
		clear(w.audio)
	}
	w.audio[audioID] = known
	return known, nil
}

// shareOf puts a bucket's share into as few messages as the bounds on them allow, in order.
func shareOf(ctx context.Context, bucket int, sends []DispatchSend) (messages []*message.Message, err error) {
	for len(sends) > 0 {
		n, to, size := 0, 0, 0
		for n < len(sends) {
			raw, err := json.Marshal(sends[n])
			if err != nil {
				return nil, fmt.Errorf("dispatch: %w", err)
			}
			to, size = to+len(sends[n].To), size+len(raw)+1
			if n > 0 && (to > maxDispatched || size > maxDispatchedBytes) {
				break
			}
			n++
		}
		payload, err := json.Marshal(Dispatched{Bucket: bucket, Sends: sends[:n]})
		if err != nil {
			return nil, fmt.Errorf("dispatch: %w", err)
		}
		traceParent := traceOf(sends[:n])
		sends = sends[n:]
		msg := message.NewMessage(watermill.NewUUID(), payload)
		msg.SetContext(ctx)
		msg.Metadata.Set(kafka.KeyMetadata, strconv.Itoa(bucket))
		if traceParent != "" {
			msg.Metadata.Set(traceParentHeader, traceParent)
		}
		messages = append(messages, msg)
	}
	return messages, nil
}

// traceParentHeader is the header of a Kafka message that says where in a trace it was made (W3C Trace Context).
const traceParentHeader = "traceparent"

// traceOf is the place of all of these sends in their traces, if it is the same.
func traceOf(sends []DispatchSend) string {
	for _, s := range sends[1:] {
		if s.TraceParent != sends[0].TraceParent {
			return ""
		}
	}
	return sends[0].TraceParent
}
