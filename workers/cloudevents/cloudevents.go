// Package cloudevents says which events of the store are public, and what of each one is: what goes on the topics for analytics, as CloudEvents 1.0 in the
// binary mode of their Kafka protocol binding (v1.0.2, §3.2).
//
// What is public is built field by field from the event of the domain, never handed through: a field that is added there stands on no topic until somebody
// writes it into a struct here. The JSON Schemas and the AsyncAPI document in docs/events are made of these structs; see the test that writes them.
package cloudevents

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/musique/musique/domain/event"
)

// The topics. A change that consumers cannot read without knowing of it has another version of the topic.
const (
	AudioTopic      = "musique.audio.v1"
	SendsTopic      = "musique.sends.v1"
	DeliveriesTopic = "musique.deliveries.v1"
	TokensTopic     = "musique.tokens.v1" //nolint:gosec // a name, and no token
	LocationsTopic  = "musique.locations.v1"
	UsageTopic      = "musique.usage.v1"
)

// Topics are all of them.
var Topics = []string{AudioTopic, SendsTopic, DeliveriesTopic, TokensTopic, LocationsTopic, UsageTopic}

// ContentType is that of the data of all events.
const ContentType = "application/json"

// Event is a public event as it goes on its topic.
type Event struct {
	Topic string
	// ID is the event's in the store: it comes again with the same one.
	ID string
	// Key keeps the events of an aggregate in order.
	Key string
	// Headers are the attributes by the names that the binding gives them (§3.2.3).
	Headers map[string]string
	Data    []byte
}

// Kind is a type of public events.
type Kind struct {
	// Type is the name that the event is stored under, version included; it is the `ce_type`.
	Type string
	// Topic is where events of this kind go.
	Topic string
	// Summary is a sentence on what such an event says.
	Summary string
	// Data is the struct of the data.
	Data reflect.Type

	read func(event.Recorded) (key, subject string, data any, err error)
}

// public describes a kind by the event of the domain that it is made of.
func public[D event.Payload, P any](topic, summary string, say func(event.Metadata, D) (key, subject string, data P)) Kind {
	var payload D
	return Kind{
		Type: payload.EventType(), Topic: topic, Summary: summary, Data: reflect.TypeFor[P](),
		read: func(e event.Recorded) (key, subject string, data any, err error) {
			var p D
			if err := json.Unmarshal(e.Data, &p); err != nil {
				return "", "", nil, err
			}
			key, subject, data = say(e.Metadata, p)
			return key, subject, data, nil
		},
	}
}

var byType = func() map[string]Kind {
	all := map[string]Kind{}
	for _, k := range kinds {
		all[k.Type] = k
	}
	return all
}()

// Kinds are the types of public events, in the order of their topics.
func Kinds() []Kind { return slices.Clone(kinds) }

// Internal are the types of events that go on no topic, and why.
func Internal() map[string]string { return maps.Clone(internal) }

// Of is the public form of an event; ok is false for one that is internal. A type that nobody decided about is an error.
func Of(e event.Recorded) (public Event, ok bool, err error) {
	kind, ok := byType[e.Type]
	if !ok {
		if _, known := internal[e.Type]; known {
			return Event{}, false, nil
		}
		return Event{}, false, fmt.Errorf("%s is neither public nor internal", e.Type)
	}
	key, subject, said, err := kind.read(e)
	if err != nil {
		return Event{}, false, fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	data, err := json.Marshal(said)
	if err != nil {
		return Event{}, false, fmt.Errorf("write %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	topicName, _, _ := strings.Cut(strings.TrimPrefix(kind.Topic, "musique."), ".")
	headers := map[string]string{
		"content-type":   ContentType,
		"ce_specversion": "1.0",
		"ce_id":          e.ID.String(),
		"ce_source":      "/musique/" + topicName,
		"ce_type":        e.Type,
		"ce_time":        e.Metadata.Time.UTC().Format(time.RFC3339Nano),
		"ce_subject":     subject,
		"ce_dataschema":  SchemaID(e.Type),
		"ce_environment": string(e.Metadata.Environment),
		"ce_companyid":   e.Metadata.CompanyID,
	}
	// CloudEvents 1.0 §3.1: an attribute is not empty, but absent. The traceparent is where the event was made, and stays (Distributed Tracing extension).
	for name, value := range map[string]string{
		"ce_correlationid": e.Metadata.CorrelationID, "ce_causationid": e.Metadata.CausationID, "ce_traceparent": e.Metadata.TraceParent,
	} {
		if value != "" {
			headers[name] = value
		}
	}
	return Event{Topic: kind.Topic, ID: e.ID.String(), Key: key, Headers: headers, Data: data}, true, nil
}

// SchemaID names the JSON Schema of a type's data: the `$id` there, and the `ce_dataschema` of each event.
func SchemaID(eventType string) string { return "urn:musique:event:" + eventType }
