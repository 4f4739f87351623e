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
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// maxCacheBytes bounds the audio that is kept; the audio that was used longest ago goes first.
	maxCacheBytes = 512 << 20
	// maxAudioBytes bounds one download.
	maxAudioBytes = 64 << 20
	// fetchTimeout bounds one download.
	fetchTimeout = 5 * time.Minute
)

var (
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	formatPattern = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
)

// cache keeps audio by its digest, so that what is played every day is fetched once.
type cache struct {
	dir      string
	server   *server
	maxBytes int64
	// wanted gives the files that are still to be played: they are the last to go.
	wanted func() map[string]bool
}

func openCache(stateDir string, s *server, wanted func() []Audio) (*cache, error) {
	c := &cache{dir: filepath.Join(stateDir, "audio"), server: s, maxBytes: maxCacheBytes}
	c.wanted = func() map[string]bool {
		files := map[string]bool{}
		for _, a := range wanted() {
			files[filepath.Base(c.file(a))] = true
		}
		return files
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	removeUnfinished(c.dir)
	return c, nil
}

func (c *cache) file(a Audio) string { return filepath.Join(c.dir, a.SHA256+"."+a.Format) }

// fetch gives the file with the audio, whose hash is checked: of a file that is there too, since cheap memory cards forget.
func (c *cache) fetch(ctx context.Context, a Audio) (string, error) {
	path := c.file(a)
	if hashed(path) == a.SHA256 {
		now := time.Now()
		return path, os.Chtimes(path, now, now)
	}
	if err := c.download(ctx, a, path); err != nil {
		if errors.Is(err, syscall.ENOSPC) { // something else fills the disk; what is kept only to be fetched once less can go
			_, total, _ := c.files() // unreadable is empty
			err = errors.Join(err, c.prune(path, total/2))
		}
		return "", err
	}
	return path, c.prune(path, c.maxBytes)
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
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
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
	file, err := os.CreateTemp(c.dir, newFiles)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // renamed away when all went well
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, hash), io.LimitReader(resp.Body, maxAudioBytes+1))
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if n > maxAudioBytes {
		return fmt.Errorf("the audio is larger than %d bytes", maxAudioBytes)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != a.SHA256 {
		return fmt.Errorf("the audio's hash is %s, not %s", got, a.SHA256)
	}
	return os.Rename(file.Name(), path)
}

// prune removes the audio that was used longest ago until the rest fits, but for the one at hand. What is still to be played goes only if nothing else
// is left; it is fetched again when its time comes.
func (c *cache) prune(keep string, limit int64) error {
	files, total, err := c.files()
	if err != nil {
		return err
	}
	wanted := c.wanted()
	rank := func(f fs.FileInfo) int {
		if wanted[f.Name()] {
			return 1
		}
		return 0
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.ModTime().Compare(b.ModTime()))
	})
	for _, f := range files {
		if total <= limit {
			return nil
		}
		if path := filepath.Join(c.dir, f.Name()); path != keep {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			total -= f.Size()
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
