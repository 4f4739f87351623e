package workers_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

// BenchmarkHistory is what the signing of the history costs an event: read from the embedded store, hashed, written with all that waits for the disk.
func BenchmarkHistory(b *testing.B) {
	const events, perAppend, page = 20_000, 500, 4_096
	store := commandstest.Store(b)
	for range events / perAppend {
		var batch []event.Proposed
		for range perAppend {
			batch = append(batch, event.Proposed{ID: uuid.New(), Payload: company.PlanChanged{CompanyID: "co_benchmark", Plan: "standard"}})
		}
		_, err := store.Append(b.Context(), "company-"+uuid.NewString(), eventstore.Any, batch...)
		require.NoError(b, err)
	}
	for b.Loop() {
		dir := b.TempDir()
		key, err := translog.OpenKey(filepath.Join(dir, "heads.key"))
		require.NoError(b, err)
		log, err := translog.Open(filepath.Join(dir, "heads"), key, slog.New(slog.DiscardHandler))
		require.NoError(b, err)
		for at, done := (event.Position{}), false; !done; {
			var read []eventstore.Raw
			read, done, err = store.History(b.Context(), at, page)
			require.NoError(b, err)
			var entries []translog.Entry
			for _, e := range read {
				if at.Before(e.Position) {
					entries = append(entries, translog.NewEntry(e))
				}
			}
			at = read[len(read)-1].Position
			require.NoError(b, log.Append(entries...))
		}
		_, _, err = log.Sign(time.Now())
		require.NoError(b, err)
		require.Equal(b, uint64(events), log.Size())
		require.NoError(b, log.Close())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
}
