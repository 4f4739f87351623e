package player_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/player"
)

// sorted gives lines with those from i to j in order, since they happen at the same time.
func sorted(lines []string, i, j int) []string {
	if len(lines) >= j {
		slices.Sort(lines[i:j])
	}
	return lines
}

func TestNothingIsLostWhenConnectionsBreak(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		pass(5 * second)
		s.cut()
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(second)
		require.Equal(t, []string{""}, s.streams(), "the server wants its clients to wait 2 s")
		pass(5 * second)
		require.Equal(t, []string{"", "1"}, s.streams())
		require.Equal(t, []string{"one", "two"}, p.stage.heard())

		s.setDown(true)
		before := s.dialled()
		s.deliver(order{id: "dlv_3", audio: "three", length: second})
		pass(12 * time.Hour)
		dials := s.dialled() - before
		require.Greater(t, dials, 900)
		require.Less(t, dials, 1500, "the pauses grow to half a minute")
		s.setDown(false)
		pass(time.Minute)
		require.Equal(t, []string{"", "1", "2"}, s.streams())
		require.Equal(t, []string{"one", "two", "three"}, p.stage.heard())
		require.Equal(t, 2, strings.Count(p.out.String(), "the connection is gone"), "it is said once")
	})
}

// A connection that died in silence is given up after three heartbeats.
func TestSilence(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		pass(10 * time.Minute)
		require.Len(t, s.streams(), 1, "heartbeats keep it")
		s.change(func() { s.mute = true })
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		pass(time.Minute)
		s.change(func() { s.mute = false })
		pass(time.Minute)
		require.GreaterOrEqual(t, len(s.streams()), 2)
		require.Equal(t, []string{"one"}, p.stage.heard())
	})
}

func TestDuplicatesArePlayedOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		o := order{id: "dlv_1", audio: "one", length: 10 * second}
		s.deliver(o)
		s.deliver(o)
		pass(5 * second)
		s.deliver(o)
		pass(10 * second)
		s.deliver(o)
		// A server that lost its inbox makes it again from the events, and has not heard yet what was played.
		s.change(func() { clear(s.closed) })
		p.end()
		require.NoError(t, forgetPlace(p))
		p.start()
		s.deliver(o)
		pass(time.Minute)
		require.Equal(t, []string{"", ""}, s.streams())
		require.Equal(t, []string{"one"}, p.stage.heard())
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_1 played"}, s.told())
	})
}

// forgetPlace makes the player's next stream begin anew.
func forgetPlace(p *shop) error {
	file := filepath.Join(p.options.StateDir, "state.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, _ := strings.Cut(string(raw), `"lastEventId":"`)
	_, after, _ := strings.Cut(rest, `"`)
	return os.WriteFile(file, []byte(before+`"lastEventId":""`+after), 0o600)
}

func TestARestartGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second, repeat: 2})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(14 * second)
		p.end()
		s.deliver(order{id: "dlv_3", audio: "three", priority: "high", length: second})
		p.start()
		pass(time.Minute)
		require.Equal(t, []string{"one", "one!", "one", "three", "two"}, p.stage.heard())
		require.Equal(t, 4*second, p.stage.performances()[2].From)
		require.Equal(t, 1, s.downloaded("one"))
		require.Equal(t, []string{
			"dlv_1 delivered", "dlv_1 playing", "dlv_2 delivered", "dlv_3 delivered", "dlv_1 played", "dlv_3 playing", "dlv_3 played", "dlv_2 playing", "dlv_2 played",
		}, sorted(s.told(), 1, 3))
	})
}

// The disk of a player whose supply was cut is what it was at that moment.
func TestAPlayerWhoseSupplyWasCut(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second, repeat: 3})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(14 * second)
		disk := t.TempDir()
		require.NoError(t, os.CopyFS(disk, os.DirFS(p.options.StateDir)))
		p.end()
		require.NoError(t, os.WriteFile(filepath.Join(disk, ".new-123"), []byte(`{"half`), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(disk, "audio", ".new-456"), []byte("half"), 0o600))

		next := newShop(t, s)
		next.options.StateDir = disk
		next.start()
		pass(time.Minute)
		require.Equal(t, []string{"one", "one", "two"}, next.stage.heard(), "the round is played anew, those before it are not")
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_2 delivered", "dlv_1 played", "dlv_2 playing", "dlv_2 played"}, sorted(s.told(), 1, 3))
		left, err := filepath.Glob(filepath.Join(disk, "{,audio/}.new-*"))
		require.NoError(t, err)
		require.Empty(t, left)
		require.NoFileExists(t, filepath.Join(disk, ".new-123"))
		require.NoFileExists(t, filepath.Join(disk, "audio", ".new-456"))
	})
}

// How far a sound has come is noted every few seconds.
func TestASoundThatWasCutOffResumes(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: 30 * second, repeat: 2})
		pass(47 * second) // 17 into the second round
		disk := t.TempDir()
		require.NoError(t, os.CopyFS(disk, os.DirFS(p.options.StateDir)))
		p.end()
		next := newShop(t, s)
		next.options.StateDir = disk
		next.start()
		pass(time.Minute)
		played := next.stage.performances()
		require.Len(t, played, 1)
		require.Equal(t, 15*second, played[0].From)
		require.True(t, played[0].Whole)
	})
}

// Audio that waits for its time is looked at again before it, since cheap memory cards forget.
func TestAudioThatSpoiltWhileItWaitedIsFetchedAgain(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		noon := time.Now().Add(12 * time.Hour)
		s.deliver(order{id: "dlv_1", audio: "noon", length: second, playAt: noon})
		s.deliver(order{id: "dlv_2", audio: "good", length: second, playAt: noon})
		pass(time.Hour)
		file := filepath.Join(p.options.StateDir, "audio", digest([]byte("the sound of noon"))+".mp3")
		require.NoError(t, os.WriteFile(file, []byte("the sound of nowt"), 0o600))
		pass(12 * time.Hour)
		require.ElementsMatch(t, []string{"noon", "good"}, p.stage.heard())
		require.Equal(t, noon, p.stage.performances()[0].Begun)
		require.Equal(t, []int{2, 1}, []int{s.downloaded("noon"), s.downloaded("good")})
		require.Contains(t, p.out.String(), "audio on the disk is not what it was; fetching it again")
	})
}

// What was fetched before the server went away plays at its time, whatever else happens to the player, and the server learns of it when it is back.
func TestTheServerIsAwayForDays(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		begun := time.Now()
		var want []string
		for day := range 5 {
			id := fmt.Sprint("dlv_", day)
			want = append(want, id+" delivered", id+" playing", id+" played")
			s.deliver(order{id: id, audio: fmt.Sprint("day ", day), length: 10 * second, playAt: begun.Add(time.Duration(day*24+12) * time.Hour), life: 7 * 24 * time.Hour})
		}
		pass(time.Minute)
		s.setDown(true)
		pass(36 * time.Hour)
		p.end() // the machine is started again meanwhile
		pass(time.Hour)
		p.start()
		pass(5 * 24 * time.Hour)
		require.Equal(t, []string{"day 0", "day 1", "day 2", "day 3", "day 4"}, p.stage.heard())
		for day, played := range p.stage.performances() {
			require.Equal(t, begun.Add(time.Duration(day*24+12)*time.Hour), played.Begun)
		}
		require.Len(t, s.told(), 5, "that they were delivered")
		s.setDown(false)
		pass(2 * time.Minute)
		require.ElementsMatch(t, want, s.told())
		require.Equal(t, "dlv_4 played", s.last().String())
		require.Equal(t, begun.Add(108*time.Hour+10*second).UTC(), s.last().At, "the time is that of the sound, not of the report")
		require.Less(t, len(p.out.String()), 10_000, "days without a server are no reason to talk")
	})
}

// What had begun and expired while the player was off is not played, and the server learns why.
func TestExpiryWhileThePlayerIsOff(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second, life: time.Minute})
		s.deliver(order{id: "dlv_2", audio: "two", length: 10 * second, life: time.Minute})
		pass(5 * second)
		p.end()
		pass(time.Hour)
		p.start()
		pass(second)
		require.Equal(t, []string{"one!"}, p.stage.heard())
		require.Equal(t, "dlv_1 failed", s.last().String())
		require.Contains(t, s.last().Reason, "expired")
	})
}

func TestReportsWaitForTheServer(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		tries := 0
		refuse := func(status int, body string) {
			s.answer(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPost {
					return false
				}
				tries++
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
				return true
			})
		}
		unavailable := `{"error":{"code":"service_unavailable"}}`
		refuse(http.StatusServiceUnavailable, unavailable)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		played := time.Now()
		pass(time.Minute)
		require.Equal(t, []string{"one"}, p.stage.heard())
		require.Greater(t, tries, 4)
		require.Less(t, tries, 12)
		p.end()

		// A network that wants its guests to see a page first is not the server, whatever it answers.
		for _, status := range []int{http.StatusOK, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusBadRequest} {
			refuse(status, "<html>Welcome! Please accept our terms.</html>")
			p.start()
			pass(time.Minute)
			p.end()
			require.Empty(t, s.told())
		}
		refuse(http.StatusTooManyRequests, `{"error":{"code":"rate_limit_exceeded"}}`)
		p.start()
		pass(time.Minute)
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(time.Minute)
		require.Empty(t, s.told())
		s.answer(nil)
		pass(time.Minute)
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_1 played", "dlv_2 delivered", "dlv_2 playing", "dlv_2 played"}, s.told())
		require.WithinDuration(t, played, s.reports[0].At, second, "a report says when it happened, not when it got through")
	})
}

// A report that the server will never take is not in the way of the others.
func TestReportsThatTheServerDoesNotTake(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		s.answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "dlv_1") {
				return false
			}
			fail(w, http.StatusNotFound, "not_found")
			return true
		})
		pass(5 * second)
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(5 * second)
		require.Equal(t, []string{"dlv_2 delivered", "dlv_2 playing", "dlv_2 played"}, s.told())
		require.Contains(t, p.out.String(), "the server does not take a report")
	})
}

func TestSignedOut(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := newShop(t, s)
		p.options.DeviceToken = "dev_unknown"
		p.start()
		require.ErrorIs(t, p.exit(), player.ErrSignedOut)

		p.options.DeviceToken = deviceToken
		refuse := func(w http.ResponseWriter, _ *http.Request) bool {
			fail(w, http.StatusUnauthorized, "invalid_token")
			return true
		}
		p.start()
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second})
		pass(5 * second)
		s.answer(refuse) // the device is revoked,
		s.cut()          // which closes its stream
		require.ErrorIs(t, p.exit(), player.ErrSignedOut)
		require.Equal(t, []string{"one!"}, p.stage.heard())

		s.answer(nil)
		p.start()
		pass(second)
		s.answer(refuse) // a report is the first to notice
		require.ErrorIs(t, p.exit(), player.ErrSignedOut)
		require.Equal(t, []string{"one!", "one"}, p.stage.heard())
		s.answer(nil)
		p.start()
		pass(second)
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_1 played"}, s.told(), "what could not be told then is told later")
	})
}

// What stands between the player and the server can refuse as well, and that ends.
func TestStrangersThatAnswerInTheServersPlace(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := newShop(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		for _, status := range []int{http.StatusOK, http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusNotFound} {
			s.answer(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Type", "text/html")
				w.WriteHeader(status)
				_, _ = w.Write([]byte("<html>id: 7\n\n</html>"))
				return true
			})
			p.start()
			pass(time.Minute)
			p.end()
		}
		require.NotContains(t, p.out.String(), "connected to")
		require.Equal(t, 5, strings.Count(p.out.String(), "no connection to http://station.example: "), "it is said once in each run")
		s.answer(nil)
		p.start()
		pass(5 * second)
		require.Equal(t, []string{"one"}, p.stage.heard())
	})
}

// URLs are signed, and end: a new key, or another address of the server. The player gets new ones.
func TestURLsThatAreNotValidAnyMore(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := newShop(t, s)
		s.answer(func(w http.ResponseWriter, r *http.Request) bool { // no audio gets through
			if strings.HasPrefix(r.URL.Path, "/media/") {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return false
		})
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		p.start()
		pass(second)
		p.end()
		s.change(func() { s.signature++ })
		s.answer(nil)
		p.start()
		pass(time.Minute)
		require.ElementsMatch(t, []string{"one", "two"}, p.stage.heard())
		streams := s.streams()
		require.Contains(t, streams, "2", "the place in the stream is kept meanwhile")
		s.cut()
		pass(10 * second)
		require.Equal(t, "2", s.streams()[len(streams)])
	})
}

// A place that the server does not take, because it is another server's, is given up.
func TestAPlaceThatTheServerDoesNotTake(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := newShop(t, s)
		p.start()
		s.event("greeting", "", func() []byte { return []byte("hello") })
		pass(second)
		p.end()
		file := filepath.Join(p.options.StateDir, "state.json")
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(raw), `"lastEventId":"1"`)
		require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(raw), `"lastEventId":"1"`, `"lastEventId":"offset-7"`, 1)), 0o600))
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		p.start()
		pass(10 * second)
		require.Equal(t, []string{"one"}, p.stage.heard())
	})
}

// A Raspberry Pi does not know what time it is until somebody tells it.
func TestTheServersClockCounts(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		years := 26 * 365 * 24 * time.Hour
		s.change(func() { s.offset = years })
		p := opened(t, s)
		nine := s.now().Add(time.Hour)
		s.deliver(order{id: "dlv_1", audio: "nine", length: second, playAt: nine, life: 2 * time.Hour})
		s.deliver(order{id: "dlv_2", audio: "now", length: second, life: 10 * second})
		pass(2 * time.Hour)
		require.Equal(t, []string{"now", "nine"}, p.stage.heard())
		// HTTP tells whole seconds.
		require.WithinDuration(t, nine, p.stage.performances()[1].Begun.Add(years), second)
		require.WithinDuration(t, nine.Add(second), s.last().At, second)
	})
}

// Until the server has said what time it is, nothing is given up for its time.
func TestAClockThatIsAheadAtStart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second, playAt: s.now().Add(time.Minute), life: time.Hour})
		pass(second)
		p.end()
		s.setDown(true)
		pass(24 * time.Hour)
		s.change(func() { s.offset = -24 * time.Hour })
		p.start()
		pass(time.Hour - 5*time.Minute)
		require.Empty(t, p.stage.heard())
		s.setDown(false)
		pass(time.Minute)
		require.Equal(t, []string{"one"}, p.stage.heard())
		require.Equal(t, "dlv_1 played", s.last().String())
	})
}
