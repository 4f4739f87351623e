// Package keys holds the secret that everything keyed is derived from: tokens and their hashes, the signatures of media URLs.
package keys

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	secretBytes = 32
	fileName    = "secret.key"
	// maxSecrets bounds the secrets of a ring: the one in use and those that tokens may still be hashed with.
	maxSecrets = 8
)

// Ring derives keys from a secret, and still knows the secrets that came before it.
type Ring struct {
	secrets []secret // the one in use first
}

type secret struct {
	id    string
	bytes []byte
}

// Open reads the secret from fromEnvironment (64 hexadecimal digits; several, parted by commas, with the one in use first) or, if that is empty,
// from the file secret.key in dir, which is made if it is not there.
func Open(dir, fromEnvironment string) (*Ring, error) {
	if fromEnvironment != "" {
		return parse(fromEnvironment)
	}
	path := filepath.Join(dir, fileName)
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		raw, err = create(path)
	}
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	ring, err := parse(string(raw))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}

// create writes a new secret whole and durable: a crash leaves either none or all of it. If another process is faster, it gives that one's.
func create(path string) ([]byte, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // documented never to fail
	file, err := os.CreateTemp(dir, ".secret-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name()) // what stays behind is a secret that nothing is hashed with
	_, err = file.WriteString(hex.EncodeToString(raw) + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return nil, err
	}
	// Not a rename, which would replace the secret of a process that started at the same moment.
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func parse(text string) (*Ring, error) {
	ring := &Ring{}
	for _, one := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' || r == ' ' }) {
		raw, err := hex.DecodeString(one)
		if err != nil || len(raw) != secretBytes {
			return nil, fmt.Errorf("a secret key is %d hexadecimal digits", 2*secretBytes)
		}
		id := sum(raw, "key id")
		ring.secrets = append(ring.secrets, secret{id: hex.EncodeToString(id[:4]), bytes: raw})
	}
	if len(ring.secrets) == 0 || len(ring.secrets) > maxSecrets {
		return nil, fmt.Errorf("give 1 to %d secret keys", maxSecrets)
	}
	return ring, nil
}

// HashToken gives what is stored of a token: the ID of the secret and the keyed hash under it.
func (r *Ring) HashToken(token string) string { return r.secrets[0].hashToken(token) }

// Hashes gives the token's hash under each secret of the ring, so that tokens of an older one are still found.
func (r *Ring) Hashes(token string) []string {
	hashes := make([]string, len(r.secrets))
	for i, s := range r.secrets {
		hashes[i] = s.hashToken(token)
	}
	return hashes
}

func (s secret) hashToken(token string) string {
	return s.id + ":" + hex.EncodeToString(sum(s.bytes, "token", token))
}

// Derive gives 32 bytes that follow from a purpose, its parts and a secret that nobody else knows, for each secret of the ring, the one in use first.
func (r *Ring) Derive(purpose string, parts ...string) [][]byte {
	derived := make([][]byte, len(r.secrets))
	for i, s := range r.secrets {
		derived[i] = sum(s.bytes, append([]string{purpose}, parts...)...)
	}
	return derived
}

// SigningKeys are the keys of signatures, the one to sign with first.
func (r *Ring) SigningKeys(purpose string) [][]byte {
	derived := make([][]byte, len(r.secrets))
	for i, s := range r.secrets {
		derived[i] = s.derive(purpose)
	}
	return derived
}

// derive is a key for a purpose (HKDF, RFC 5869).
func (s secret) derive(purpose string) []byte {
	key, err := hkdf.Key(sha256.New, s.bytes, nil, purpose, secretBytes)
	if err != nil {
		panic(fmt.Sprintf("hkdf of %d bytes: %v", secretBytes, err)) // only a length beyond the hash's limit fails
	}
	return key
}

// Random gives 32 bytes that nobody can guess.
func Random() []byte {
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // documented never to fail
	return raw
}

// sum is HMAC-SHA256 (RFC 2104) over the parts, each with its length before it, so that no two lists of parts look alike.
func sum(key []byte, parts ...string) []byte {
	mac := hmac.New(sha256.New, key)
	for _, p := range parts {
		mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		mac.Write([]byte(p))
	}
	return mac.Sum(nil)
}
