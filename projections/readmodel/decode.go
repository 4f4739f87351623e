// Package readmodel holds what the read models share: how a projection reads an event, and the cursors of their lists.
package readmodel

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/musique/musique/domain/event"
)

// Decode reads an event's data. The error names the event, because it stops the projection and someone has to find it.
//
// A NUL character is read as U+FFFD: JSON can carry it and PostgreSQL's text cannot (PostgreSQL 8.3, "Character Types").
func Decode[T event.Payload](e event.Recorded) (T, error) {
	var payload T
	if err := json.Unmarshal(withoutNUL(e.Data), &payload); err != nil {
		return payload, fmt.Errorf("read %s %d@%s: %w", e.Type, e.Revision, e.Stream, err)
	}
	return payload, nil
}

// withoutNUL replaces the escape \u0000 by \ufffd, but not where its backslash is itself escaped.
func withoutNUL(data []byte) []byte {
	nul := []byte(`\u0000`)
	if !bytes.Contains(data, nul) {
		return data
	}
	out := bytes.Clone(data)
	for i := 0; i < len(out)-1; i++ {
		if out[i] != '\\' {
			continue
		}
		if bytes.HasPrefix(out[i:], nul) {
			copy(out[i:], `\ufffd`)
		}
		i++ // the character after a backslash belongs to it
	}
	return out
}
