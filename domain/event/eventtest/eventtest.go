// Package eventtest is for the tests of decisions: given these events, when this is decided, then these events or this refusal.
package eventtest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

// Company is whose events they are, in the live environment.
const Company = "co_one"

// Begin is the time of a history's first event; each later one is a minute after the one before.
var Begin = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// History gives payloads as the store gives them back. A test that is about the metadata sets it in the result.
func History(payloads ...event.Payload) []event.Recorded {
	history := make([]event.Recorded, len(payloads))
	for i, p := range payloads {
		data, err := json.Marshal(p)
		if err != nil {
			panic(err) // a payload is a plain struct
		}
		history[i] = event.Recorded{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)), Stream: "test", Revision: uint64(i), Position: event.Position{Commit: uint64(i + 1), Prepare: uint64(i + 1)},
			Type: p.EventType(), Data: data,
			Metadata: event.Metadata{CompanyID: Company, Environment: event.Live, Time: Begin.Add(time.Duration(i) * time.Minute)},
		}
	}
	return history
}

// Refused requires an error with this code about this field; the field is empty where the error is about none.
func Refused(t require.TestingT, err error, code fault.Code, param string) {
	var refused *fault.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, code, refused.Code, refused.Message)
	require.Equal(t, param, refused.Param, refused.Message)
	require.NotEmpty(t, refused.Message)
}

// Failing requires that exactly these fields failed, each with its code, in the order that they are told in.
func Failing(t require.TestingT, fields fault.Fields, want ...Field) {
	var got []Field
	for _, f := range fields {
		got = append(got, Field{f.Param, f.Code})
		require.NotEmpty(t, f.Message)
	}
	require.Equal(t, want, got)
}

// Field is a failing field without its message.
type Field struct {
	Param string
	Code  fault.Code
}
