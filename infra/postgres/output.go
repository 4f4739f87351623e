package postgres

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
)

const (
	// keptOutput is how much of a program's last output an error shows.
	keptOutput = 4 << 10
	// maxOutputLine bounds a line that waits for its end.
	maxOutputLine = 64 << 10
)

// output takes what a PostgreSQL program writes: it logs it line by line and keeps its end.
type output struct {
	log *slog.Logger

	mu   sync.Mutex
	tail []byte
	line []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tail = append(o.tail, p...)
	if over := len(o.tail) - keptOutput; over > 0 {
		o.tail = append(o.tail[:0], o.tail[over:]...)
	}
	o.line = append(o.line, p...)
	for {
		line, rest, ended := bytes.Cut(o.line, []byte{'\n'})
		if !ended && len(o.line) < maxOutputLine {
			return len(p), nil
		}
		o.logLine(strings.TrimSpace(string(line)))
		o.line = append(o.line[:0], rest...)
	}
}

// logLine logs one line at the level that its severity deserves here: PostgreSQL calls ERROR what one statement got as its answer, and FATAL
// what one session did; both got it as an error.
func (o *output) logLine(line string) {
	severity, message, ok := strings.Cut(line, ":  ")
	if !ok {
		severity, message = "", line
	}
	level := slog.LevelDebug
	switch severity {
	case "PANIC":
		level = slog.LevelError
	case "WARNING":
		level = slog.LevelWarn
	}
	if message != "" {
		o.log.Log(context.Background(), level, "embedded PostgreSQL: "+message)
	}
}

// String is the end of what was written.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(o.tail))
}
