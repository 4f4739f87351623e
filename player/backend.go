package player

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Sound is what a backend plays.
type Sound struct {
	File     string
	Format   string
	Duration time.Duration
	// Volume is in percent.
	Volume int
	// From is where to begin, after an interruption.
	From time.Duration
}

// Backend makes sounds.
type Backend interface {
	// Play plays to the end, or until ctx ends.
	Play(ctx context.Context, s Sound) error
	// Name says what plays, for people.
	Name() string
}

// Backends are the names that Find knows; Auto is the first of the others that the machine has, or the simulated clock.
const (
	Auto      = "auto"
	Simulated = "simulated"
)

// programs are the player programs in the order of preference, each with its arguments for a sound.
var programs = []program{
	{"mpv", nil, func(s Sound) []string {
		return []string{"--no-video", "--really-quiet", "--no-terminal", "--volume=" + strconv.Itoa(s.Volume), "--start=" + seconds(s.From), "--", s.File}
	}},
	{"ffplay", nil, func(s Sound) []string {
		return []string{"-nodisp", "-autoexit", "-loglevel", "error", "-volume", strconv.Itoa(s.Volume), "-ss", seconds(s.From), "-i", s.File}
	}},
	// aplay knows neither a place to begin at nor a volume; an interrupted sound begins anew.
	{"aplay", []string{"wav"}, func(s Sound) []string { return []string{"-q", "--", s.File} }},
}

const (
	// killDelay is how long the output of a program that was ended is waited for.
	killDelay = time.Second
	// restBytes is how much of a program's output is kept: its end says why it failed.
	restBytes = 2 << 10
	// inaudible is the rest of a sound that no program is started for: some take it for an error to begin so close to the end.
	inaudible = 100 * time.Millisecond
	// tellingLength is the length from which on a program that ends before half of it cannot have played it: ffplay ends well without a sound card, and when
	// it cannot read a file.
	tellingLength = time.Second
)

// Find gives a backend by its name: auto, simulated, or one of the programs.
func Find(name string) (Backend, error) {
	if name == Simulated {
		return clock{}, nil
	}
	for _, p := range programs {
		if name != Auto && name != p.name {
			continue
		}
		if _, err := exec.LookPath(p.name); err == nil {
			return p, nil
		} else if name == p.name {
			return nil, fmt.Errorf("%s is not installed here", name)
		}
	}
	if name != Auto {
		return nil, fmt.Errorf("there is no backend %q; choose from auto, mpv, ffplay, aplay, simulated", name)
	}
	return clock{}, nil
}

// program is a player program of the machine.
type program struct {
	name string
	// formats are what it plays; nil is all.
	formats   []string
	arguments func(Sound) []string
}

// Name implements Backend.
func (p program) Name() string {
	if p.formats == nil {
		return p.name
	}
	return fmt.Sprintf("%s, which plays %s only (mpv and ffplay play every format)", p.name, strings.Join(p.formats, ", "))
}

// Play implements Backend.
func (p program) Play(ctx context.Context, s Sound) error {
	if p.formats != nil && !slices.Contains(p.formats, s.Format) {
		return fmt.Errorf("%s plays no %s; install mpv or ffplay", p.name, s.Format)
	}
	length := s.Duration - s.From
	if s.From > 0 && length < inaudible {
		return nil
	}
	cmd := exec.CommandContext(ctx, p.name, p.arguments(s)...) //nolint:gosec // one of our own table
	cmd.SysProcAttr = endsWithUs()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	started := time.Now()
	// The kernel ends the program with the thread that started it, which must last as long as the program.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	took := time.Since(started)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("%s: %w: %s", p.name, err, out)
	case length >= tellingLength && took < length/2:
		return fmt.Errorf("%s ended after %.1f s of %.1f s: %s", p.name, took.Seconds(), length.Seconds(), out)
	}
	return nil
}

// tail keeps the end of what is written.
type tail struct{ rest []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.rest = append(t.rest, p...)
	if extra := len(t.rest) - restBytes; extra > 0 {
		t.rest = append(t.rest[:0], t.rest[extra:]...)
	}
	return len(p), nil
}

// String implements fmt.Stringer.
func (t *tail) String() string { return strings.TrimSpace(string(t.rest)) }

// clock plays nothing for as long as the sound lasts.
type clock struct{}

// Name implements Backend.
func (clock) Name() string { return "a simulated clock (no mpv, ffplay or aplay is used)" }

// Play implements Backend.
func (clock) Play(ctx context.Context, s Sound) error {
	timer := time.NewTimer(s.Duration - s.From)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }
