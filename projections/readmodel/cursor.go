package readmodel

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/musique/musique/domain/fault"
)

// Cursor is where a page of a list ended. It is for partners only when it is sealed, since its keys tell of other companies too; one of another list is refused.
type Cursor struct {
	// List names the list that the cursor belongs to, in one byte.
	List byte
	// Keys are the sort key of the last item of the page.
	Keys []uint64
}

// String writes the cursor as a text.
func (c Cursor) String() string {
	raw := []byte{c.List}
	for _, key := range c.Keys {
		raw = binary.BigEndian.AppendUint64(raw, key)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// ParseCursor reads a cursor of a list with this many keys; the empty string is the beginning, without keys. The error is an InvalidFormat fault.
func ParseCursor(text string, list byte, keys int) (Cursor, error) {
	c := Cursor{List: list}
	if text == "" {
		return c, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 1+8*keys || raw[0] != list {
		return c, NoCursor()
	}
	for at := 1; at < len(raw); at += 8 {
		c.Keys = append(c.Keys, binary.BigEndian.Uint64(raw[at:]))
	}
	return c, nil
}

// NoCursor is the answer to a cursor that no list gave.
func NoCursor() *fault.Error {
	return fault.ForField("cursor", fault.InvalidFormat, "The cursor is not one that this list gave; leave it out to start at the beginning.")
}

// Key gives a key for a query, which at the beginning of the list is the first there can be. A query that compares with it as it is, and not with null in
// one of two cases, finds its place in the index however it is planned.
func (c Cursor) Key(i int, first int64) int64 {
	if i >= len(c.Keys) {
		return first
	}
	return int64(c.Keys[i])
}

// Next gives the cursor after a page, and the page without the item that was read only to learn whether there is more. A query asks for
// limit+1 items; keys gives the sort key of an item.
func Next[T any](list byte, items []T, limit int, keys func(T) []uint64) ([]T, string) {
	if len(items) <= limit {
		return items, ""
	}
	items = items[:limit]
	return items, Cursor{List: list, Keys: keys(items[limit-1])}.String()
}
