package player

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"time"
)

// maxEventBytes bounds a line of the stream, and the data of an event; what the server sends is a thousandth of it.
const maxEventBytes = 1 << 20

var errTooLong = errors.New("the event is longer than a player takes")

// event is a Server-Sent Event.
type event struct {
	id, kind string
	data     []byte
	err      error // says why data is not what was sent
}

// events reads an event stream (WHATWG HTML §9.2.6, "Interpreting an event stream").
type events struct {
	in      *bufio.Reader
	started bool // past the byte order mark that there may be
	afterCR bool // an LF that comes next belongs to the line before
	line    []byte

	lastID string
	// retry is what the server wants clients to wait before they connect again; 0 until it says so.
	retry time.Duration
	// alive is called for every line, those that are only there to show that the connection lives included.
	alive func()
}

func readEvents(in io.Reader, alive func()) *events {
	return &events{in: bufio.NewReaderSize(in, 64<<10), alive: alive}
}

// next gives the next event that has data. An event that the stream ends amid is none.
func (s *events) next() (event, error) {
	var e event
	var data bytes.Buffer
	for {
		line, err := s.readLine()
		long := errors.Is(err, errTooLong)
		if err != nil && !long {
			return event{}, err
		}
		s.alive()
		if len(line) == 0 {
			if data.Len() > 0 {
				e.id, e.data = s.lastID, bytes.TrimSuffix(data.Bytes(), []byte("\n"))
				return e, nil
			}
			e = event{}
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.kind = string(value)
		case "data":
			if long || data.Len()+len(value) > maxEventBytes {
				long, value = true, nil
			}
			data.Write(value)
			data.WriteByte('\n')
			if long {
				e.err = errTooLong
			}
		case "id":
			if !long && !bytes.ContainsRune(value, 0) {
				s.lastID = string(value)
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// readLine reads a line that ends in LF, CRLF or CR. One that is too long is read to its end all the same, and given cut off.
func (s *events) readLine() ([]byte, error) {
	if !s.started {
		s.started = true
		if mark, err := s.in.Peek(3); err == nil && string(mark) == "\ufeff" {
			_, _ = s.in.Discard(3) // they were peeked at
		}
	}
	s.line = s.line[:0]
	var err error
	for {
		b, readErr := s.in.ReadByte()
		if errors.Is(readErr, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if readErr != nil {
			return nil, readErr
		}
		wasCR := s.afterCR
		s.afterCR = b == '\r'
		switch {
		case b == '\n' && wasCR:
		case b == '\n' || b == '\r':
			return s.line, err
		case len(s.line) < maxEventBytes:
			s.line = append(s.line, b)
		default:
			err = errTooLong
		}
	}
}
