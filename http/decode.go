package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/send"
)

const (
	// maxFields bounds the fields of one object, known or not.
	maxFields = 200
	// maxTexts bounds an array of strings. The longest are the external IDs of a broadcast.
	maxTexts = send.MaxDestinations
)

// maxExactInteger is the largest integer that every JSON reader keeps exact (RFC 8259 §6).
const maxExactInteger = 1 << 53

// object is a JSON object of a request, read field by field. What is wrong with a field is noted and reading goes on, so that the caller learns of
// all failing fields at once; a field that nothing has read is unknown. A field that is null counts as not given.
type object struct {
	path   string // of this object inside the body: "" or "channel."
	names  []string
	fields map[string]json.RawMessage
	read   map[string]bool
	failed *fault.Fields
	// crowded says that it has more than maxFields.
	crowded bool
}

// readObject reads the request's body as a JSON object. An error is about the body as a whole: its media type, size, encoding or syntax.
func (c *call) readObject() (*object, error) {
	if err := requireMediaType(c.r.Header, "application/json"); err != nil {
		return nil, err
	}
	raw, err := c.readBody()
	if err != nil {
		return nil, err
	}
	return parseObject(raw)
}

// readOptionalObject is readObject for requests that may come without a body.
func (c *call) readOptionalObject() (*object, error) {
	raw, err := c.readBody()
	if err != nil {
		return nil, err
	}
	if len(raw) == 0 {
		return parseObject([]byte("{}"))
	}
	if err := requireMediaType(c.r.Header, "application/json"); err != nil {
		return nil, err
	}
	return parseObject(raw)
}

// readBody reads the whole body, up to the route's limit.
func (c *call) readBody() ([]byte, error) {
	limit := c.route.bodyLimit()
	raw, err := io.ReadAll(io.LimitReader(c.r.Body, limit+1))
	if err != nil {
		return nil, brokenBody(err, errBrokenBody)
	}
	if int64(len(raw)) > limit {
		return nil, bodyTooLarge("", limit)
	}
	return raw, nil
}

var (
	errBrokenBody = fault.New(fault.InvalidFormat, "The body ended early; send the request again.")
	errSlowBody   = fault.New(fault.InvalidFormat, "The body took too long to arrive, and nothing was done; send it again on a faster connection, or send less.")
)

// brokenBody says what became of a body that could not be read to its end: its time was over, or something else that is told then.
func brokenBody(err error, otherwise *fault.Error) *fault.Error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSlowBody
	}
	return otherwise
}

func bodyTooLarge(param string, limit int64) *fault.Error {
	what := "The body"
	if param != "" {
		what = "The " + param
	}
	err := fault.New(fault.OutOfRange, "%s is larger than the limit of %d bytes; send less.", what, limit)
	err.Status, err.Param = http.StatusRequestEntityTooLarge, param
	if param != "" {
		err.Fields = []fault.Field{{Param: param, Code: err.Code, Message: err.Message}}
	}
	return err
}

// requireMediaType answers 415 for a body that is not of the media type; a charset other than UTF-8 is another media type.
func requireMediaType(h http.Header, want string) error {
	if err := refuseCodings(h); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err == nil && kind == want && (params["charset"] == "" || strings.EqualFold(params["charset"], "utf-8")) {
		return nil
	}
	told := fault.New(fault.InvalidFormat, "The Content-Type must be %s.", want)
	told.Status = http.StatusUnsupportedMediaType
	return told
}

// refuseCodings answers 415 for a body in a coding (RFC 9110 §8.4, §15.5.16).
func refuseCodings(h http.Header) error {
	coding := strings.Join(h.Values("Content-Encoding"), ", ")
	if coding == "" || strings.EqualFold(coding, "identity") {
		return nil
	}
	told := fault.ForField("Content-Encoding", fault.InvalidFormat, "The Content-Encoding %q is not understood; send the body as it is, without one.", coding)
	told.Status = http.StatusUnsupportedMediaType
	return told
}

// parseObject reads one JSON object, to the end of the text (RFC 8259, in UTF-8).
func parseObject(raw []byte) (*object, error) {
	if !utf8.Valid(raw) {
		return nil, fault.New(fault.InvalidFormat, "The body is not UTF-8; send it in UTF-8.")
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, fault.New(fault.InvalidFormat, "The body is empty; send a JSON object.")
	}
	if !json.Valid(raw) {
		return nil, fault.New(fault.InvalidFormat, "The body is not valid JSON%s; correct it.", where(raw))
	}
	if bytes.TrimSpace(raw)[0] != '{' {
		return nil, fault.New(fault.InvalidFormat, "The body must be a JSON object.")
	}
	o := newObject("", raw, new(fault.Fields))
	if o.crowded {
		return nil, fault.New(fault.OutOfRange, "The body has more than %d fields; send those of this request only.", maxFields)
	}
	return o, nil
}

// where tells the place of the first mistake in a JSON text.
func where(raw []byte) string {
	var any json.RawMessage
	err := json.Unmarshal(raw, &any)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf(": %s, at byte %d", syntax, syntax.Offset)
	}
	return ""
}

// newObject splits a valid JSON object into its fields.
func newObject(path string, raw json.RawMessage, failed *fault.Fields) *object {
	o := &object{path: path, fields: map[string]json.RawMessage{}, read: map[string]bool{}, failed: failed}
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return o
	}
	for d.More() {
		token, err := d.Token()
		name, ok := token.(string)
		var value json.RawMessage
		if err != nil || !ok || d.Decode(&value) != nil {
			return o // not reached: the text is valid
		}
		if _, twice := o.fields[name]; twice {
			o.read[name] = true // whether it is known or not, it has failed
			o.fail(name, fault.InvalidFormat, "%s is given twice; give it once.", path+name)
			continue
		}
		if len(o.names) == maxFields {
			o.crowded = true
			if path != "" { // of the body itself it is told at once
				failed.Add(strings.TrimSuffix(path, "."), fault.OutOfRange, "%s has more than %d fields; leave out those that it has not.", strings.TrimSuffix(path, "."), maxFields)
			}
			return o
		}
		o.names = append(o.names, name)
		o.fields[name] = value
	}
	return o
}

// check runs a check of the fields' values and notes what it finds, but not of a field that could not be read: why is told already.
func (o *object) check(values func(*fault.Fields)) { merge(o.failed, values) }

// merge adds what a check finds to what failed before, each field once.
func merge(failed *fault.Fields, check func(*fault.Fields)) {
	var found fault.Fields
	check(&found)
	before := (*failed)[:len(*failed):len(*failed)]
	for _, f := range found {
		again := slices.ContainsFunc(*failed, func(other fault.Field) bool { return other.Param == f.Param })
		if !again && !hasFailed(before, f.Param) && len(*failed) < fault.MaxFields {
			*failed = append(*failed, f)
		}
	}
}

// err is every failing field as one error, or nil. It comes last: what was not read until then is unknown. If anything failed, the field checks of the
// command that the body asks for run too, so that the caller learns of their findings at the same time. If nothing failed, they are left to the
// command, which answers a repeated request before it checks a new one.
func (o *object) err(checks ...func(*fault.Fields)) error {
	o.refuseUnknown()
	if len(*o.failed) == 0 {
		return nil
	}
	for _, check := range checks {
		o.check(check)
	}
	return o.failed.Err()
}

// hasFailed reports whether a field, or one around it, has failed already.
func hasFailed(failed fault.Fields, param string) bool {
	return slices.ContainsFunc(failed, func(f fault.Field) bool {
		return f.Param == param || strings.HasPrefix(param, f.Param+".") || strings.HasPrefix(param, f.Param+"[")
	})
}

// refuseUnknown notes the fields that nothing has read.
func (o *object) refuseUnknown() {
	for _, name := range o.names {
		if !o.read[name] {
			o.read[name] = true
			o.fail(name, fault.InvalidFormat, "%s is not a field of this request; remove it.", o.path+name)
		}
	}
}

func (o *object) fail(name string, code fault.Code, format string, args ...any) {
	again := slices.ContainsFunc(*o.failed, func(f fault.Field) bool { return f.Param == o.path+name })
	if !again {
		o.failed.Add(o.path+name, code, format, args...)
	}
}

// take gives a field's value; ok is false if it is missing or null.
func (o *object) take(name string) (raw json.RawMessage, ok bool) {
	o.read[name] = true
	raw, ok = o.fields[name]
	return raw, ok && string(raw) != "null"
}

// has reports whether a field is given and not null.
func (o *object) has(name string) bool {
	_, ok := o.take(name)
	return ok
}

// refuseNull notes those of the fields that are null, where leaving them out means something else.
func (o *object) refuseNull(names ...string) {
	for _, name := range names {
		if string(o.fields[name]) == "null" {
			o.fail(name, fault.InvalidFormat, "%s is null; give a value, or leave it out.", o.path+name)
		}
	}
}

// text reads a string; "" if it is not given.
func (o *object) text(name string) string {
	if s := o.optionalText(name); s != nil {
		return *s
	}
	return ""
}

// optionalText reads a string; nil if it is not given.
func (o *object) optionalText(name string) *string {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		o.fail(name, fault.InvalidFormat, "%s must be a string.", o.path+name)
		return nil
	}
	return &s
}

// filled reads a string that says something if it is given; "" if it is not.
func (o *object) filled(name string) string {
	s := o.optionalText(name)
	if s == nil {
		return ""
	}
	if *s == "" {
		o.fail(name, fault.InvalidFormat, "%s is empty; give a value, or leave it out.", o.path+name)
	}
	return *s
}

// oneOf reads a string that has certain values; "" if it is not given.
func (o *object) oneOf(name string, allowed ...string) string {
	s := o.optionalText(name)
	if s == nil {
		return ""
	}
	if !slices.Contains(allowed, *s) {
		o.fail(name, fault.InvalidFormat, "%s must be one of %s.", o.path+name, strings.Join(allowed, ", "))
		return ""
	}
	return *s
}

// flag reads a boolean; false if it is not given.
func (o *object) flag(name string) bool {
	raw, ok := o.take(name)
	if !ok {
		return false
	}
	var b bool
	if json.Unmarshal(raw, &b) != nil {
		o.fail(name, fault.InvalidFormat, "%s must be true or false.", o.path+name)
	}
	return b
}

// integer reads a whole number; nil if it is not given.
func (o *object) integer(name string) *int64 {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	n, ok := wholeNumber(string(raw))
	if !ok {
		o.fail(name, fault.InvalidFormat, "%s must be a whole number.", o.path+name)
		return nil
	}
	return &n
}

// items splits an array into its items; nil if it is not given, and not nil if it is given and empty. A body has room for millions of items: the first
// that is too many ends the reading.
func (o *object) items(name, kind string, most int) []json.RawMessage {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	d := o.array(name, kind, raw)
	if d == nil {
		return nil
	}
	items := []json.RawMessage{}
	for d.More() {
		if len(items) == most {
			o.fail(name, fault.OutOfRange, "%s has at most %d items; send fewer.", o.path+name, most)
			return nil
		}
		var item json.RawMessage
		if d.Decode(&item) != nil {
			return nil // not reached: the text is valid
		}
		items = append(items, item)
	}
	return items
}

// texts reads an array of strings; nil if it is not given, and not nil if it is given and empty. In the place of an item that is none is "", so that what is told
// of the others has their index.
func (o *object) texts(name string) []string {
	items := o.items(name, "strings", maxTexts)
	if items == nil {
		return nil
	}
	all := make([]string, 0, len(items))
	for i, item := range items {
		var s string
		if string(item) == "null" || json.Unmarshal(item, &s) != nil {
			o.fail(fmt.Sprintf("%s[%d]", name, i), fault.InvalidFormat, "%s[%d] must be a string.", o.path+name, i)
			s = ""
		}
		all = append(all, s)
	}
	return all
}

// array begins to read a field as an array; nil if it is none.
func (o *object) array(name, kind string, raw json.RawMessage) *json.Decoder {
	d := json.NewDecoder(bytes.NewReader(raw))
	if begin, err := d.Token(); err != nil || begin != json.Delim('[') {
		o.fail(name, fault.InvalidFormat, "%s must be an array of %s.", o.path+name, kind)
		return nil
	}
	return d
}

// distinctTexts is texts for an array in which each string counts once, however often it is there: there may be as many as the body has room for, and not
// more than most different ones.
func (o *object) distinctTexts(name string, most int) []string {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	d := o.array(name, "strings", raw)
	if d == nil {
		return nil
	}
	all, seen := []string{}, map[string]bool{}
	for i := 0; d.More(); i++ {
		var item *string
		if d.Decode(&item) != nil || item == nil {
			o.fail(fmt.Sprintf("%s[%d]", name, i), fault.InvalidFormat, "%s[%d] must be a string.", o.path+name, i)
			item = new(string)
		}
		if seen[*item] {
			continue
		}
		if len(all) == most {
			o.fail(name, fault.OutOfRange, "%s has at most %d different items; send fewer.", o.path+name, most)
			return nil
		}
		seen[*item] = true
		all = append(all, *item)
	}
	return all
}

// moment reads an RFC 3339 time, which has an offset; nil if it is not given.
func (o *object) moment(name string) *time.Time {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		if t, ok := parseMoment(s); ok {
			return &t
		}
	}
	o.fail(name, fault.InvalidFormat, "%s must be an RFC 3339 time with an offset, like 2026-12-24T09:00:00Z.", o.path+name)
	return nil
}

// momentPattern is what time.Parse lets more through than (https://go.dev/issue/54580): a comma, an hour of one digit, an offset of a day.
var momentPattern = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// parseMoment reads an RFC 3339 time. One whose year in UTC has not four digits can be read, by its offset, and never written again.
func parseMoment(text string) (t time.Time, ok bool) {
	t, err := time.Parse(time.RFC3339Nano, text)
	year := t.UTC().Year()
	return t, err == nil && momentPattern.MatchString(text) && year >= 0 && year <= 9999
}

// object reads an object inside this one; nil if it is not given.
func (o *object) object(name string) *object {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	if raw[0] != '{' {
		o.fail(name, fault.InvalidFormat, "%s must be an object.", o.path+name)
		return nil
	}
	return newObject(o.path+name+".", raw, o.failed)
}

// rows reads an array of objects, each of which succeeds or fails by itself; none if it is not given. In the place of an item that is no object is nil.
func (o *object) rows(name string, most int) (rows []*object, raw []json.RawMessage) {
	raw = o.items(name, "objects", most)
	for _, item := range raw {
		var row *object
		if item[0] == '{' {
			row = newObject("", item, new(fault.Fields))
		}
		rows = append(rows, row)
	}
	return rows, raw
}

// canonical writes a JSON value as all do that say the same: without spaces, and each object's fields in one order.
func canonical(raw json.RawMessage) json.RawMessage {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var value any
	if d.Decode(&value) != nil {
		return raw // not reached: the text is valid
	}
	written, err := json.Marshal(value)
	if err != nil {
		return raw // not reached: it was read from JSON
	}
	return written
}

// wholeNumber reads a JSON number that is an integer in value, however it is written (3, 3.0, 3e0), if every JSON reader could keep it exact.
func wholeNumber(literal string) (int64, bool) {
	if literal == "" || literal[0] != '-' && (literal[0] < '0' || literal[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > maxExactInteger {
		return 0, false
	}
	return int64(f), true
}
