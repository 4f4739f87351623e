package translog

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

const (
	// tileHeight and tileWidth are those of C2SP tlog-tiles.
	tileHeight = 8
	tileWidth  = 1 << tileHeight

	headsFolder    = "heads"
	tileFolder     = "tile"
	checkpointFile = "checkpoint"
	stateFile      = "state"
	lockFile       = "lock"
)

// entriesLevel stands for the bundles of entries where a level of tiles is asked for.
const entriesLevel = -1

// tilePath is where tile n of a level is, or the part of it with so many hashes: tile/0/x001/234, tile/entries/000.p/17.
func tilePath(level int, n uint64, width int) string {
	number := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		number = fmt.Sprintf("x%03d/%s", n%1000, number)
	}
	name := strconv.Itoa(level)
	if level == entriesLevel {
		name = "entries"
	}
	path := filepath.Join(tileFolder, name, filepath.FromSlash(number))
	if width < tileWidth {
		path = filepath.Join(path+".p", strconv.Itoa(width))
	}
	return path
}

// readTile reads a tile that has at least so many hashes or entries.
func readTile(dir string, level int, n uint64, width int) ([]byte, error) {
	whole := filepath.Join(dir, tilePath(level, n, tileWidth))
	for range 2 { // whoever writes takes a part away when there is a larger one
		raw, err := os.ReadFile(whole)
		if !errors.Is(err, os.ErrNotExist) {
			return raw, err
		}
		parts, err := os.ReadDir(whole + ".p")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		largest := 0
		for _, part := range parts {
			if has, err := strconv.Atoi(part.Name()); err == nil && has < tileWidth {
				largest = max(largest, has)
			}
		}
		if largest < width {
			continue
		}
		raw, err = os.ReadFile(filepath.Join(whole+".p", strconv.Itoa(largest)))
		if !errors.Is(err, os.ErrNotExist) {
			return raw, err
		}
	}
	return nil, fmt.Errorf("%s: %w", whole, os.ErrNotExist)
}

var errTile = errors.New("a tile is malformed")

// readHashes reads the first hashes of a tile.
func readHashes(dir string, level int, n uint64, width int) ([][]byte, error) {
	raw, err := readTile(dir, level, n, width)
	if err != nil {
		return nil, err
	}
	if len(raw)%sha256.Size != 0 || len(raw) < width*sha256.Size || len(raw) > tileWidth*sha256.Size {
		return nil, fmt.Errorf("%w: %s", errTile, tilePath(level, n, tileWidth))
	}
	hashes := make([][]byte, width)
	for i := range hashes {
		hashes[i] = raw[i*sha256.Size : (i+1)*sha256.Size]
	}
	return hashes, nil
}

// readEntries reads the first entries of a bundle, undecoded.
func readEntries(dir string, n uint64, width int) ([][]byte, error) {
	raw, err := readTile(dir, entriesLevel, n, width)
	if err != nil {
		return nil, err
	}
	entries, err := splitEntries(raw)
	if err == nil && len(entries) < width {
		err = errTile
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, tilePath(entriesLevel, n, tileWidth))
	}
	return entries[:width], nil
}

// splitEntries takes a bundle apart: each entry stands after its length in two bytes.
func splitEntries(raw []byte) (entries [][]byte, err error) {
	for len(raw) > 0 {
		if len(raw) < 2 || len(raw)-2 < int(binary.BigEndian.Uint16(raw)) || len(entries) == tileWidth {
			return nil, errTile
		}
		end := 2 + int(binary.BigEndian.Uint16(raw))
		entries = append(entries, raw[2:end])
		raw = raw[end:]
	}
	return entries, nil
}

// nodeHash reads the hash of a whole subtree.
func nodeHash(dir string, id compact.NodeID) ([]byte, error) {
	level, below := int(id.Level)/tileHeight, id.Level%tileHeight
	first := id.Index << below
	start, count := int(first%tileWidth), 1<<below
	hashes, err := readHashes(dir, level, first/tileWidth, start+count)
	if err != nil {
		return nil, err
	}
	return subtree(hashes[start : start+count]), nil
}

// subtree is the root over a power of two of hashes.
func subtree(hashes [][]byte) []byte {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return rfc6962.DefaultHasher.HashChildren(subtree(hashes[:half]), subtree(hashes[half:]))
}

var ranges = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// rangeOf reads the compact range of the first events.
func rangeOf(dir string, size uint64) (*compact.Range, error) {
	ids := compact.RangeNodes(0, size, nil)
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		var err error
		if hashes[i], err = nodeHash(dir, id); err != nil {
			return nil, err
		}
	}
	return ranges.NewRange(0, size, hashes)
}

// rootOf is the root of a compact range that begins at the first event.
func rootOf(r *compact.Range) ([]byte, error) {
	if r.End() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return r.GetRootHash(nil)
}

// writeFile writes a file that others may read, whole and durable, but for its folder: nobody ever reads a part of it.
func writeFile(path string, raw []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // heads and tiles are to be copied and read by others
		return err
	}
	made, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = made.Write(raw)
	err = errors.Join(err, made.Chmod(0o644), flush(made), made.Close())
	if err == nil {
		err = os.Rename(made.Name(), path)
	}
	if err != nil {
		_ = os.Remove(made.Name()) // the error above says more
	}
	return err
}

// syncFolder makes durable what names a folder has.
func syncFolder(dir string) error {
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(flush(folder), folder.Close())
}

// flush makes durable what was written. Tests, which lose no power, do without.
var flush = (*os.File).Sync
