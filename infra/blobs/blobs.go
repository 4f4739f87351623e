// Package blobs keeps the bytes of audio, in a folder or in any store that gocloud.dev/blob reaches with S3's protocol, and serves them under
// signed URLs that expire.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	_ "gocloud.dev/blob/s3blob" // s3://
	"gocloud.dev/gcerrors"
)

// Errors, for errors.Is.
var (
	// ErrNotFound says that nothing is kept under a key.
	ErrNotFound = errors.New("blob not found")
	// ErrUnavailable says that the store did not do what it was asked, or not in time. It may be well again later.
	ErrUnavailable = errors.New("blob storage is unavailable")
	// ErrKey says that a key is not of the form that Put takes.
	ErrKey = errors.New("not a blob key")
)

// Limits of one call; a nearer deadline of the caller's context holds too.
const (
	putTimeout   = 2 * time.Minute  // to write one object
	callTimeout  = 10 * time.Second // to open, delete or look up one
	idleTimeout  = 30 * time.Second // without a byte while one is read
	listTimeout  = time.Minute      // for one page of a listing
	maxKeyBytes  = 512
	copyBytes    = 128 << 10
	folderMode   = 0o750
	temporaryEnd = ".tmp"   // fileblob's name for what is being written
	sidecarEnd   = ".attrs" // and for attributes, which are not used
)

// abandonedAfter is the age at which an unfinished write in a folder is certainly nobody's.
const abandonedAfter = time.Hour

// Store holds objects by key. It may be used by several goroutines, and a folder by several processes.
type Store struct {
	bucket *blob.Bucket
	folder *folder // nil where it is not a folder
}

// Open opens the store at a URL: file:///a/folder, which is made if it is missing, or s3://bucket?region=… with the parameters of gocloud.dev/blob/s3blob.
// It does not wait for a remote store; Ping asks it.
func Open(ctx context.Context, address string) (*Store, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("open blob storage: %w", err)
	}
	switch u.Scheme {
	case fileblob.Scheme:
		return openFolder(u)
	case "s3":
		bucket, err := blob.OpenBucket(ctx, address)
		if err != nil {
			return nil, fmt.Errorf("open blob storage %s: %w", u.Redacted(), err)
		}
		return &Store{bucket: bucket}, nil
	}
	return nil, fmt.Errorf("open blob storage %s: scheme %q is not supported; use file:///… or s3://…", u.Redacted(), u.Scheme)
}

// FolderURL is the URL of a folder on this machine.
func FolderURL(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("blob folder: %w", err)
	}
	return (&url.URL{Scheme: fileblob.Scheme, Path: filepath.ToSlash(absolute)}).String(), nil
}

// Close lets go of the store.
func (s *Store) Close() error {
	if err := s.bucket.Close(); err != nil {
		return fmt.Errorf("close blob storage: %w", err)
	}
	return nil
}

// Put keeps what r holds under a key, in place of what was there. When it returns, the object is on disk; until then the key shows what it
// showed before. An error of r is returned as it is; errors of the store are ErrUnavailable.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, contentType string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if s.folder != nil {
		if err := s.folder.present(); err != nil { // fileblob would make it anew, beside the disk that is not mounted
			return unavailable("write", key, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel() // before Close has returned well, this is what drops a half-written object

	options := &blob.WriterOptions{ContentType: contentType, DisableContentTypeDetection: true}
	var file *os.File
	options.BeforeWrite = func(as func(any) bool) error {
		if s.folder != nil && !as(&file) {
			return errors.New("fileblob gives no file to sync")
		}
		return nil
	}
	w, err := s.bucket.NewWriter(ctx, key, options)
	if err != nil {
		return unavailable("write", key, err)
	}
	in := &origin{r: r}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, in, make([]byte, copyBytes))
	if err == nil && file != nil {
		err = file.Sync() // before the rename: a name must never come back from a power cut without its bytes
	}
	if err != nil {
		cancel()
		_ = w.Close()
		if in.err != nil {
			return fmt.Errorf("read what to keep as %s: %w", key, in.err)
		}
		return unavailable("write", key, err)
	}
	if err := w.Close(); err != nil {
		return unavailable("write", key, err)
	}
	if s.folder != nil {
		if err := s.folder.syncParents(key); err != nil {
			return unavailable("write", key, err)
		}
	}
	return nil
}

// origin remembers what its reader failed with, so that it is not taken for the store's failure.
type origin struct {
	r   io.Reader
	err error
}

func (o *origin) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		o.err = err
	}
	return n, err
}

// Delete removes the object under a key, if there is one. When it returns, the bytes are gone from the store's folders.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := s.bucket.Delete(ctx, key)
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return failed("delete", key, err)
	}
	if s.folder != nil {
		if err := s.folder.forget(key); err != nil {
			return failed("delete", key, err)
		}
	}
	return nil
}

// Exists says whether something is kept under a key.
func (s *Store) Exists(ctx context.Context, key string) (bool, error) {
	if checkKey(key) != nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ok, err := s.bucket.Exists(ctx, key)
	if err != nil {
		return false, failed("look up", key, err)
	}
	if !ok && s.folder != nil {
		if err := s.folder.present(); err != nil {
			return false, failed("look up", key, err)
		}
	}
	return ok, nil
}

// Ping asks whether the store is there and lets in.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if s.folder != nil {
		if err := s.folder.writable(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil
	}
	ok, err := s.bucket.IsAccessible(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !ok {
		return fmt.Errorf("%w: the bucket does not exist or does not let in", ErrUnavailable)
	}
	return nil
}

// Each calls visit for every key that begins with prefix, in their order, with the time of its last change, until visit returns an error, which it then
// returns.
func (s *Store) Each(ctx context.Context, prefix string, visit func(key string, changed time.Time) error) error {
	objects := s.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		pageCtx, cancel := context.WithTimeout(ctx, listTimeout)
		o, err := objects.Next(pageCtx)
		cancel()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failed("list", prefix, err)
		}
		if o.IsDir || checkKey(o.Key) != nil {
			continue
		}
		if err := visit(o.Key, o.ModTime); err != nil {
			return err
		}
	}
}

// checkKey takes keys whose parts, split by "/", are of letters, digits, "-", "_" and "." and do not begin with ".": what stands in a URL and in any
// file system as it is, and leads nowhere else.
func checkKey(key string) error {
	if key == "" || len(key) > maxKeyBytes || strings.HasSuffix(key, temporaryEnd) || strings.HasSuffix(key, sidecarEnd) {
		return fmt.Errorf("%w: %q", ErrKey, key)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || strings.ContainsFunc(part, outsideKey) {
			return fmt.Errorf("%w: %q", ErrKey, key)
		}
	}
	return nil
}

func outsideKey(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}

// failed wraps what a store answered: ErrNotFound where that is what it said, else ErrUnavailable.
func failed(doing, key string, err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%s %s: %w", doing, key, ErrNotFound)
	}
	return unavailable(doing, key, err)
}

func unavailable(doing, key string, err error) error {
	return fmt.Errorf("%s %s: %w: %w", doing, key, ErrUnavailable, err)
}
