package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/fault"
)

func TestBodiesThatAreNotOneObjectAreRefused(t *testing.T) {
	for _, body := range []string{"", " ", "{", "[]", "null", `"x"`, `{} {}`, `{"a":1,}`, "{\"a\":\"\xff\"}", "\xef\xbb\xbf{}"} {
		_, err := parseObject([]byte(body))
		require.Equal(t, fault.InvalidFormat, fault.CodeOf(err), "%q", body)
	}
}

func TestAllFailingFieldsAreToldAtOnce(t *testing.T) {
	o, err := parseObject([]byte(`{"name": 7, "twice": 1, "tags": ["a", 1], "channel": {"type": false, "odd": 1}, "all": "yes", "repeat": 1.5, "at": "tomorrow", "twice": 2, "extra": 1}`))
	require.NoError(t, err)
	require.Empty(t, o.text("name"))
	require.Equal(t, []string{"a", ""}, o.texts("tags"))
	channel := o.object("channel")
	channel.text("type")
	channel.refuseUnknown()
	o.flag("all")
	o.integer("repeat")
	o.moment("at")
	o.text("twice")
	told, ok := errors.AsType[*fault.Error](o.err(func(fields *fault.Fields) {
		fields.Add("name", fault.MissingField, "name is missing") // has failed already for what is really wrong with it
		fields.Add("volume", fault.OutOfRange, "volume is too high")
		fields.Add("tags", fault.OutOfRange, "there are too many tags")
		fields.Add("tags[0]", fault.OutOfRange, "tags[0] is too short")
		fields.Add("tags[1]", fault.OutOfRange, "tags[1] is too short") // has failed already too
		fields.Add("channel.url", fault.OutOfRange, "the url is too short")
	}))
	require.True(t, ok)
	failed := map[string]fault.Code{}
	for _, f := range told.Fields {
		require.NotContains(t, failed, f.Param)
		failed[f.Param] = f.Code
	}
	require.Equal(t, map[string]fault.Code{
		"name": fault.InvalidFormat, "tags": fault.OutOfRange, "tags[0]": fault.OutOfRange, "tags[1]": fault.InvalidFormat, "channel.url": fault.OutOfRange, "channel.type": fault.InvalidFormat, "channel.odd": fault.InvalidFormat,
		"all": fault.InvalidFormat, "repeat": fault.InvalidFormat, "at": fault.InvalidFormat, "volume": fault.OutOfRange, "extra": fault.InvalidFormat, "twice": fault.InvalidFormat,
	}, failed)
}

func TestFieldsAreRead(t *testing.T) {
	o, err := parseObject([]byte(`{"name": "x", "n": 3.0, "e": 1e2, "none": null, "tags": [], "on": true, "at": "2027-06-01T12:00:00-03:00", "rows": [{"a": "b"}]}`))
	require.NoError(t, err)
	require.Equal(t, "x", o.text("name"))
	require.Equal(t, int64(3), *o.integer("n"))
	require.Equal(t, int64(100), *o.integer("e"))
	require.Nil(t, o.optionalText("none"))
	require.Nil(t, o.integer("absent"))
	require.NotNil(t, o.texts("tags"))
	require.Nil(t, o.texts("absent"))
	require.True(t, o.flag("on"))
	require.Equal(t, int64(1811862000), o.moment("at").Unix())
	rows, raw := o.rows("rows", 1)
	require.Equal(t, "b", rows[0].text("a"))
	require.JSONEq(t, `{"a": "b"}`, string(raw[0]))
	require.NoError(t, o.err())
}

func TestMomentsAreThoseThatCanBeWrittenAgain(t *testing.T) {
	for text, good := range map[string]bool{
		"2027-06-01T12:00:00-03:00": true, "2027-06-01T12:00:00.123456789Z": true, "0000-01-01T00:00:00Z": true, "9999-12-31T23:59:59Z": true,
		"0000-01-01T00:00:00+01:00": false, "9999-12-31T23:59:59-01:00": false, "10000-01-01T00:00:00Z": false, "2027-06-01T12:00:00": false, "2027-06-01": false, "": false,
		"2027-06-01T12:00:00,5Z": false, "2027-06-01T9:00:00Z": false, "2027-06-01T12:00:00+24:00": false,
	} {
		at, ok := parseMoment(text)
		require.Equal(t, good, ok, text)
		if ok {
			_, err := json.Marshal(at.UTC())
			require.NoError(t, err, text)
		}
	}
}

func TestArraysAreReadUpToTheirBounds(t *testing.T) {
	o, err := parseObject([]byte(`{"rows": [{}, {}, {}], "names": [` + strings.Repeat(`"",`, maxTexts) + `""], "few": ["` + strings.Repeat(`","`, maxTexts-1) + `"], "none": [], "text": "[]", "odd": [1]}`))
	require.NoError(t, err)
	require.Nil(t, o.texts("names"))
	require.Len(t, o.texts("few"), maxTexts)
	rows := func(name string) []*object {
		rows, _ := o.rows(name, 2)
		return rows
	}
	require.Empty(t, rows("rows"))
	require.Equal(t, []string{}, o.texts("none"))
	require.Empty(t, rows("none"))
	require.Nil(t, o.texts("text"))
	require.Equal(t, []*object{nil}, rows("odd"))
	failed := map[string]fault.Code{}
	for _, f := range *o.failed {
		failed[f.Param] = f.Code
	}
	require.Equal(t, map[string]fault.Code{"names": fault.OutOfRange, "rows": fault.OutOfRange, "text": fault.InvalidFormat}, failed)
}

// A string of an array that counts each once may be there as often as there is room for.
func TestDistinctTextsAreCountedOnce(t *testing.T) {
	o, err := parseObject([]byte(`{"ids": ["a", "b", "a", "b", "a"], "three": ["a", "b", "a", "c"], "odd": [1, "a", null, {}], "none": [], "text": "a"}`))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, o.distinctTexts("ids", 2))
	require.Nil(t, o.distinctTexts("three", 2))
	require.Equal(t, []string{"", "a"}, o.distinctTexts("odd", 2))
	require.Equal(t, []string{}, o.distinctTexts("none", 2))
	require.Nil(t, o.distinctTexts("text", 2))
	require.Nil(t, o.distinctTexts("absent", 2))
	failed := map[string]fault.Code{}
	for _, f := range *o.failed {
		failed[f.Param] = f.Code
	}
	require.Equal(t, map[string]fault.Code{"three": fault.OutOfRange, "odd[0]": fault.InvalidFormat, "odd[2]": fault.InvalidFormat, "odd[3]": fault.InvalidFormat, "text": fault.InvalidFormat}, failed)
}

// Who sends a body too slowly is told that it was too slow.
func TestSlowBodiesAreToldSo(t *testing.T) {
	read := map[string]func(*http.Request) error{
		"application/json": func(r *http.Request) error {
			_, err := (&call{r: r, route: &route{}}).readObject()
			return err
		},
		"multipart/form-data; boundary=b": func(r *http.Request) error {
			_, err := readForm(r.Header, r.Body, formShape{file: "file", maxFileSize: 1 << 20, folder: t.TempDir()})
			return err
		},
	}
	for kind, begun := range map[string]string{"application/json": `{"a":`, "multipart/form-data; boundary=b": "--b\r\nContent-Disposition: form-data; name=file\r\n\r\nbytes"} {
		told := make(chan error, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			limitConnection(w, 50*time.Millisecond)
			told <- read[kind](r)
		}))
		slow, end := io.Pipe()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, io.MultiReader(strings.NewReader(begun), slow))
		require.NoError(t, err)
		request.Header.Set("Content-Type", kind)
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			require.NoError(t, response.Body.Close())
		}
		require.ErrorIs(t, <-told, errSlowBody, kind)
		require.NoError(t, end.Close())
		server.Close()
	}
}

// A body of the largest size is millions of objects, or of fields. They take hundreds of times its size, so they are not made.
func TestABodyOfMillionsTakesLittleMemory(t *testing.T) {
	var fields strings.Builder
	for i := 0; fields.Len() < maxBulkBodyBytes-20; i++ {
		fmt.Fprintf(&fields, `"%x":0,`, i)
	}
	_, err := parseObject([]byte("{" + fields.String() + `"last":0}`))
	require.EqualError(t, err, "out_of_range: The body has more than 200 fields; send those of this request only.")
	for _, body := range []string{`{"locations":[` + strings.Repeat("{},", maxBulkBodyBytes/3) + `{}]}`, `{"channel":{` + fields.String() + `"last":0}}`} {
		raw := []byte(body)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o, err := parseObject(raw)
		require.NoError(t, err)
		o.rows("locations", 10_000)
		o.object("channel")
		require.Error(t, o.err())
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8*len(raw)))
	}
}

func TestWhatSaysTheSameIsWrittenTheSame(t *testing.T) {
	for raw, want := range map[string]string{`{"b": 1.50, "a": [ "x" , null]}`: `{"a":["x",null],"b":1.50}`, "9007199254740993": "9007199254740993", ` "\u00e9" `: `"é"`} {
		require.Equal(t, want, string(canonical(json.RawMessage(raw))))
	}
}

func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{`{}`, `{"a":1,"a":2}`, `{"a":[{"b":null}],"c":1e400}`, `{"a":"\ud800"}`, `[`, "{\"\xff\":0}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := parseObject(raw)
		var all map[string]json.RawMessage
		if fault.CodeOf(err) == fault.OutOfRange {
			require.NoError(t, json.Unmarshal(raw, &all))
			require.Greater(t, len(all), maxFields)
			return
		}
		if err != nil {
			require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
			return
		}
		require.NoError(t, json.Unmarshal(raw, &all), "what is accepted is JSON")
		require.Len(t, o.fields, min(len(all), maxFields), "no field is lost")
		for name := range all {
			o.text(name)
			o.integer(name)
			o.texts(name)
			o.flag(name)
			o.moment(name)
			if inner := o.object(name); inner != nil {
				inner.refuseUnknown()
			}
			rows, _ := o.rows(name, 3)
			for _, row := range rows {
				if row != nil {
					require.NotPanics(t, row.refuseUnknown)
				}
			}
		}
		_ = o.err()
	})
}
