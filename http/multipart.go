package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/musique/musique/domain/fault"
)

const (
	// maxFormFieldBytes bounds one text field of a form.
	maxFormFieldBytes = 64 << 10
	// maxFormParts bounds the parts of a form.
	maxFormParts = 32
)

// form is a multipart form with one file (RFC 7578), read part by part: texts into memory, the file into a temporary file.
type form struct {
	fields  map[string]string
	given   map[string]bool
	file    *os.File // nil if no file came; at its beginning
	size    int64
	sha256  string // of the file, lower-case hex
	failed  fault.Fields
	folder  string
	fileMax int64
	// tooLarge says that the file has more bytes than it may; cut, that there is so much more of it that what follows was not read.
	tooLarge, cut bool
}

// formShape says what a form may hold.
type formShape struct {
	texts       []string
	file        string // the name of the file's part
	maxFileSize int64  // bytes
	folder      string // where the file is kept meanwhile; "" is the system's temporary folder
}

// readForm reads a multipart body. The caller closes the form. An error is about the body as a whole; what is wrong with
// single fields is in form.failed.
func readForm(h http.Header, body io.Reader, shape formShape) (*form, error) {
	f := &form{fields: map[string]string{}, given: map[string]bool{}, folder: shape.folder, fileMax: shape.maxFileSize}
	if err := f.read(h, body, shape); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *form) read(h http.Header, body io.Reader, shape formShape) error {
	if err := refuseCodings(h); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" {
		told := fault.New(fault.InvalidFormat, "The Content-Type must be multipart/form-data.")
		told.Status = http.StatusUnsupportedMediaType
		return told
	}
	boundary := params["boundary"]
	if boundary == "" || len(boundary) > 70 { // RFC 2046 §5.1.1
		return fault.New(fault.InvalidFormat, "The Content-Type must name the boundary of the parts.")
	}
	tail := &tailReader{r: body}
	parts := multipart.NewReader(tail, boundary)
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		// The end of the body in the right place for a part looks like the last boundary to the reader.
		if errors.Is(err, io.EOF) && tail.has("--"+boundary+"--") {
			return nil
		}
		if err != nil {
			return brokenBody(err, errBrokenForm)
		}
		if n == maxFormParts {
			return fault.New(fault.OutOfRange, "The form has more than %d parts; send those of this request only.", maxFormParts)
		}
		if name := part.FormName(); name == "" || !utf8.ValidString(name) {
			return fault.New(fault.InvalidFormat, "Part %d of the form has no name that can be read; give it one, or leave it out.", n+1)
		}
		if err := f.readPart(part, shape); err != nil || f.cut {
			return err
		}
	}
}

var errBrokenForm = fault.New(fault.InvalidFormat, "The multipart body is broken or ended early; send the request again.")

func (f *form) readPart(part *multipart.Part, shape formShape) error {
	name := part.FormName()
	switch {
	case f.given[name]:
		f.failed.Add(name, fault.InvalidFormat, "%s is given twice; give it once.", name)
		return skipPart(part)
	case name == shape.file:
		f.given[name] = true
		return f.spool(part, name)
	case slices.Contains(shape.texts, name):
		f.given[name] = true
		return f.readText(part, name)
	}
	f.given[name] = true
	f.failed.Add(name, fault.InvalidFormat, "%s is not a field of this request; remove it.", name)
	return skipPart(part)
}

func skipPart(part *multipart.Part) error {
	if _, err := io.Copy(io.Discard, part); err != nil {
		return brokenBody(err, errBrokenForm)
	}
	return nil
}

func (f *form) readText(part *multipart.Part, name string) error {
	raw, err := io.ReadAll(io.LimitReader(part, maxFormFieldBytes+1))
	if err != nil {
		return brokenBody(err, errBrokenForm)
	}
	switch {
	case len(raw) > maxFormFieldBytes:
		f.failed.Add(name, fault.OutOfRange, "%s is longer than %d bytes; shorten it.", name, maxFormFieldBytes)
		return skipPart(part)
	case !utf8.Valid(raw):
		f.failed.Add(name, fault.InvalidFormat, "%s is not UTF-8; send it in UTF-8.", name)
	default:
		f.fields[name] = string(raw)
	}
	return nil
}

// spool writes the file to disk while it arrives, and hashes it on the way.
func (f *form) spool(part *multipart.Part, name string) error {
	file, err := os.CreateTemp(f.folder, "upload-")
	if err != nil {
		return fmt.Errorf("spool an upload: %w", err)
	}
	f.file = file
	// The file has no name from here on, so that whatever ends this process leaves nothing behind.
	if err := os.Remove(file.Name()); err != nil {
		return fmt.Errorf("spool an upload: %w", err)
	}
	hash := sha256.New()
	sink := &writeError{w: file}
	f.size, err = io.Copy(io.MultiWriter(hash, sink), io.LimitReader(part, f.fileMax+1))
	switch {
	case sink.err != nil:
		return fmt.Errorf("spool an upload: %w", sink.err)
	case err != nil:
		return brokenBody(err, errBrokenForm)
	case f.size > f.fileMax:
		return f.refuseFile(part, name)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("spool an upload: %w", err)
	}
	f.sha256 = hex.EncodeToString(hash.Sum(nil))
	return nil
}

// refuseFile notes that the file is too large, before all else that is wrong, and passes over the rest of it, within bounds.
func (f *form) refuseFile(part *multipart.Part, name string) error {
	f.Close()
	f.file, f.size, f.tooLarge = nil, 0, true
	f.failed = slices.Insert(f.failed, 0, bodyTooLarge(name, f.fileMax).Fields...)
	switch _, err := io.CopyN(io.Discard, part, maxDrainBytes); {
	case err == nil:
		f.cut = true
	case !errors.Is(err, io.EOF):
		return brokenBody(err, errBrokenForm)
	}
	return nil
}

// tailBytes is more than package multipart reads ahead, so that the last boundary is among them when it stops there.
const tailBytes = 16 << 10

// tailReader remembers the last that was read.
type tailReader struct {
	r    io.Reader
	tail []byte
}

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.tail = append(t.tail, p[max(0, n-tailBytes):n]...)
	if extra := len(t.tail) - tailBytes; extra > tailBytes { // not at each read
		t.tail = append(t.tail[:0], t.tail[extra:]...)
	}
	return n, err
}

func (t *tailReader) has(text string) bool { return bytes.Contains(t.tail, []byte(text)) }

// writeError remembers that it was the disk and not the network that ended a copy.
type writeError struct {
	w   io.Writer
	err error
}

func (w *writeError) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// err is every failing field as one error, or nil; if one failed, check's findings are among them.
func (f *form) err(check func(*fault.Fields)) error {
	if len(f.failed) == 0 {
		return nil
	}
	merge(&f.failed, func(fields *fault.Fields) {
		check(fields)
		if f.cut { // what was not read may have been there
			*fields = slices.DeleteFunc(*fields, func(found fault.Field) bool { return !f.given[found.Param] })
		}
	})
	err := f.failed.Err()
	if told, ok := errors.AsType[*fault.Error](err); ok && f.tooLarge {
		told.Status = http.StatusRequestEntityTooLarge
	}
	return err
}

// Close gives the file's space back.
func (f *form) Close() {
	if f.file != nil {
		f.file.Close()
	}
}
