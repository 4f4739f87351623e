package httpapi

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/readmodel"
)

// The items of one page.
const (
	defaultPage = 20
	maxPage     = 100
)

// maxQueryValue bounds one value of a query, in bytes.
const maxQueryValue = 1024

// query reads the parameters of a list as object reads the fields of a body: all failing ones are told at once, and one that nothing has read is unknown.
type query struct {
	values url.Values
	read   map[string]bool
	failed fault.Fields
	broken error // the query as a whole cannot be read
}

func (c *call) query() *query {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	q := &query{values: values, read: map[string]bool{}}
	if err != nil {
		q.broken = fault.New(fault.InvalidFormat, "The query is not well formed; write what is not a letter or a digit with %% and its two hexadecimal digits.")
	}
	return q
}

// text reads a parameter; "" if it is not given.
func (q *query) text(name string) string {
	q.read[name] = true
	all := q.values[name]
	if len(all) == 0 {
		return ""
	}
	switch v := all[0]; {
	case len(all) > 1:
		q.failed.Add(name, fault.InvalidFormat, "%s is given %d times; give it once.", name, len(all))
	case v == "":
		q.failed.Add(name, fault.InvalidFormat, "%s is empty; give a value, or leave it out.", name)
	case len(v) > maxQueryValue:
		q.failed.Add(name, fault.OutOfRange, "%s is longer than %d bytes; shorten it.", name, maxQueryValue)
	case !utf8.ValidString(v) || strings.ContainsRune(v, 0):
		q.failed.Add(name, fault.InvalidFormat, "%s is not text; send UTF-8 without NUL.", name)
	default:
		return v
	}
	return ""
}

// open reads a parameter that may be empty: an empty cursor asks for the first page, as a client's loop begins, and every name has an empty part.
func (q *query) open(name string) string {
	if all := q.values[name]; len(all) == 1 && all[0] == "" {
		q.read[name] = true
		return ""
	}
	return q.text(name)
}

// cursorContext is what the cursors of a list are sealed for: they open for the same company's list alone. Sealed, they do not tell what they are made of, which
// is positions among the events of all companies. The same one looks the same each time, so that the page that it stands on keeps its tag.
func (c *call) cursorContext() []string {
	return []string{c.caller.CompanyID, string(c.caller.Environment), c.operation()}
}

const cursors = "cursor" // the purpose that they are sealed for

// cursor reads where a page begins; "" is the list's beginning.
func (c *call) cursor(q *query) string {
	sealed := q.open("cursor")
	if sealed == "" {
		return ""
	}
	cursor, err := c.server.keys.UnsealAlike(cursors, sealed, c.cursorContext()...)
	if err != nil {
		q.failed = append(q.failed, readmodel.NoCursor().Fields...)
	}
	return cursor
}

// sealCursor is a cursor as it is given out.
func (c *call) sealCursor(cursor string) string {
	return c.server.keys.SealAlike(cursors, cursor, c.cursorContext()...)
}

// limit reads how many items a page has.
func (q *query) limit() int {
	v := q.text("limit")
	if v == "" {
		return defaultPage
	}
	n, err := strconv.Atoi(v)
	switch {
	case err != nil:
		q.failed.Add("limit", fault.InvalidFormat, "limit must be a whole number.")
	case n < 1 || n > maxPage:
		q.failed.Add("limit", fault.OutOfRange, "limit must be from 1 to %d.", maxPage)
	default:
		return n
	}
	return defaultPage
}

// moment reads an RFC 3339 time; nil if it is not given.
func (q *query) moment(name string) *time.Time {
	v := q.text(name)
	if v == "" {
		return nil
	}
	t, ok := parseMoment(v)
	if !ok {
		q.failed.Add(name, fault.InvalidFormat, "%s must be an RFC 3339 time with an offset, like 2026-12-24T09:00:00Z.", name)
		return nil
	}
	t = t.UTC()
	return &t
}

// oneOf reads a parameter that has certain values; "" if it is not given.
func (q *query) oneOf(name string, allowed ...string) string {
	v := q.text(name)
	if v != "" && !slices.Contains(allowed, v) {
		q.failed.Add(name, fault.InvalidFormat, "%s must be one of %s.", name, strings.Join(allowed, ", "))
		return ""
	}
	return v
}

// flag reads true or false; nil if it is not given.
func (q *query) flag(name string) *bool {
	v := q.oneOf(name, "true", "false")
	if v == "" {
		return nil
	}
	b := v == "true"
	return &b
}

// refuse notes parameters that do not go with what is asked for, each with why, in which %s is its name.
func (q *query) refuse(why string, names ...string) {
	for _, name := range names {
		if _, given := q.values[name]; given {
			q.read[name] = true
			q.failed.Add(name, fault.InvalidFormat, why, name)
		}
	}
}

// err is every failing parameter as one error, or nil. It comes last: what was not read until then is unknown.
func (q *query) err() error {
	if q.broken != nil {
		return q.broken
	}
	unknown := []string{}
	for name := range q.values {
		if !q.read[name] {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		q.failed.Add(strings.ToValidUTF8(name, "\uFFFD"), fault.InvalidFormat, "%s is not a parameter of this list; remove it.", strings.ToValidUTF8(name, "\uFFFD"))
	}
	return q.failed.Err()
}
