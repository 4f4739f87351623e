package sends

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/projections/readmodel"
)

// statusScheduled is the status of a destination that the audio did not go to yet; the others are those of package delivery.
const statusScheduled = "scheduled"

// The ranks of the statuses: a delivery takes a status of a higher rank only.
const (
	rankScheduled = iota
	rankQueued
	rankDelivered
	rankPlaying
	rankEnded
)

// run folds consecutive events about deliveries. Folding and then writing gives the rows that writing one by one gives: of each moment the first is
// kept, and of the statuses the first of the highest rank.
type run struct {
	sends      []*newSend // in the order as first met
	known      map[string]*newSend
	deliveries []*change // in the order as first met
	at         map[key]*change
}

type key struct {
	sendID string
	userID int64
}

// newSend is a send as the first of its events in the run tells it.
type newSend struct {
	id         string
	terms      send.Terms
	metadata   event.Metadata
	position   event.Position
	scheduleAt *time.Time
	localTime  string
	total      int
	sealed     bool // it is accepted with this event
	// fresh says that the event is the first of its stream: nothing of the send is in the tables.
	fresh  bool
	counts map[string]int // of its deliveries, by status, that are written together with it
}

// change is what a run does to one delivery.
type change struct {
	key
	planned    bool // the run has the event that makes the row
	externalID string
	playAt     *time.Time
	expiresAt  *time.Time
	timezone   *string

	status                            string
	rank                              int
	queued, delivered, playing, ended *time.Time
	reason                            *string
}

func newRun() *run { return &run{known: map[string]*newSend{}, at: map[key]*change{}} }

// take folds an event, unless it is about a send as a whole.
func (r *run) take(e event.Recorded) (taken bool, err error) {
	switch e.Type {
	case send.Scheduled{}.EventType():
		p, err := readmodel.Decode[send.Scheduled](e)
		if err != nil {
			return false, err
		}
		r.send(e, newSend{id: p.SendID, terms: p.Terms, scheduleAt: &p.ScheduleAt, localTime: p.LocalTime, total: p.Total, sealed: !p.Unsealed})
		for i := range p.Destinations {
			d := &p.Destinations[i]
			c := r.of(p.SendID, d.UserID)
			c.plan(d.ExternalID, &d.PlayAt, nil)
			if d.Timezone != "" {
				c.timezone = &d.Timezone
			}
			c.reach(statusScheduled, rankScheduled, "")
		}
	case send.AudioSent{}.EventType():
		p, err := readmodel.Decode[send.AudioSent](e)
		if err != nil {
			return false, err
		}
		r.send(e, newSend{id: p.SendID, terms: p.Terms, total: p.Total, sealed: !p.Unsealed})
		c := r.of(p.SendID, p.UserID)
		c.plan(p.ExternalID, p.PlayAt, &p.ExpiresAt)
		c.reach(string(delivery.StatusQueued), rankQueued, "")
		first(&c.queued, e.Metadata.Time)
	case delivery.Delivered{}.EventType():
		p, err := readmodel.Decode[delivery.Delivered](e)
		if err != nil {
			return false, err
		}
		c := r.of(p.SendID, p.UserID)
		c.reach(string(delivery.StatusDelivered), rankDelivered, "")
		first(&c.delivered, p.At)
	case delivery.PlaybackStarted{}.EventType():
		p, err := readmodel.Decode[delivery.PlaybackStarted](e)
		if err != nil {
			return false, err
		}
		c := r.of(p.SendID, p.UserID)
		c.reach(string(delivery.StatusPlaying), rankPlaying, "")
		first(&c.playing, p.At)
	case delivery.Played{}.EventType():
		p, err := readmodel.Decode[delivery.Played](e)
		if err != nil {
			return false, err
		}
		r.end(p.Ref, delivery.StatusPlayed, p.At, "")
	case delivery.Failed{}.EventType():
		p, err := readmodel.Decode[delivery.Failed](e)
		if err != nil {
			return false, err
		}
		r.end(p.Ref, delivery.StatusFailed, p.At, p.Reason)
	case delivery.Expired{}.EventType():
		p, err := readmodel.Decode[delivery.Expired](e)
		if err != nil {
			return false, err
		}
		r.end(p.Ref, delivery.StatusExpired, p.At, "it was not played in time")
	case delivery.Cancelled{}.EventType():
		p, err := readmodel.Decode[delivery.Cancelled](e)
		if err != nil {
			return false, err
		}
		r.end(p.Ref, delivery.StatusCancelled, p.At, p.Reason)
	default:
		return false, nil
	}
	return true, nil
}

func (r *run) send(e event.Recorded, s newSend) {
	if r.known[s.id] == nil {
		s.metadata, s.position, s.fresh, s.counts = e.Metadata, e.Position, e.Revision == 0, map[string]int{}
		r.known[s.id] = &s
		r.sends = append(r.sends, &s)
	}
}

func (r *run) of(sendID string, userID int64) *change {
	k := key{sendID, userID}
	c, ok := r.at[k]
	if !ok {
		c = &change{key: k, rank: -1}
		r.at[k] = c
		r.deliveries = append(r.deliveries, c)
	}
	return c
}

func (r *run) end(ref delivery.Ref, status delivery.Status, at time.Time, reason string) {
	c := r.of(ref.SendID, ref.UserID)
	c.reach(string(status), rankEnded, reason)
	first(&c.ended, at)
}

func (c *change) plan(externalID string, playAt, expiresAt *time.Time) {
	c.planned, c.externalID = true, externalID
	if playAt != nil {
		c.playAt = playAt
	}
	if expiresAt != nil {
		c.expiresAt = expiresAt
	}
}

func (c *change) reach(status string, rank int, reason string) {
	if rank <= c.rank {
		return
	}
	c.status, c.rank = status, rank
	if reason != "" {
		c.reason = &reason
	}
}

func first(at **time.Time, t time.Time) {
	if *at == nil {
		*at = &t
	}
}

// write queues the run's statements.
func (r *run) write(batch *pgx.Batch) {
	var added, made, moved changes
	for _, c := range r.deliveries {
		switch s := r.known[c.sendID]; {
		case !c.planned:
			moved.add(c)
		case s.fresh && c.rank < rankEnded: // most are: neither they nor their send are looked for, and the send's row is written once
			s.counts[c.status]++
			added.add(c)
		default:
			made.add(c)
		}
	}
	r.writeSends(batch)
	added.queue(batch, addDeliveries)
	made.queue(batch, makeDeliveries)
	moved.queue(batch, moveDeliveries)
}

func (r *run) writeSends(batch *pgx.Batch) {
	if len(r.sends) == 0 {
		return
	}
	var (
		ids, companies, environments, audio, priorities, localTimes []string
		traceParents                                                []string
		repeats, volumes, totals                                    []int
		expiresIn, positions                                        []int64
		scheduled, queued, delivered, playing                       []int
		single, sealed                                              []bool
		scheduleAt                                                  []*time.Time
		createdAt                                                   []time.Time
	)
	for _, s := range r.sends {
		ids, companies, environments = append(ids, s.id), append(companies, s.metadata.CompanyID), append(environments, string(s.metadata.Environment))
		audio, priorities, localTimes = append(audio, s.terms.AudioID), append(priorities, s.terms.Priority), append(localTimes, s.localTime)
		repeats, volumes, totals = append(repeats, s.terms.Repeat), append(volumes, s.terms.Volume), append(totals, s.total)
		expiresIn, positions = append(expiresIn, s.terms.ExpiresIn), append(positions, int64(s.position.Commit))
		single, sealed = append(single, s.terms.Single), append(sealed, s.sealed)
		scheduleAt, createdAt = append(scheduleAt, s.scheduleAt), append(createdAt, s.metadata.Time)
		traceParents = append(traceParents, s.metadata.TraceParent)
		scheduled, queued = append(scheduled, s.counts[statusScheduled]), append(queued, s.counts[string(delivery.StatusQueued)])
		delivered, playing = append(delivered, s.counts[string(delivery.StatusDelivered)]), append(playing, s.counts[string(delivery.StatusPlaying)])
	}
	// A send that is accepted with its first event counts with it.
	const insert = `
		WITH made AS (
			INSERT INTO send (send_id, company_id, environment, audio_id, priority, repeat, volume, expires_in, single, schedule_at, local_time, total, created_at, sealed, position,
				scheduled, queued, delivered, playing, traceparent)
			SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::integer[], $8::bigint[], $9::boolean[],
				$10::timestamptz[], $11::text[], $12::integer[], $13::timestamptz[], $14::boolean[], $15::bigint[],
				$16::integer[], $17::integer[], $18::integer[], $19::integer[], $20::text[])
			ON CONFLICT (send_id) DO NOTHING
			RETURNING company_id, environment, date_trunc('month', created_at AT TIME ZONE 'UTC')::date AS month, sealed
		)
		INSERT INTO accepted AS a (company_id, environment, month, sends)
		SELECT company_id, environment, month, count(*) FROM made WHERE sealed GROUP BY company_id, environment, month
		ON CONFLICT (company_id, environment, month) DO UPDATE SET sends = a.sends + excluded.sends`
	batch.Queue(insert, ids, companies, environments, audio, priorities, repeats, volumes, expiresIn, single, scheduleAt, localTimes, totals, createdAt, sealed, positions,
		scheduled, queued, delivered, playing, traceParents)
}

// changes are many changes, column by column, as unnest takes them.
type changes struct {
	sendIDs, externalIDs, statuses                         []string
	userIDs                                                []int64
	ranks                                                  []int16
	playAt, expiresAt, queued, delivered, playing, endedAt []*time.Time
	reasons, timezones                                     []*string
}

func (cs *changes) add(c *change) {
	cs.sendIDs, cs.userIDs, cs.externalIDs = append(cs.sendIDs, c.sendID), append(cs.userIDs, c.userID), append(cs.externalIDs, c.externalID)
	cs.statuses, cs.ranks = append(cs.statuses, c.status), append(cs.ranks, int16(c.rank))
	cs.playAt, cs.expiresAt = append(cs.playAt, c.playAt), append(cs.expiresAt, c.expiresAt)
	cs.queued, cs.delivered, cs.playing = append(cs.queued, c.queued), append(cs.delivered, c.delivered), append(cs.playing, c.playing)
	cs.endedAt, cs.reasons, cs.timezones = append(cs.endedAt, c.ended), append(cs.reasons, c.reason), append(cs.timezones, c.timezone)
}

func (cs *changes) queue(batch *pgx.Batch, statement string) {
	if len(cs.sendIDs) > 0 {
		batch.Queue(statement, cs.sendIDs, cs.userIDs, cs.externalIDs, cs.statuses, cs.ranks, cs.playAt, cs.expiresAt, cs.queued, cs.delivered, cs.playing, cs.endedAt, cs.reasons, cs.timezones)
	}
}

// addDeliveries writes deliveries that are not there, whose send has counted them.
const addDeliveries = `
	INSERT INTO delivery (send_id, user_id, external_id, status, rank, play_at, expires_at, queued_at, delivered_at, playing_at, ended_at, reason, timezone)
	SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[],
		$9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])`

// The two statements that write other deliveries differ in the middle: the rows are made, or moved on; both keep the counts of their sends, and of what
// has ended at their locations. A statement sees the tables as they were before it, so `before` has the old status. Rank 4 is rankEnded.
const (
	makeDeliveries = theChanges + `
		INSERT INTO delivery AS d (send_id, user_id, external_id, status, rank, play_at, expires_at, queued_at, delivered_at, playing_at, ended_at, reason, timezone)
		SELECT send_id, user_id, external_id, status, rank, play_at, expires_at, queued_at, delivered_at, playing_at, ended_at, reason, timezone FROM v
		ON CONFLICT (send_id, user_id) DO UPDATE SET
			status = CASE WHEN excluded.rank > d.rank THEN excluded.status ELSE d.status END,
			reason = CASE WHEN excluded.rank > d.rank THEN excluded.reason ELSE d.reason END,
			rank = greatest(d.rank, excluded.rank),
			play_at = coalesce(excluded.play_at, d.play_at),
			expires_at = coalesce(excluded.expires_at, d.expires_at),
			queued_at = coalesce(d.queued_at, excluded.queued_at),
			delivered_at = coalesce(d.delivered_at, excluded.delivered_at),
			playing_at = coalesce(d.playing_at, excluded.playing_at),
			ended_at = CASE WHEN excluded.rank > d.rank AND d.rank < 4 THEN excluded.ended_at ELSE coalesce(d.ended_at, excluded.ended_at) END
		` + theCounts

	moveDeliveries = theChanges + `
		UPDATE delivery d SET
			status = CASE WHEN v.rank > d.rank THEN v.status ELSE d.status END,
			reason = CASE WHEN v.rank > d.rank THEN v.reason ELSE d.reason END,
			rank = greatest(d.rank, v.rank),
			delivered_at = coalesce(d.delivered_at, v.delivered_at),
			playing_at = coalesce(d.playing_at, v.playing_at),
			ended_at = CASE WHEN v.rank > d.rank AND d.rank < 4 THEN v.ended_at ELSE coalesce(d.ended_at, v.ended_at) END
		FROM v WHERE d.send_id = v.send_id AND d.user_id = v.user_id
		` + theCounts

	theChanges = `
		WITH v AS (
			SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::smallint[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[],
				$9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[], $13::text[])
				AS v (send_id, user_id, external_id, status, rank, play_at, expires_at, queued_at, delivered_at, playing_at, ended_at, reason, timezone)
		), before AS (
			SELECT d.send_id, d.user_id, d.status, d.rank FROM v JOIN delivery d ON d.send_id = v.send_id AND d.user_id = v.user_id
		), after AS (`

	theCounts = `
			RETURNING d.send_id, d.user_id, d.status, d.rank, d.ended_at
		), located AS (
			INSERT INTO location AS l (user_id, company_id, environment, played, failed, expired, cancelled, last_played_at)
			SELECT c.user_id, s.company_id, s.environment,
				coalesce(sum(n) FILTER (WHERE c.status = 'played'), 0), coalesce(sum(n) FILTER (WHERE c.status = 'failed'), 0),
				coalesce(sum(n) FILTER (WHERE c.status = 'expired'), 0), coalesce(sum(n) FILTER (WHERE c.status = 'cancelled'), 0),
				max(c.ended_at) FILTER (WHERE c.status = 'played')
			FROM (
				SELECT send_id, user_id, status, ended_at, 1 AS n FROM after WHERE rank = 4
				UNION ALL SELECT send_id, user_id, status, NULL, -1 FROM before WHERE rank = 4
			) c JOIN send s ON s.send_id = c.send_id
			GROUP BY c.user_id, s.company_id, s.environment HAVING sum(n) > 0
			ON CONFLICT (user_id, company_id, environment) DO UPDATE SET
				played = l.played + excluded.played, failed = l.failed + excluded.failed, expired = l.expired + excluded.expired, cancelled = l.cancelled + excluded.cancelled,
				last_played_at = greatest(l.last_played_at, excluded.last_played_at)
		), counts AS (
			SELECT send_id, status, sum(n) AS n
			FROM (SELECT send_id, status, 1 AS n FROM after UNION ALL SELECT send_id, status, -1 FROM before) c
			GROUP BY send_id, status
		), moved AS (
			SELECT send_id,
				sum(n) FILTER (WHERE status = 'scheduled') AS scheduled, sum(n) FILTER (WHERE status = 'queued') AS queued,
				sum(n) FILTER (WHERE status = 'delivered') AS delivered, sum(n) FILTER (WHERE status = 'playing') AS playing,
				sum(n) FILTER (WHERE status = 'played') AS played, sum(n) FILTER (WHERE status = 'failed') AS failed,
				sum(n) FILTER (WHERE status = 'expired') AS expired, sum(n) FILTER (WHERE status = 'cancelled') AS cancelled
			FROM counts GROUP BY send_id
		)
		UPDATE send s SET
			scheduled = s.scheduled + coalesce(m.scheduled, 0), queued = s.queued + coalesce(m.queued, 0),
			delivered = s.delivered + coalesce(m.delivered, 0), playing = s.playing + coalesce(m.playing, 0),
			played = s.played + coalesce(m.played, 0), failed = s.failed + coalesce(m.failed, 0),
			expired = s.expired + coalesce(m.expired, 0), cancelled = s.cancelled + coalesce(m.cancelled, 0)
		FROM moved m WHERE s.send_id = m.send_id`
)
