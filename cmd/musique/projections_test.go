package main

import (
	"bytes"
	"log/slog"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections"
)

// unreadable is an event whose data its own type cannot be read from.
type unreadable struct{}

func (unreadable) EventType() string            { return audio.Uploaded{}.EventType() }
func (unreadable) MarshalJSON() ([]byte, error) { return []byte(`{"audioId": 5}`), nil }

// An event that cannot be applied stops one projection, and a rebuild of it, which Ctrl-C pauses and kill -9 of the server does not lose; and with the event
// skipped both go on.
func TestProjectionCommands(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serveOn(t, dir)
	partner := s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme").CompanyToken, "store_001")
	require.Equal(t, "healthy", want[struct{ Status string }](partner.get("/health"), http.StatusOK).Status)
	stdout, _, code := musique(t, "projections", "rebuild", "tokens", "--ops-addr", s.ops)
	require.Equal(t, 0, code)
	require.Regexp(t, `^tokens is rebuilt: \d+ events in \d+s\n$`, stdout)
	partner.get("/audio") // the token is known to what was rebuilt

	store, err := eventstore.Open(s.awaits(&s.stderr, `"eventstore":"(esdb://[^"]+)"`)[1], slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	id := uuid.New()
	_, err = store.Append(t.Context(), "audio-unreadable", eventstore.Any, event.Proposed{ID: id, Payload: unreadable{}, Metadata: event.Metadata{Time: time.Now()}})
	require.NoError(t, err)
	require.NoError(t, store.Close())
	of := func(name string) (found projections.Status) {
		for _, p := range operator[[]projections.Status](s, "projections", "status") {
			if p.Name == name {
				found = p
			} else if name == projections.Audio && p.Name != projections.Audit { // which follows the event, too
				require.Empty(t, p.Error, "the others go on")
			}
		}
		return found
	}
	require.Eventually(t, func() bool { return of(projections.Audio).State == projections.StateStopped }, patience, 100*time.Millisecond)
	require.Equal(t, id.String(), of(projections.Audio).FailingEvent.ID)
	require.Eventually(t, func() bool { return of(projections.Tokens).State == projections.StateLive }, patience, 100*time.Millisecond, "it leads again after its rebuild")
	require.Equal(t, "degraded", want[struct{ Status string }](partner.get("/health"), http.StatusOK).Status)
	stdout, _, code = musique(t, "projections", "status", "--ops-addr", s.ops)
	require.Equal(t, 0, code)
	require.Regexp(t, `(?m)^PROJECTION +VERSION +REBUILDS +STATE +POSITION +LAG +BEHIND +EVENTS +RATE$`, stdout)
	require.Regexp(t, `(?m)^tokens +\d+ +1 +live `, stdout)
	require.Regexp(t, `(?m)^audio stands still since \S+: event `+id.String()+` \(AudioUploaded 0@audio-unreadable\)`, stdout)

	rebuild := launch(t, "projections", "rebuild", "audio", "--ops-addr", s.ops)
	rebuild.awaits(&rebuild.stderr, `it stands still, and tries again until it works or the event is skipped: event `+id.String())
	require.NoError(t, rebuild.Process.Signal(syscall.SIGINT))
	require.Equal(t, 1, rebuild.exit())
	require.Contains(t, rebuild.stderr.String(), "the rebuild is paused; the same command goes on from where it is")
	require.Equal(t, projections.StatePaused, of(projections.Audio).Rebuild.State)

	rebuild = launch(t, "projections", "rebuild", "audio", "--ops-addr", s.ops, "--detach")
	require.Equal(t, 0, rebuild.exit())
	s.kill()
	s = serveOn(t, dir)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"skip", "audio"}, "--event is required"},
		{[]string{"skip", "audio", "--event", "5"}, "UUID"},
		{[]string{"skip", "audio", "--event", uuid.NewString()}, "(conflict)"},
		{[]string{"skip", "nothing", "--event", id.String()}, "(not_found)"},
		{[]string{"rebuild", "nothing"}, `there is no projection "nothing"; there are tokens, locations, audio, sends, usage`},
	} {
		_, stderr, code := musique(t, append(append([]string{"projections"}, c.args...), "--ops-addr", s.ops)...)
		require.Equal(t, 1, code, c.args)
		require.Contains(t, stderr, c.says)
	}
	require.Equal(t, id.String(), operator[projections.Skipped](s, "projections", "skip", "audio", "--event", id.String(), "--reason", "a test wrote it").ID)
	done := operator[projections.Status](s, "projections", "rebuild", "audio")
	require.EqualValues(t, 1, done.Rebuilds)
	require.Len(t, done.Skipped, 1)
	require.Contains(t, done.Skipped[0].SkippedBy, "@")
	require.Equal(t, "a test wrote it", done.Skipped[0].Reason)
	require.Equal(t, id.String(), operator[projections.Skipped](s, "projections", "skip", "audit", "--event", id.String()).ID)
	live := func() bool {
		return of(projections.Audio).State == projections.StateLive && of(projections.Audit).State == projections.StateLive
	}
	require.Eventually(t, live, patience, 100*time.Millisecond)
	require.Equal(t, "healthy", want[struct{ Status string }](partner.on(s).get("/health"), http.StatusOK).Status)
}

func TestRebuildProgress(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := &rebuildWatch{name: "audio", out: &out, terminal: true}
	show := func(percent float64, failure string) string {
		out.Reset()
		w.show(&projections.RebuildStatus{Percent: percent, Progress: projections.Progress{Events: 10, Rate: 5, Error: failure}})
		return out.String()
	}
	require.Equal(t, "\r[------------------------------] 10 events, 0.0 %, 5 events/s\x1b[K", show(0, ""))
	require.Regexp(t, `^\r\[###############-+\] 10 events, 50\.0 %, 5 events/s, \S+ left\x1b\[K$`, show(50, ""))
	require.Contains(t, show(50, "event X"), "it stands still")
	require.NotContains(t, show(50, "event X"), "it stands still", "that is said once")
	require.Contains(t, show(100, ""), "[##############################]")

	w = &rebuildWatch{name: "audio", out: &out}
	require.Equal(t, "audio: 10 events, 20.0 %, 5 events/s\n", show(20, ""))
	require.Empty(t, show(21, ""), "a line now and then")

	left, known := timeLeft(10, 60, time.Minute)
	require.True(t, known)
	require.Equal(t, 48*time.Second, left)
	_, known = timeLeft(10, 10, time.Minute)
	require.False(t, known)
}
