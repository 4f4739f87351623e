package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// runBench runs the command in a folder of its own and gives what it printed.
func runBench(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	cmd := newBench()
	cmd.SetOut(&out)
	cmd.SetErr(&bytes.Buffer{})
	cmd.SilenceUsage = true
	cmd.SetArgs(append(args, "--dir", dir, "--duration", "80ms", "--rate", "20"))
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	return out.Bytes()
}

func TestEachMeasurementHasItsFiguresAndBaselines(t *testing.T) {
	t.Parallel()
	for name, figures := range map[string]int{"append": 2, "send": 1, "latency": 8, "read": 2} {
		t.Run(name, func(t *testing.T) {
			var report benchReport
			require.NoError(t, json.Unmarshal(runBench(t, "--only", name, "--output", "json"), &report))
			require.Len(t, report.Figures, figures)
			for _, f := range report.Figures {
				require.NotEmpty(t, f.Name)
				require.NotEmpty(t, f.BaselineIs)
				require.Positive(t, f.Baseline, f.Name)
				if strings.HasPrefix(f.Name, "202") {
					require.GreaterOrEqual(t, f.Value, 0.0, f.Name) // the player may have been faster than the answer
				} else {
					require.Positive(t, f.Value, f.Name)
				}
				require.InDelta(t, f.Value/f.Baseline, f.Ratio, 1e-9, f.Name)
			}
			require.Positive(t, report.Cores)
			require.NotEmpty(t, report.Disk)
			require.NotEmpty(t, report.Go)
		})
	}
}

func TestBenchForPeopleWithProfiles(t *testing.T) {
	t.Parallel()
	profiles := t.TempDir()
	out := string(runBench(t, "--only", "append", "--profiles", profiles))
	require.Contains(t, out, "cores")
	require.Regexp(t, `append, writers: 64 +\d+ /s +\d+ /s +\d+\.\d\d +a file`, out)
	for _, kind := range []string{"cpu", "block", "mutex"} {
		require.FileExists(t, filepath.Join(profiles, "append."+kind+".pprof"))
	}
}

func TestBenchRefusesWhatItCannotMeasure(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--only", "everything"}, {"--duration", "0s"}, {"--rate", "-1"}, {"--output", "xml"}, {"--dir", "/nowhere/at/all"}} {
		cmd := newBench()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetErr(&bytes.Buffer{})
		cmd.SetArgs(append([]string{"--dir", t.TempDir()}, args...))
		require.Error(t, cmd.ExecuteContext(t.Context()), args)
	}
}
