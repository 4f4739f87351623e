package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/musique/musique/projections"
)

// rebuildOf tells how a projection and its rebuild are doing.
func rebuildOf(ctx context.Context, ops opsClient, name string) (projections.Status, json.RawMessage, error) {
	var raws []json.RawMessage
	if _, err := ops.call(ctx, http.MethodGet, "/ops/projections", nil, &raws); err != nil {
		return projections.Status{}, nil, err
	}
	var names []string
	for _, raw := range raws {
		var p projections.Status
		if err := json.Unmarshal(raw, &p); err != nil {
			return projections.Status{}, nil, err
		}
		if p.Name == name {
			return p, raw, nil
		}
		names = append(names, p.Name)
	}
	return projections.Status{}, nil, fmt.Errorf("there is no projection %q; there are %s", name, strings.Join(names, ", "))
}

// rebuildWatch shows how a rebuild gets on: a bar on a terminal, a line now and then otherwise.
type rebuildWatch struct {
	ops      opsClient
	name     string
	before   int64 // how many rebuilds there were
	out      io.Writer
	terminal bool
	began    time.Time

	first     float64 // percent when it was first seen
	firstAt   time.Time
	lastLine  time.Time
	lastError string
}

type rebuilt struct {
	status projections.Status
	raw    json.RawMessage
}

// run waits until the rebuild has ended, or ctx does.
func (w *rebuildWatch) run(ctx context.Context) (rebuilt, error) {
	if w.terminal {
		defer fmt.Fprintln(w.out)
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	heard := time.Now()
	for {
		status, raw, err := rebuildOf(ctx, w.ops, w.name)
		switch {
		case err != nil && time.Since(heard) > patienceWithServer:
			return rebuilt{}, fmt.Errorf("the server does not tell how far the rebuild is, which goes on when the server is back: %w", err)
		case err == nil && status.Rebuild == nil && status.Rebuilds > w.before:
			return rebuilt{status, raw}, nil
		case err == nil && status.Rebuild != nil && status.Rebuild.State == projections.StatePaused:
			return rebuilt{}, fmt.Errorf("somebody paused the rebuild at %.1f %%; the same command goes on from there", status.Rebuild.Percent)
		case err == nil && status.Rebuild != nil:
			w.show(status.Rebuild)
		}
		if err == nil {
			heard = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return rebuilt{}, ctx.Err()
		}
	}
}

func (w *rebuildWatch) show(r *projections.RebuildStatus) {
	now := time.Now()
	if w.firstAt.IsZero() || r.Percent < w.first {
		w.first, w.firstAt = r.Percent, now
	}
	text := amount(r)
	if left, known := timeLeft(w.first, r.Percent, now.Sub(w.firstAt)); known {
		text += ", " + left.Round(time.Second).String() + " left"
	}
	if r.Error != w.lastError {
		if w.lastError = r.Error; r.Error != "" {
			w.end()
			fmt.Fprintf(w.out, "it stands still, and tries again until it works or the event is skipped: %s\n", r.Error)
		}
	}
	switch {
	case w.terminal:
		fmt.Fprintf(w.out, "\r%s %s\x1b[K", bar(r.Percent), text) // ECMA-48 §8.3.41: erases what was longer
	case now.Sub(w.lastLine) >= lineEvery:
		w.lastLine = now
		fmt.Fprintf(w.out, "%s: %s\n", w.name, text)
	}
}

// end ends the line that the bar is in.
func (w *rebuildWatch) end() {
	if w.terminal {
		fmt.Fprintln(w.out)
	}
}

// timeLeft is how long the rest takes if it goes on as it went.
func timeLeft(first, percent float64, took time.Duration) (left time.Duration, known bool) {
	if percent <= first || took <= 0 {
		return 0, false
	}
	return time.Duration(float64(took) * (100 - percent) / (percent - first)), true
}

func bar(percent float64) string {
	full := min(max(int(percent/100*barWidth), 0), barWidth)
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "]"
}

// isTerminal reports whether somebody looks at a writer.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
