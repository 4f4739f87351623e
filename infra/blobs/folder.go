package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob/fileblob"
)

// folder does what fileblob leaves out: that a write and a removal survive a power cut. fileblob writes a temporary file beside the final one and
// renames it, and syncs nothing. Its attribute files are switched off: they are written in place, so that a process killed in the middle would leave an
// object that cannot be read.
type folder struct{ path string }

func openFolder(u *url.URL) (*Store, error) {
	if u.RawQuery != "" || (u.Host != "" && u.Host != "localhost") || !filepath.IsAbs(filepath.FromSlash(u.Path)) {
		return nil, fmt.Errorf("open blob storage %s: a folder is given as file:///its/absolute/path", u.Redacted())
	}
	path := filepath.Clean(filepath.FromSlash(u.Path))
	if err := os.MkdirAll(path, folderMode); err != nil { //nolint:gosec // the operator says which folder
		return nil, fmt.Errorf("make the blob folder: %w", err)
	}
	bucket, err := fileblob.OpenBucket(path, &fileblob.Options{
		NoTempDir: true, DirFileMode: folderMode, Metadata: fileblob.MetadataDontWrite,
	})
	if err != nil {
		return nil, fmt.Errorf("open the blob folder: %w", err)
	}
	f := &folder{path: path}
	if err := f.writable(); err != nil {
		return nil, fmt.Errorf("open the blob folder: %w", err)
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("open the blob folder: %w", err)
	}
	return &Store{bucket: bucket, folder: f}, nil
}

// syncParents makes the name of an object last, and the names of the folders that lead to it.
func (f *folder) syncParents(key string) error {
	for dir := filepath.Dir(f.object(key)); ; dir = filepath.Dir(dir) {
		if err := syncFolder(dir); err != nil {
			return err
		}
		if dir == f.path || len(dir) <= len(f.path) {
			return nil
		}
	}
}

// forget removes what unfinished writes left beside a deleted object, and its folder if nothing else is in it, and makes that last.
func (f *folder) forget(key string) error {
	path := f.object(key)
	dir := filepath.Dir(path)
	left, err := filepath.Glob(path + ".*" + temporaryEnd) // keys hold no character that means something to Glob
	if err != nil {
		return err
	}
	for _, name := range left {
		if err := removeAbandoned(name, time.Now()); err != nil {
			return err
		}
	}
	if dir != f.path && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
	switch err := syncFolder(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return f.present() // nothing was ever kept there
	default:
		return err
	}
}

func (f *folder) object(key string) string { return filepath.Join(f.path, filepath.FromSlash(key)) }

// present tells an object that is missing from a folder that is missing, as when a disk is not mounted.
func (f *folder) present() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return errors.New("the folder is gone: " + err.Error())
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no folder", f.path)
	}
	return nil
}

// writable tries it with a file.
func (f *folder) writable() error {
	file, err := os.CreateTemp(f.path, ".ping-*"+temporaryEnd)
	if err != nil {
		return err
	}
	return errors.Join(file.Close(), os.Remove(file.Name()))
}

// syncFolder makes the names in a folder last.
func syncFolder(path string) error {
	d, err := os.Open(path) //nolint:gosec // a folder of the store: keys lead nowhere else (checkKey)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Sweep removes what writes left behind that were killed over an hour ago, and says how many. Only folders keep such; elsewhere it does nothing.
func (s *Store) Sweep(ctx context.Context, now time.Time) (removed int, err error) {
	if s.folder == nil {
		return 0, nil
	}
	err = filepath.WalkDir(s.folder.path, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // another process removed it
		case err != nil:
			return err
		case entry.IsDir() || !strings.HasSuffix(path, temporaryEnd):
			return nil
		}
		before := removed
		if err := removeAbandoned(path, now); err != nil {
			return err
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			removed = before + 1
		}
		return nil
	})
	if err != nil {
		return removed, fmt.Errorf("sweep the blob folder: %w", err)
	}
	return removed, nil
}

// removeAbandoned removes a temporary file if it is too old for its writer to be alive.
func removeAbandoned(path string, now time.Time) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && now.Sub(info.ModTime()) < abandonedAfter {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
