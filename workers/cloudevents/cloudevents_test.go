package cloudevents_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/workers/cloudevents"
	"github.com/musique/musique/workers/cloudevents/cloudeventstest"
)

// stored are the events of every type as they are stored: the files that domain/event keeps, by name.
func stored(t *testing.T) map[string]event.Recorded {
	t.Helper()
	paths, err := filepath.Glob("../../domain/event/testdata/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	all := map[string]event.Recorded{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		require.NoError(t, err)
		var file struct {
			Type     string
			Metadata event.Metadata
			Data     json.RawMessage
		}
		require.NoError(t, json.Unmarshal(raw, &file))
		all[filepath.Base(path)] = event.Recorded{ID: uuid.New(), Type: file.Type, Data: file.Data, Metadata: file.Metadata}
	}
	return all
}

// Of each type of the domain somebody decided whether it is public.
func TestEveryTypeIsPublicOrInternal(t *testing.T) {
	t.Parallel()
	var all, decided []string
	for _, e := range stored(t) {
		all = append(all, e.Type)
	}
	slices.Sort(all)
	for _, k := range cloudevents.Kinds() {
		decided = append(decided, k.Type)
		require.Contains(t, cloudevents.Topics, k.Topic)
	}
	for eventType, why := range cloudevents.Internal() {
		decided = append(decided, eventType)
		require.NotEmpty(t, why)
	}
	require.ElementsMatch(t, slices.Compact(all), decided, "a type has to be in one of the two, and in one only")

	_, _, err := cloudevents.Of(event.Recorded{Type: "SomethingNew"})
	require.ErrorContains(t, err, "neither public nor internal")
}

// kafka binding §3.2.3, CloudEvents 1.0 §3: names of attributes are lower-case letters and digits.
var attribute = regexp.MustCompile(`^ce_[a-z0-9]{1,20}$`)

// An event of each public type becomes a CloudEvent whose data is as its schema says.
func TestPublicEvents(t *testing.T) {
	t.Parallel()
	schemas := cloudeventstest.Schemas(t)
	for name, e := range stored(t) {
		public, ok, err := cloudevents.Of(e)
		require.NoError(t, err, name)
		_, internal := cloudevents.Internal()[e.Type]
		require.Equal(t, internal, !ok, name)
		if internal {
			require.Zero(t, public)
			continue
		}
		schemas.Check(t, e.Type, public.Data)
		require.Equal(t, e.ID.String(), public.ID)
		require.NotEmpty(t, public.Key)
		for header, value := range public.Headers {
			require.NotEmpty(t, value, "%s of %s", header, name)
			if header != "content-type" {
				require.Regexp(t, attribute, header)
			}
		}
		require.Equal(t, map[string]string{
			"content-type": "application/json", "ce_specversion": "1.0", "ce_id": e.ID.String(), "ce_type": e.Type,
			"ce_source": "/musique/" + strings.Split(public.Topic, ".")[1], "ce_subject": public.Headers["ce_subject"],
			"ce_time": e.Metadata.Time.Format(time.RFC3339Nano), "ce_dataschema": cloudevents.SchemaID(e.Type),
			"ce_environment": string(e.Metadata.Environment), "ce_companyid": e.Metadata.CompanyID,
			"ce_correlationid": e.Metadata.CorrelationID, "ce_causationid": e.Metadata.CausationID, "ce_traceparent": e.Metadata.TraceParent,
		}, public.Headers)
	}
}

// What is nobody's business stands in no public event, though the stored ones have it.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	hidden := map[string]int{}
	for name, e := range stored(t) {
		public, ok, err := cloudevents.Of(e)
		require.NoError(t, err)
		if !ok {
			continue
		}
		var data struct {
			Hash, BlobKey, SHA256, IP, UserAgent, Path string
			Channel                                    location.Channel
		}
		require.NoError(t, json.Unmarshal(e.Data, &data))
		said := string(public.Data)
		for _, v := range public.Headers {
			said += "\n" + v
		}
		for what, secret := range map[string]string{
			"hash": data.Hash, "blobKey": data.BlobKey, "sha256": data.SHA256, "ip": data.IP, "userAgent": data.UserAgent, "path": data.Path, "url": data.Channel.URL,
			"secret": data.Channel.Secret, "fingerprint": e.Metadata.Fingerprint, "idempotency": e.Metadata.Idempotency,
		} {
			if secret != "" {
				hidden[what]++
				require.NotContains(t, said, secret, "%s of %s", what, name)
			}
		}
	}
	require.Len(t, hidden, 10, "a stored event has each of them: %v", hidden)
}

// Of an endpoint's URL the host is told, and neither who signs in there nor what stands behind it.
func TestOfAnEndpointTheHostIsTold(t *testing.T) {
	t.Parallel()
	for address, host := range map[string]string{
		"https://user:password@shop.example:8443/hook/abc?token=t#f": "shop.example:8443", "https://shop.example": "shop.example", "%": "", "": "",
	} {
		data, err := json.Marshal(location.Registered{ExternalID: "hall", UserID: 1, Channel: location.Channel{Type: "http", URL: address, Secret: "sealed"}})
		require.NoError(t, err)
		public, ok, err := cloudevents.Of(event.Recorded{Type: location.Registered{}.EventType(), Data: data})
		require.NoError(t, err)
		require.True(t, ok)
		var said cloudevents.Location
		require.NoError(t, json.Unmarshal(public.Data, &said))
		require.Equal(t, cloudevents.Channel{Type: "http", Host: host}, said.Channel)
		require.Equal(t, []string{}, said.Tags)
	}
}

// The sandbox's events of a location have another key than the live ones, and those of its deliveries the same one.
func TestKeys(t *testing.T) {
	t.Parallel()
	key := func(file string, env event.Environment) string {
		e := stored(t)[file]
		e.Metadata.Environment = env
		public, ok, err := cloudevents.Of(e)
		require.NoError(t, err)
		require.True(t, ok)
		return public.Key
	}
	for _, env := range []event.Environment{event.Live, event.Test} {
		require.Equal(t, key("LocationRegistered.json", env), key("AudioPlayed.json", env))
		require.Equal(t, key("AudioSent.json", env), key("SendCancelled.json", env))
	}
	require.NotEqual(t, key("AudioPlayed.json", event.Live), key("AudioPlayed.json", event.Test))
}

// What cannot be read is an error, and not left out.
func TestDataThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, k := range cloudevents.Kinds() {
		_, _, err := cloudevents.Of(event.Recorded{Type: k.Type, Stream: "stream", Data: []byte("[")})
		require.ErrorContains(t, err, "read "+k.Type)
		require.Equal(t, reflect.Struct, k.Data.Kind())
	}
}
