package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/musique/musique/infra/csv"
	"github.com/musique/musique/infra/eventstore"
)

// writtenEvent is an event as NDJSON has it. Data and metadata are as they are stored, but for blanks between what they say.
type writtenEvent struct {
	Position   uint64          `json:"position"`
	Prepare    *uint64         `json:"preparePosition,omitempty"` // where it differs
	ID         string          `json:"id"`
	Recorded   string          `json:"recorded"`
	Type       string          `json:"type"`
	Stream     string          `json:"stream"`
	Revision   uint64          `json:"revision"`
	Data       json.RawMessage `json:"data,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	DataBase64 string          `json:"dataBase64,omitempty"` // of data that is no JSON
	MetaBase64 string          `json:"metadataBase64,omitempty"`
}

// recordedFormat is RFC 3339 with all digits that the store keeps, so that times sort as texts do.
const recordedFormat = "2006-01-02T15:04:05.0000000Z07:00"

// eventColumns are the columns of an event in CSV.
var eventColumns = []string{"position", "id", "recorded", "type", "stream", "revision", "company", "environment", "actor", "requestId", "data", "metadata"}

// eventWriter writes events in a format: text, json, ndjson (which is the same) or csv.
type eventWriter struct {
	format string
	out    *bufio.Writer
	line   bytes.Buffer
}

func newEventWriter(out io.Writer, format string) *eventWriter {
	return &eventWriter{format: format, out: bufio.NewWriter(out)}
}

// begin writes what comes before the first event.
func (w *eventWriter) begin() error {
	if w.format != "csv" {
		return nil
	}
	w.line.Reset()
	csv.WriteRow(&w.line, eventColumns)
	_, err := w.out.Write(w.line.Bytes())
	return err
}

func (w *eventWriter) write(e eventstore.Stored) error {
	w.line.Reset()
	recorded := e.Created.Format(recordedFormat)
	switch w.format {
	case "csv":
		m := e.Metadata
		csv.WriteRow(&w.line, []string{
			formatPosition(e.Position), e.ID.String(), recorded, e.Type, e.Stream, strconv.FormatUint(e.Revision, 10), m.CompanyID, string(m.Environment), m.Actor, m.RequestID,
			string(e.Data), string(e.RawMetadata),
		})
	case "text":
		fmt.Fprintf(&w.line, "%s %s %s %d@%s", recorded, formatPosition(e.Position), printable(e.Type), e.Revision, printable(e.Stream))
		for _, word := range []string{e.Metadata.CompanyID, string(e.Metadata.Environment), e.Metadata.Actor} {
			if word != "" {
				fmt.Fprintf(&w.line, " %s", printable(word))
			}
		}
		w.line.WriteByte('\n')
	default:
		written := writtenEvent{Position: e.Position.Commit, ID: e.ID.String(), Recorded: recorded, Type: e.Type, Stream: e.Stream, Revision: e.Revision}
		if e.Position.Prepare != e.Position.Commit {
			written.Prepare = &e.Position.Prepare
		}
		written.Data, written.DataBase64 = asJSON(e.Data)
		written.Metadata, written.MetaBase64 = asJSON(e.RawMetadata)
		encoder := json.NewEncoder(&w.line)
		encoder.SetEscapeHTML(false) // what is stored stays as it is
		if err := encoder.Encode(written); err != nil {
			return err
		}
	}
	_, err := w.out.Write(w.line.Bytes())
	return err
}

func (w *eventWriter) flush() error { return w.out.Flush() }

// printable keeps what stands in an event from steering a terminal.
func printable(text string) string {
	quoted := strconv.Quote(text)
	if quoted == `"`+text+`"` {
		return text
	}
	return quoted
}

// asJSON gives a text as JSON if it is, else in base64.
func asJSON(text []byte) (json.RawMessage, string) {
	if len(text) == 0 {
		return nil, ""
	}
	if json.Valid(text) {
		return text, ""
	}
	return nil, base64.StdEncoding.EncodeToString(text)
}

// exportFile is where an export goes: standard output, or a file that has its name once it is whole.
type exportFile struct {
	out   io.Writer
	file  *os.File // nil for standard output
	name  string
	hash  hash.Hash
	bytes int64
}

func openExport(stdout io.Writer, name string) (*exportFile, error) {
	to := &exportFile{out: stdout, name: name, hash: sha256.New()}
	if name == "" {
		return to, nil
	}
	file, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return nil, fmt.Errorf("--file: %w", err)
	}
	to.file, to.out = file, file
	return to, nil
}

// Write implements io.Writer.
func (x *exportFile) Write(p []byte) (int, error) {
	n, err := x.out.Write(p)
	x.hash.Write(p[:n])
	x.bytes += int64(n)
	return n, err
}

func (x *exportFile) sum() string { return hex.EncodeToString(x.hash.Sum(nil)) }

// end gives the file its name, or removes it where the export failed.
func (x *exportFile) end(failed error) error {
	if x.file == nil {
		return failed
	}
	if failed == nil {
		failed = x.file.Sync()
	}
	failed = errors.Join(failed, x.file.Close())
	if failed == nil {
		failed = os.Rename(x.file.Name(), x.name)
	}
	if failed != nil {
		return errors.Join(failed, os.Remove(x.file.Name()))
	}
	return nil
}
