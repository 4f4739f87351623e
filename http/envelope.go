package httpapi

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxDrainBytes bounds what is read, and thrown away, of the body of a refused request. A client that is still sending when the connection closes
// may never see the answer, so a body of ordinary size is read to its end.
const maxDrainBytes = 32 << 20

// envelope is the outside of every answer.
type envelope struct {
	Data       any         `json:"data,omitempty"`
	Error      *errorBody  `json:"error,omitempty"`
	Pagination *pagination `json:"pagination,omitempty"`
	Timestamp  timestamp   `json:"timestamp"`
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
func (t timestamp) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, time.Time(t).UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano)), nil
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
	c.write(status, envelope{Data: data})
	return nil
}

// list answers with one page; next is the cursor of the page after it, empty on the last one.
func (c *call) list(data any, limit int, next string) error {
	page := &pagination{Limit: limit, HasMore: next != ""}
	if next != "" {
		page.NextCursor = &next
		c.w.Header().Set("Link", "<"+c.nextPage(next)+`>; rel="next"`) // RFC 8288
	}
	c.write(http.StatusOK, envelope{Data: data, Pagination: page})
	return nil
}

// nextPage is this request's URL with another cursor.
func (c *call) nextPage(cursor string) string {
	query := c.r.URL.Query()
	query.Set("cursor", cursor)
	base := c.server.baseURL(c.r)
	return (&url.URL{Scheme: base.Scheme, Host: base.Host, Path: c.r.URL.Path, RawQuery: query.Encode()}).String()
}

// write sends an envelope.
func (c *call) write(status int, e envelope) {
	e.Timestamp = timestamp(c.server.now())
	body, err := json.Marshal(e)
	if err != nil { // a value of our own that JSON cannot hold
		c.server.log.ErrorContext(c.r.Context(), "encode an answer", "requestId", c.id, "operation", c.operation(), "error", err)
		http.Error(c.w, "", http.StatusInternalServerError)
		return
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	h.Set("Cache-Control", "no-store") // an answer may hold a token, and always holds one company's data
	h.Set("X-Content-Type-Options", "nosniff")
	c.w.WriteHeader(status)
	if _, err := c.w.Write(append(body, '\n')); err != nil {
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
