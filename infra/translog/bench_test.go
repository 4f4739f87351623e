package translog_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/translog"
)

// BenchmarkCover is what a page of new events costs, its head included: from the events as they were read to what is written. It leaves out the waiting for
// the disk.
func BenchmarkCover(b *testing.B) {
	const page = 4_096
	h := example(page)
	f := newFolder(b, b.TempDir())
	log := f.open(b)
	covered := 0
	for b.Loop() {
		entries := h.covered()
		require.NoError(b, log.Append(entries...))
		_, _, err := log.Sign(began)
		require.NoError(b, err)
		covered += page
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(covered), "ns/event")
	kept := 0
	for _, raw := range files(b, f.dir) {
		kept += len(raw)
	}
	b.ReportMetric(float64(kept)/float64(log.Size()), "bytes/event")
	require.NoError(b, log.Close())
}

// BenchmarkVerify is the comparison of a history with what is kept of it, without the store.
func BenchmarkVerify(b *testing.B) {
	const events = 100_000
	h := example(events)
	f := newFolder(b, b.TempDir())
	f.sign(b, h.covered())
	for b.Loop() {
		require.Equal(b, translog.Verified, f.verify(b, h).Verdict)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
}
