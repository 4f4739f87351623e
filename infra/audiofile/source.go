package audiofile

import (
	"errors"
	"fmt"
	"io"
)

// windowBytes is the size of a source's buffer: one Ogg page at its largest (65,307 bytes) fits.
const windowBytes = 64 << 10

// source reads a file through one window.
type source struct {
	r      io.ReaderAt
	size   int64
	window []byte
	from   int64 // where in the file the window begins
	filled int
}

func newSource(r io.ReaderAt, size int64) *source { return newSourceOf(r, size, windowBytes) }

func newSourceOf(r io.ReaderAt, size int64, window int) *source {
	return &source{r: r, size: size, window: make([]byte, window)}
}

// bytes returns n bytes at an offset, n at most the window. They are good until the next call. Bytes beyond the end: *NotAudioError.
func (s *source) bytes(at int64, n int) ([]byte, error) {
	if at < 0 || at > s.size || int64(n) > s.size-at {
		return nil, errCut
	}
	return s.upTo(at, n)
}

// upTo is like bytes and returns fewer where the file ends.
func (s *source) upTo(at int64, n int) ([]byte, error) {
	if at < 0 || at >= s.size {
		return nil, nil
	}
	n = int(min(int64(n), int64(len(s.window)), s.size-at))
	if at < s.from || at+int64(n) > s.from+int64(s.filled) {
		if err := s.fill(at); err != nil {
			return nil, err
		}
	}
	i := int(at - s.from)
	return s.window[i : i+n], nil
}

func (s *source) fill(at int64) error {
	want := int(min(int64(len(s.window)), s.size-at))
	s.filled = 0
	n, err := s.r.ReadAt(s.window[:want], at)
	if n < want {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read audio at byte %d: %w", at, err)
	}
	s.from, s.filled = at, want
	return nil
}

// zeros says whether nothing but zero bytes stand from at to end.
func (s *source) zeros(at, end int64) (bool, error) {
	for at < end {
		b, err := s.upTo(at, int(min(int64(len(s.window)), end-at)))
		if err != nil {
			return false, err
		}
		for _, c := range b {
			if c != 0 {
				return false, nil
			}
		}
		at += int64(len(b))
	}
	return true, nil
}

var errCut error = &NotAudioError{Reason: "it is cut off: it ends before what it announces"}
