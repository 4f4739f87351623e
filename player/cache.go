package player

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// DefaultCacheBytes bounds the audio that is kept on the disk, if nothing else is said.
	DefaultCacheBytes = 512 << 20
	// maxAudioBytes bounds one download.
	maxAudioBytes = 64 << 20
	// fetchTimeout bounds one download; one that brings nothing for silenceLimit is given up before.
	fetchTimeout = time.Hour
)

// errNoRoom says that audio has to wait until what is needed before it has been played.
var errNoRoom = errors.New("the audio that is needed before leaves it no room")

var (
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	formatPattern = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
)

// cache keeps audio by its digest, so that what is played every day is fetched once.
type cache struct {
	dir      string
	server   *server
	maxBytes int64
	// needed gives the audio that is still to be played, in the order that it is needed in.
	needed func() []Audio

	mu     sync.Mutex
	coming int64 // bytes of the downloads that are under way
}

func openCache(stateDir string, s *server, maxBytes int64, needed func() []Audio) (*cache, error) {
	c := &cache{dir: filepath.Join(stateDir, "audio"), server: s, maxBytes: maxBytes, needed: needed}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	removeUnfinished(c.dir)
	return c, nil
}

func (c *cache) file(a Audio) string { return filepath.Join(c.dir, a.SHA256+"."+a.Format) }

// has gives the file with the audio, if it is there and its hash is right: cheap memory cards forget.
func (c *cache) has(a Audio) (path string, ok bool) {
	path = c.file(a)
	return path, hashed(path) == a.SHA256
}

// fetch gives the file with the audio.
func (c *cache) fetch(ctx context.Context, a Audio) (string, error) {
	path, ok := c.has(a)
	if ok {
		now := time.Now()
		_ = os.Chtimes(path, now, now) // a disk that does not take that lets it be played all the same
		return path, nil
	}
	_ = os.Remove(path) // it is not there, or of no use
	err := c.download(ctx, a, path)
	if errors.Is(err, syscall.ENOSPC) { // something else fills the disk; what is kept only to be fetched once less can go
		err = errors.Join(err, c.shrink())
	}
	return path, err
}

// hashed is the digest of a file, or "" if it cannot be read.
func hashed(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return ""
	}
	return hex.EncodeToString(hash.Sum(nil))
}

func (c *cache) download(ctx context.Context, a Audio, path string) (err error) {
	if a.Size > 0 { // without a request, if it has to wait anyway
		if err := c.fits(a, a.Size); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	silence := time.AfterFunc(silenceLimit, cancel)
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL, nil)
	if err != nil {
		return err
	}
	resp, err := c.server.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c.server.refused(resp)
	}
	size := resp.ContentLength
	if size < 0 {
		size = cmp.Or(max(a.Size, 0), maxAudioBytes)
	}
	if err := c.reserve(a, size); err != nil {
		return err
	}
	reserved := size
	defer func() { c.release(reserved) }()
	file, err := os.CreateTemp(c.dir, newFiles)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // renamed away when all went well
	hash := sha256.New()
	heard := heardReader{resp.Body, func() { silence.Reset(silenceLimit) }}
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(heard, size+1))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if n > size {
		return fmt.Errorf("the audio is larger than %d bytes", size)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != a.SHA256 {
		return fmt.Errorf("the audio's hash is %s, not %s", got, a.SHA256)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coming, reserved = c.coming-size, 0 // from here on it is among the files, and is counted once
	return os.Rename(file.Name(), path)
}

// heardReader calls heard whenever something was read.
type heardReader struct {
	io.Reader
	heard func()
}

// Read implements io.Reader.
func (r heardReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.heard()
	return n, err
}

// fits reports, as an error, that there is no room for audio that is about to come, and could be made none.
func (c *cache) fits(a Audio, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.room(a, size)
	return err
}

// reserve makes room for audio that is about to come, which release gives back: what is on the disk with what is coming is never more than the bound.
func (c *cache) reserve(a Audio, size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	spare, err := c.room(a, size)
	if err != nil { // then nothing goes for it either
		return err
	}
	if err := c.remove(spare); err != nil {
		return err
	}
	c.coming += size
	return nil
}

func (c *cache) release(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.coming -= size
}

// room is what has to go so that audio has room.
func (c *cache) room(a Audio, size int64) (spare []fs.FileInfo, err error) {
	switch {
	case size > maxAudioBytes:
		return nil, fmt.Errorf("the audio is larger than %d bytes", maxAudioBytes)
	case size > c.maxBytes:
		return nil, fmt.Errorf("the audio has %d bytes, and the cache takes %d in all", size, c.maxBytes)
	}
	spare, left, err := c.spare(a, c.maxBytes-c.coming-size)
	if err == nil && left+c.coming+size > c.maxBytes {
		err = fmt.Errorf("%w in the %d bytes of the cache", errNoRoom, c.maxBytes)
	}
	return spare, err
}

// shrink gives back up to half of what is kept, on a disk that something else fills: only what nothing needs any more, since what is needed could not be
// fetched again.
func (c *cache) shrink() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, total, err := c.files()
	if err != nil {
		return err
	}
	spare, _, err := c.spare(Audio{}, total/2)
	if err != nil {
		return err
	}
	return c.remove(spare)
}

// spare is the audio that can go until the rest is within a limit, and how many bytes are left then. First goes what nothing needs any more, that which was used
// longest ago before the rest; then what is needed later than the audio that the room is for, the last before the others: it is fetched again when there is room.
func (c *cache) spare(room Audio, limit int64) (spare []fs.FileInfo, left int64, err error) {
	files, left, err := c.files()
	if err != nil || left <= limit {
		return nil, left, err
	}
	place, until := map[string]int{}, 0 // the place of a file in the order of need, and that of the one with the room
	for i, a := range c.needed() {
		name := filepath.Base(c.file(a))
		if _, sooner := place[name]; !sooner {
			place[name] = i + 1
		}
	}
	if until = place[filepath.Base(c.file(room))]; until == 0 {
		until = math.MaxInt // nothing that is needed goes for it
	}
	files = slices.DeleteFunc(files, func(f fs.FileInfo) bool { return place[f.Name()] != 0 && place[f.Name()] <= until })
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		switch first, second := place[a.Name()], place[b.Name()]; {
		case first == 0 && second == 0:
			return a.ModTime().Compare(b.ModTime())
		case first == 0 || second == 0:
			return cmp.Compare(first, second)
		default:
			return cmp.Compare(second, first)
		}
	})
	for i, f := range files {
		if left <= limit {
			return files[:i], left, nil
		}
		left -= f.Size()
	}
	return files, left, nil
}

func (c *cache) remove(files []fs.FileInfo) error {
	for _, f := range files {
		if err := os.Remove(filepath.Join(c.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// files lists what is kept, and how many bytes that is.
func (c *cache) files() (files []fs.FileInfo, total int64, err error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || strings.HasPrefix(e.Name(), newFiles) {
			continue // it went away meanwhile, or is another download
		}
		files, total = append(files, info), total+info.Size()
	}
	return files, total, nil
}
