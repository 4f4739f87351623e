package commands

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/request"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/keys"
)

// Idempotency without a table: the ID of what a command creates follows from the company, the environment, the operation and the Idempotency-Key. A
// repeat finds the stream there, since creating it expects that there is none; the first event's metadata says whether it was the same request.

// identity is the ID of what a request creates, and the secret that goes with it.
type identity struct {
	// hash is empty for a request without a key.
	hash        string
	fingerprint string
	seed        []byte
}

// identify derives the identity of a request, or makes a random one if it has no key. The body is all that the request means.
func (t *tools) identify(c Caller, operation string, body any) (identity, error) {
	if c.IdempotencyKey == "" {
		return identity{seed: keys.Random()}, nil
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return identity{}, fmt.Errorf("fingerprint of %s: %w", operation, err)
	}
	sum := sha256.Sum256(raw)
	seed := t.Keys.Derive("idempotency", c.CompanyID, string(c.Environment), operation, c.IdempotencyKey)
	return identity{hash: hex.EncodeToString(seed[:16]), fingerprint: hex.EncodeToString(sum[:]), seed: seed}, nil
}

// keyed reports whether the request has an Idempotency-Key.
func (i identity) keyed() bool { return i.hash != "" }

// mark puts the identity into the metadata of the first event.
func (i identity) mark(meta event.Metadata) event.Metadata {
	meta.Idempotency, meta.Fingerprint = i.hash, i.fingerprint
	return meta
}

// id names what is created: the prefix and 128 bits in base 62.
func (i identity) id(prefix string) string {
	sum := sha256.Sum256(append([]byte("id:"+prefix), i.seed...))
	return prefix + base62(sum[:16], 22)
}

// secret is a token's random part: 256 bits in base 62. With a key it follows from the key and the ring's secret, so that a replay can show it again
// although it is stored nowhere.
func (t *tools) secret(i identity, purpose string) string {
	return base62(t.Keys.Derive("secret", purpose, string(i.seed)), 43)
}

const base62Digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// base62 writes bytes as a number of a fixed count of digits; digits must be enough for them.
func base62(raw []byte, digits int) string {
	n, base, rest := new(big.Int).SetBytes(raw), big.NewInt(62), new(big.Int)
	text := make([]byte, digits)
	for i := digits - 1; i >= 0; i-- {
		n.DivMod(n, base, rest)
		text[i] = base62Digits[rest.Int64()]
	}
	return string(text)
}

// same checks that the history was begun by the same request.
func (i identity) same(history []event.Recorded) error {
	if history[0].Metadata.Fingerprint != i.fingerprint {
		return fault.New(fault.Conflict, "The Idempotency-Key was used with another request; use a new key.")
	}
	return nil
}

// done finds by which event the request was carried out in a stream that does not follow from its key: the history up to there, or empty.
func (i identity) done(history []event.Recorded) []event.Recorded {
	for n, e := range history {
		if i.keyed() && e.Metadata.Idempotency == i.hash {
			return history[:n+1]
		}
	}
	return nil
}

// earlier looks whether the request was carried out before: history is what it created then, or empty.
func (t *tools) earlier(ctx context.Context, i identity, stream string) ([]event.Recorded, error) {
	if !i.keyed() {
		return nil, nil
	}
	history, err := t.Store.Load(ctx, stream)
	if err != nil || len(history) == 0 {
		return nil, err
	}
	return history, i.same(history)
}

// create appends the first events of a stream. If the same request was faster, history is what it created.
func (t *tools) create(ctx context.Context, i identity, stream string, meta event.Metadata, payloads ...event.Payload) (position event.Position, history []event.Recorded, err error) {
	position, err = t.Store.Append(ctx, stream, eventstore.NoStream, propose(i.mark(meta), payloads...)...)
	if errors.Is(err, eventstore.ErrConflict) && i.keyed() {
		history, err = t.Store.Load(ctx, stream)
		if err == nil && len(history) == 0 {
			err = fmt.Errorf("%s is there and empty", stream)
		}
		if err == nil {
			position, err = history[len(history)-1].Position, i.same(history)
		}
	}
	return position, history, err
}

// claim takes the Idempotency-Key of a request whose stream does not follow from it. Replayed says that the same request had it before; it may have been
// carried out only in part, so the caller carries it out again where that changes nothing that is done.
func (t *tools) claim(ctx context.Context, c Caller, i identity, operation string) (replayed bool, err error) {
	if !i.keyed() {
		return false, nil
	}
	_, history, err := t.create(ctx, i, request.Stream(i.hash), t.metadata(c), request.Claimed{Operation: operation})
	return history != nil, err
}

// complete notes that a request which claimed its key left nothing undone. Several may: they say the same.
func (t *tools) complete(ctx context.Context, c Caller, i identity) error {
	if !i.keyed() {
		return nil
	}
	_, err := t.Store.Append(ctx, request.Stream(i.hash), eventstore.Any, propose(t.metadata(c), request.Completed{})...)
	return err
}

// completed reports whether a request that claimed its key before left nothing undone.
func (t *tools) completed(ctx context.Context, i identity) (bool, error) {
	history, err := t.Store.Load(ctx, request.Stream(i.hash))
	return len(history) > 0 && history[len(history)-1].Type == request.Completed{}.EventType(), err
}
