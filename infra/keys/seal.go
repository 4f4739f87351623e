package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
)

// ErrSealed says that a text cannot be opened: it was sealed under a secret that the ring does not have, for something else, or not at all.
var ErrSealed = errors.New("the text cannot be opened with these secret keys")

// alikeText is how SealAlike writes: base32 (RFC 4648 §7) in small letters.
var alikeText = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

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

// SealAlike is Seal for what must look the same each time that it is sealed for the same purpose and context: its nonce follows from all of that (HMAC-SHA256),
// so that two texts have one only where they are the same. It has no ID before it, and is made of small letters and digits: a URL takes them as they are, and nobody takes it for a token.
func (r *Ring) SealAlike(purpose, text string, context ...string) string {
	aead, nonceKey := r.secrets[0].alike(purpose)
	nonce := sum(nonceKey, string(bound(context)), text)[:aead.NonceSize()]
	return alikeText.EncodeToString(aead.Seal(nonce, nonce, []byte(text), bound(context)))
}

// UnsealAlike opens what SealAlike made, under whichever secret of the ring. The error is ErrSealed.
func (r *Ring) UnsealAlike(purpose, sealed string, context ...string) (string, error) {
	raw, err := alikeText.DecodeString(sealed)
	if err != nil {
		return "", ErrSealed
	}
	for _, s := range r.secrets {
		aead, _ := s.alike(purpose)
		if len(raw) < aead.NonceSize() {
			continue
		}
		text, err := aead.Open(nil, raw[:aead.NonceSize()], raw[aead.NonceSize():], bound(context))
		if err == nil {
			return string(text), nil
		}
	}
	return "", ErrSealed
}

func (s secret) sealer(purpose string) cipher.AEAD {
	aead, err := cipher.NewGCMWithRandomNonce(s.block("seal: " + purpose))
	if err != nil {
		panic(err) // only for another cipher than AES
	}
	return aead
}

// alike is what SealAlike seals with, and the key that its nonces follow from.
func (s secret) alike(purpose string) (aead cipher.AEAD, nonceKey []byte) {
	aead, err := cipher.NewGCM(s.block("seal alike: " + purpose))
	if err != nil {
		panic(err) // only for another cipher than AES
	}
	return aead, s.derive("nonces alike: " + purpose)
}

func (s secret) block(purpose string) cipher.Block {
	block, err := aes.NewCipher(s.derive(purpose))
	if err != nil {
		panic(err) // only for a key of another length
	}
	return block
}

// bound is the context as it is bound to a text: each part with its length before it, so that no two lists of parts look alike.
func bound(context []string) []byte {
	var all []byte
	for _, part := range context {
		all = append(binary.BigEndian.AppendUint64(all, uint64(len(part))), part...)
	}
	return all
}
