package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// ErrSealed says that a text cannot be opened: it was sealed under a secret that the ring does not have, for something else, or not at all.
var ErrSealed = errors.New("the text cannot be opened with these secret keys")

// Seal encrypts a text that has to be read again (AES-256-GCM, NIST SP 800-38D), under a key that follows from the secret in use (HKDF, RFC 5869). Before it
// stands the ID of the secret, so that it still opens when that is not the one in use any more. It opens for the same purpose and context only: what they
// are is bound to it and does not stand in it.
func (r *Ring) Seal(purpose, text string, context ...string) string {
	s := r.secrets[0]
	// Random nonces of 96 bits are safe for 2^32 texts under one key (SP 800-38D §8.3).
	return s.id + ":" + base64.RawURLEncoding.EncodeToString(s.sealer(purpose).Seal(nil, nil, []byte(text), bound(context))) //nolint:gosec // this AEAD makes its nonces itself
}

// Unseal opens what Seal made, under whichever secret of the ring. The error is ErrSealed.
func (r *Ring) Unseal(purpose, sealed string, context ...string) (string, error) {
	id, rest, _ := strings.Cut(sealed, ":")
	for _, s := range r.secrets {
		if s.id != id {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(rest)
		if err != nil {
			return "", ErrSealed
		}
		text, err := s.sealer(purpose).Open(nil, nil, raw, bound(context))
		if err == nil {
			return string(text), nil
		}
	}
	return "", ErrSealed
}

func (s secret) sealer(purpose string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, s.bytes, nil, "seal: "+purpose, secretBytes)
	if err != nil {
		panic(fmt.Sprintf("hkdf of %d bytes: %v", secretBytes, err)) // only a length beyond the hash's limit fails
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // only for another cipher than AES
	}
	return aead
}

// bound is the context as it is bound to a text: each part with its length before it, so that no two lists of parts look alike.
func bound(context []string) []byte {
	var all []byte
	for _, part := range context {
		all = append(binary.BigEndian.AppendUint64(all, uint64(len(part))), part...)
	}
	return all
}
