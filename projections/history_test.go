package projections

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/location"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/token"
	"github.com/musique/musique/domain/usage"
)

var epoch = time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)

// entry is an event before the store has it.
type entry struct {
	payload event.Payload
	company string
	env     event.Environment
}

// world makes histories: what could have happened at two companies, in any order that the domain allows, with reports that are late or repeated.
type world struct {
	t         *rapid.T
	entries   []entry
	n         int
	locations map[int64]bool
	devices   []location.DeviceEnrolled
	tokens    []string
	audio     []string
	sends     []*madeSend
	sent      []delivery.Ref
}

type madeSend struct {
	id        string
	terms     send.Terms
	unsealed  bool
	abandoned bool
	to        []int64 // that it goes to or will
	planned   int     // how many of them it will
}

var worldCompanies = []string{"co_one", "co_two"}

// history draws a history of many steps.
func history(t *rapid.T) []event.Recorded {
	w := &world{t: t, locations: map[int64]bool{}}
	for _, c := range worldCompanies {
		w.add(company.Registered{CompanyID: c, Name: "Name of " + c, Plan: "standard", Prefix: "msk", TokenHash: "hash of " + c})
	}
	steps := []func(){w.companyStep, w.tokenStep, w.locationStep, w.locationStep, w.deviceStep, w.audioStep, w.sendStep, w.sendStep, w.partStep, w.startStep, w.cancelStep, w.changeStep,
		w.deliveryStep, w.deliveryStep, w.deliveryStep, w.usageStep}
	for range rapid.IntRange(0, 60).Draw(t, "steps") {
		steps[rapid.IntRange(0, len(steps)-1).Draw(t, "step")]()
	}
	return recorded(w.entries)
}

// recorded gives entries their places in a store.
func recorded(entries []entry) []event.Recorded {
	events, revisions := make([]event.Recorded, len(entries)), map[string]uint64{}
	for i, e := range entries {
		data, err := json.Marshal(e.payload)
		if err != nil {
			panic(err)
		}
		events[i] = event.Recorded{
			ID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)), Position: event.Position{Commit: uint64(100 + i), Prepare: uint64(100 + i)},
			Type: e.payload.EventType(), Data: data,
			Metadata: event.Metadata{CompanyID: e.company, Environment: e.env, Time: epoch.Add(time.Duration(i) * time.Hour)},
		}
		stream := streamOf(i, events[i])
		events[i].Stream, events[i].Revision = stream, revisions[stream]
		revisions[stream]++
	}
	return events
}

// streamOf is a stream for an event of a history: that of its send, of which the first event begins it, or any.
func streamOf(i int, e event.Recorded) string {
	var p struct{ SendID, DeliveryID string }
	if err := json.Unmarshal(e.Data, &p); err != nil {
		panic(err)
	}
	if p.SendID != "" && (p.DeliveryID == "" || e.Type == send.AudioSent{}.EventType()) {
		return send.Stream(p.SendID)
	}
	return fmt.Sprint("any-", i%7)
}

func (w *world) add(p event.Payload) {
	w.entries = append(w.entries, entry{p, worldCompanies[0], event.Live})
}

func (w *world) name(prefix string) string {
	w.n++
	return fmt.Sprintf("%s%022d", prefix, w.n)
}

func (w *world) companyStep() {
	c := rapid.SampledFrom(worldCompanies).Draw(w.t, "company")
	w.add(rapid.SampledFrom([]event.Payload{
		company.TokenRotated{CompanyID: c, TokenHash: w.name("hash")}, company.PlanChanged{CompanyID: c, Plan: w.name("plan")}, company.Suspended{CompanyID: c},
	}).Draw(w.t, "change"))
}

func (w *world) tokenStep() {
	if len(w.tokens) > 0 && rapid.Bool().Draw(w.t, "revoke") {
		w.add(token.Revoked{TokenID: rapid.SampledFrom(w.tokens).Draw(w.t, "token")})
		return
	}
	id := w.name("tok_")
	w.tokens = append(w.tokens, id)
	w.add(token.Issued{TokenID: id, CompanyID: worldCompanies[0], Environment: event.Live, ExternalID: "e", UserID: 1, Permissions: []string{"audio.read"}, Hash: w.name("hash")})
}

func (w *world) locationStep() {
	user := rapid.Int64Range(1, 6).Draw(w.t, "user")
	external, tags := fmt.Sprint("store_", user), rapid.SliceOfN(rapid.SampledFrom([]string{"north", `with "quotes", {braces} and \`, "Süd", ""}), 0, 3).Draw(w.t, "tags")
	switch {
	case !w.locations[user]:
		w.locations[user] = true
		w.add(location.Registered{CompanyID: worldCompanies[0], ExternalID: external, UserID: user, Name: "A", Timezone: "UTC", Tags: tags, Channel: location.Channel{Type: "player"}})
	case rapid.Bool().Draw(w.t, "remove"):
		w.locations[user] = false
		w.devices = slices.DeleteFunc(w.devices, func(d location.DeviceEnrolled) bool { return d.UserID == user })
		w.add(location.Removed{CompanyID: worldCompanies[0], ExternalID: external, UserID: user})
	default:
		w.add(location.Changed{CompanyID: worldCompanies[0], ExternalID: external, UserID: user, Name: w.name("name"), Timezone: "Europe/Berlin", Tags: tags, Channel: location.Channel{Type: "http", URL: "https://x"}})
	}
}

func (w *world) deviceStep() {
	user := rapid.Int64Range(1, 6).Draw(w.t, "user")
	switch {
	case len(w.devices) > 0 && rapid.Bool().Draw(w.t, "revoke device"):
		d := rapid.SampledFrom(w.devices).Draw(w.t, "device")
		w.devices = slices.DeleteFunc(w.devices, func(x location.DeviceEnrolled) bool { return x.DeviceID == d.DeviceID })
		w.add(location.DeviceRevoked{CompanyID: d.CompanyID, ExternalID: d.ExternalID, UserID: d.UserID, DeviceID: d.DeviceID})
	case len(w.devices) > 0 && rapid.Bool().Draw(w.t, "rotate device token"):
		d := rapid.SampledFrom(w.devices).Draw(w.t, "device")
		w.add(location.DeviceTokenRotated{CompanyID: d.CompanyID, ExternalID: d.ExternalID, UserID: d.UserID, DeviceID: d.DeviceID, Hash: w.name("hash")})
	case w.locations[user]:
		d := location.DeviceEnrolled{CompanyID: worldCompanies[0], ExternalID: fmt.Sprint("store_", user), UserID: user, DeviceID: w.name("dvc_"), Hash: w.name("hash")}
		w.devices = append(w.devices, d)
		w.add(d)
	}
}

func (w *world) audioStep() {
	if len(w.audio) > 0 && rapid.Bool().Draw(w.t, "delete") {
		i := rapid.IntRange(0, len(w.audio)-1).Draw(w.t, "audio")
		w.add(audio.Deleted{AudioID: w.audio[i]})
		w.audio = slices.Delete(w.audio, i, i+1)
		return
	}
	id := w.name("aud_")
	w.audio = append(w.audio, id)
	w.add(audio.Uploaded{AudioID: id, Name: "a\x00b", Category: "announcement", Format: "mp3", DurationMs: 1500, Size: 1000, SHA256: "00", BlobKey: id})
}

// sendStep makes a send to some users, now or later, whole or the first part of one.
func (w *world) sendStep() {
	if len(w.audio) == 0 {
		return
	}
	to := rapid.SliceOfNDistinct(rapid.Int64Range(1, 9), 1, 5, rapid.ID).Draw(w.t, "to")
	s := &madeSend{id: w.name("snd_"), to: to, unsealed: rapid.Bool().Draw(w.t, "in parts")}
	s.terms = send.Terms{AudioID: rapid.SampledFrom(w.audio).Draw(w.t, "audio"), Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 60, Single: len(to) == 1}
	w.sends = append(w.sends, s)
	if rapid.Bool().Draw(w.t, "later") {
		s.planned = len(to)
		scheduled := send.Scheduled{SendID: s.id, Terms: s.terms, ScheduleAt: epoch, Total: len(to), Unsealed: s.unsealed}
		for _, user := range to {
			scheduled.Destinations = append(scheduled.Destinations, send.ScheduledDestination{Destination: send.Destination{ExternalID: fmt.Sprint("store_", user), UserID: user}, PlayAt: epoch, Timezone: zones[user%int64(len(zones))]})
		}
		w.add(scheduled)
		return
	}
	now := len(to)
	if s.unsealed {
		now = rapid.IntRange(1, len(to)).Draw(w.t, "first part")
	}
	for _, user := range to[:now] {
		w.send(s, user, nil)
	}
	s.to, s.planned = append(slices.Clone(to[now:]), to[:now]...), len(to)-now
}

func (w *world) send(s *madeSend, user int64, playAt *time.Time) {
	sent := send.AudioSent{SendID: s.id, DeliveryID: delivery.ID(s.id, user), Terms: s.terms, Destination: send.Destination{ExternalID: fmt.Sprint("store_", user), UserID: user},
		Total: len(s.to), PlayAt: playAt, ExpiresAt: epoch.Add(time.Minute), Unsealed: s.unsealed}
	w.add(sent)
	w.sent = append(w.sent, delivery.Ref{DeliveryID: sent.DeliveryID, SendID: s.id, AudioID: s.terms.AudioID, ExternalID: sent.ExternalID, UserID: user})
}

// partStep goes on with a send in parts: the rest and the seal, or nothing of it at all.
func (w *world) partStep() {
	for _, s := range w.sends {
		if !s.unsealed || s.abandoned {
			continue
		}
		if rapid.Bool().Draw(w.t, "abandon") {
			s.abandoned = true
			w.sent = slices.DeleteFunc(w.sent, func(r delivery.Ref) bool { return r.SendID == s.id })
			w.add(send.BroadcastAbandoned{SendID: s.id})
			return
		}
		w.add(send.BroadcastSealed{SendID: s.id, Total: len(s.to)})
		s.unsealed = false
		return
	}
}

// startStep sends to the next of a scheduled send's destinations.
func (w *world) startStep() {
	for _, s := range w.sends {
		if s.planned > 0 && !s.unsealed && !s.abandoned {
			s.planned--
			at := epoch
			w.send(s, s.to[s.planned], &at)
			return
		}
	}
}

func (w *world) cancelStep() {
	if len(w.sends) > 0 {
		if s := rapid.SampledFrom(w.sends).Draw(w.t, "send"); !s.unsealed && !s.abandoned {
			w.add(send.Cancelled{SendID: s.id, Refused: rapid.Bool().Draw(w.t, "refused")})
		}
	}
}

// zones are those of scheduled destinations; some have none, as those of before.
var zones = []string{"", "UTC", "Europe/Berlin"}

// changeStep changes a scheduled send that has not begun: to a time, to clock times, or in its terms alone.
func (w *world) changeStep() {
	for _, s := range w.sends {
		if s.planned < len(s.to) || s.planned == 0 || s.unsealed || s.abandoned {
			continue
		}
		at := epoch.Add(time.Duration(rapid.IntRange(1, 1000).Draw(w.t, "to")) * time.Minute)
		changed := send.Rescheduled{SendID: s.id, Terms: s.terms, ScheduleAt: at}
		switch rapid.IntRange(0, 2).Draw(w.t, "change") {
		case 1:
			changed.LocalTime, changed.Times = "2026-03-02T09:00", []send.ZoneTime{{Timezone: "Europe/Berlin", PlayAt: at.Add(time.Hour)}, {Timezone: "UTC", PlayAt: at}}
		case 2:
			changed.LocalTime, changed.Volume = "2026-03-02T09:00", rapid.IntRange(0, 100).Draw(w.t, "volume")
		}
		w.add(changed)
		return
	}
}

func (w *world) deliveryStep() {
	if len(w.sent) == 0 {
		return
	}
	ref, at := rapid.SampledFrom(w.sent).Draw(w.t, "delivery"), epoch.Add(time.Duration(rapid.IntRange(0, 1000).Draw(w.t, "at"))*time.Millisecond)
	w.add(rapid.SampledFrom([]event.Payload{
		delivery.Delivered{Ref: ref, At: at}, delivery.PlaybackStarted{Ref: ref, At: at}, delivery.Played{Ref: ref, At: at},
		delivery.Failed{Ref: ref, At: at, Reason: "no \x00 speaker"}, delivery.Expired{Ref: ref, At: at}, delivery.Cancelled{Ref: ref, At: at, Reason: "removed"},
	}).Draw(w.t, "report"))
}

func (w *world) usageStep() {
	at := epoch.Add(time.Duration(rapid.IntRange(0, 300*24).Draw(w.t, "hours")) * time.Hour)
	w.add(usage.ApiRequestServed{RequestID: w.name("req_"), Timestamp: at, Method: "GET", Path: "/x", Endpoint: "/x", Status: 200, UserAgent: "a\x00b"})
}
