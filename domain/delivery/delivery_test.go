package delivery_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/event/eventtest"
	"github.com/musique/musique/domain/fault"
)

var (
	ref = delivery.Ref{DeliveryID: "dlv_one_7", SendID: "snd_one", AudioID: "aud_one", ExternalID: "store_001", UserID: 7}
	at  = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

	delivered = delivery.Delivered{Ref: ref, At: at}
	playing   = delivery.PlaybackStarted{Ref: ref, At: at}
	played    = delivery.Played{Ref: ref, At: at}
	failed    = delivery.Failed{Ref: ref, At: at, Reason: "no loudspeaker"}
	expired   = delivery.Expired{Ref: ref, At: at}
	cancelled = delivery.Cancelled{Ref: ref, At: at, Reason: "the send was cancelled"}

	unheard = delivery.Failed{Ref: ref, At: at, Reason: "the player did not report the end of the playback"}
)

// states are histories that leave each of the statuses, some of them in several ways.
var states = []struct {
	name   string
	given  []event.Payload
	status delivery.Status
}{
	{"queued", nil, delivery.StatusQueued},
	{"delivered", []event.Payload{delivered}, delivery.StatusDelivered},
	{"playing", []event.Payload{delivered, playing}, delivery.StatusPlaying},
	{"playing at once", []event.Payload{playing}, delivery.StatusPlaying},
	{"played", []event.Payload{delivered, playing, played}, delivery.StatusPlayed},
	{"played at once", []event.Payload{played}, delivery.StatusPlayed},
	{"failed", []event.Payload{delivered, playing, failed}, delivery.StatusFailed},
	{"failed at once", []event.Payload{failed}, delivery.StatusFailed},
	{"expired", []event.Payload{expired}, delivery.StatusExpired},
	{"expired at the player", []event.Payload{delivered, expired}, delivery.StatusExpired},
	{"cancelled", []event.Payload{cancelled}, delivery.StatusCancelled},
	{"cancelled while it played", []event.Payload{delivered, playing, cancelled}, delivery.StatusCancelled},
}

func load(given ...event.Payload) delivery.Delivery {
	return delivery.Load(eventtest.History(given...))
}

func TestLoad(t *testing.T) {
	t.Parallel()
	require.Equal(t, delivery.StatusQueued, delivery.Delivery{}.Status(), "the zero Delivery is queued")
	for _, s := range states {
		require.Equal(t, s.status, load(s.given...).Status(), s.name)
	}
}

// Every report from every state.
func TestReport(t *testing.T) {
	t.Parallel()
	reports := []struct {
		status string
		want   event.Payload
		from   []delivery.Status // that the report moves on
	}{
		{"delivered", delivered, []delivery.Status{delivery.StatusQueued}},
		{"playing", playing, []delivery.Status{delivery.StatusQueued, delivery.StatusDelivered}},
		{"played", played, []delivery.Status{delivery.StatusQueued, delivery.StatusDelivered, delivery.StatusPlaying}},
		{"failed", failed, []delivery.Status{delivery.StatusQueued, delivery.StatusDelivered, delivery.StatusPlaying}},
	}
	for _, s := range states {
		for _, r := range reports {
			t.Run(s.name+", reported "+r.status, func(t *testing.T) {
				t.Parallel()
				got, err := load(s.given...).Report(ref, r.status, at, "no loudspeaker")
				require.NoError(t, err, "a late or repeated report is no error")
				for _, from := range r.from {
					if from == s.status {
						require.Equal(t, []event.Payload{r.want}, got)
						return
					}
				}
				require.Empty(t, got)
			})
		}
	}
}

func TestReportRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range states {
		for _, status := range []string{"queued", "expired", "cancelled", "Played", "played ", "\x00"} {
			_, err := load(s.given...).Report(ref, status, at, "")
			eventtest.Refused(t, err, fault.InvalidFormat, "status")
		}
		_, err := load(s.given...).Report(ref, "", at, "")
		eventtest.Refused(t, err, fault.MissingField, "status")
		_, err = load(s.given...).Report(ref, "failed", at, strings.Repeat("é", 501))
		eventtest.Refused(t, err, fault.OutOfRange, "reason")
	}
}

func TestAFailureHasAReason(t *testing.T) {
	t.Parallel()
	got, err := load().Report(ref, "failed", at, "")
	require.NoError(t, err)
	require.Equal(t, []event.Payload{delivery.Failed{Ref: ref, At: at, Reason: "the player gave no reason"}}, got)

	long := strings.Repeat("é", 500)
	got, err = load().Report(ref, "failed", at, long)
	require.NoError(t, err)
	require.Equal(t, []event.Payload{delivery.Failed{Ref: ref, At: at, Reason: long}}, got)
}

// Clocks differ, and each step comes after the one before.
func TestAStepIsNotBeforeTheLast(t *testing.T) {
	t.Parallel()
	got, err := load(delivered).Report(ref, "playing", at.Add(-time.Minute), "")
	require.NoError(t, err)
	require.Equal(t, []event.Payload{delivery.PlaybackStarted{Ref: ref, At: at}}, got)
	got, err = load(delivered).Report(ref, "playing", at.Add(time.Minute), "")
	require.NoError(t, err)
	require.Equal(t, []event.Payload{delivery.PlaybackStarted{Ref: ref, At: at.Add(time.Minute)}}, got)
}

func TestExpire(t *testing.T) {
	t.Parallel()
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			first, final := load(s.given...).Expire(ref, at, false), load(s.given...).Expire(ref, at, true)
			switch s.status {
			case delivery.StatusQueued, delivery.StatusDelivered:
				require.Equal(t, []event.Payload{expired}, first)
				require.Equal(t, []event.Payload{expired}, final)
			case delivery.StatusPlaying:
				require.Empty(t, first, "what plays is let finish")
				require.Equal(t, []event.Payload{unheard}, final)
			default:
				require.Empty(t, first)
				require.Empty(t, final)
			}
		})
	}
}

// One player of several that fails ends nothing: another can still play. When none is left, its word is the delivery's end, and so it is when time is over.
func TestFailedOn(t *testing.T) {
	t.Parallel()
	fails := func(d delivery.Delivery, device string, devices ...string) []event.Payload {
		got, err := d.FailedOn(ref, device, devices, at, "no loudspeaker")
		require.NoError(t, err)
		return got
	}
	one, two := delivery.DeviceFailed{Ref: ref, DeviceID: "dvc_1", At: at, Reason: "no loudspeaker"}, delivery.DeviceFailed{Ref: ref, DeviceID: "dvc_2", At: at, Reason: "no loudspeaker"}
	require.Equal(t, []event.Payload{failed}, fails(load(delivered), "dvc_1", "dvc_1"), "the only one")
	require.Equal(t, []event.Payload{failed}, fails(load(delivered), "dvc_1"), "one that was revoked")
	require.Equal(t, []event.Payload{one}, fails(load(delivered), "dvc_1", "dvc_1", "dvc_2"))
	require.Empty(t, fails(load(delivered, one), "dvc_1", "dvc_1", "dvc_2"), "a repeat")
	require.Equal(t, []event.Payload{two}, fails(load(delivered, one), "dvc_2", "dvc_1", "dvc_2", "dvc_3"))
	require.Equal(t, []event.Payload{failed}, fails(load(delivered, one), "dvc_2", "dvc_1", "dvc_2"), "the last one")
	require.Equal(t, []event.Payload{failed}, fails(load(delivered, one, two), "dvc_1", "dvc_1", "dvc_2"), "the others have gone meanwhile")

	for _, given := range [][]event.Payload{{one}, {delivered, one}, {delivered, playing, one}} {
		d := load(given...)
		require.Equal(t, load(given[:len(given)-1]...).Status(), d.Status(), "it moves nothing")
		got, err := d.Report(ref, "played", at, "")
		require.NoError(t, err)
		require.Equal(t, []event.Payload{played}, got, "one that plays is enough")
		require.Equal(t, []event.Payload{failed}, d.Expire(ref, at, true))
		require.Equal(t, d.Status() != delivery.StatusPlaying, d.Expire(ref, at, false) != nil)
	}
	for _, s := range states {
		if s.status.Ended() {
			require.Empty(t, fails(load(s.given...), "dvc_1", "dvc_1", "dvc_2"), s.name)
		}
	}
	_, err := load().FailedOn(ref, "dvc_1", []string{"dvc_2"}, at, strings.Repeat("x", 501))
	eventtest.Refused(t, err, fault.OutOfRange, "reason")
	silent, err := load().FailedOn(ref, "dvc_1", []string{"dvc_2"}, at, "")
	require.NoError(t, err)
	require.Equal(t, "the player gave no reason", silent[0].(delivery.DeviceFailed).Reason) //nolint:forcetypeassert // a test
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			got := load(s.given...).Cancel(ref, at, "the send was cancelled")
			if s.status.Ended() {
				require.Empty(t, got)
				return
			}
			require.Equal(t, []event.Payload{cancelled}, got)
		})
	}
}

// rank is how far a status is along the way, for the property below.
func rank(s delivery.Status) int {
	for i, at := range []delivery.Status{delivery.StatusQueued, delivery.StatusDelivered, delivery.StatusPlaying} {
		if s == at {
			return i
		}
	}
	return 3
}

// Whatever is reported, expired and cancelled, in any order and as often as one likes: a delivery goes forwards, ends once, and its end is its end; what was
// decided once is not decided again.
func TestADeliveryEndsOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		step := rapid.Custom(func(t *rapid.T) func(delivery.Delivery) []event.Payload {
			what := rapid.SampledFrom([]string{"delivered", "playing", "played", "failed", "cancel", "expire", "expire for good"}).Draw(t, "what")
			return func(d delivery.Delivery) []event.Payload {
				switch what {
				case "cancel":
					return d.Cancel(ref, at, "reason")
				case "expire", "expire for good":
					return d.Expire(ref, at, what == "expire for good")
				}
				events, err := d.Report(ref, what, at, "reason")
				require.NoError(t, err)
				return events
			}
		})
		var history []event.Payload
		ends, status := 0, delivery.StatusQueued
		steps := rapid.SliceOfN(step, 1, 30).Draw(t, "steps")
		for _, decide := range steps {
			decided := decide(load(history...))
			require.LessOrEqual(t, len(decided), 1)
			if ends > 0 {
				require.Empty(t, decided, "after the end")
			}
			for _, p := range decided {
				after, ok := delivery.StatusAfter(p.EventType())
				require.True(t, ok)
				require.Greater(t, rank(after), rank(status), "forwards")
				if status = after; after.Ended() {
					ends++
				}
			}
			history = append(history, decided...)
			require.Equal(t, status, load(history...).Status())
			require.Empty(t, decide(load(history...)), "decided twice")
		}
		require.LessOrEqual(t, ends, 1)
		history = append(history, load(history...).Expire(ref, at, true)...)
		require.True(t, load(history...).Status().Ended(), "the final call ends it wherever it is")
	})
}

func TestStatusAfter(t *testing.T) {
	t.Parallel()
	for p, want := range map[event.Payload]delivery.Status{
		delivered: delivery.StatusDelivered, playing: delivery.StatusPlaying, played: delivery.StatusPlayed,
		failed: delivery.StatusFailed, expired: delivery.StatusExpired, cancelled: delivery.StatusCancelled,
	} {
		got, ok := delivery.StatusAfter(p.EventType())
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	_, ok := delivery.StatusAfter("AudioSent")
	require.False(t, ok)
}

func TestIDs(t *testing.T) {
	t.Parallel()
	require.Equal(t, "dlv_one_7", delivery.ID("snd_one", 7))
	require.Equal(t, "delivery-snd_one-7", delivery.Stream("snd_one", 7))
	require.Equal(t, "dlv_one_7 (store_001)", ref.String())

	sendID, userID, ok := delivery.ParseID("dlv_one_7")
	require.True(t, ok)
	require.Equal(t, "snd_one", sendID)
	require.EqualValues(t, 7, userID)
	for _, id := range []string{
		"", "dlv_", "dlv_one", "dlv_one_", "dlv_one_x", "dlv_one_0", "dlv_one_-7", "dlv_one_+7", "dlv_one_07", "dlv_one_7 ", "dlv_one_7_8", "snd_one_7", "one_7", "DLV_one_7",
		"dlv__7", "dlv_one_9223372036854775808",
	} {
		_, _, ok := delivery.ParseID(id)
		require.False(t, ok, id)
	}
}

func TestAnIDReadsBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		sendID := "snd_" + rapid.StringMatching(`[0-9A-Za-z]{22}`).Draw(t, "send")
		userID := rapid.Int64Min(1).Draw(t, "user")
		gotSend, gotUser, ok := delivery.ParseID(delivery.ID(sendID, userID))
		require.True(t, ok)
		require.Equal(t, sendID, gotSend)
		require.Equal(t, userID, gotUser)
	})
}

// FuzzParseID: an ID that is read names one delivery, and is the only name of it.
func FuzzParseID(f *testing.F) {
	for _, id := range []string{"dlv_one_7", "dlv_one_07", "dlv_one_+7", "dlv__7", "dlv_snd_one_7", "dlv_one_9223372036854775807", "dlv_one_9223372036854775808", "dlv_\xff_1", ""} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		sendID, userID, ok := delivery.ParseID(id)
		if !ok {
			return
		}
		require.Equal(t, id, delivery.ID(sendID, userID))
		require.Equal(t, id, fmt.Sprintf("dlv_%s_%d", strings.TrimPrefix(sendID, "snd_"), userID))
		require.Positive(t, userID)
		require.NotEqual(t, "snd_", sendID)
		require.Equal(t, 2, strings.Count(id, "_"))
	})
}
