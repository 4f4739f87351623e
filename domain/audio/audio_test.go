package audio_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
)

var (
	uploaded = audio.Uploaded{
		AudioID: "aud_one", Name: "Closing time", Description: "Every evening", Category: "announcement", Format: "mp3", ContentType: "audio/mpeg",
		DurationMs: 45_200, Size: 723_200, SHA256: strings.Repeat("ab", 32), BlobKey: "co_one/live/aud_one",
	}
	deletionStarted   = audio.DeletionStarted{AudioID: "aud_one"}
	deletionAbandoned = audio.DeletionAbandoned{AudioID: "aud_one"}
	deleted           = audio.Deleted{AudioID: "aud_one", BlobKey: "co_one/live/aud_one"}
)

func load(t require.TestingT, given ...event.Payload) audio.Audio {
	a, err := audio.Load(eventtest.History(given...))
	require.NoError(t, err)
	return a
}

// marked is when a deletion began that is the second event of a history.
var marked = eventtest.Begin.Add(time.Minute)

func TestSendable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given   []event.Payload
		company string
		env     event.Environment
		now     time.Time
		want    fault.Code
	}{
		"uploaded":                               {given: []event.Payload{uploaded}},
		"never uploaded":                         {want: fault.NotFound},
		"another company's":                      {given: []event.Payload{uploaded}, company: "co_two", want: fault.NotFound},
		"of the other environment":               {given: []event.Payload{uploaded}, env: event.Test, want: fault.NotFound},
		"deleted":                                {given: []event.Payload{uploaded, deletionStarted, deleted}, want: fault.NotFound},
		"being deleted":                          {given: []event.Payload{uploaded, deletionStarted}, now: marked, want: fault.Conflict},
		"being deleted, by a clock behind":       {given: []event.Payload{uploaded, deletionStarted}, now: marked.Add(-time.Second), want: fault.Conflict},
		"being deleted, at the last moment":      {given: []event.Payload{uploaded, deletionStarted}, now: marked.Add(audio.DeletionPatience - 1), want: fault.Conflict},
		"its deletion was cut off":               {given: []event.Payload{uploaded, deletionStarted}, now: marked.Add(audio.DeletionPatience)},
		"its deletion was abandoned":             {given: []event.Payload{uploaded, deletionStarted, deletionAbandoned}, now: marked},
		"another company's, while it is deleted": {given: []event.Payload{uploaded, deletionStarted}, company: "co_two", now: marked, want: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			company, env := c.company, c.env
			if company == "" {
				company = eventtest.Company
			}
			if env == "" {
				env = event.Live
			}
			now := c.now
			if now.IsZero() {
				now = marked.Add(time.Hour)
			}
			err := load(t, c.given...).Sendable(company, env, now)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			eventtest.Refused(t, err, c.want, "")
		})
	}
}

func TestStartDeletion(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		given []event.Payload
		now   time.Time
		want  fault.Code
	}{
		"of audio in the library":       {given: []event.Payload{uploaded}, now: marked},
		"after one that was abandoned":  {given: []event.Payload{uploaded, deletionStarted, deletionAbandoned}, now: marked},
		"after one that was cut off":    {given: []event.Payload{uploaded, deletionStarted}, now: marked.Add(audio.DeletionPatience)},
		"while another runs":            {given: []event.Payload{uploaded, deletionStarted}, now: marked.Add(audio.DeletionPatience - 1), want: fault.Conflict},
		"of audio that is deleted":      {given: []event.Payload{uploaded, deletionStarted, deleted}, now: marked.Add(time.Hour), want: fault.NotFound},
		"of audio that was never there": {now: marked, want: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := load(t, c.given...).StartDeletion(eventtest.Company, event.Live, c.now)
			if c.want != "" {
				eventtest.Refused(t, err, c.want, "")
				return
			}
			require.NoError(t, err)
			require.Equal(t, deletionStarted, got)
		})
	}
	_, err := load(t, uploaded).StartDeletion("co_two", event.Live, marked)
	eventtest.Refused(t, err, fault.NotFound, "")
	_, err = load(t, uploaded).StartDeletion(eventtest.Company, event.Test, marked)
	eventtest.Refused(t, err, fault.NotFound, "")
}

func TestFinishDeletion(t *testing.T) {
	t.Parallel()
	a := load(t, uploaded, deletionStarted)
	require.Equal(t, deleted, a.FinishDeletion(nil))
	require.Equal(t, deletionAbandoned, a.FinishDeletion([]string{"snd_one"}))
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.Equal(t, audio.Audio{}, load(t))
	require.Equal(t, audio.Audio{Uploaded: uploaded, CompanyID: eventtest.Company, Environment: event.Live, CreatedAt: eventtest.Begin, DeletionStarted: marked, Deleted: true},
		load(t, uploaded, deletionStarted, deleted))
	require.Equal(t, "audio-aud_one", audio.Stream("aud_one"))

	history := eventtest.History(uploaded)
	history[0].Data = []byte(`{"size": "large"}`)
	_, err := audio.Load(history)
	require.ErrorContains(t, err, "AudioUploaded of test")
}

// Of deletions and sends at any moments: audio that is deleted is never sent, one deletion at most runs at a time, and none keeps sends away for good.
func TestDeletionsAndSends(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		history := eventtest.History(uploaded)
		now := eventtest.Begin
		add := func(p event.Payload) {
			recorded := eventtest.History(p)[0]
			recorded.Metadata.Time = now
			history = append(history, recorded)
		}
		var running time.Time // when the last deletion began, if it did not end
		gone := false
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*audio.DeletionPatience)).Draw(t, "later")))
			a, err := audio.Load(history)
			require.NoError(t, err)
			kept := !running.IsZero() && now.Sub(running) < audio.DeletionPatience
			require.Equal(t, !gone && !kept, a.Sendable(eventtest.Company, event.Live, now) == nil)
			started, err := a.StartDeletion(eventtest.Company, event.Live, now)
			require.Equal(t, !gone && !kept, err == nil)
			switch {
			case err == nil && rapid.Bool().Draw(t, "delete"):
				add(started)
				running = now
			case kept && rapid.Bool().Draw(t, "finish"):
				var pending []string
				if rapid.Bool().Draw(t, "pending") {
					pending = []string{"snd_one"}
				}
				add(a.FinishDeletion(pending))
				gone, running = len(pending) == 0, time.Time{}
			}
		}
	})
}

func TestDetails(t *testing.T) {
	t.Parallel()
	bad := func(param string, code fault.Code) []eventtest.Field {
		return []eventtest.Field{{Param: param, Code: code}}
	}
	for name, c := range map[string]struct {
		details audio.Details
		want    []eventtest.Field
	}{
		"a name is enough":         {details: audio.Details{Name: "a"}},
		"announcement":             {details: audio.Details{Name: "a", Category: "announcement"}},
		"promotion":                {details: audio.Details{Name: "a", Category: "promotion"}},
		"emergency":                {details: audio.Details{Name: "a", Category: "emergency"}},
		"another category":         {audio.Details{Name: "a", Category: "music"}, bad("category", fault.InvalidFormat)},
		"a category in capitals":   {audio.Details{Name: "a", Category: "Emergency"}, bad("category", fault.InvalidFormat)},
		"no name":                  {audio.Details{}, bad("name", fault.MissingField)},
		"a name of spaces":         {audio.Details{Name: "  "}, bad("name", fault.MissingField)},
		"a name of 200":            {details: audio.Details{Name: strings.Repeat("é", 200)}},
		"a name of 201":            {audio.Details{Name: strings.Repeat("é", 201)}, bad("name", fault.OutOfRange)},
		"a name of other bytes":    {audio.Details{Name: "a\xff"}, bad("name", fault.InvalidFormat)},
		"a name with a NUL":        {audio.Details{Name: "a\x00"}, bad("name", fault.InvalidFormat)},
		"a description of 1000":    {details: audio.Details{Name: "a", Description: strings.Repeat("é", 1000)}},
		"a description of 1001":    {audio.Details{Name: "a", Description: strings.Repeat("é", 1001)}, bad("description", fault.OutOfRange)},
		"a description of bytes":   {audio.Details{Name: "a", Description: "\xff"}, bad("description", fault.InvalidFormat)},
		"a description with a NUL": {audio.Details{Name: "a", Description: "\x00"}, bad("description", fault.InvalidFormat)},
		"everything wrong": {audio.Details{Description: "\xff", Category: "x"}, []eventtest.Field{
			{Param: "name", Code: fault.MissingField}, {Param: "description", Code: fault.InvalidFormat}, {Param: "category", Code: fault.InvalidFormat}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fields fault.Fields
			c.details.Check(&fields)
			eventtest.Failing(t, fields, c.want...)
		})
	}
	require.Equal(t, audio.Details{Name: "Closing time", Description: " kept as it is ", Category: "announcement"}, audio.Details{Name: " Closing time ", Description: " kept as it is "}.Normal())
	require.Equal(t, audio.Details{Name: "a", Category: "emergency"}, audio.Details{Name: "a", Category: "emergency"}.Normal())
}
