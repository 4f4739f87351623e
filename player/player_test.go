package player_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/player"
)

const second = time.Second

func TestPlaysAndReports(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		begun := time.Now()
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second, volume: 30})
		pass(11 * second)
		require.Equal(t, []performance{{"one", 0, 10 * second, 30, true, begun}}, p.stage.performances())
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_1 played"}, s.told())
		require.True(t, s.last().At.Equal(begun.Add(10*second)), s.last().At)

		s.deliver(order{id: "dlv_2", audio: "one", length: 10 * second})
		pass(11 * second)
		require.Equal(t, []string{"one", "one"}, p.stage.heard())
		require.Equal(t, 1, s.downloaded("one"), "what is there is not fetched again")
		require.Contains(t, p.out.String(), `▶ playing "one" (10.0 s) (normal, volume 30 %)`)
		require.Contains(t, p.out.String(), `✓ played "one" (10.0 s)`)
	})
}

// spoil has the station send other bytes than it promised, as long as do says so.
func spoil(s *station, do func(n int) bool) {
	n := 0
	s.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/media/") {
			return false
		}
		if n++; !do(n) {
			return false
		}
		fmt.Fprint(w, "the sound of something else")
		return true
	})
}

func TestWrongBytesAreFetchedAgain(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		spoil(s, func(n int) bool { return n <= 3 })
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(20 * second)
		require.ElementsMatch(t, []string{"one", "two"}, p.stage.heard())
		require.Contains(t, p.out.String(), "the audio's hash is "+digest([]byte("the sound of something else"))+", not "+digest([]byte("the sound of one")))
	})
}

func TestAudioThatNeverArrivesFailsWithTheReason(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		downloads := 0
		spoil(s, func(n int) bool { downloads = n; return true })
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second, life: time.Hour})
		expires := time.Now().Add(time.Hour)
		pass(2 * time.Hour)
		require.Empty(t, p.stage.heard())
		require.Equal(t, []string{"dlv_1 failed"}, s.told())
		require.Contains(t, s.last().Reason, "the audio could not be fetched: the audio's hash is")
		require.True(t, s.last().At.Before(expires), "the server has not given it up yet: the reason counts")
		require.True(t, s.last().At.After(expires.Add(-time.Minute)), "it is tried until then")
		require.Greater(t, downloads, 60)
		require.Less(t, downloads, 140, "the pauses grow to half a minute")
	})
}

func TestPriorities(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "normal 1", length: 10 * second})
		pass(second)
		s.deliver(order{id: "dlv_2", audio: "low", priority: "low", length: second})
		s.deliver(order{id: "dlv_3", audio: "normal 2", length: second})
		pass(second)
		s.deliver(order{id: "dlv_4", audio: "high", priority: "high", length: second})
		pass(2 * second)
		s.deliver(order{id: "dlv_5", audio: "urgent", priority: "urgent", length: 3 * second, volume: 90})
		pass(20 * second)
		require.Equal(t, []string{"normal 1!", "urgent", "normal 1", "high", "normal 2", "low"}, p.stage.heard())
		all := p.stage.performances()
		require.Equal(t, 4*second, all[0].Took)
		require.Equal(t, all[0].Begun.Add(4*second), all[1].Begun, "urgent interrupts at once")
		require.Equal(t, 4*second, all[2].From, "what was interrupted goes on where it was")
		require.Equal(t, 6*second, all[2].Took)
		require.False(t, p.stage.overlaps, "one sound at a time")
		require.Len(t, s.told(), 15, "playing is reported once")
	})
}

func TestUrgentWaitsForNoDownload(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		s.answer(func(w http.ResponseWriter, r *http.Request) bool { // the line is slow
			if strings.HasSuffix(r.URL.Path, digest([]byte("the sound of slow"))) {
				select {
				case <-time.After(40 * second):
				case <-r.Context().Done():
				}
			}
			return false
		})
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "slow", length: second})
		pass(second)
		s.deliver(order{id: "dlv_2", audio: "urgent", priority: "urgent", length: second})
		pass(5 * second)
		require.Equal(t, []string{"urgent"}, p.stage.heard())
		pass(time.Minute)
		require.Equal(t, []string{"urgent", "slow"}, p.stage.heard())
	})
}

func TestRepeat(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "thrice", length: 4 * second, repeat: 3})
		pass(6 * second)
		s.deliver(order{id: "dlv_2", audio: "urgent", priority: "urgent", length: second})
		pass(20 * second)
		require.Equal(t, []string{"thrice", "thrice!", "urgent", "thrice", "thrice"}, p.stage.heard())
		require.Equal(t, 2*second, p.stage.performances()[3].From)
		require.Zero(t, p.stage.performances()[4].From)
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_2 delivered", "dlv_2 playing", "dlv_2 played", "dlv_1 played"}, s.told())
	})
}

func TestPlayAt(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		noon := time.Now().Add(12 * time.Hour)
		s.deliver(order{id: "dlv_1", audio: "noon", length: second, playAt: noon})
		s.deliver(order{id: "dlv_2", audio: "now", length: second})
		pass(time.Minute)
		require.Equal(t, []string{"now"}, p.stage.heard())
		require.Equal(t, 1, s.downloaded("noon"), "it is there before its time")
		s.setDown(true)
		pass(12 * time.Hour)
		require.Equal(t, []string{"now", "noon"}, p.stage.heard())
		require.Equal(t, noon, p.stage.performances()[1].Begun)
	})
}

// Audio that waits long for its time can have made room for other audio.
func TestAudioThatMadeRoomIsFetchedAgain(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "noon", length: second, playAt: time.Now().Add(12 * time.Hour)})
		pass(time.Hour)
		require.NoError(t, os.Remove(filepath.Join(p.options.StateDir, "audio", digest([]byte("the sound of noon"))+".mp3")))
		pass(12 * time.Hour)
		require.Equal(t, []string{"noon"}, p.stage.heard())
		require.Equal(t, 2, s.downloaded("noon"))
		require.Equal(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_1 played"}, s.told())
	})
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "long", length: 100 * second, life: 50 * second})
		s.deliver(order{id: "dlv_2", audio: "brief", length: second, life: 20 * second})
		s.deliver(order{id: "dlv_3", audio: "urgent", priority: "urgent", length: 10 * second, life: 10 * second, playAt: time.Now().Add(45 * second)})
		s.deliver(order{id: "dlv_4", audio: "late", length: second, life: 20 * second, playAt: time.Now().Add(30 * second)})
		pass(200 * second)
		require.Equal(t, []string{"long"}, p.stage.heard(), "what began is let finish")
		require.ElementsMatch(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_2 delivered", "dlv_3 delivered", "dlv_4 delivered", "dlv_1 played"}, s.told())
		require.Contains(t, p.out.String(), `✗ "brief" (1.0 s) expired before it could play`)
	})
}

// An order whose time ends while it is interrupted is let finish, too.
func TestExpiryAmidAnInterruption(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "long", length: 100 * second, life: 50 * second})
		pass(40 * second)
		s.deliver(order{id: "dlv_2", audio: "urgent", priority: "urgent", length: 30 * second})
		pass(200 * second)
		require.Equal(t, []string{"long!", "urgent", "long"}, p.stage.heard())
	})
}

func TestCancel(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: 10 * second})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		s.deliver(order{id: "dlv_3", audio: "three", length: second})
		s.deliver(order{id: "dlv_4", audio: "four", length: second, playAt: time.Now().Add(5 * second)})
		pass(2 * second)
		s.cancel("dlv_2") // waits
		s.cancel("dlv_4") // for its time
		pass(2 * second)
		s.cancel("dlv_1") // plays
		pass(10 * second)
		require.Equal(t, []string{"one!", "three"}, p.stage.heard())
		require.Equal(t, 4*second, p.stage.performances()[0].Took)
		require.NotContains(t, s.told(), "dlv_1 played")
		require.Contains(t, p.out.String(), `✗ "two" (1.0 s) is cancelled`)

		s.cancel("dlv_5") // is not known here
		s.deliver(order{id: "dlv_6", audio: "six", length: second})
		pass(2 * second)
		require.Equal(t, []string{"one!", "three", "six"}, p.stage.heard())
	})
}

func TestCancelAmidADownload(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		s.answer(func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/media/") {
				<-time.After(10 * second)
			}
			return false
		})
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: second})
		s.deliver(order{id: "dlv_2", audio: "two", length: second})
		pass(5 * second)
		s.cancel("dlv_1")
		pass(30 * second)
		require.Equal(t, []string{"two"}, p.stage.heard())
		require.Equal(t, []string{"dlv_2 delivered", "dlv_2 playing", "dlv_2 played"}, s.told())
	})
}

func TestWhatCannotBePlayedIsTriedUntilItExpires(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		p.stage.setBroken(errors.New("no such sound card: \xff" + strings.Repeat("é", 250)))
		s.deliver(order{id: "dlv_1", audio: "one", length: second, life: 10 * time.Minute})
		s.deliver(order{id: "dlv_2", audio: "two", length: second, life: time.Hour})
		pass(20 * time.Minute)
		require.Contains(t, s.told(), "dlv_1 failed")
		require.Contains(t, s.last().Reason, "it could not be played: no such sound card: ?é", "a reason of any bytes gets through")
		p.stage.setBroken(nil) // somebody has plugged it in again
		pass(time.Minute)
		require.Contains(t, s.told(), "dlv_2 played")
		require.NotContains(t, s.told(), "dlv_2 failed")
		attempts := len(p.stage.performances())
		require.Greater(t, attempts, 20)
		require.Less(t, attempts, 100)
		require.ElementsMatch(t, []string{"dlv_1 delivered", "dlv_1 playing", "dlv_2 delivered", "dlv_2 playing", "dlv_1 failed", "dlv_2 played"}, s.told())
	})
}

// What makes no sense is reported and passed over, and what comes after it is played.
func TestEventsThatMakeNoSenseAreNotInTheWay(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		text := func(text string) func() []byte { return func() []byte { return []byte(text) } }
		s.event("deliver", "", text("not JSON"))
		s.event("deliver", "dlv_1", text(`{"deliveryId": "dlv_1", "volume": "loud"}`))
		s.event("deliver", "dlv_2", text(`{"deliveryId": "dlv_2", "audio": {"sha256": "../../etc/passwd", "format": "mp3"}}`))
		s.event("deliver", "dlv_3", text(`{"deliveryId": "dlv_3", "audio": {"sha256": "`+digest(nil)+`", "format": "../x"}}`))
		s.event("deliver", "dlv_4", text(`{"padding": "`+strings.Repeat("x", 2<<20)+`", "deliveryId": "dlv_4"}`))
		s.event("volume", "", text("11"))
		s.event("cancel", "", text("[]"))
		s.deliver(order{id: "dlv_9", audio: "one", length: second})
		p := opened(t, s)
		pass(5 * second)
		require.Equal(t, []string{"one"}, p.stage.heard())
		require.Equal(t, []string{"dlv_1 failed", "dlv_2 failed", "dlv_3 failed", "dlv_9 delivered", "dlv_9 playing", "dlv_9 played"}, s.told())
		s.cut()
		pass(5 * second)
		require.Equal(t, "8", s.streams()[1], "they do not come again")
	})
}

// A player obeys what it can of an order whose figures are out of range, or that comes from a later version of the server.
func TestOddOrders(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		content := []byte("the sound of odd")
		s.change(func() { s.media[digest(content)] = content })
		s.event("deliver", "dlv_1", func() []byte {
			return fmt.Appendf(nil, `{"deliveryId": "dlv_1", "priority": "royal", "repeat": -3, "volume": 900, "news": [1], "audio": {"url": "%s/media/%s?signature=0", "sha256": "%s", "format": "mp3", "duration": 1e300}}`, s.url, digest(content), digest(content))
		})
		p := opened(t, s)
		pass(25 * time.Hour)
		require.Equal(t, []string{"odd"}, p.stage.heard())
		require.Equal(t, 24*time.Hour, p.stage.performances()[0].Took)
		require.Equal(t, 100, p.stage.performances()[0].Volume)
	})
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, o := range []player.Options{{Server: "example.com", DeviceToken: "dev_x"}, {Server: "ftp://example.com", DeviceToken: "dev_x"}, {Server: "http://example.com"}} {
		require.Error(t, player.Run(t.Context(), o))
	}
}
