package translog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

// maxHeadBytes bounds a head that is read.
const maxHeadBytes = 64 << 10

// Head is a signed tree head: so many events have this root. Note is the C2SP checkpoint that says so.
type Head struct {
	Size uint64
	Root []byte
	Note []byte
}

// signHead says it. The same size and root with the same key are the same bytes.
func signHead(key *Key, size uint64, root []byte) (Head, error) {
	text := log.Checkpoint{Origin: key.Origin(), Size: size, Hash: root}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(text)}, key.signer)
	return Head{Size: size, Root: root, Note: signed}, err
}

// readHead reads what a note says, without looking at its signatures.
func readHead(signed []byte) (Head, string, error) {
	if len(signed) > maxHeadBytes {
		return Head{}, "", errors.New("a head is too long")
	}
	text, _, ok := bytes.Cut(signed, []byte("\n\n"))
	if !ok {
		return Head{}, "", errors.New("a head has no signature")
	}
	var said log.Checkpoint
	if _, err := said.Unmarshal(append(bytes.Clone(text), '\n')); err != nil {
		return Head{}, "", fmt.Errorf("a head: %w", err)
	}
	if len(said.Hash) != sha256.Size {
		return Head{}, "", fmt.Errorf("a head with a root of %d bytes", len(said.Hash))
	}
	if said.Size == 0 {
		return Head{}, "", errors.New("a head of no events, which nobody signs: it says nothing")
	}
	return Head{Size: said.Size, Root: said.Hash, Note: signed}, said.Origin, nil
}

// OpenHead reads a head that one of the keys signed.
func OpenHead(signed []byte, keys []string) (Head, error) {
	known, origin, err := verifiers(keys)
	if err != nil {
		return Head{}, err
	}
	return openHead(signed, known, origin)
}

func openHead(signed []byte, known note.Verifiers, origin string) (Head, error) {
	if _, err := note.Open(signed, known); err != nil {
		return Head{}, err
	}
	head, of, err := readHead(signed)
	if err == nil && of != origin {
		err = fmt.Errorf("a head of another history: %s", of)
	}
	return head, err
}

// splitNotes takes a text of several notes apart: each ends with its signatures, and an empty line parts it from the next. What follows the last whole one is
// a note that was not written to its end.
func splitNotes(raw []byte) (notes [][]byte, unfinished []byte) {
	rest := raw
	for len(rest) > 0 {
		body := bytes.Index(rest, []byte("\n\n"))
		if body < 0 {
			return notes, rest
		}
		end := body + 2
		for bytes.HasPrefix(rest[end:], []byte("— ")) {
			line := bytes.IndexByte(rest[end:], '\n')
			if line < 0 {
				return notes, rest
			}
			end += line + 1
		}
		if end == body+2 {
			return notes, rest // no signature
		}
		signed := rest[:end]
		rest = rest[end:]
		if len(rest) > 0 {
			if rest[0] != '\n' {
				return append(notes, signed), rest
			}
			rest = rest[1:]
		}
		notes = append(notes, signed)
	}
	return notes, nil
}

// headFiles are the files that heads are kept in, oldest first.
func headFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, headsFolder))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var files []string
	for _, entry := range entries {
		if !entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			files = append(files, filepath.Join(dir, headsFolder, entry.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

// notesOf reads the notes in a file.
func notesOf(file string) (notes [][]byte, unfinished []byte, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	notes, unfinished = splitNotes(raw)
	return notes, unfinished, nil
}

// publicOf is the public half of a note's signing key: an algorithm and a seed.
func publicOf(encoded string) (ed25519.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) != 1+ed25519.SeedSize {
		return nil, errors.New("malformed signing key")
	}
	return ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey), nil
}
