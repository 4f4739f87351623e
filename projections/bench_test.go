package projections

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/delivery"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/projections/tokens"
)

const benchPage = 2000

// perSecond tells a rate, and what part of the baseline's it is.
func perSecond(b *testing.B, what string, n int, took, baseline time.Duration) {
	b.ReportMetric(float64(n)/took.Seconds(), what+"/s")
	b.ReportMetric(float64(n)/baseline.Seconds(), "baseline-"+what+"/s")
	b.ReportMetric(baseline.Seconds()/took.Seconds(), "of-baseline")
	b.ReportMetric(0, "ns/op")
}

// A broadcast to 100,000 locations, against a bare COPY of the same rows into a table with the same indexes, in transactions of the same size.
func BenchmarkBroadcast(b *testing.B) {
	pool := database(b)
	const total = 100_000
	terms := send.Terms{AudioID: "aud_1", Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 60}
	w := open(b, pool, named(Sends))
	for round := 0; b.Loop(); round++ {
		sendID := fmt.Sprintf("snd_%022d", round)
		all := make([]entry, total)
		for i := range all {
			user := int64(i) * 45_035_996_273
			all[i] = entry{send.AudioSent{SendID: sendID, DeliveryID: delivery.ID(sendID, user), Terms: terms, Destination: send.Destination{ExternalID: fmt.Sprint("store_", i), UserID: user}, Total: total, ExpiresAt: epoch}, "co_one", event.Live}
		}
		events := recorded(all)
		_, err := pool.Exec(b.Context(), "DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE sends.delivery INCLUDING INDEXES)")
		require.NoError(b, err)

		began := time.Now()
		for from := 0; from < total; from += benchPage {
			rows := make([][]any, benchPage)
			for i := range rows {
				e := all[from+i].payload.(send.AudioSent) //nolint:forcetypeassert // made above
				rows[i] = []any{e.SendID, e.UserID, e.ExternalID, "queued", int16(1), e.ExpiresAt, epoch}
			}
			_, err := pool.CopyFrom(b.Context(), pgx.Identifier{"bare"}, []string{"send_id", "user_id", "external_id", "status", "rank", "expires_at", "queued_at"}, pgx.CopyFromRows(rows))
			require.NoError(b, err)
		}
		baseline := time.Since(began)

		w.lead.position = event.Position{}
		_, err = pool.Exec(b.Context(), "UPDATE projections.checkpoint SET commit_position = 0, prepare_position = 0")
		require.NoError(b, err)
		began = time.Now()
		for from := 0; from < total; from += benchPage {
			page := events[from : from+benchPage]
			require.NoError(b, w.lead.write(b.Context(), eventstore.Page{Events: page, Through: page[benchPage-1].Position}))
		}
		perSecond(b, "events", total, time.Since(began), baseline)
	}
}

// Reports of 20,000 deliveries, three each, which is the projection's heaviest work; the baseline is one bare UPDATE by key per page.
func BenchmarkReports(b *testing.B) {
	pool := database(b)
	const total = 20_000
	terms := send.Terms{AudioID: "aud_1", Priority: "normal", Repeat: 1, Volume: 100, ExpiresIn: 60}
	w := open(b, pool, named(Sends))
	for b.Loop() {
		w.empty(b)
		var all []entry
		for user := range int64(total) {
			all = append(all, entry{send.AudioSent{SendID: "snd_1", Terms: terms, Destination: send.Destination{ExternalID: "x", UserID: user}, Total: total, ExpiresAt: epoch}, "co_one", event.Live})
		}
		for user := range int64(total) {
			ref := delivery.Ref{SendID: "snd_1", UserID: user}
			all = append(all, entry{delivery.Delivered{Ref: ref, At: epoch}, "co_one", event.Live}, entry{delivery.PlaybackStarted{Ref: ref, At: epoch}, "co_one", event.Live}, entry{delivery.Played{Ref: ref, At: epoch}, "co_one", event.Live})
		}
		events := recorded(all)
		cuts := []int{}
		for at := benchPage; at < len(events); at += benchPage {
			cuts = append(cuts, at)
		}
		w.project(b, events[:total], cuts)
		_, err := pool.Exec(b.Context(), "DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE sends.delivery INCLUDING INDEXES); INSERT INTO bare SELECT * FROM sends.delivery")
		require.NoError(b, err)

		began := time.Now()
		for from := 0; from < total; from += benchPage / 3 {
			_, err := pool.Exec(b.Context(), "UPDATE bare SET status = 'played', delivered_at = $3, playing_at = $3, ended_at = $3 WHERE send_id = 'snd_1' AND user_id >= $1 AND user_id < $2", from, from+benchPage/3, epoch)
			require.NoError(b, err)
		}
		baseline := time.Since(began)
		began = time.Now()
		w.project(b, events[total:], cuts)
		perSecond(b, "events", 3*total, time.Since(began), 3*baseline/3)
	}
}

// 100,000 logged requests, against a bare COPY into a table with the same index.
func BenchmarkUsage(b *testing.B) {
	pool := database(b)
	const total = 100_000
	w := open(b, pool, named(Usage))
	all := make([]entry, total)
	for i := range all {
		all[i] = entry{usage.ApiRequestServed{RequestID: fmt.Sprint("req_", i), Timestamp: epoch.Add(time.Duration(i) * time.Second), Method: "GET", Path: "/api/v1/integration/audio", Endpoint: "/audio", Status: 200, DurationMs: 3, ExternalID: "store_1", TokenID: "tok_0123456789012345678901", IP: "192.0.2.1", UserAgent: "benchmark"}, "co_one", event.Live}
	}
	events := recorded(all)
	for b.Loop() {
		w.empty(b)
		_, err := pool.Exec(b.Context(), "DROP TABLE IF EXISTS bare; CREATE TABLE bare (LIKE usage.request); CREATE INDEX ON bare (company_id, environment, at, event_id)")
		require.NoError(b, err)
		began := time.Now()
		for from := 0; from < total; from += benchPage {
			rows := make([][]any, benchPage)
			for i := range rows {
				e := all[from+i].payload.(usage.ApiRequestServed) //nolint:forcetypeassert // made above
				rows[i] = []any{[16]byte(events[from+i].ID), "co_one", "live", e.Timestamp, e.RequestID, e.Method, e.Path, e.Endpoint, int32(e.Status), e.DurationMs, e.ExternalID, e.TokenID, e.IP, e.UserAgent, e.ErrorCode}
			}
			_, err := pool.CopyFrom(b.Context(), pgx.Identifier{"bare"}, []string{"event_id", "company_id", "environment", "at", "request_id", "method", "path", "endpoint", "status", "duration_ms", "external_id", "token_id", "ip", "user_agent", "error_code"}, pgx.CopyFromRows(rows))
			require.NoError(b, err)
		}
		baseline := time.Since(began)
		began = time.Now()
		for from := 0; from < total; from += benchPage {
			page := events[from : from+benchPage]
			require.NoError(b, w.lead.write(b.Context(), eventstore.Page{Events: page, Through: page[benchPage-1].Position}))
		}
		perSecond(b, "events", total, time.Since(began), baseline)
	}
}

// What it costs a request to be let in, against the bare round trip of SELECT 1.
func BenchmarkAuthenticate(b *testing.B) {
	pool := database(b)
	w := open(b, pool, named(Tokens))
	history := []event.Payload{registered("co_one", "unlimited")}
	for i := range 1000 {
		history = append(history, issued(fmt.Sprint("tok_", i), "co_one", nil))
	}
	w.project(b, entries(history...), nil)
	unlimited := plans
	unlimited["unlimited"] = plans["standard"]
	free := unlimited["unlimited"]
	free.PerMinute, free.PerHour, free.PerDay = 1<<30, 1<<30, 1<<30
	unlimited["unlimited"] = free
	measure := func(call func(i int) error) time.Duration {
		const n = 2000
		for i := range 200 {
			require.NoError(b, call(i))
		}
		began := time.Now()
		for i := range n {
			require.NoError(b, call(i))
		}
		return time.Since(began) / n
	}
	authenticator := tokens.NewAuthenticator(pool, unlimited, at(epoch))
	for b.Loop() {
		var one int
		bare := measure(func(int) error { return pool.QueryRow(context.Background(), "SELECT 1").Scan(&one) })
		spread := measure(func(i int) error {
			_, err := authenticator.Authenticate(context.Background(), []string{"hash tok_" + fmt.Sprint(i%1000)})
			return err
		})
		b.ReportMetric(float64(bare.Microseconds()), "select1-µs")
		b.ReportMetric(float64(spread.Microseconds()), "authenticate-µs")
		b.ReportMetric(spread.Seconds()/bare.Seconds(), "of-select1")
		b.ReportMetric(0, "ns/op")
	}
}

// How long after its append a write is read, against the append alone.
func BenchmarkReadYourWrite(b *testing.B) {
	store, pool := newStore(b), database(b)
	positions := listen(b, pool)
	run(b, store, pool)
	reach(b, positions, add(b, store, "audio-warm", upload("aud_warm")), Audio)
	var appended, waited time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("aud_", i)
		began := time.Now()
		position := add(b, store, "audio-"+id, upload(id))
		appended += time.Since(began)
		began = time.Now()
		require.NoError(b, positions.WaitFor(b.Context(), position, Audio))
		waited += time.Since(began)
	}
	b.ReportMetric(float64(appended.Microseconds())/float64(b.N), "append-µs")
	b.ReportMetric(float64(waited.Microseconds())/float64(b.N), "wait-µs")
}
