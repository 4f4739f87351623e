// Package blobs keeps the audio's bytes, in a folder or in object storage, by way of gocloud.dev/blob.
package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	_ "gocloud.dev/blob/s3blob"   // s3://
	"gocloud.dev/gcerrors"
)

var (
	// ErrNotFound says that there is nothing under a key.
	ErrNotFound = errors.New("no such blob")
	// ErrUnavailable says that the storage could not be reached, or refused.
	ErrUnavailable = errors.New("blob storage is away")
)

// pingTimeout bounds the question whether the storage answers.
const pingTimeout = 3 * time.Second

// Store is a place for bytes by key. It is safe for concurrent use.
type Store struct {
	bucket *blob.Bucket
	// folder is where the keys lie as files; empty for object storage.
	folder string
}

// Open opens the storage that a URL names: `file:///a/folder`, which is made if it is not there, `s3://bucket?region=…`, or whatever gocloud.dev/blob
// has a driver for here.
func Open(ctx context.Context, address string) (*Store, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("blob storage: %w", err)
	}
	s := &Store{}
	if u.Scheme == "file" {
		s.folder = filepath.FromSlash(u.Path)
		query := u.Query()
		query.Set("create_dir", "true")
		query.Set("no_tmp_dir", "true") // a file is written beside its place and renamed, which needs one file system
		query.Set("metadata", "skip")   // the media type follows from the key's owner
		u.RawQuery = query.Encode()
	}
	if s.bucket, err = blob.OpenBucket(ctx, u.String()); err != nil {
		return nil, fmt.Errorf("blob storage: %w", err)
	}
	return s, nil
}

// FolderURL is the URL of a folder on this machine.
func FolderURL(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(absolute)}).String(), nil
}

// Close lets go of the storage.
func (s *Store) Close() error { return s.bucket.Close() }

// Put stores what r gives under a key: all of it, durably, or nothing.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, contentType string) error {
	// Ending the context before the writer is closed is how a write is given up.
	writing, giveUp := context.WithCancel(ctx)
	defer giveUp()
	w, err := s.bucket.NewWriter(writing, key, &blob.WriterOptions{ContentType: contentType})
	if err != nil {
		return classify("store", key, err)
	}
	if _, err := io.Copy(w, r); err != nil {
		giveUp()
		return classify("store", key, errors.Join(err, w.Close()))
	}
	if err := w.Close(); err != nil {
		return classify("store", key, err)
	}
	return s.sync(key)
}

// sync makes a file and the folders on the way to it durable; object storage answers only when that is so.
func (s *Store) sync(key string) error {
	if s.folder == "" {
		return nil
	}
	path := filepath.Join(s.folder, filepath.FromSlash(key))
	for {
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if path == s.folder || path == filepath.Dir(path) {
			return nil
		}
		path = filepath.Dir(path)
	}
}

// Reader reads the bytes of a blob, from any place in them.
type Reader struct {
	*blob.Reader
}

// Open opens what lies under a key. The caller closes it. Errors: ErrNotFound, ErrUnavailable.
func (s *Store) Open(ctx context.Context, key string) (*Reader, error) {
	r, err := s.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, classify("open", key, err)
	}
	return &Reader{r}, nil
}

// Delete removes what lies under a key; that there is nothing is no error.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := classify("delete", key, s.bucket.Delete(ctx, key))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Exists reports whether there is something under a key.
func (s *Store) Exists(ctx context.Context, key string) (bool, error) {
	found, err := s.bucket.Exists(ctx, key)
	return found, classify("look for", key, err)
}

// Each calls visit for every key that begins with prefix, with the time of its last change, until visit fails.
func (s *Store) Each(ctx context.Context, prefix string, visit func(key string, changed time.Time) error) error {
	list := s.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		object, err := list.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return classify("list", prefix, err)
		}
		if object.IsDir {
			continue
		}
		if err := visit(object.Key, object.ModTime); err != nil {
			return err
		}
	}
}

// Ping asks whether the storage answers.
func (s *Store) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if ok, err := s.bucket.IsAccessible(ctx); err != nil || !ok {
		return fmt.Errorf("%w: not accessible: %w", ErrUnavailable, errors.Join(err))
	}
	return nil
}

func classify(doing, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case gcerrors.Code(err) == gcerrors.NotFound:
		return fmt.Errorf("%s %s: %w", doing, key, ErrNotFound)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s %s: %w", doing, key, err)
	default:
		return fmt.Errorf("%s %s: %w: %w", doing, key, ErrUnavailable, err)
	}
}
