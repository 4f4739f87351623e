package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// Reader reads one object. It must be closed, and used by one goroutine at a time.
type Reader struct {
	r      *blob.Reader
	key    string
	cancel context.CancelFunc
	idle   *time.Timer
	at     int64
}

// Open opens the object under a key: ErrNotFound if there is none. Reading ends with ctx, and with ErrUnavailable when no byte comes for
// 30 seconds.
func (s *Store) Open(ctx context.Context, key string) (*Reader, error) {
	if checkKey(key) != nil {
		return nil, fmt.Errorf("open %s: %w", key, ErrNotFound)
	}
	ctx, cancel := context.WithCancel(ctx)
	opening := time.AfterFunc(callTimeout, cancel)
	r, err := s.bucket.NewReader(ctx, key, nil)
	if err != nil {
		opening.Stop()
		cancel()
		if s.folder != nil && gcerrors.Code(err) == gcerrors.NotFound {
			if away := s.folder.present(); away != nil {
				err = away
			}
		}
		return nil, failed("open", key, err)
	}
	opening.Stop()
	idle := time.AfterFunc(idleTimeout, cancel)
	idle.Stop() // it runs while a read does
	return &Reader{r: r, key: key, cancel: cancel, idle: idle}, nil
}

// Size is the object's length in bytes.
func (r *Reader) Size() int64 { return r.r.Size() }

// ModTime is when the object was last written.
func (r *Reader) ModTime() time.Time { return r.r.ModTime() }

// unknownType is the media type of what might be anything (RFC 2046 §4.5.1).
const unknownType = "application/octet-stream"

// ContentType is what Put was told, or "application/octet-stream" from a folder, which does not keep it.
func (r *Reader) ContentType() string { return r.r.ContentType() }

// Read reads on from where the reader stands.
func (r *Reader) Read(p []byte) (int, error) {
	if r.at >= r.Size() {
		return 0, io.EOF
	}
	r.idle.Reset(idleTimeout)
	n, err := r.r.Read(p)
	r.idle.Stop()
	r.at += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = failed("read", r.key, err)
	}
	return n, err
}

// Seek moves to an offset inside the object, or to its end.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.Size()
	default:
		return 0, fmt.Errorf("seek in %s: whence %d", r.key, whence)
	}
	if offset < 0 || offset > r.Size() {
		return 0, fmt.Errorf("seek in %s: %d is outside its %d bytes", r.key, offset, r.Size())
	}
	if _, err := r.r.Seek(offset, io.SeekStart); err != nil {
		return 0, failed("seek in", r.key, err)
	}
	r.at = offset
	return offset, nil
}

// Close lets go of the object.
func (r *Reader) Close() error {
	r.idle.Stop()
	err := r.r.Close()
	r.cancel()
	if err != nil {
		return failed("close", r.key, err)
	}
	return nil
}
