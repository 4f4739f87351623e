package cloudevents_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/workers/cloudevents"
)

// `go test ./workers/cloudevents -update` writes docs/events/schemas and docs/events/asyncapi.json as the structs are now. A schema that is published it
// changes only so that who read the events before still can: other changes are another version of the event type.
var update = flag.Bool("update", false, "write docs/events/schemas and docs/events/asyncapi.json")

const eventsDir = "../../docs/events"

// object is a JSON object of a document.
type object = map[string]any

// schemaOf is the JSON Schema of a Go type, as encoding/json writes it.
func schemaOf(t *testing.T, of reflect.Type) object {
	t.Helper()
	switch {
	case of == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case of.Kind() == reflect.Pointer:
		schema := schemaOf(t, of.Elem())
		schema["type"] = []any{schema["type"], "null"}
		return schema
	case of.Kind() == reflect.Slice:
		return object{"type": "array", "items": schemaOf(t, of.Elem())}
	case of.Kind() == reflect.Struct:
		properties, required := object{}, []any{}
		fields(t, of, func(name string, optional bool, field reflect.StructField) {
			as := field.Type
			if optional && as.Kind() == reflect.Pointer { // absent, and never null
				as = as.Elem()
			}
			schema := schemaOf(t, as)
			schema["description"] = field.Tag.Get("doc")
			require.NotEmpty(t, schema["description"], "%s.%s", of, field.Name)
			require.NotContains(t, properties, name)
			properties[name] = schema
			if !optional {
				required = append(required, name)
			}
		})
		return object{"type": "object", "properties": properties, "required": required}
	}
	kind, ok := map[reflect.Kind]string{reflect.String: "string", reflect.Int: "integer", reflect.Int64: "integer", reflect.Bool: "boolean"}[of.Kind()]
	require.True(t, ok, "there is no schema of %s", of)
	return object{"type": kind}
}

// fields visits the members of the object that a struct is written as.
func fields(t *testing.T, of reflect.Type, visit func(name string, optional bool, field reflect.StructField)) {
	for field := range of.Fields() {
		if field.Anonymous {
			fields(t, field.Type, visit)
			continue
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		require.NotEmpty(t, name, "%s.%s", of, field.Name)
		visit(name, options == "omitempty", field)
	}
}

func eventSchema(t *testing.T, k cloudevents.Kind) object {
	schema := schemaOf(t, k.Data)
	schema["$schema"], schema["$id"] = "https://json-schema.org/draft/2020-12/schema", cloudevents.SchemaID(k.Type)
	schema["title"], schema["description"] = k.Type, k.Summary
	return schema
}

func schemaFile(eventType string) string {
	return filepath.Join(eventsDir, "schemas", eventType+".json")
}

// encode writes a document as it lies in the repository.
func encode(t *testing.T, document any) []byte {
	t.Helper()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	require.NoError(t, encoder.Encode(document))
	return b.Bytes()
}

// reread is a document as who reads it has it.
func reread(t *testing.T, document any) (read object) {
	t.Helper()
	require.NoError(t, json.Unmarshal(encode(t, document), &read))
	return read
}

// What is published changes in the repository when it changes, and only so that consumers who do not know of it can go on.
func TestThePublishedSchemas(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(schemaFile("*"))
	require.NoError(t, err)
	for _, k := range cloudevents.Kinds() {
		now, path := eventSchema(t, k), schemaFile(k.Type)
		files = slices.DeleteFunc(files, func(f string) bool { return f == path })
		kept, err := os.ReadFile(path)
		if *update && os.IsNotExist(err) {
			kept, err = encode(t, now), os.WriteFile(path, encode(t, now), 0o644)
		}
		require.NoError(t, err, "-update writes it")
		var before object
		require.NoError(t, json.Unmarshal(kept, &before))
		require.Empty(t, breaks(before, reread(t, now), k.Type), "this needs another version of the event type, since there are consumers of this one")
		if *update {
			require.NoError(t, os.WriteFile(path, encode(t, now), 0o644))
			continue
		}
		require.Equal(t, string(kept), string(encode(t, now)), "-update writes it anew")
	}
	require.Empty(t, files, "a type that was public is no more, or never was")
}

// breaks lists what a consumer of a schema cannot rely on in the next one, and what the events of before do not have that the next one requires.
func breaks(before, now object, path string) (all []string) {
	if !reflect.DeepEqual(before["type"], now["type"]) || before["format"] != now["format"] {
		all = append(all, path+" is of another type")
	}
	if items, ok := before["items"].(object); ok {
		next, _ := now["items"].(object)
		all = append(all, breaks(items, next, path+"[]")...)
	}
	names := func(schema object) []any { list, _ := schema["required"].([]any); return list }
	for _, name := range names(before) {
		if !slices.Contains(names(now), name) {
			all = append(all, fmt.Sprintf("%s.%v may be absent", path, name))
		}
	}
	for _, name := range names(now) {
		if !slices.Contains(names(before), name) {
			all = append(all, fmt.Sprintf("%s.%v is required", path, name))
		}
	}
	properties, _ := before["properties"].(object)
	next, _ := now["properties"].(object)
	for name, schema := range properties {
		was, _ := schema.(object)
		is, ok := next[name].(object)
		if !ok {
			all = append(all, path+"."+name+" is gone")
			continue
		}
		all = append(all, breaks(was, is, path+"."+name)...)
	}
	slices.Sort(all)
	return all
}

func TestWhatBreaksConsumers(t *testing.T) {
	t.Parallel()
	type inner struct {
		A string `json:"a" doc:"A."`
	}
	type before struct {
		A int        `json:"a" doc:"A."`
		B *time.Time `json:"b" doc:"B."`
		C []inner    `json:"c,omitempty" doc:"C."`
	}
	type added struct {
		before
		D string `json:"d,omitempty" doc:"D."`
	}
	type required struct {
		before
		D string `json:"d" doc:"D."`
	}
	type gone struct {
		A int `json:"a" doc:"A."`
	}
	type other struct {
		A string    `json:"a" doc:"A."`
		B time.Time `json:"b" doc:"B."`
		C []string  `json:"c" doc:"C."`
	}
	type optional struct {
		A int        `json:"a,omitempty" doc:"A."`
		B *time.Time `json:"b,omitempty" doc:"B."`
		C []inner    `json:"c,omitempty" doc:"C."`
	}
	for _, c := range []struct {
		now  reflect.Type
		want []string
	}{
		{reflect.TypeFor[before](), nil},
		{reflect.TypeFor[added](), nil},
		{reflect.TypeFor[required](), []string{"x.d is required"}},
		{reflect.TypeFor[gone](), []string{"x.b is gone", "x.b may be absent", "x.c is gone"}},
		{reflect.TypeFor[other](), []string{"x.a is of another type", "x.b is of another type", "x.c is required", "x.c[] is of another type", "x.c[].a is gone", "x.c[].a may be absent"}},
		{reflect.TypeFor[optional](), []string{"x.a may be absent", "x.b is of another type", "x.b may be absent"}},
	} {
		require.Equal(t, c.want, breaks(reread(t, schemaOf(t, reflect.TypeFor[before]())), reread(t, schemaOf(t, c.now)), "x"), c.now.Name())
	}
}

// asyncAPI is the AsyncAPI 3.0 document of the topics.
func asyncAPI(t *testing.T) object {
	examples := stored(t)
	about := map[string]string{
		cloudevents.AudioTopic: "The libraries of audio. Key: the audio's ID.", cloudevents.SendsTopic: "What was sent, and to whom. Key: the send's ID.",
		cloudevents.DeliveriesTopic: "What became of each send at each location. Key: the location's ID.", cloudevents.TokensTopic: "API tokens, without the tokens. Key: the token's ID.",
		cloudevents.LocationsTopic: "Locations and their devices. Key: the location's ID.", cloudevents.UsageTopic: "Requests to the API. Key: the company and the environment.",
	}
	channels, operations, messages, schemas := object{}, object{}, object{}, object{}
	for _, topic := range cloudevents.Topics {
		name := strings.Split(topic, ".")[1]
		in := object{}
		for _, k := range cloudevents.Kinds() {
			if k.Topic != topic {
				continue
			}
			public, ok, err := cloudevents.Of(withID(examples[k.Type+".json"]))
			require.NoError(t, err)
			require.True(t, ok)
			var data any
			require.NoError(t, json.Unmarshal(public.Data, &data))
			in[k.Type] = object{"$ref": "#/components/messages/" + k.Type}
			messages[k.Type] = object{
				"name": k.Type, "title": k.Type, "summary": k.Summary, "contentType": cloudevents.ContentType,
				"headers": object{"$ref": "#/components/schemas/Headers"}, "payload": object{"$ref": "#/components/schemas/" + k.Type},
				"bindings": object{"kafka": object{"key": object{"type": "string"}}},
				"examples": []any{object{"name": k.Type, "headers": public.Headers, "payload": data}},
			}
			schema := schemaOf(t, k.Data)
			schema["title"], schema["description"] = k.Type, k.Summary
			schemas[k.Type] = schema
		}
		require.NotEmpty(t, in)
		channels[name] = object{"address": topic, "description": about[topic], "messages": in, "bindings": object{"kafka": object{"topic": topic}}}
		operations["publish-"+name] = object{"action": "send", "channel": object{"$ref": "#/channels/" + name}, "summary": about[topic]}
	}
	schemas["Headers"] = headersSchema()
	return object{
		"asyncapi": "3.0.0", "defaultContentType": cloudevents.ContentType,
		"info": object{
			"title": "Musique events", "version": "1.0.0",
			"description": "Public events on Kafka, as CloudEvents 1.0 in binary mode (Kafka protocol binding 1.0.2): the attributes are headers, the value is the data as JSON. " +
				"Events with one key come in order. Each comes at least once: one that comes again has the ce_id that it had. " +
				"Fields and types of events may be added; a consumer leaves alone what it does not know.",
			"license": object{"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
		},
		"channels": channels, "operations": operations, "components": object{"messages": messages, "schemas": schemas},
	}
}

// withID gives an event an ID that does not change with each run.
func withID(e event.Recorded) event.Recorded {
	e.ID = [16]byte{0x5c, 0x1d, 0x7c, 0x30, 0x9e, 0x0b, 0x4f, 0x6e, 0x8a, 0x21, 0x3d, 0x4b, 0x90, 0x7f, 0x11, 0xa2}
	return e
}

func headersSchema() object {
	text := func(description string) object { return object{"type": "string", "description": description} }
	return object{
		"type": "object",
		"properties": object{
			"content-type":     object{"type": "string", "const": cloudevents.ContentType, "description": "The media type of the value."},
			"ce_specversion":   object{"type": "string", "const": "1.0", "description": "The version of CloudEvents."},
			"ce_id":            text("The event's ID. An event that comes again has the same one."),
			"ce_source":        text("/musique/ and the name of the topic's subject."),
			"ce_type":          text("The type of the event, with its version from the second on: AudioUploaded, then AudioUploaded.v2."),
			"ce_time":          object{"type": "string", "format": "date-time", "description": "When it was recorded."},
			"ce_subject":       text("What the event is about: the ID of the audio, send, delivery, token or request, or the external ID of the location."),
			"ce_dataschema":    text("The $id of the JSON Schema of the data."),
			"ce_environment":   object{"type": "string", "enum": []any{"live", "test"}, "description": "Whether it is real, or of the sandbox."},
			"ce_companyid":     text("The company."),
			"ce_correlationid": text("The request that everything began with, if there was one."),
			"ce_causationid":   text("The request or event that had this one happen, if there was one."),
			"ce_traceparent":   text("Where in a trace it was made, if it was in one (W3C Trace Context; the Distributed Tracing extension of CloudEvents)."),
		},
		"required": []any{"content-type", "ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "ce_subject", "ce_dataschema", "ce_environment", "ce_companyid"},
	}
}

func TestTheAsyncAPIDocumentInTheRepository(t *testing.T) {
	t.Parallel()
	path := filepath.Join(eventsDir, "asyncapi.json")
	now := encode(t, asyncAPI(t))
	if *update {
		require.NoError(t, os.WriteFile(path, now, 0o644))
	}
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(kept), string(now), "-update writes it anew")

	// Every reference leads somewhere.
	document := reread(t, asyncAPI(t))
	var follow func(any)
	follow = func(v any) {
		switch v := v.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				at := any(document)
				for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
					in, _ := at.(object)
					at = in[name]
				}
				require.NotNil(t, at, ref)
			}
			for _, member := range v {
				follow(member)
			}
		case []any:
			for _, item := range v {
				follow(item)
			}
		}
	}
	follow(document)
}
