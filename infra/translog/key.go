package translog

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// originPrefix begins the name of a history, which stands in its heads and its keys; what follows is random.
const originPrefix = "musique/events/"

// Key is what heads are signed with.
type Key struct {
	signer note.Signer
	// Public are the verifier keys of this history as `name+hash+key` (C2SP signed-note): of this key and, before it, of those that it replaced.
	Public []string
}

// Origin names the history that the key signs.
func (k *Key) Origin() string { return k.signer.Name() }

// PublicKeysFile is where the verifier keys of a signing key's file are kept.
func PublicKeysFile(keyFile string) string {
	return strings.TrimSuffix(keyFile, filepath.Ext(keyFile)) + ".pub"
}

// OpenKey reads the signing key in a file, which is made if it is not there, and notes its verifier key beside it. When the file was taken away to rotate the
// key, the new one has the name of the old: it signs the same history.
func OpenKey(file string) (*Key, error) {
	public := PublicKeysFile(file)
	if public == file {
		return nil, fmt.Errorf("signing key of the history: %s is the name of the file of its public keys", file)
	}
	known, err := keyLines(public)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("public keys of the history: %w", err)
	}
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		name := originPrefix + randomName()
		if len(known) > 0 {
			last, err := note.NewVerifier(known[len(known)-1])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", public, err)
			}
			name = last.Name()
		}
		raw, err = createKey(file, name)
		if err != nil {
			return nil, fmt.Errorf("signing key of the history: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("signing key of the history: %w", err)
	}
	signer, err := note.NewSigner(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	verifier, err := verifierKey(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if !slices.Contains(known, verifier) {
		known = append(known, verifier)
		if err := writeFile(public, []byte(strings.Join(known, "\n")+"\n")); err != nil {
			return nil, fmt.Errorf("public keys of the history: %w", err)
		}
	}
	return &Key{signer: signer, Public: known}, nil
}

func randomName() string {
	raw := make([]byte, 8)
	_, _ = rand.Read(raw) // documented never to fail
	return hex.EncodeToString(raw)
}

// createKey makes a key. If another process is faster, it gives that one's.
func createKey(file, name string) ([]byte, error) {
	secret, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	made, err := os.CreateTemp(filepath.Dir(file), ".heads-key-") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(made.Name()) // what stays behind is a key that nothing is signed with
	_, err = made.WriteString(secret + "\n")
	if err = errors.Join(err, made.Sync(), made.Close()); err != nil {
		return nil, err
	}
	// Not a rename, which would replace the key of a process that started at the same moment.
	if err := os.Link(made.Name(), file); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := syncFolder(filepath.Dir(file)); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// verifierKey is the public part of a signing key in the form of notes.
func verifierKey(secret string) (string, error) {
	parts := strings.SplitN(secret, "+", 5) // the last may have one, too
	if len(parts) != 5 {
		return "", errors.New("malformed signing key")
	}
	public, err := publicOf(parts[4])
	if err != nil {
		return "", err
	}
	return note.NewEd25519VerifierKey(parts[2], public)
}

// ReadPublicKeys reads a file of verifier keys, one a line.
func ReadPublicKeys(file string) ([]string, error) { return keyLines(file) }

func keyLines(file string) (keys []string, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(raw) {
		if text := strings.TrimSpace(string(line)); text != "" && !strings.HasPrefix(text, "#") {
			keys = append(keys, text)
		}
	}
	return keys, nil
}

// verifiers are those of some keys, which are all of one history, and the name of that.
func verifiers(keys []string) (note.Verifiers, string, error) {
	var list []note.Verifier
	origin := ""
	for _, key := range keys {
		verifier, err := note.NewVerifier(key)
		if err != nil {
			return nil, "", fmt.Errorf("verifier key %q: %w", key, err)
		}
		if origin != "" && verifier.Name() != origin {
			return nil, "", fmt.Errorf("the verifier keys are of different histories: %s and %s", origin, verifier.Name())
		}
		origin = verifier.Name()
		if !slices.ContainsFunc(list, func(v note.Verifier) bool { return v.KeyHash() == verifier.KeyHash() }) { // twice the same is an ambiguity to the reader of notes
			list = append(list, verifier)
		}
	}
	if len(list) == 0 {
		return nil, "", errors.New("no verifier key is given")
	}
	return note.VerifierList(list...), origin, nil
}
