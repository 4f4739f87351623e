package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/telemetry"
)

const (
	// maxDecisions bounds how often a decision is made again because another came first.
	maxDecisions = 16
	// waitLimit bounds the wait for the read models after a write. In a healthy system it takes milliseconds; it is this long for the sake of a machine
	// that has too much to do, whose callers are to read their own writes too.
	waitLimit = 5 * time.Second
	// retryAfter is what a caller is told when a part is away.
	retryAfter = 2 * time.Second
	// maxUserIDAttempts bounds the search for a free user ID; with 2^52 of them a second try is rare already.
	maxUserIDAttempts = 16
)

// tools are what the handlers share.
type tools struct{ Deps }

func (t *tools) now() time.Time { return t.Now().UTC() }

func (t *tools) metadata(c Caller) event.Metadata {
	return event.Metadata{
		CompanyID: c.CompanyID, Environment: c.Environment, Actor: c.Actor,
		RequestID: c.RequestID, CorrelationID: c.RequestID, CausationID: c.RequestID, TraceParent: c.TraceParent,
		Time: t.now(),
	}
}

func propose(meta event.Metadata, payloads ...event.Payload) []event.Proposed {
	events := make([]event.Proposed, len(payloads))
	for i, p := range payloads {
		events[i] = event.Proposed{ID: uuid.New(), Payload: p, Metadata: meta}
	}
	return events
}

// change loads a stream, lets decide decide, and appends the result at the revision that was read; when another was faster, it begins again. The
// position is the stream's end: that of the change or, where nothing was to be changed or decide refused, that of what it was decided on.
func (t *tools) change(ctx context.Context, stream string, meta event.Metadata, decide func([]event.Recorded) ([]event.Payload, error)) (event.Position, error) {
	for range maxDecisions {
		history, err := t.Store.Load(ctx, stream)
		if err != nil {
			return event.Position{}, err
		}
		payloads, err := decide(history)
		if err != nil || len(payloads) == 0 {
			return end(history), err
		}
		position, err := t.Store.Append(ctx, stream, eventstore.ExpectedAfter(history), propose(meta, payloads...)...)
		if errors.Is(err, eventstore.ErrConflict) {
			continue
		}
		return position, err
	}
	return event.Position{}, &fault.Error{Code: fault.Conflict, Message: "Too many others change the same thing at the same time; try again.", RetryAfter: retryAfter}
}

// settle waits until the read models have passed a position, so that the caller reads its own write. The write stands whether they do or not, so
// a wait that fails is only logged.
func (t *tools) settle(ctx context.Context, position event.Position, projections ...string) {
	if err := t.waitFor(ctx, position, projections...); err != nil {
		t.Log.WarnContext(ctx, "the read models lag behind a write", "position", position.Commit, "projections", projections, "error", err)
	}
}

func (t *tools) waitFor(ctx context.Context, position event.Position, projections ...string) error {
	if position.IsZero() {
		return nil
	}
	ctx, span := telemetry.Start(ctx, "wait for read models")
	defer span.End()
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	err := t.Reads.WaitFor(ctx, position, projections...)
	telemetry.Failed(span, err)
	return err
}

// mustHold is settle for what has to hold everywhere before the answer, which is outcome then: also the answer that it was done before, since who
// did so may have been told that it does not hold yet.
func (t *tools) mustHold(ctx context.Context, position event.Position, outcome error, projections ...string) error {
	if err := t.waitFor(ctx, position, projections...); err != nil {
		t.Log.ErrorContext(ctx, "a revocation is recorded, and does not hold everywhere yet", "error", err)
		return &fault.Error{Code: fault.ServiceUnavailable, Message: "The change is recorded, but may not hold everywhere yet; ask again.", RetryAfter: retryAfter}
	}
	return outcome
}

// upTo is a history as it was when the event at a position was its last.
func upTo(history []event.Recorded, position event.Position) []event.Recorded {
	for len(history) > 0 && position.Before(end(history)) {
		history = history[:len(history)-1]
	}
	return history
}

// end is the position of the last event, zero if there is none.
func end(history []event.Recorded) event.Position {
	if len(history) == 0 {
		return event.Position{}
	}
	return history[len(history)-1].Position
}

// mapUser gives the user ID of an external ID, and makes the mapping if there is none.
func (t *tools) mapUser(ctx context.Context, c Caller, externalID string) (int64, error) {
	for attempt := range maxUserIDAttempts {
		candidate := location.UserIDCandidate(c.CompanyID, externalID, attempt)
		stream := location.MappingStream(c.CompanyID, candidate)
		history, err := t.Store.Load(ctx, stream)
		if err != nil {
			return 0, err
		}
		if len(history) == 0 {
			mapped := location.Mapped{CompanyID: c.CompanyID, ExternalID: externalID, UserID: candidate}
			_, err := t.Store.Append(ctx, stream, eventstore.NoStream, propose(t.metadata(c), mapped)...)
			if err == nil {
				return candidate, nil
			}
			if !errors.Is(err, eventstore.ErrConflict) {
				return 0, err
			}
			if history, err = t.Store.Load(ctx, stream); err != nil {
				return 0, err
			}
		}
		owner, err := location.MappedTo(history)
		if err != nil {
			return 0, err
		}
		if owner == externalID {
			return candidate, nil
		}
	}
	return 0, fmt.Errorf("no user ID for %s in %d attempts", externalID, maxUserIDAttempts)
}

// findUser gives the user ID of an external ID that has one.
func (t *tools) findUser(ctx context.Context, companyID, externalID string) (userID int64, found bool, err error) {
	for attempt := range maxUserIDAttempts {
		candidate := location.UserIDCandidate(companyID, externalID, attempt)
		history, err := t.Store.Load(ctx, location.MappingStream(companyID, candidate))
		if err != nil || len(history) == 0 {
			return 0, false, err
		}
		owner, err := location.MappedTo(history)
		if err != nil {
			return 0, false, err
		}
		if owner == externalID {
			return candidate, true, nil
		}
	}
	return 0, false, nil
}

// changeCompany decides on a company and waits until the decision holds wherever tokens are checked.
func (t *tools) changeCompany(ctx context.Context, caller Caller, companyID string, decide func(company.Company) ([]event.Payload, error)) error {
	meta := t.metadata(caller)
	meta.CompanyID = companyID
	position, err := t.change(ctx, company.Stream(companyID), meta, func(history []event.Recorded) ([]event.Payload, error) {
		c, err := company.Load(history)
		if err != nil {
			return nil, err
		}
		return decide(c)
	})
	return t.mustHold(ctx, position, err, Tokens)
}
