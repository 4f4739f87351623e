package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/klauspost/compress/gzhttp/writer/gzkp"

	"github.com/musique/musique/infra/csv"
)

// csvFile is an answer in CSV (RFC 4180) that goes out while it is made, so that its size does not matter. Who gets a part of it has to know that it is one: a
// failure amid it ends the connection, and the answer has no end then.
type csvFile struct {
	call *call
	rows bytes.Buffer // that did not go out yet
	out  io.Writer    // the caller, or a coding before it
	pack interface {
		io.Writer
		Flush() error
		Close() error
	} // nil if it goes out as it is
}

// csv begins an answer in CSV with its header line. Nothing goes out before send.
func (c *call) csv(filename string, columns []string) *csvFile {
	h := c.w.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8; header=present")
	h.Set("Content-Disposition", `attachment; filename="`+filename+`"`)
	h.Set("Cache-Control", "no-store") // one company's data, without a tag to ask by whether it is still right
	h.Set("Vary", c.varies())
	h.Set("X-Content-Type-Options", "nosniff")
	f := &csvFile{call: c, out: c.w}
	if prefersGzip(c.r.Header, minPacked) { // how large it will be nobody knows
		h.Set("Content-Encoding", "gzip")
		if c.r.Method != http.MethodHead {
			f.pack = gzkp.NewWriter(c.w, packLevel)
			f.out = f.pack
		}
	}
	f.row(columns)
	return f
}

// row adds a line.
func (f *csvFile) row(cells []string) { csv.WriteRow(&f.rows, cells) }

// errCallerLeft says that nobody takes the answer any more.
var errCallerLeft = errors.New("the caller left amid the answer")

// send lets what there is go out.
func (f *csvFile) send() error {
	_, err := f.rows.WriteTo(f.out)
	if err == nil && f.pack != nil {
		err = f.pack.Flush()
	}
	if err == nil {
		err = http.NewResponseController(f.call.w).Flush()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errCallerLeft, err)
	}
	return nil
}

// end finishes the answer, or ends it without an end if it has begun and failed. An error is one that can still be answered.
func (f *csvFile) end(failed error) error {
	if failed == nil && f.pack != nil {
		if err := f.pack.Close(); err != nil {
			failed = fmt.Errorf("%w: %w", errCallerLeft, err)
		}
	}
	if failed == nil {
		return nil
	}
	if errors.Is(failed, errCallerLeft) {
		f.call.server.log.DebugContext(f.call.r.Context(), "the answer was not taken to its end", "requestId", f.call.id, "error", failed)
	} else {
		f.call.fail(failed)
	}
	panic(http.ErrAbortHandler)
}
