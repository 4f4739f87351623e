package player

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
		require.Regexp(t, "^"+program+"(, which plays wav only|$)", name(Auto))
		require.Equal(t, name(Auto), name(program))
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
		sound := Sound{File: "/audio/-x.mp3", Format: "mp3", Duration: 3 * time.Second, Volume: 40, From: 2500 * time.Millisecond}
		if name == "aplay" { // which plays nothing but WAV, and everything else as noise
			require.EqualError(t, b.Play(t.Context(), sound), "aplay plays no mp3; install mpv or ffplay")
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
	install(t, dir, "mpv", "i=0; while [ $i -lt 2000 ]; do echo line $i of a program that talks; i=$((i+1)); done; exit 1")
	err = b.Play(t.Context(), Sound{})
	require.ErrorContains(t, err, "line 1999 of a program that talks")
	require.Less(t, len(err.Error()), 3000)
}

// ffplay ends well without a sound card, and with a file that it cannot read.
func TestAProgramThatEndsTooSoonHasNotPlayed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	install(t, dir, "ffplay", "echo 'audio open failed' >&2")
	b, err := Find("ffplay")
	require.NoError(t, err)
	require.ErrorContains(t, b.Play(t.Context(), Sound{Duration: time.Minute}), "s of 60.0 s: audio open failed")
	require.NoError(t, b.Play(t.Context(), Sound{Duration: time.Minute, From: 59500 * time.Millisecond}), "of half a second nothing can be said")
	require.NoError(t, os.Remove(filepath.Join(dir, "ffplay.called")))
	require.NoError(t, b.Play(t.Context(), Sound{Duration: time.Minute, From: time.Minute}))
	require.NoFileExists(t, filepath.Join(dir, "ffplay.called"), "there is nothing left to play")
}

// The programs that this machine has, where it has any, play each format from a place within to its end.
func TestTheProgramsOfThisMachine(t *testing.T) {
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Log("there is no ffmpeg here, to make the formats with")
		return
	}
	dir := t.TempDir()
	// There is nothing to hear here: each gets a sound card that only takes as long as a real one.
	t.Setenv("SDL_AUDIODRIVER", "dummy")
	t.Setenv("MPV_HOME", dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mpv.conf"), []byte("ao=null\n"), 0o600))
	for _, name := range []string{"mpv", "ffplay"} {
		b, err := Find(name)
		if err != nil {
			t.Log(err)
			continue
		}
		var all sync.WaitGroup
		for file, format := range map[string]string{"a.mp3": "mp3", "a.wav": "wav", "a.ogg": "ogg", "a.opus.ogg": "ogg", "a.aac": "aac", "a.m4a": "aac"} {
			all.Go(func() { playsWell(t, b, ffmpeg, filepath.Join(dir, file), format) })
		}
		all.Wait()
	}
}

// playsWell plays the last two seconds of a minute. A program that does not begin there takes the whole minute.
func playsWell(t *testing.T, b Backend, ffmpeg, path, format string) {
	codec := map[string]string{"a.mp3": "libmp3lame", "a.wav": "pcm_s16le", "a.ogg": "libvorbis", "a.opus.ogg": "libopus", "a.aac": "aac", "a.m4a": "aac"}[filepath.Base(path)]
	tone := []string{"-y", "-loglevel", "error", "-f", "lavfi", "-i", "sine=frequency=440:duration=60", "-c:a", codec, path}
	if out, err := exec.Command(ffmpeg, tone...).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", path, err, out)
		return
	}
	play := func(from time.Duration) (time.Duration, error) {
		begun := time.Now()
		err := b.Play(t.Context(), Sound{File: path, Format: format, Duration: time.Minute, Volume: 50, From: from})
		return time.Since(begun), err
	}
	if took, err := play(58 * time.Second); err != nil || took < 1900*time.Millisecond || took > 30*time.Second {
		t.Errorf("%s played the last two seconds of %s for %s: %v", b.Name(), path, took, err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("no sound ", 1000)), 0o600); err != nil {
		t.Error(err)
	}
	if _, err := play(0); err == nil {
		t.Errorf("%s played %s, which has no sound", b.Name(), path)
	}
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
