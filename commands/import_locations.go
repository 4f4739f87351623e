package commands

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/telemetry"
)

const (
	// MaxImport bounds the locations of one import.
	MaxImport = 10_000
	// importWorkers is how many locations are registered at the same time; they share the store's syncs.
	importWorkers = 64
)

// ImportLocations registers many locations, and changes those that are there already.
type ImportLocations struct {
	Caller    Caller `json:"-"`
	Locations []ImportedLocation
}

// normal is the import with the defaults of its rows filled in.
func (cmd ImportLocations) normal() ImportLocations {
	cmd.Locations = slices.Clone(cmd.Locations)
	for i := range cmd.Locations {
		cmd.Locations[i].Details = cmd.Locations[i].Details.Normal()
	}
	return cmd
}

// ImportedLocation is one row of an import.
type ImportedLocation struct {
	ExternalID string
	Details    location.Details
	// Refused says why the row is none: its values could not be read. Given is the row as it came, which tells a repeated request from another one.
	Refused error           `json:"-"`
	Given   json.RawMessage `json:",omitempty"`
}

// The outcomes of a row.
const (
	ImportCreated = "created"
	ImportUpdated = "updated"
	ImportFailed  = "failed"
)

// ImportResult is what became of a row; Err is set where it failed.
type ImportResult struct {
	ExternalID string
	Status     string
	// Secret is that of the row's channel where the server made it; it is shown with this answer only.
	Secret string
	Err    *fault.Error
}

// ImportLocationsHandler carries out ImportLocations.
type ImportLocationsHandler struct{ *tools }

// Handle takes each row by itself: one that fails keeps no other back. A repeat with the same Idempotency-Key carries on where the first was cut off,
// and only tells what became of the rows where it was not.
func (h ImportLocationsHandler) Handle(ctx context.Context, cmd ImportLocations) (results []ImportResult, replayed bool, err error) {
	ctx, span := telemetry.Start(ctx, "command ImportLocations")
	defer span.End()
	switch {
	case len(cmd.Locations) == 0:
		return nil, false, fault.ForField("locations", fault.MissingField, "Give the locations to import.")
	case len(cmd.Locations) > MaxImport:
		return nil, false, fault.ForField("locations", fault.OutOfRange, "An import has at most %d locations.", MaxImport)
	}
	identity, err := h.identify(cmd.Caller, "import locations", cmd.normal())
	if err != nil {
		return nil, false, err
	}
	if replayed, err = h.claim(ctx, cmd.Caller, identity, "import locations"); err != nil {
		return nil, false, err
	}
	over := false
	if replayed {
		if over, err = h.completed(ctx, identity); err != nil {
			return nil, false, err
		}
	}
	results = make([]ImportResult, len(cmd.Locations))
	positions := make([]event.Position, len(cmd.Locations))
	seen := map[string]bool{}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(importWorkers)
	for i, row := range cmd.Locations {
		if refused := h.refused(row); refused != nil {
			results[i] = ImportResult{ExternalID: row.ExternalID, Status: ImportFailed, Err: refused}
			continue
		}
		if seen[row.ExternalID] {
			results[i] = ImportResult{ExternalID: row.ExternalID, Status: ImportFailed, Err: fault.ForField("externalId", fault.AlreadyExists, "%q is in the import twice; the first was taken.", row.ExternalID)}
			continue
		}
		seen[row.ExternalID] = true
		group.Go(func() error {
			var refused *fault.Error
			status, secret, position, err := h.row(ctx, cmd.Caller, identity, row, over)
			if errors.As(err, &refused) {
				status, secret, err = ImportFailed, "", nil
			}
			results[i], positions[i] = ImportResult{ExternalID: row.ExternalID, Status: status, Secret: secret, Err: refused}, position
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, false, err
	}
	last := event.Position{}
	for _, p := range positions {
		if last.Before(p) {
			last = p
		}
	}
	ctx = context.WithoutCancel(ctx)
	if !over && !slices.ContainsFunc(results, func(r ImportResult) bool { return r.Err != nil && r.Err.Code == fault.Conflict }) {
		if err := h.complete(ctx, cmd.Caller, identity); err != nil {
			return nil, false, err
		}
	}
	h.settle(ctx, last, Locations)
	return results, replayed, nil
}

// refused says why a row cannot be taken; nil if it can.
func (h ImportLocationsHandler) refused(row ImportedLocation) *fault.Error {
	err := row.Refused
	if err == nil {
		var fields fault.Fields
		location.CheckExternalID("externalId", row.ExternalID, &fields)
		h.CheckDetails(row.Details, &fields)
		err = fields.Err()
	}
	var refused *fault.Error
	errors.As(err, &refused)
	return refused
}

// row registers or changes a location, or only tells what was done to it if the import is over.
func (h ImportLocationsHandler) row(ctx context.Context, c Caller, identity identity, row ImportedLocation, over bool) (status, secret string, position event.Position, err error) {
	userID, err := h.mapUser(ctx, c, row.ExternalID)
	if err != nil {
		return "", "", event.Position{}, err
	}
	stream := location.Stream(c.CompanyID, userID, c.Environment)
	position, err = h.change(ctx, stream, identity.mark(h.metadata(c)), func(history []event.Recorded) ([]event.Payload, error) {
		if done := identity.done(history); done != nil {
			status = ImportUpdated
			if done[len(done)-1].Type == (location.Registered{}).EventType() {
				status = ImportCreated
			}
			secret, err = h.secretOf(c, row, done)
			return nil, err
		}
		if over { // what was so already has no event that would tell
			status = ImportUpdated
			return nil, nil
		}
		l, err := location.Load(history)
		if err != nil {
			return nil, err
		}
		details, before := row.Details, location.Channel{}
		if l.Registered {
			before = l.Channel
		}
		details, secret = h.sealed(c, userID, details, before)
		if l.Registered {
			status = ImportUpdated
			return l.Change(details)
		}
		status = ImportCreated
		registered, err := l.Register(c.CompanyID, row.ExternalID, userID, details)
		return []event.Payload{registered}, err
	})
	return status, secret, position, err
}

// secretOf is the secret that a row made when it was carried out, which the last event of done did.
func (h ImportLocationsHandler) secretOf(c Caller, row ImportedLocation, done []event.Recorded) (string, error) {
	then, err := location.Load(done)
	if err != nil {
		return "", err
	}
	before, err := location.Load(done[:len(done)-1])
	if err != nil {
		return "", err
	}
	if row.Details.Secret == "" && before.Registered && before.Channel.Secret == then.Channel.Secret { // it was kept
		return "", nil
	}
	return h.shownSecret(c, then.UserID, row.Details.Secret, then.Channel.Secret)
}
