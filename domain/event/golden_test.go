package event_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/request"
	"github.com/musique/musique/domain/send"
	apitoken "github.com/musique/musique/domain/token"
	"github.com/musique/musique/domain/usage"
)

// testdata/<event type>.json is an event as it is stored, every field of it set. Events like it are in stores, so a file is never changed:
//
//   - A new payload goes into the list below; `go test ./domain/event -update` writes a file for it where there is none, with a made-up value in each field.
//     Give it values as the product writes them before it is committed.
//   - A field that is added and may be absent (omitempty, omitzero) goes into a second file, <event type>+<field>.json; -update writes it as well.
//   - Anything else that changes is a new version; see the package's comment. The struct of the older one stays for its file.
var update = flag.Bool("update", false, "write the files in testdata that are missing")

var payloads = []event.Payload{
	audio.Uploaded{}, audio.DeletionStarted{}, audio.DeletionAbandoned{}, audio.Deleted{},
	company.Registered{}, company.TokenRotated{}, company.PlanChanged{}, company.Suspended{},
	delivery.Delivered{}, delivery.PlaybackStarted{}, delivery.Played{}, delivery.Failed{}, delivery.DeviceFailed{}, delivery.Expired{}, delivery.Cancelled{},
	location.Mapped{}, location.Registered{}, location.Changed{}, location.Removed{}, location.DeviceEnrolled{}, location.DeviceRevoked{},
	location.DeviceTokenRotated{},
	request.Claimed{}, request.Completed{},
	send.Scheduled{}, send.Rescheduled{}, send.AudioSent{}, send.BroadcastSealed{}, send.BroadcastAbandoned{}, send.Cancelled{},
	apitoken.Issued{}, apitoken.Revoked{},
	usage.ApiRequestServed{},
}

// stored is an event as it is in a file.
type stored struct {
	Type     string          `json:"type"`
	Metadata json.RawMessage `json:"metadata"`
	Data     json.RawMessage `json:"data"`
}

// files lists the files of an event type.
func files(t *testing.T, eventType string) []string {
	all, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	require.NoError(t, err)
	return slices.DeleteFunc(all, func(path string) bool { return typeOf(path) != eventType })
}

// typeOf is the event type that a file is named after.
func typeOf(path string) string {
	eventType, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".json"), "+")
	return eventType
}

func open(t *testing.T, path string) stored {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var e stored
	strictly(t, raw, &e)
	require.Equal(t, typeOf(path), e.Type)
	return e
}

// What was written before still reads, field by field, and would be written the same.
func TestWhatWasStoredStillReads(t *testing.T) {
	t.Parallel()
	for _, p := range payloads {
		t.Run(p.EventType(), func(t *testing.T) {
			t.Parallel()
			unset := unsetIn(t, p)
			if *update && len(unset) > 0 {
				add(t, p, unset)
				unset = unsetIn(t, p)
			}
			require.Empty(t, unset, "no file in testdata has this; -update writes one")
		})
	}
}

// unsetIn reads the files of a payload, and lists what none of them has.
func unsetIn(t *testing.T, p event.Payload) []string {
	unset := []string{p.EventType()}
	for i, path := range files(t, p.EventType()) {
		missing := read(t, open(t, path).Data, reflect.TypeOf(p))
		if i == 0 {
			unset = missing
		}
		unset = slices.DeleteFunc(unset, func(field string) bool { return !slices.Contains(missing, field) })
	}
	return unset
}

// The same goes for what stands beside the payload.
func TestStoredMetadataStillReads(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	require.NoError(t, err)
	unset := read(t, []byte(`{"time": "0001-01-01T00:00:00Z"}`), reflect.TypeFor[event.Metadata]())
	for _, path := range paths {
		missing := read(t, open(t, path).Metadata, reflect.TypeFor[event.Metadata]())
		unset = slices.DeleteFunc(unset, func(field string) bool { return !slices.Contains(missing, field) })
	}
	require.Empty(t, unset, "no file in testdata has this; a new field may be absent, and comes with a new file that has it")
}

// read decodes data into a new value of a type, requires that nothing in the data is lost, and lists what it does not set.
func read(t *testing.T, data []byte, as reflect.Type) (unset []string) {
	value := reflect.New(as)
	strictly(t, data, value.Interface())
	again, err := json.Marshal(value.Interface())
	require.NoError(t, err)
	require.JSONEq(t, string(data), string(again))
	return zeros(value.Elem(), "")
}

func strictly(t *testing.T, data []byte, into any) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	require.NoError(t, decoder.Decode(into))
	require.False(t, decoder.More())
}

// zeros lists what is not set in a value, by its path.
func zeros(v reflect.Value, path string) (unset []string) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		return zeros(v.Elem(), path)
	case v.Kind() == reflect.Slice && v.Len() > 0:
		for i := range v.Len() {
			unset = append(unset, zeros(v.Index(i), fmt.Sprintf("%s[%d]", path, i))...)
		}
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for i := range v.NumField() {
			unset = append(unset, zeros(v.Field(i), strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."))...)
		}
	case v.IsZero() || v.Kind() == reflect.Slice:
		unset = append(unset, path)
	}
	return unset
}

// Each payload of the source is in the list above: the one that is forgotten is the one that needs the file.
func TestEveryPayloadIsListed(t *testing.T) {
	t.Parallel()
	const module = "github.com/musique/musique/domain/"
	listed := map[string]string{}
	names := map[string]bool{}
	for _, p := range payloads {
		of := reflect.TypeOf(p)
		listed[strings.TrimPrefix(of.PkgPath(), module)+"."+of.Name()] = p.EventType()
		require.False(t, names[p.EventType()], "%s is the type of two payloads", p.EventType())
		names[p.EventType()] = true
	}
	require.Len(t, listed, len(payloads), "a payload is listed twice")
	inSource := map[string]string{}
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel("..", filepath.Dir(path))
		for _, d := range source.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.Name == "EventType" {
				inSource[filepath.ToSlash(dir)+"."+receiver(t, f)] = result(t, f)
			}
		}
		return err
	}))
	require.Equal(t, inSource, listed)
}

func receiver(t *testing.T, f *ast.FuncDecl) string {
	name, ok := f.Recv.List[0].Type.(*ast.Ident)
	require.True(t, ok, "the receiver of an EventType is a plain type")
	return name.Name
}

func result(t *testing.T, f *ast.FuncDecl) string {
	require.Len(t, f.Body.List, 1)
	given, ok := f.Body.List[0].(*ast.ReturnStmt)
	require.True(t, ok)
	literal, ok := given.Results[0].(*ast.BasicLit)
	require.True(t, ok, "the name of a type stands where it is given, so that it can be found")
	return strings.Trim(literal.Value, `"`)
}

// Each file has a payload that reads it, and no version is without the one before.
func TestEveryFileIsRead(t *testing.T) {
	t.Parallel()
	types := map[string]bool{}
	for _, p := range payloads {
		types[p.EventType()] = true
		name, version, ok := event.ParseType(p.EventType())
		require.True(t, ok, p.EventType())
		if version > 1 {
			before := name
			if version > 2 {
				before = fmt.Sprintf("%s.v%d", name, version-1)
			}
			require.NotEmpty(t, files(t, before), "%s was written before %s", before, p.EventType())
		}
	}
	paths, err := filepath.Glob(filepath.Join("testdata", "*"))
	require.NoError(t, err)
	for _, path := range paths {
		require.True(t, types[typeOf(path)], "events like %s are in stores, and no payload has their type", path)
	}
}

// add writes a file for what no file of the payload has.
func add(t *testing.T, p event.Payload, unset []string) {
	path := filepath.Join("testdata", p.EventType()+".json")
	if len(files(t, p.EventType())) > 0 {
		path = filepath.Join("testdata", p.EventType()+"+"+unset[0]+".json")
	}
	encode := func(v any) json.RawMessage {
		data, err := json.Marshal(v)
		require.NoError(t, err)
		return data
	}
	payload, metadata := reflect.New(reflect.TypeOf(p)), event.Metadata{}
	fill(t, payload.Elem(), "")
	fill(t, reflect.ValueOf(&metadata).Elem(), "")
	text, err := json.MarshalIndent(stored{p.EventType(), encode(metadata), encode(payload.Interface())}, "", "  ")
	require.NoError(t, err)
	created, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	require.NoError(t, err)
	_, err = created.Write(append(text, '\n'))
	require.NoError(t, errors.Join(err, created.Close()))
}

// fill sets all of a value.
func fill(t *testing.T, v reflect.Value, name string) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Date(2026, 3, 1, 9, 0, 0, 123456789, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), name)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	default:
		require.Fail(t, "what is a good value of a "+v.Type().String()+"?")
	}
}
