package player

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests put player programs of their own on the PATH, so they are alone in it.

// install makes a program that says how it was called and then does what script says.
func install(t *testing.T, dir, name, script string) {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\" >"+path+".called\n"+script+"\n"), 0o700))
}

func called(t *testing.T, dir, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name+".called"))
	require.NoError(t, err)
	return strings.Join(strings.Split(strings.TrimSpace(string(raw)), "\n"), " ")
}

func TestTheFirstProgramThatTheMachineHas(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	name := func(backend string) string {
		b, err := Find(backend)
		require.NoError(t, err)
		return b.Name()
	}
	require.Contains(t, name(Auto), "a simulated clock")
	_, err := Find("mpv")
	require.ErrorContains(t, err, "mpv is not installed here")
	_, err = Find("gramophone")
	require.ErrorContains(t, err, `there is no backend "gramophone"; choose from auto, mpv, ffplay, aplay, simulated`)
	for _, program := range []string{"aplay", "ffplay", "mpv"} { // the best one last
		install(t, dir, program, "")
		require.Equal(t, program, name(Auto))
		require.Equal(t, program, name(program))
	}
	require.Contains(t, name(Simulated), "a simulated clock")
}

func TestProgramsAreToldWhatToPlay(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for name, want := range map[string]string{
		"mpv":    "--no-video --really-quiet --no-terminal --volume=40 --start=2.500 -- /audio/-x.mp3",
		"ffplay": "-nodisp -autoexit -loglevel error -volume 40 -ss 2.500 -i /audio/-x.mp3",
		"aplay":  "-q -- /audio/-x.wav",
	} {
		install(t, dir, name, "")
		b, err := Find(name)
		require.NoError(t, err)
		sound := Sound{File: "/audio/-x.mp3", Format: "mp3", Duration: 10 * time.Millisecond, Volume: 40, From: 2500 * time.Millisecond}
		if name == "aplay" { // which plays nothing but WAV
			require.NoError(t, b.Play(t.Context(), sound))
			require.NoFileExists(t, filepath.Join(dir, "aplay.called"))
			sound.File, sound.Format = "/audio/-x.wav", "wav"
		}
		require.NoError(t, b.Play(t.Context(), sound))
		require.Equal(t, want, called(t, dir, name))
	}
}

func TestAProgramThatFailsSaysWhy(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	install(t, dir, "mpv", "echo 'no sound card' >&2; exit 3")
	b, err := Find("mpv")
	require.NoError(t, err)
	require.EqualError(t, b.Play(t.Context(), Sound{}), "mpv: exit status 3: no sound card")
}

func TestAProgramEndsWithItsChildren(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	sound := filepath.Join(dir, "sound")
	require.NoError(t, syscall.Mkfifo(sound, 0o600))
	install(t, dir, "mpv", "exec 9>"+sound+"; echo la >&9; sleep 600 & sleep 600")
	b, err := Find("mpv")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Play(ctx, Sound{}) }()
	heard, err := os.Open(sound)
	require.NoError(t, err)
	defer heard.Close()
	_, err = io.ReadFull(heard, make([]byte, len("la\n")))
	require.NoError(t, err)
	stop()
	rest, err := io.ReadAll(heard) // to the end of the last that could make a sound
	require.NoError(t, err)
	require.Empty(t, rest)
	require.ErrorIs(t, <-ended, context.Canceled)
}
