package simulation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/playback"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/projections"
)

// pageEvents is how much is read of the store at once.
const pageEvents = 5_000

// history is what the event store says of a run.
type history struct {
	sends      map[string]send.Send
	cancelled  map[string]event.Position // sends, and where they were called off
	deliveries map[string]*life          // by their IDs
	deleted    map[string]deletion       // audio
}

// life is what the events say of a delivery.
type life struct {
	deliveryID string
	sent       *send.AudioSent // nil if the audio never went out
	at         event.Position  // of that
	events     []event.Recorded
}

// deletion is one that came to its end.
type deletion struct{ began, ended event.Position }

func (l *life) last() event.Recorded { return l.events[len(l.events)-1] }

// status is where the delivery is in the end.
func (l *life) status() delivery.Status { return delivery.Load(l.events).Status() }

// check finds out whether the run was as every run must be. The processes end amid it.
func (r *run) check() {
	h := r.read()
	lives := r.lives()
	for _, l := range h.deliveries {
		r.checkLife(h, l, lives[l.deliveryID])
	}
	for _, p := range r.players {
		r.checkPlayer(h, p)
	}
	for _, p := range r.partners {
		r.checkSends(h, p)
	}
	r.checkDeletions(h)
	r.checkTables(h)
	r.stop()
	r.checkReplay()
	r.summarize(h, lives)
}

// read reads the whole store.
func (r *run) read() *history {
	h := &history{sends: map[string]send.Send{}, cancelled: map[string]event.Position{}, deliveries: map[string]*life{}, deleted: map[string]deletion{}}
	streams := map[string][]event.Recorded{}
	began := map[string]event.Position{}
	for after, done := (event.Position{}), false; !done; {
		var events []event.Recorded
		var err error
		events, after, done, err = r.store.ReadAll(context.Background(), after, pageEvents)
		require.NoError(r.t, err)
		for _, e := range events {
			switch e.Type {
			case send.AudioSent{}.EventType():
				var sent send.AudioSent
				require.NoError(r.t, json.Unmarshal(e.Data, &sent))
				l := h.life(sent.DeliveryID)
				l.sent, l.at = &sent, e.Position
			case send.Cancelled{}.EventType():
				h.cancelled[strings.TrimPrefix(e.Stream, "send-")] = e.Position
			case audio.DeletionStarted{}.EventType():
				began[e.Stream] = e.Position
			case audio.Deleted{}.EventType():
				h.deleted[strings.TrimPrefix(e.Stream, "audio-")] = deletion{began[e.Stream], e.Position}
			}
			if _, ok := delivery.StatusAfter(e.Type); ok {
				var about struct{ delivery.Ref }
				require.NoError(r.t, json.Unmarshal(e.Data, &about))
				l := h.life(about.DeliveryID)
				l.events = append(l.events, e)
			}
			if strings.HasPrefix(e.Stream, "send-") {
				streams[e.Stream] = append(streams[e.Stream], e)
			}
		}
	}
	for _, stream := range streams {
		s, err := send.Load(stream)
		require.NoError(r.t, err)
		h.sends[s.ID] = s
	}
	return h
}

func (h *history) life(deliveryID string) *life {
	if h.deliveries[deliveryID] == nil {
		h.deliveries[deliveryID] = &life{deliveryID: deliveryID}
	}
	return h.deliveries[deliveryID]
}

// part is what one player did with one delivery.
type part struct {
	player *player
	log    []entry
}

func (p part) did(what deed) bool {
	return slices.ContainsFunc(p.log, func(e entry) bool { return e.deed == what })
}

// lives gives the parts that players had in each delivery.
func (r *run) lives() map[string][]part {
	all := map[string][]part{}
	for _, p := range r.players {
		own := map[string][]entry{}
		for _, e := range p.log {
			if e.deliveryID != "" {
				own[e.deliveryID] = append(own[e.deliveryID], e)
			}
		}
		for id, log := range own {
			all[id] = append(all[id], part{p, log})
		}
	}
	return all
}

// wrong tells what must not be, with all that is known of the delivery.
func (r *run) wrong(l *life, parts []part, format string, args ...any) {
	var b strings.Builder
	fmt.Fprintf(&b, format, args...)
	fmt.Fprintf(&b, "\n%s\n", l.deliveryID)
	if l.sent != nil {
		fmt.Fprintf(&b, "    sent at %d: %s, expires %s, play at %v\n", l.at.Commit, l.sent.Priority, l.sent.ExpiresAt.Format(time.RFC3339Nano), l.sent.PlayAt)
	}
	for _, e := range l.events {
		fmt.Fprintf(&b, "    %s at %d (%s) by %s: %s\n", e.Type, e.Position.Commit, e.Metadata.Time.Format("15:04:05.000"), e.Metadata.Actor, e.Data)
	}
	for _, p := range parts {
		b.WriteString(p.player.story(l.deliveryID))
	}
	r.fail("%s", b.String())
}

// tell tells the stories of deliveries in a run that does not come to its end.
func (r *run) tell(deliveryIDs []string) {
	r.rest()
	h := r.read()
	lives := r.lives()
	for _, id := range deliveryIDs {
		if l := h.deliveries[id]; l != nil {
			r.wrong(l, lives[id], "it is still open")
		}
	}
}

// checkLife checks a delivery: that it ended once, for a reason, and that its players say so too.
func (r *run) checkLife(h *history, l *life, parts []part) {
	wrong := func(format string, args ...any) { r.wrong(l, parts, format, args...) }
	if l.sent == nil {
		if len(l.events) != 1 || l.status() != delivery.StatusCancelled {
			wrong("a delivery that never went out has more than its end")
		}
		if len(parts) > 0 {
			wrong("a player knows a delivery that never went out")
		}
		return
	}
	state := delivery.Load(nil)
	for i, e := range l.events {
		before := state.Status()
		state = delivery.Load(l.events[:i+1])
		if before.Ended() || state.Status() == before || state.Status() == delivery.StatusDelivered && before != delivery.StatusQueued {
			wrong("%s after it was %s", e.Type, before)
		}
	}
	status := state.Status()
	if !status.Ended() {
		wrong("it has no end: %s", status)
		return
	}
	end := l.last()
	switch status {
	case delivery.StatusExpired:
		if end.Metadata.Time.Before(l.sent.ExpiresAt) {
			wrong("it expired before its time")
		}
	case delivery.StatusCancelled:
		s := h.sends[l.sent.SendID]
		if at, off := h.cancelled[l.sent.SendID]; (!off || end.Position.Before(at)) && !r.removedOnce(s.CompanyID, l.sent.ExternalID) {
			wrong("nobody called it off")
		}
	case delivery.StatusPlayed:
		if at := slices.IndexFunc(parts, func(p part) bool { return p.player.deviceID == end.Metadata.Actor }); at < 0 || !parts[at].did(ended) {
			wrong("who says that it was played did not play it to the end")
		}
	case delivery.StatusFailed:
		byWorker := strings.HasPrefix(end.Metadata.Actor, "worker:")
		if byWorker && delivery.Load(l.events[:len(l.events)-1]).Status() != delivery.StatusPlaying && !slices.ContainsFunc(parts, func(p part) bool { return p.did(failed) }) {
			wrong("it failed without a player")
		}
		if at := slices.IndexFunc(parts, func(p part) bool { return p.player.deviceID == end.Metadata.Actor }); !byWorker && (at < 0 || parts[at].did(ended)) {
			wrong("who says that it failed played it to the end")
		}
	}
	for _, p := range parts {
		r.checkPart(h, l, p, wrong)
	}
}

func (r *run) removedOnce(companyID, externalID string) bool {
	for _, p := range r.partners {
		if p.id == companyID && p.everRemoved[externalID] {
			return true
		}
	}
	return false
}

// checkPart checks what one player did with a delivery, and what it was answered.
func (r *run) checkPart(h *history, l *life, p part, wrong func(string, ...any)) {
	name := p.player.name
	if p.player.externalID != l.sent.ExternalID {
		wrong("%s is at %s, where it was not sent", name, p.player.externalID)
	}
	count := map[deed]int{}
	for i, e := range p.log {
		count[e.deed]++
		playing := e.deed == begun || e.deed == resumed || e.deed == ended
		switch {
		case e.deed == unknown:
			wrong("the server does not know what %s reports", name)
		case e.deed == toldAgain:
			wrong("%s was told twice", name)
		case playing && count[toldOff] > 0:
			wrong("%s plays what was called off", name)
		case playing && count[toldOrder] == 0:
			wrong("%s plays what it was not told", name)
		case e.deed == begun && !e.believed.Before(l.sent.ExpiresAt):
			wrong("%s begins to play what has expired", name)
		case e.deed == begun && l.sent.PlayAt != nil && e.believed.Before(*l.sent.PlayAt):
			wrong("%s begins to play too early", name)
		case e.deed == gone:
			if at, deleted := h.deleted[l.sent.AudioID]; !deleted || !l.last().Position.Before(at.ended) && l.status() != delivery.StatusCancelled {
				wrong("the audio was gone for %s, and the delivery still open", name)
			}
		case e.deed == answered:
			r.checkAnswer(l, p.log[i], name, wrong)
		}
	}
	if count[begun] > 1 || count[ended] > 1 || count[ended]+count[failed]+count[expired]+count[gone] > 1 {
		wrong("%s has more than one end of it", name)
	}
}

// checkAnswer checks the answer to a report: it tells a status that the delivery had, and none that the report goes beyond.
func (r *run) checkAnswer(l *life, e entry, name string, wrong func(string, ...any)) {
	rank := func(s delivery.Status) int {
		return slices.Index([]delivery.Status{delivery.StatusQueued, delivery.StatusDelivered, delivery.StatusPlaying, delivery.StatusPlayed}, s)
	}
	switch {
	case e.answer.Ended():
		if e.answer != l.status() {
			wrong("%s was told that it is %s, and it is %s", name, e.answer, l.status())
		}
	case e.report == delivery.StatusFailed && r.devices(l.sent.ExternalID) > 1: // the others may play it
	case e.report.Ended() || rank(e.answer) < rank(e.report):
		wrong("%s reported %s and was told that it is %s", name, e.report, e.answer)
	case !slices.ContainsFunc(l.events, func(r event.Recorded) bool { s, _ := delivery.StatusAfter(r.Type); return s == e.answer }):
		wrong("%s was told that it is %s, which it never was", name, e.answer)
	}
}

// devices counts the players that a location had.
func (r *run) devices(externalID string) (n int) {
	for _, p := range r.players {
		if p.externalID == externalID {
			n++
		}
	}
	return n
}

// checkPlayer checks the order in which a player was told and played, and that it was left with nothing.
func (r *run) checkPlayer(h *history, p *player) {
	if p.temper != absent && !p.out.Load() && len(p.disk.orders)+len(p.disk.reports) > 0 {
		r.fail("%s (%s) still has %d orders and %d reports", p.name, p.temper, len(p.disk.orders), len(p.disk.reports))
	}
	if p.out.Load() && slices.ContainsFunc(p.log, func(e entry) bool { return e.deed == signedOut }) && !p.partner.everRemoved[p.externalID] {
		r.fail("%s was signed out, and %s was never removed", p.name, p.externalID)
	}
	var told event.Position
	began := map[playback.Priority]event.Position{}
	for _, e := range p.log {
		l := h.deliveries[e.deliveryID]
		if e.deliveryID != "" && (l == nil || l.sent == nil) {
			r.fail("%s knows %s, which was never sent", p.name, e.deliveryID)
			continue
		}
		switch e.deed {
		case toldOrder:
			if !told.Before(l.at) {
				r.wrong(l, nil, "%s was told after what was sent at %d", p.name, told.Commit)
			}
			told = l.at
		case begun:
			priority, _ := playback.ParsePriority(l.sent.Priority)
			if l.sent.PlayAt != nil {
				continue // it has its own time
			}
			if !began[priority].Before(l.at) {
				r.wrong(l, nil, "%s began it after what was sent at %d with the same priority", p.name, began[priority].Commit)
			}
			began[priority] = l.at
		}
	}
}

// checkSends compares what a partner was answered, what the read models show, and what the events say.
func (r *run) checkSends(h *history, p *partner) {
	t, ctx := r.t, r.t.Context()
	type counts struct{ Scheduled, Queued, Delivered, Playing, Played, Failed, Expired, Cancelled int }
	type shown struct {
		SendID, AudioID, Status string
		TotalDestinations       int
		Deliveries              counts
	}
	list := map[string]shown{}
	pages(ctx, t, p, "/sends", func(s shown) { list[s.SendID] = s })
	for _, a := range p.sends {
		s, there := h.sends[a.id]
		if !there || s.Refused || s.Open || s.Total != a.total || s.Terms.AudioID != a.audioID {
			r.fail("%s was accepted; the events say %+v", a.id, s)
			continue
		}
		want := map[string]string{}
		for _, d := range s.Planned {
			want[delivery.ID(a.id, d.UserID)] = string(delivery.StatusCancelled) // unless it went out
			if h.deliveries[delivery.ID(a.id, d.UserID)] == nil && !s.Cancelled {
				r.fail("%s never went out to %s", a.id, d.ExternalID)
			}
		}
		for _, sent := range s.Sent {
			want[sent.DeliveryID] = string(h.deliveries[sent.DeliveryID].status())
		}
		if len(want) != a.total {
			r.fail("%s has %d deliveries of %d", a.id, len(want), a.total)
		}
		n := map[string]int{}
		for _, status := range want {
			n[status]++
		}
		status := "sent"
		switch {
		case s.Cancelled || n["cancelled"] == a.total:
			status = "cancelled"
		case n["played"] == 0:
			status = "failed"
		}
		expected := shown{a.id, a.audioID, status, a.total, counts{Played: n["played"], Failed: n["failed"], Expired: n["expired"], Cancelled: n["cancelled"]}}
		if list[a.id] != expected {
			r.fail("%s is shown as %+v and should be %+v", a.id, list[a.id], expected)
		}
		delete(list, a.id)
		got := map[string]string{}
		pages(ctx, t, p, "/sends/"+a.id+"/deliveries", func(d struct{ DeliveryID, Status string }) { got[d.DeliveryID] = d.Status })
		if !maps.Equal(want, got) {
			r.fail("the deliveries of %s are shown as %v and should be %v", a.id, got, want)
		}
	}
	if len(list) > 0 {
		r.fail("sends are shown that were not accepted: %v", slices.Collect(maps.Keys(list)))
	}
	ours := map[string]bool{}
	for _, a := range p.sends {
		ours[a.id] = true
	}
	for id, s := range h.sends {
		if s.CompanyID == p.id && !ours[id] && !s.Refused {
			r.fail("%s was never accepted, and is there", id)
		}
	}
	for _, audioID := range p.audio {
		plays, recipients := 0, 0
		for _, l := range h.deliveries {
			if l.sent == nil || l.sent.AudioID != audioID {
				continue
			}
			recipients++
			if l.status() == delivery.StatusPlayed {
				plays++
			}
		}
		got, err := p.ask(ctx, http.MethodGet, "/audio/"+audioID, "", nil)
		require.NoError(t, err)
		var data struct {
			Stats struct{ TimesPlayed, TotalRecipients int }
		}
		if got.status == http.StatusNotFound && len(p.audio) == 1 {
			continue
		}
		require.NoError(t, got.decode(&data), "%s", got.body)
		if data.Stats.TimesPlayed != plays {
			r.fail("%s was played %d times, and %d are shown; it went to %d, and %d are shown", audioID, plays, data.Stats.TimesPlayed, recipients, data.Stats.TotalRecipients)
		}
	}
}

// pages walks a list of the API.
func pages[T any](ctx context.Context, t require.TestingT, p *partner, path string, each func(T)) {
	for cursor, more := "", true; more; {
		got, err := p.ask(ctx, http.MethodGet, path+"?limit=100&cursor="+cursor, "", nil)
		require.NoError(t, err)
		var page struct {
			Data       []T
			Pagination struct {
				HasMore    bool
				NextCursor string
			}
		}
		require.Equal(t, http.StatusOK, got.status, "%s", got.body)
		require.NoError(t, json.Unmarshal(got.body, &page))
		for _, one := range page.Data {
			each(one)
		}
		cursor, more = page.Pagination.NextCursor, page.Pagination.HasMore
	}
}

// checkDeletions checks that no audio went while something of it was pending, and that nothing of it was accepted later.
func (r *run) checkDeletions(h *history) {
	for _, s := range h.sends {
		gone, deleted := h.deleted[s.Terms.AudioID]
		if !deleted || s.Refused || s.Cancelled {
			continue
		}
		if gone.began.Before(s.Recorded()) {
			r.fail("%s was accepted while its audio %s was being deleted", s.ID, s.Terms.AudioID)
		}
		for _, sent := range s.Sent {
			if l := h.deliveries[sent.DeliveryID]; !l.last().Position.Before(gone.ended) {
				r.wrong(l, nil, "its audio was deleted at %d while it was open", gone.ended.Commit)
			}
		}
	}
}

// checkTables checks what the workers keep.
func (r *run) checkTables(h *history) {
	for _, empty := range []string{"SELECT delivery_id FROM workers.inbox WHERE kind = 'deliver'", "SELECT send_id FROM workers.schedule", "SELECT send_id FROM workers.open_broadcast"} {
		if left := r.strings(empty); len(left) > 0 {
			r.fail("%s: %v", empty, left)
		}
	}
	closed := r.strings("SELECT delivery_id FROM workers.inbox_closed")
	var all []string
	for id := range h.deliveries {
		all = append(all, id)
	}
	slices.Sort(closed)
	slices.Sort(all)
	if !slices.Equal(closed, all) {
		r.fail("%d deliveries are closed of %d", len(closed), len(all))
	}
	accepted := 0
	for _, p := range r.partners {
		accepted += len(p.sends)
	}
	var counted int
	require.NoError(r.t, r.admin.QueryRow(r.t.Context(), "SELECT coalesce(sum(sends), 0) FROM sends.accepted").Scan(&counted))
	if counted != accepted {
		r.fail("%d sends count for the quotas, and %d were accepted", counted, accepted)
	}
}

// checkReplay makes the read models again from the events, and compares.
func (r *run) checkReplay() {
	t := r.t
	again := postgrestest.New(t)
	require.NoError(t, projections.Migrate(t.Context(), again))
	for _, pool := range []*pgxpool.Pool{r.admin, again} {
		commandstest.Run(t, projections.NewRunner(projections.RunnerConfig{Store: r.store, Pool: pool, Log: commandstest.Quiet}).Run)
	}
	for _, p := range projections.All() {
		// How far usage is kept is not compared: the cleanup says so, and no event.
		rowsOf := func(pool *pgxpool.Pool) string { return postgrestest.Dump(t, pool, p.Name, "kept") }
		var one, other string
		deadline := time.Now().Add(patience)
		for {
			one, other = rowsOf(r.admin), rowsOf(again)
			if one == other && r.passed(again, p) && r.passed(r.admin, p) || time.Now().After(deadline) {
				break
			}
			pause(t.Context(), 100*time.Millisecond)
		}
		if one != other {
			r.fail("a replay of %s gives other rows: %s", p.Name, difference(one, other))
		}
	}
}

// passed reports whether a projection has passed the last event that it follows.
func (r *run) passed(pool *pgxpool.Pool, p projections.Projection) bool {
	var commit int64
	require.NoError(r.t, pool.QueryRow(r.t.Context(), "SELECT coalesce(max(commit_position), 0) FROM projections.checkpoint WHERE projection = $1", p.Name).Scan(&commit))
	events, _, done, err := r.store.ReadAll(r.t.Context(), event.Position{Commit: uint64(commit), Prepare: uint64(commit)}, pageEvents)
	require.NoError(r.t, err)
	return done && !slices.ContainsFunc(events, func(e event.Recorded) bool { return slices.Contains(p.Types, e.Type) })
}

// difference is the first line in which two texts differ.
func difference(one, other string) string {
	a, b := strings.Split(one, "\n"), strings.Split(other, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("\n%s\n%s", a[i], b[i])
		}
	}
	return fmt.Sprintf("%d lines and %d", len(a), len(b))
}

// summarize tells what happened in the run.
func (r *run) summarize(h *history, lives map[string][]part) {
	ends, deeds := map[delivery.Status]int{}, map[deed]int{}
	otherwise := 0
	for _, l := range h.deliveries {
		ends[l.status()]++
		for _, p := range lives[l.deliveryID] {
			if p.did(ended) && l.status() != delivery.StatusPlayed {
				otherwise++
			}
		}
	}
	for _, p := range r.players {
		for _, e := range p.log {
			deeds[e.deed]++
		}
	}
	accepted, refused := 0, 0
	for _, p := range r.partners {
		accepted, refused = accepted+len(p.sends), refused+p.refused
	}
	r.t.Logf("%d processes killed, connections cut %d times; %d sends accepted and %d refused; %d deliveries: %v", r.kills, r.cuts, accepted, refused, len(h.deliveries), ends)
	r.t.Logf("players: %v; what they played had ended otherwise by then %d times", sorted(deeds), otherwise)
}

func sorted(deeds map[deed]int) string {
	var all []string
	for _, d := range slices.SortedFunc(maps.Keys(deeds), func(a, b deed) int { return cmp.Compare(deeds[b], deeds[a]) }) {
		all = append(all, fmt.Sprintf("%s %d", d, deeds[d]))
	}
	return strings.Join(all, ", ")
}
