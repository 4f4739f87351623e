package player

import (
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
	"time"
)

const (
	// maxCacheBytes bounds the audio that is kept; the audio that was used longest ago goes first.
	maxCacheBytes = 512 << 20
	// maxAudioBytes bounds one download.
	maxAudioBytes = 64 << 20
	// fetchTimeout bounds one download, fetchRetry is how often one that failed is tried again.
	fetchTimeout = 5 * time.Minute
	fetchRetry   = 2 * time.Second
)

var (
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	formatPattern = regexp.MustCompile(`^[a-z0-9]{1,8}$`)
)

// cache keeps audio by its digest, so that what is played every day is fetched once.
type cache struct {
	dir    string
	server *server
}

func openCache(stateDir string, s *server) (*cache, error) {
	dir := filepath.Join(stateDir, "audio")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("player: %w", err)
	}
	return &cache{dir, s}, nil
}

// fetch gives the file with the audio, whose hash is checked.
func (c *cache) fetch(ctx context.Context, a Audio) (string, error) {
	if !digestPattern.MatchString(a.SHA256) || !formatPattern.MatchString(a.Format) {
		return "", errors.New("the server named no usable hash and format")
	}
	path := filepath.Join(c.dir, a.SHA256+"."+a.Format)
	if now := time.Now(); os.Chtimes(path, now, now) == nil { // it is there, and was used now
		return path, nil
	}
	if err := c.download(ctx, a, path); err != nil {
		return "", err
	}
	return path, c.prune(path)
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
		return fmt.Errorf("the audio was answered %s", resp.Status)
	}
	file, err := os.CreateTemp(c.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // renamed away when all went well
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

// prune removes the audio that was used longest ago until the rest fits, but for the one at hand.
func (c *cache) prune(keep string) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var files []fs.FileInfo
	var total int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue // it went away meanwhile
		}
		files, total = append(files, info), total+info.Size()
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, f := range files {
		if total <= maxCacheBytes {
			return nil
		}
		if path := filepath.Join(c.dir, f.Name()); path != keep {
			if err := os.Remove(path); err != nil {
				return err
			}
			total -= f.Size()
		}
	}
	return nil
}
