package player

import (
	"context"
	"fmt"
	"os/exec"
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

// killDelay is how long the output of a program that was ended is waited for.
const killDelay = time.Second

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
	// formats are what it plays; nil is all. The rest is played on the simulated clock.
	formats   []string
	arguments func(Sound) []string
}

// Name implements Backend.
func (p program) Name() string { return p.name }

// Play implements Backend.
func (p program) Play(ctx context.Context, s Sound) error {
	if p.formats != nil && !slices.Contains(p.formats, s.Format) {
		return clock{}.Play(ctx, s)
	}
	cmd := exec.CommandContext(ctx, p.name, p.arguments(s)...) //nolint:gosec // one of our own table
	// The program can be a script that runs the real one, which must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w: %s", p.name, err, strings.TrimSpace(string(out)))
}

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
