package commands

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/domain/request"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/keys"
)

// Idempotency without a table: the ID of what a command creates follows from the company, the environment, the operation and the Idempotency-Key. A
// repeat finds the stream there, since creating it expects that there is none; the first event's metadata says whether it was the same request.
//
// No secret goes into an ID, so that it stays the same when the operator changes the secret key. Who guesses a company's Idempotency-Keys can reckon its
// IDs, and gains nothing by it: an ID lets nobody in, and to another company each is not_found, whether it is there or not. Nor can another company, or
// another installation, have an ID first, since the company's goes into all of them, and that is random. Tokens do follow from the secret key.

// identity is the ID of what a request creates, and what its tokens follow from beside the secret key.
type identity struct {
	// hash is empty for a request without a key.
	hash        string
	fingerprint string
	seed        []byte
}

// identify finds the identity of a request, or makes a random one if it has no key. The body is all that the request means.
func (t *tools) identify(c Caller, operation string, body any) (identity, error) {
	if c.IdempotencyKey == "" {
		return randomIdentity(), nil
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return identity{}, fmt.Errorf("fingerprint of %s: %w", operation, err)
	}
	sum := sha256.Sum256(raw)
	seed := seedOf("idempotency", c.CompanyID, string(c.Environment), operation, c.IdempotencyKey)
	return identity{hash: hex.EncodeToString(seed[:16]), fingerprint: hex.EncodeToString(sum[:]), seed: seed}, nil
}

// randomIdentity is that of a request without a key.
func randomIdentity() identity { return identity{seed: keys.Random()} }

// seedOf is SHA-256 (FIPS 180-4) over the parts, each with its length before it, so that no two lists of parts look alike.
func seedOf(parts ...string) []byte {
	var all []byte
	for _, p := range parts {
		all = append(binary.BigEndian.AppendUint64(all, uint64(len(p))), p...)
	}
	sum := sha256.Sum256(all)
	return sum[:]
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

// secrets are the tokens that a request makes or has made: a prefix and 256 bits in base 62. They follow from the identity and the ring's secrets, one from
// each, so that a replay can show the token again although it is stored nowhere. The first is for a new one.
func (t *tools) secrets(i identity, purpose, prefix string) []string {
	var all []string
	for _, derived := range t.Keys.Derive("secret", purpose, string(i.seed)) {
		all = append(all, prefix+base62(derived, 43))
	}
	return all
}

// shownAgain is the one of a request's tokens that was made, by the hash that its event holds. It is none of them if the ring's secret that it follows from
// was taken away since, or is not there yet; remedy is what the caller can do then.
func (t *tools) shownAgain(secrets []string, hash, remedy string) (string, error) {
	for _, secret := range secrets {
		if slices.Contains(t.Keys.Hashes(secret), hash) {
			return secret, nil
		}
	}
	return "", fault.New(fault.Conflict, "The token of this Idempotency-Key was made, and cannot be shown again, since the server's secret key has changed; %s.", remedy)
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
		return errAnotherRequest
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

// claimFor takes the Idempotency-Key of a request that makes what is named by an ID which does not follow from the key. It gives the ID that the first of
// the requests with the key brought.
func (t *tools) claimFor(ctx context.Context, c Caller, i identity, operation, id string) (string, error) {
	_, history, err := t.create(ctx, i, request.Stream(i.hash), t.metadata(c), request.Claimed{Operation: operation, ID: id})
	if err != nil || history == nil {
		return id, err
	}
	var first request.Claimed
	if err := json.Unmarshal(history[0].Data, &first); err != nil {
		return "", fmt.Errorf("read %s of %s: %w", history[0].Type, history[0].Stream, err)
	}
	return first.ID, nil
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
