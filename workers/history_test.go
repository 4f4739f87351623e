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
