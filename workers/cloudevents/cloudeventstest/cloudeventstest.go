// Package cloudeventstest checks public events against the schemas that are published.
package cloudeventstest

import (
	"bytes"
	"path"
	"strings"
	"testing"

	"github.com/pb33f/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/docs"
	"github.com/musique/musique/workers/cloudevents"
)

// Set is the published schemas, by the types of the events.
type Set map[string]*jsonschema.Schema

// Schemas reads all of them.
func Schemas(t testing.TB) Set {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	files, err := docs.Events.ReadDir("events/schemas")
	require.NoError(t, err)
	for _, file := range files {
		raw, err := docs.Events.ReadFile("events/schemas/" + file.Name())
		require.NoError(t, err)
		schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		require.NoError(t, err)
		require.NoError(t, compiler.AddResource(cloudevents.SchemaID(strings.TrimSuffix(file.Name(), path.Ext(file.Name()))), schema))
	}
	set := Set{}
	for _, kind := range cloudevents.Kinds() {
		compiled, err := compiler.Compile(cloudevents.SchemaID(kind.Type))
		require.NoError(t, err, "the schema of %s", kind.Type)
		set[kind.Type] = compiled
	}
	require.Len(t, set, len(files), "there is a schema of something that is not public")
	return set
}

// Check requires that data is as the schema of its type says.
func (s Set) Check(t testing.TB, eventType string, data []byte) {
	t.Helper()
	require.Contains(t, s, eventType)
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	require.NoError(t, err)
	require.NoError(t, s[eventType].Validate(value), "%s: %s", eventType, data)
}
