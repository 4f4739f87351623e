package workers_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/commands/commandstest"
	"github.com/musique/musique/domain/company"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/esnode"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
	"github.com/musique/musique/workers"
)

// signed is where a test has its history signed.
type signed struct {
	config workers.HistoryConfig
}

func newSigned(t *testing.T) signed {
	t.Helper()
	dir := t.TempDir()
	return signed{workers.HistoryConfig{Dir: filepath.Join(dir, "heads"), KeyFile: filepath.Join(dir, "heads.key"), Every: 10 * time.Millisecond}}
}

func (s signed) verify(t *testing.T, store *eventstore.Store) translog.Report {
	t.Helper()
	keys, err := translog.ReadPublicKeys(translog.PublicKeysFile(s.config.KeyFile))
	require.NoError(t, err)
	report, err := translog.Verify(t.Context(), translog.VerifyConfig{
		Dir: s.config.Dir, Keys: keys, Source: store.History, Now: time.Now(), Retained: []translog.Retained{{Prefix: usage.StreamPrefix, Age: commands.UsageAge}},
	})
	require.NoError(t, err)
	return report
}

// covers waits until everything that is in the store is signed.
func (s signed) covers(t *testing.T, store *eventstore.Store, events int) {
	t.Helper()
	eventually(t, func() bool {
		if _, err := os.Stat(filepath.Join(s.config.Dir, "checkpoint")); err != nil {
			return false
		}
		report := s.verify(t, store)
		require.Equal(t, translog.Verified, report.Verdict, "%+v", report)
		return report.Proven == uint64(events) && report.Uncovered == 0
	})
}

// Instances come and go, and their connections are cut: there is one head of a size, and each holds.
func TestTheHistoryIsSignedByOneAtATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSigned(t)
	follow := func(ctx context.Context) error { return workers.NewHistory(w.deps, s.config).Run(ctx) }
	commandstest.Run(t, follow)
	r := rand.New(rand.NewPCG(3, 4))
	events := 0
	for round := range 8 {
		stop := commandstest.Run(t, follow, follow)
		events += len(w.change(t, 1+r.IntN(20)))
		if round%3 == 0 {
			w.cut(t)
		}
		if round%2 == 0 {
			s.covers(t, w.Store, events)
		}
		stop()
	}
	// The events of usage are covered, too; the store's own, such as how long it keeps them, are not.
	require.NoError(t, w.Store.LimitAge(t.Context(), "usage-co-live-2026-03-01", commands.UsageAge))
	w.append(t, event.Metadata{Time: w.now()}, "usage-co-live-2026-03-01", usage.ApiRequestServed{RequestID: "req"})
	s.covers(t, w.Store, events+1)
	keys, err := translog.ReadPublicKeys(translog.PublicKeysFile(s.config.KeyFile))
	require.NoError(t, err)
	heads, err := translog.ReadHeads(s.config.Dir, keys)
	require.NoError(t, err)
	require.Empty(t, heads.Evidence)
	require.Len(t, keys, 1)
	require.Greater(t, len(heads.Heads), 3)
}

// A store that lost what was signed, or says something else there, gets no new head: the worker says so until it is as it was.
func TestAChangedHistoryIsNotSigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSigned(t)
	w.change(t, 20)
	stop := commandstest.Run(t, workers.NewHistory(w.deps, s.config).Run)
	s.covers(t, w.Store, 20)
	stop()
	before, err := os.ReadFile(filepath.Join(s.config.Dir, "checkpoint"))
	require.NoError(t, err)

	restored := w.deps
	restored.Store = commandstest.Store(t) // as of an older backup, and somebody wrote since
	for i := range 19 {
		_, err := restored.Store.Append(t.Context(), "company-test", eventstore.Any, event.Proposed{
			ID: uuid.New(), Payload: company.PlanChanged{CompanyID: "test", Plan: fmt.Sprint("plan", i)}, Metadata: event.Metadata{Time: time.Now()},
		})
		require.NoError(t, err)
	}
	refuses := func(config workers.HistoryConfig) {
		registry := prometheus.NewRegistry()
		config.Registry = registry
		stop := commandstest.Run(t, workers.NewHistory(restored, config).Run)
		defer stop()
		eventually(t, func() bool {
			families, err := registry.Gather()
			require.NoError(t, err)
			return slices.ContainsFunc(families, func(f *dto.MetricFamily) bool {
				return f.GetName() == "musique_history_changed" && f.GetMetric()[0].GetGauge().GetValue() == 1
			})
		})
	}
	refuses(s.config)
	onlyHeads := s.config // all else is lost
	onlyHeads.Dir = filepath.Join(t.TempDir(), "heads")
	require.NoError(t, os.MkdirAll(onlyHeads.Dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(onlyHeads.Dir, "checkpoint"), before, 0o600))
	refuses(onlyHeads)
	after, err := os.ReadFile(filepath.Join(s.config.Dir, "checkpoint"))
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	report := s.verify(t, restored.Store)
	require.Equal(t, translog.Tampered, report.Verdict)
	require.NotEmpty(t, report.Differences)

	w.change(t, 1)
	commandstest.Run(t, workers.NewHistory(w.deps, s.config).Run)
	s.covers(t, w.Store, 21)
}

// A store is put back to a backup while the history is covered, when the newest that was read there is an event of the store's own. What was recorded since is
// covered from where the backup ends, and a backup that lacks what is covered is told of.
func TestAStoreThatIsPutBackWhileItsHistoryIsCovered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(name string) (*esnode.Node, *eventstore.Store) {
		node, err := esnode.Start(esnode.Options{Dir: filepath.Join(dir, name), Listen: "127.0.0.1:0", Log: commandstest.Quiet})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, node.Close()) })
		store, err := eventstore.Open(node.ConnectionString(), commandstest.Quiet)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, store.Close()) })
		return node, store
	}
	record := func(store *eventstore.Store, events int) {
		for range events {
			_, err := store.Append(t.Context(), "company-test", eventstore.Any, event.Proposed{
				ID: uuid.New(), Payload: company.PlanChanged{CompanyID: "test", Plan: "plus"}, Metadata: event.Metadata{Time: time.Now()},
			})
			require.NoError(t, err)
		}
	}
	node, store := open("now")
	record(store, 3)
	require.NoError(t, node.Checkpoint(filepath.Join(dir, "older")))
	record(store, 2)
	require.NoError(t, node.Checkpoint(filepath.Join(dir, "newer")))
	require.NoError(t, store.LimitAge(t.Context(), "usage-co-live-2026-03-01", commands.UsageAge))

	key, err := translog.OpenKey(filepath.Join(dir, "heads.key"))
	require.NoError(t, err)
	log, err := translog.Open(filepath.Join(dir, "heads"), key, commandstest.Quiet)
	require.NoError(t, err)
	defer log.Close()
	cover := workers.Cover(workers.Deps{Now: time.Now, Log: commandstest.Quiet}, log)
	for range 2 {
		require.NoError(t, cover(t.Context(), store))
		require.Equal(t, uint64(5), log.Size())
	}
	_, newer := open("newer")
	record(newer, 3)
	require.NoError(t, cover(t.Context(), newer))
	require.Equal(t, uint64(8), log.Size(), "none was passed over")

	require.NoError(t, newer.LimitAge(t.Context(), "usage-co-live-2026-03-01", commands.UsageAge))
	require.NoError(t, cover(t.Context(), newer))
	_, older := open("older")
	record(older, 9)
	require.ErrorIs(t, cover(t.Context(), older), translog.ErrChanged)
}
