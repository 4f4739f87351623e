package main

import (
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// speaker puts a player program on a PATH of its own, and gives what a player needs to find it and the file that it writes what it does into.
func (s *server) speaker(t *testing.T, script string) (env []string, log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mpv"), []byte("#!/bin/sh\ncd "+dir+"\n"+script), 0o700))
	return []string{"PATH=" + dir + ":" + os.Getenv("PATH")}, log
}

// playerOn starts the reference player of a device with a player program.
func (s *server) playerOn(t *testing.T, deviceToken, stateDir, backend string, env ...string) *process {
	t.Helper()
	cmd := exec.Command(executable(t), "player", "--server", s.url, "--backend", backend, "--state-dir", stateDir)
	cmd.Env = environment(append(env, "MUSIQUE_DEVICE_TOKEN="+deviceToken)...)
	return start(t, cmd)
}

func (a api) timesPlayed(audioID string) int {
	return want[struct{ Stats struct{ TimesPlayed int } }](a.get("/audio/"+audioID), http.StatusOK).Stats.TimesPlayed
}

// A player that is killed again and again, amid downloads, sounds and notes, plays everything, one sound at a time, and nothing that it noted as played twice.
func TestAPlayerThatIsKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	made := operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "plus")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	device, audioID, dir := partner.location("store_001"), partner.upload("Second", aSecond()), t.TempDir()
	env, log := s.speaker(t, `
[ -f playing ] && [ -e "/proc/$(cat playing)/exe" ] && echo two at the same time >>log
echo $$ >playing
echo begins >>log
sleep 1
echo ends >>log
`)
	const sounds = 5
	var sent []string
	for range sounds {
		sent = append(sent, partner.send(audioID, "store_001"))
	}
	heard := func() int {
		raw, _ := os.ReadFile(log) // there is none before the first sound
		require.NotContains(t, string(raw), "two at the same time")
		return strings.Count(string(raw), "ends")
	}
	noted := 0
	for kills := 0; kills < 30 && noted < sounds; kills++ {
		before := heard()
		p := s.playerOn(t, device, dir, "mpv", env...)
		if kills%2 == 0 { // else while it begins
			p.awaits(&p.stdout, "● connected")
		}
		select {
		case <-time.After(rand.N(1500 * time.Millisecond)):
		case <-p.ended:
			t.Fatal("it ended by itself")
		}
		p.kill()
		notedNow := strings.Count(p.stdout.String(), "✓ played")
		require.LessOrEqual(t, heard()-before, notedNow+1, "what was noted is not heard again, and of one that ended just now the note may be missing")
		noted += notedNow
	}
	last := s.playerOn(t, device, dir, "mpv", env...)
	last.awaits(&last.stdout, "● connected")
	for _, id := range sent {
		partner.awaitStatus(id, "played", "sent")
	}
	last.terminate()
	require.LessOrEqual(t, noted+strings.Count(last.stdout.String(), "✓ played"), sounds)
	require.GreaterOrEqual(t, heard(), sounds)
	require.Equal(t, sounds, partner.timesPlayed(audioID))
	require.NotContains(t, last.stderr.String(), "level=ERROR")
	s.terminate()
}

// Each device of a location plays; one that does is enough, and several are one time.
func TestSeveralPlayersAtALocation(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	made := operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "plus")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	first := partner.location("store_001")
	second := want[struct{ Token string }](partner.post("/locations/store_001/devices", object{}), http.StatusCreated).Token
	audioID := partner.upload("Second", aSecond())
	env, _ := s.speaker(t, "echo no sound card >&2; exit 1\n")

	broken := s.playerOn(t, first, t.TempDir(), "mpv", env...)
	broken.awaits(&broken.stdout, "● connected")
	sent := partner.send(audioID, "store_001")
	broken.awaits(&broken.stderr, "it could not be played; trying again.*no sound card")
	whole := s.playAt(t, second, t.TempDir())
	partner.awaitStatus(sent, "played", "sent")
	whole.awaits(&whole.stdout, "✓ played")
	broken.terminate()

	other := s.playAt(t, first, t.TempDir())
	sent = partner.send(audioID, "store_001")
	partner.awaitStatus(sent, "played", "sent")
	whole.awaits(&whole.stdout, `(?s)✓ played.*✓ played`)
	other.awaits(&other.stdout, "✓ played")
	whole.terminate()
	other.terminate()
	require.Equal(t, 2, strings.Count(whole.stdout.String(), "✓ played"))
	require.Equal(t, 1, strings.Count(other.stdout.String(), "✓ played"))
	require.Equal(t, 2, partner.timesPlayed(audioID))
	s.terminate()
}
