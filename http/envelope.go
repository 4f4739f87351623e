package httpapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// maxDrainBytes bounds what is read, and thrown away, of the body of a refused request. A client that is still sending when the connection closes
// may never see the answer, so a body of ordinary size is read to its end.
const maxDrainBytes = 32 << 20

// maxPooledBytes bounds the buffers that are kept for later answers. Most answers are far smaller, and the few that are larger should not stay in memory.
const maxPooledBytes = 256 << 10

// buffers are what answers are written into.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// borrow gives an empty buffer. What is in it is lost when it is given back.
func borrow() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) } //nolint:forcetypeassert // nothing else is put there

func giveBack(b *bytes.Buffer) {
	if b.Cap() <= maxPooledBytes {
		b.Reset()
		buffers.Put(b)
	}
}

// pagination stands beside the data of a list.
type pagination struct {
	Limit      int     `json:"limit"`
	HasMore    bool    `json:"hasMore"`
	NextCursor *string `json:"nextCursor"`
}

// timestamp is a time as the API writes it: RFC 3339, UTC, milliseconds unless they are zero.
type timestamp time.Time

// MarshalJSON implements json.Marshaler.
func (t timestamp) MarshalJSON() ([]byte, error) { return t.appendTo(nil), nil }

func (t timestamp) appendTo(b []byte) []byte {
	return append(time.Time(t).UTC().Truncate(time.Millisecond).AppendFormat(append(b, '"'), time.RFC3339Nano), '"')
}

// text is the time without quotes, "" for one that is not there.
func (t *timestamp) text() string {
	if t == nil {
		return ""
	}
	quoted := t.appendTo(nil)
	return string(quoted[1 : len(quoted)-1])
}

// optionalTime is nil, which JSON writes as null, for a time that is not there.
func optionalTime(t *time.Time) *timestamp {
	if t == nil || t.IsZero() {
		return nil
	}
	out := timestamp(*t)
	return &out
}

// optionalText is nil, which JSON writes as null, for a text that is not there.
func optionalText(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// data answers with one resource.
func (c *call) data(status int, data any) error {
	c.write(status, member{"data", data})
	return nil
}

// list answers with one page; next is the cursor of the page after it, empty on the last one.
func (c *call) list(data any, limit int, next string) error {
	page := &pagination{Limit: limit, HasMore: next != ""}
	if next != "" {
		next = c.sealCursor(next)
		page.NextCursor = &next
		c.w.Header().Set("Link", "<"+c.nextPage(next)+`>; rel="next"`) // RFC 8288
	}
	c.write(http.StatusOK, member{"data", data}, member{"pagination", page})
	return nil
}

// nextPage is this request's URL with another cursor.
func (c *call) nextPage(cursor string) string {
	query := c.r.URL.Query()
	query.Set("cursor", cursor)
	base := c.server.baseURL(c.r)
	return (&url.URL{Scheme: base.Scheme, Host: base.Host, Path: c.r.URL.Path, RawQuery: query.Encode()}).String()
}

// varies names what the answer to a read depends on beside its URL (RFC 9110 §12.5.5).
func (c *call) varies() string {
	if c.route != nil && c.route.csv {
		return "X-API-Key, Authorization, Accept-Encoding, Accept"
	}
	return "X-API-Key, Authorization, Accept-Encoding"
}

// write sends an envelope: its members, and the time. The members are encoded once, whatever becomes of them: a tag that says whether they changed, or the
// body, in a coding or as it is.
func (c *call) write(status int, members ...member) {
	b := borrow()
	defer giveBack(b)
	encoder, before := json.NewEncoder(b), `{"`
	for _, m := range members {
		b.WriteString(before + m.name + `":`)
		if err := encoder.Encode(m.value); err != nil { // a value of our own that JSON cannot hold
			c.server.log.ErrorContext(c.r.Context(), "encode an answer", "requestId", c.id, "operation", c.operation(), "error", err)
			http.Error(c.w, "", http.StatusInternalServerError)
			return
		}
		b.Truncate(b.Len() - 1) // the encoder ends a value with a line feed
		before = `,"`
	}
	h := c.w.Header()
	if status == http.StatusOK && (c.r.Method == http.MethodGet || c.r.Method == http.MethodHead) {
		tag := weakTag(b.Bytes())
		h.Set("ETag", tag)
		h.Set("Cache-Control", "private, no-cache") // one company's data, and without a token: its caller may keep it, and asks whether it is still right
		h.Set("Vary", c.varies())
		if noneMatch(c.r.Header.Values("If-None-Match"), tag) {
			c.w.WriteHeader(http.StatusNotModified)
			return
		}
	} else {
		h.Set("Cache-Control", "no-store") // an answer to a command may hold a token
	}
	b.WriteString(before + `timestamp":`)
	b.Write(timestamp(c.server.now()).appendTo(b.AvailableBuffer()))
	b.WriteString("}\n")
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	body := b.Bytes()
	if prefersGzip(c.r.Header, len(body)) {
		packed := borrow()
		defer giveBack(packed)
		pack(packed, body)
		h.Set("Content-Encoding", "gzip")
		body = packed.Bytes()
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	if _, err := c.w.Write(body); err != nil {
		c.server.log.DebugContext(c.r.Context(), "the caller left before the answer", "requestId", c.id, "error", err)
	}
}

// drain reads what is left of the request's body, within bounds. A client that waits to be asked for its body (RFC 9110 §10.1.1) is not asked.
func (c *call) drain() {
	if c.r.Body == nil || c.r.Body == http.NoBody || c.r.ContentLength > maxDrainBytes || c.r.Header.Get("Expect") != "" {
		return
	}
	_, _ = io.CopyN(io.Discard, c.r.Body, maxDrainBytes) // whatever ends it, the answer comes next
}
