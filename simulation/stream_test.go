package simulation

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// dialTimeout bounds the opening of a stream.
	dialTimeout = 10 * time.Second
	// maxHeadBytes bounds the head of an answer.
	maxHeadBytes = 16 << 10
	// readBytes is the least that there is room for when a stream is read; most events fit.
	readBytes = 1 << 10
)

// told is an event of a stream.
type told struct {
	seq  int64
	kind string
	data []byte
}

// stream is a player's open stream. net/http's client would need three goroutines for each; this one is read by its player's own, with a deadline.
type stream struct {
	conn  net.Conn
	stop  func() bool
	raw   []byte // as it came, in chunks (RFC 9112 §7.1)
	chunk int    // what is missing of the chunk in hand, its end of line included
	text  []byte
}

// refusedError is an answer that is none to what was asked for.
type refusedError struct{ status int }

func (r refusedError) Error() string { return "the answer was " + strconv.Itoa(r.status) }

// openStream opens a device's stream at an address, after an event. The header is that of the answer, also where it is a refusal.
func openStream(ctx context.Context, address, token, lastEventID string) (*stream, http.Header, error) {
	host := strings.TrimPrefix(address, "http://")
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, nil, err
	}
	s := &stream{conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}
	header, err := s.ask(host, token, lastEventID)
	if err != nil {
		s.close()
		return nil, header, err
	}
	return s, header, nil
}

func (s *stream) close() {
	s.stop()
	s.conn.Close()
}

func (s *stream) ask(host, token, lastEventID string) (http.Header, error) {
	var request bytes.Buffer
	fmt.Fprintf(&request, "GET /api/player/v1/stream HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\nAuthorization: Bearer %s\r\n", host, token)
	if lastEventID != "" {
		fmt.Fprintf(&request, "Last-Event-ID: %s\r\n", lastEventID)
	}
	request.WriteString("\r\n")
	if err := s.conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return nil, err
	}
	if _, err := s.conn.Write(request.Bytes()); err != nil {
		return nil, err
	}
	for {
		head, rest, whole := bytes.Cut(s.raw, []byte("\r\n\r\n"))
		if !whole {
			if len(s.raw) > maxHeadBytes {
				return nil, errors.New("the head of the answer has no end")
			}
			if err := s.more(); err != nil {
				return nil, err
			}
			continue
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(append(bytes.Clone(head), "\r\n\r\n"...))), nil)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return response.Header, refusedError{response.StatusCode}
		}
		s.raw = bytes.Clone(rest)
		return response.Header, nil
	}
}

// more reads what comes next of the connection.
func (s *stream) more() error {
	s.raw = slices.Grow(s.raw, readBytes)
	n, err := s.conn.Read(s.raw[len(s.raw):cap(s.raw)])
	s.raw = s.raw[:len(s.raw)+n]
	return err
}

// read gives the events that come until a moment, as soon as there are some.
func (s *stream) read(until time.Time) ([]told, error) {
	for {
		if err := s.unchunk(); err != nil {
			return nil, err
		}
		if events, err := s.events(); err != nil || len(events) > 0 {
			return events, err
		}
		if err := s.conn.SetReadDeadline(until); err != nil {
			return nil, err
		}
		err := s.more()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// unchunk takes the text out of what came.
func (s *stream) unchunk() error {
	for {
		if s.chunk == 0 {
			size, rest, whole := bytes.Cut(s.raw, []byte("\r\n"))
			if !whole {
				return nil
			}
			n, err := strconv.ParseUint(string(size), 16, 31)
			if err != nil {
				return err
			}
			if n == 0 {
				return io.EOF
			}
			s.raw, s.chunk = rest, int(n)+2
		}
		n := min(s.chunk, len(s.raw))
		if n == 0 {
			return nil
		}
		s.text = append(s.text, s.raw[:min(n, max(s.chunk-2, 0))]...)
		s.raw, s.chunk = s.raw[n:], s.chunk-n
	}
}

// events takes the whole events out of the text; comments and what is for reconnecting are none.
func (s *stream) events() (all []told, err error) {
	for {
		block, rest, whole := strings.Cut(string(s.text), "\n\n")
		if !whole {
			return all, nil
		}
		s.text = []byte(rest)
		var e told
		for line := range strings.Lines(block) {
			field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch field {
			case "id":
				if e.seq, err = strconv.ParseInt(value, 10, 64); err != nil {
					return nil, err
				}
			case "event":
				e.kind = value
			case "data":
				e.data = []byte(value)
			}
		}
		if e.kind != "" {
			all = append(all, e)
		}
	}
}
