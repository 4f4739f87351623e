package audio

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

const (
	maxNameRunes        = 200
	maxDescriptionRunes = 1000
	// DeletionPatience is how long a deletion that was begun keeps sends away. A deletion takes far less; one that takes longer gives up, so a
	// process that died amid one keeps nobody away for good.
	DeletionPatience = 30 * time.Second
)

// Categories are what audio can be filed under; the first is the default.
var Categories = []string{"announcement", "promotion", "emergency"}

// Audio is the state of one piece of audio.
type Audio struct {
	Uploaded
	CompanyID   string
	Environment event.Environment
	CreatedAt   time.Time
	Deleted     bool
	// DeletionStarted is when a deletion began that has not ended yet; zero if there is none.
	DeletionStarted time.Time
}

// Stream names the stream of a piece of audio.
func Stream(audioID string) string { return "audio-" + audioID }

// Load folds a history into the state; the zero Audio is one that does not exist.
func Load(history []event.Recorded) (Audio, error) {
	var a Audio
	for _, e := range history {
		switch e.Type {
		case Uploaded{}.EventType():
			if err := json.Unmarshal(e.Data, &a.Uploaded); err != nil {
				return Audio{}, fmt.Errorf("%s of %s: %w", e.Type, e.Stream, err)
			}
			a.CompanyID, a.Environment, a.CreatedAt = e.Metadata.CompanyID, e.Metadata.Environment, e.Metadata.Time
		case DeletionStarted{}.EventType():
			a.DeletionStarted = e.Metadata.Time
		case DeletionAbandoned{}.EventType():
			a.DeletionStarted = time.Time{}
		case Deleted{}.EventType():
			a.Deleted = true
		}
	}
	return a, nil
}

// BelongsTo reports whether the audio is in this library. Audio of another company is, for this one, as if it had never been.
func (a Audio) BelongsTo(companyID string, env event.Environment) bool {
	return a.AudioID != "" && a.CompanyID == companyID && a.Environment == env
}

// Details are what a partner says of an upload.
type Details struct {
	Name, Description, Category string
}

// Check notes what is wrong with the details.
func (d Details) Check(fields *fault.Fields) {
	switch n := utf8.RuneCountInString(strings.TrimSpace(d.Name)); {
	case n == 0:
		fields.Add("name", fault.MissingField, "Give the audio a name.")
	case n > maxNameRunes:
		fields.Add("name", fault.OutOfRange, "The name has at most %d characters.", maxNameRunes)
	case !utf8.ValidString(d.Name) || strings.ContainsRune(d.Name, 0):
		fields.Add("name", fault.InvalidFormat, "The name is UTF-8 text.")
	}
	switch {
	case utf8.RuneCountInString(d.Description) > maxDescriptionRunes:
		fields.Add("description", fault.OutOfRange, "The description has at most %d characters.", maxDescriptionRunes)
	case !utf8.ValidString(d.Description) || strings.ContainsRune(d.Description, 0):
		fields.Add("description", fault.InvalidFormat, "The description is UTF-8 text.")
	}
	if d.Category != "" && !slices.Contains(Categories, d.Category) {
		fields.Add("category", fault.InvalidFormat, "The category is one of %s.", strings.Join(Categories, ", "))
	}
}

// Normal gives the details as they are stored: the name without space around it, the default category filled in.
func (d Details) Normal() Details {
	d.Name = strings.TrimSpace(d.Name)
	if d.Category == "" {
		d.Category = Categories[0]
	}
	return d
}

// Sendable reports, as an error, why the audio cannot be sent.
func (a Audio) Sendable(companyID string, env event.Environment, now time.Time) error {
	switch {
	case !a.BelongsTo(companyID, env) || a.Deleted:
		return NotFound()
	case a.deleting(now):
		return errDeleting()
	}
	return nil
}

func (a Audio) deleting(now time.Time) bool {
	return !a.DeletionStarted.IsZero() && now.Sub(a.DeletionStarted) < DeletionPatience
}

// Stands reports, as an error, why a send that was recorded at a position of the store cannot stand: a deletion that began before it did not ask for it. One
// that began later did, and gave way if it had to.
func Stands(history []event.Recorded, recorded event.Position, now time.Time) error {
	var a Audio
	for _, e := range history {
		switch e.Type {
		case DeletionStarted{}.EventType():
			a.DeletionStarted = time.Time{}
			if e.Position.Before(recorded) {
				a.DeletionStarted = e.Metadata.Time
			}
		case DeletionAbandoned{}.EventType():
			a.DeletionStarted = time.Time{}
		case Deleted{}.EventType():
			if !a.DeletionStarted.IsZero() {
				return NotFound()
			}
		}
	}
	if a.deleting(now) {
		return errDeleting()
	}
	return nil
}

// StartDeletion keeps sends away while it is found out whether any is still pending: a send that was accepted before is seen by that
// question, and one that comes later sees the mark.
func (a Audio) StartDeletion(companyID string, env event.Environment, now time.Time) (DeletionStarted, error) {
	switch {
	case !a.BelongsTo(companyID, env) || a.Deleted:
		return DeletionStarted{}, NotFound()
	case a.deleting(now):
		return DeletionStarted{}, fault.New(fault.Conflict, "The audio is being deleted by another request; try again if it is still there then.")
	}
	return DeletionStarted{AudioID: a.AudioID}, nil
}

// FinishDeletion ends a deletion that was started: with the audio gone, or abandoned because sends are pending.
func (a Audio) FinishDeletion(pendingSends []string) event.Payload {
	if len(pendingSends) > 0 {
		return DeletionAbandoned{AudioID: a.AudioID}
	}
	return Deleted{AudioID: a.AudioID, BlobKey: a.BlobKey}
}

func errDeleting() error {
	return fault.New(fault.Conflict, "The audio is being deleted; send another one.")
}

// NotFound is the answer for audio that is not there, or not the caller's.
func NotFound() error {
	return fault.New(fault.NotFound, "There is no such audio; find its ID in the list of audio.")
}
