package player

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

// readAll reads a stream to its end.
func readAll(t *testing.T, in io.Reader) ([]event, *events) {
	t.Helper()
	stream := readEvents(in, func() {})
	var all []event
	for {
		e, err := stream.next()
		if err != nil {
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a stream has no end of its own")
			return all, stream
		}
		all = append(all, e)
	}
}

func TestEventStream(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]event{
		"id: 7\nevent: deliver\ndata: {}\n\n":                                  {{id: "7", kind: "deliver", data: []byte("{}")}},
		"\ufeffid:7\r\nevent:deliver\r\ndata:{}\r\n\r\n":                       {{id: "7", kind: "deliver", data: []byte("{}")}},
		"id: 7\revent: deliver\rdata: {}\r\r":                                  {{id: "7", kind: "deliver", data: []byte("{}")}},
		"data: a\ndata:  b\ndata\n\ndata: c\n\n":                               {{data: []byte("a\n b\n")}, {data: []byte("c")}},
		": heartbeat\n\n: heartbeat\n\nretry: 2000\n\n":                        nil,
		"event: cancel\n\ndata: x\n\n":                                         {{data: []byte("x")}},
		"id: 1\n\ndata: x\n\nid\ndata: y\n\nid: 2\x00\ndata: z\n\n":            {{id: "1", data: []byte("x")}, {data: []byte("y")}, {data: []byte("z")}},
		"data: whole\n\ndata: the connection breaks before the empty line\n":   {{data: []byte("whole")}},
		"data: whole\n\ndata: the connection breaks amid a line":               {{data: []byte("whole")}},
		"Data: x\n data: x\ndatax: y\nid: 3\nunknown\n\ndata: \u00e4\n\n":      {{id: "3", data: []byte("ä")}},
		"event: a\nevent: b\ndata: x: y\n\n\n\n\nevent:  c\ndata\n\ndata: d\n": {{kind: "b", data: []byte("x: y")}, {kind: " c", data: []byte{}}},
	} {
		got, _ := readAll(t, strings.NewReader(text))
		require.Equal(t, want, got, "%q", text)
		got, _ = readAll(t, iotest.OneByteReader(strings.NewReader(text)))
		require.Equal(t, want, got, "%q", text)
	}
}

// An event that ends in a lone CR is told before the server says anything more.
func TestAnEventIsToldAtOnce(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"\n", "\r", "\r\n"} {
		in, out := io.Pipe()
		stream := readEvents(in, func() {})
		go io.WriteString(out, "data: x"+end+end) //nolint:errcheck // the pipe stays open
		e, err := stream.next()
		require.NoError(t, err)
		require.Equal(t, "x", string(e.data))
	}
}

func TestEventsThatAreTooLong(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxEventBytes)
	half := long[:maxEventBytes/2]
	for _, text := range []string{"data: " + long, "data: " + half + "\ndata: y" + half, "data: " + long + long + "\ndata: y"} {
		all, _ := readAll(t, strings.NewReader("id: 1\n"+text+"\n\nid: 2\ndata: z\n\n"))
		require.Len(t, all, 2)
		require.Equal(t, "1", all[0].id)
		require.ErrorIs(t, all[0].err, errTooLong)
		require.LessOrEqual(t, len(all[0].data), maxEventBytes+2)
		require.Equal(t, event{id: "2", data: []byte("z")}, all[1])
	}
	all, _ := readAll(t, strings.NewReader("id: 1\nid: "+long+"\n: "+long+"\ndata: z\n\n"))
	require.Equal(t, []event{{id: "1", data: []byte("z")}}, all)
}

func TestRetry(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"retry: 2000\n\n": 2 * time.Second, "retry: 2s\n\n": 0, "retry: -1\n\n": 0, "retry\n\n": 0, "retry: 99999999999999999999\n\n": 0, "retry:5\nretry: x\n": 5 * time.Millisecond,
	} {
		_, stream := readAll(t, strings.NewReader(text))
		require.Equal(t, want, stream.retry, text)
	}
}

func TestABrokenConnectionIsAnError(t *testing.T) {
	t.Parallel()
	broken := errors.New("connection reset")
	stream := readEvents(io.MultiReader(strings.NewReader("data: x\n\ndata: y\n"), iotest.ErrReader(broken)), func() {})
	_, err := stream.next()
	require.NoError(t, err)
	_, err = stream.next()
	require.ErrorIs(t, err, broken)
}

// chunks gives its bytes a few at a time, as a network does.
type chunks struct {
	rest []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

var lineEnd = regexp.MustCompile("\r\n|\r|\n")

// byTheBook interprets a whole stream word by word as WHATWG HTML §9.2.6 has it.
func byTheBook(text string) (all []event) {
	lines := lineEnd.Split(strings.TrimPrefix(text, "\ufeff"), -1)
	var data, kind, lastID string
	for _, line := range lines[:len(lines)-1] { // the last one has no end
		if line == "" {
			if data != "" {
				all = append(all, event{id: lastID, kind: kind, data: []byte(strings.TrimSuffix(data, "\n"))})
			}
			data, kind = "", ""
			continue
		}
		field, value := line, ""
		if colon := strings.Index(line, ":"); colon == 0 {
			continue
		} else if colon > 0 {
			field, value = line[:colon], line[colon+1:]
			value = strings.TrimPrefix(value, " ")
		}
		switch field {
		case "event":
			kind = value
		case "data":
			data += value + "\n"
		case "id":
			if !strings.Contains(value, "\x00") {
				lastID = value
			}
		}
	}
	return all
}

func FuzzEventStream(f *testing.F) {
	f.Add([]byte("retry: 2000\n\nid: 1\nevent: deliver\ndata: {\"deliveryId\":\"dlv_1\"}\n\n: heartbeat\n\n"), 3)
	f.Add([]byte("\xef\xbb\xbfid: 1\r\nevent: cancel\r\ndata: a\r\ndata: b\r\n\r\n"), 1)
	f.Add([]byte("data: x\r\rid\rdata\r\n\rdata: y\n\r\n"), 2)
	f.Add([]byte("id: \x00\nevent\n:\n::\ndata:::\n\n"), 7)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		alive := 0
		stream := readEvents(&chunks{bytes.Clone(text), 1 + int(uint(size)%100)}, func() { alive++ })
		var got []event
		for {
			e, err := stream.next()
			if err != nil {
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				break
			}
			got = append(got, e)
		}
		want := byTheBook(string(text))
		require.Equal(t, len(want), len(got), "%q", text)
		for i := range want {
			require.Equal(t, want[i].id, got[i].id)
			require.Equal(t, want[i].kind, got[i].kind)
			require.Equal(t, string(want[i].data), string(got[i].data))
		}
		require.Equal(t, len(lineEnd.FindAllString(strings.TrimPrefix(string(text), "\ufeff"), -1)), alive, "every line is a sign of life")
	})
}

// visible marks what a terminal might obey.
func visible(r rune) rune {
	if unicode.IsControl(r) {
		return '!'
	}
	return '.'
}

// Whatever an order says, what is obeyed is within bounds, and its files stay in their folder.
func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"deliveryId":"dlv_1","priority":"high","repeat":2,"volume":50,"playAt":null,"expiresAt":"2026-01-01T00:00:00Z","audio":{"sha256":"` +
		strings.Repeat("0a", 32) + `","format":"mp3","duration":4.02}}`))
	f.Add([]byte(`{"deliveryId":"dlv_2","volume":"loud"}`))
	f.Add([]byte(`{"deliveryId":3,"audio":{"duration":-1e308}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := parseOrder(data, time.Unix(0, 0))
		if err != nil {
			return
		}
		require.NotEmpty(t, o.DeliveryID)
		require.Equal(t, o.DeliveryID, parseDeliveryID(data))
		require.False(t, o.ExpiresAt.IsZero())
		require.True(t, o.Repeat >= 1 && o.Repeat <= maxRepeat)
		require.True(t, o.Volume >= 0 && o.Volume <= maxVolume)
		require.True(t, o.length() >= 0 && o.length() <= maxDuration)
		require.NotContains(t, strings.Map(visible, o.title()), "!", "a name cannot play with the terminal")
		c := &cache{dir: "/somewhere"}
		require.Regexp(t, `^/somewhere/[0-9a-f]{64}\.[a-z0-9]{1,8}$`, c.file(o.Audio))
	})
}
