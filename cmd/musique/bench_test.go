package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	cmd.SetArgs(append(args, "--dir", dir, "--duration", "80ms", "--rate", "20", "--locations", "40", "--players", "6", "--events", "1000"))
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	return out.Bytes()
}

func TestEachMeasurementHasItsFiguresAndBaselines(t *testing.T) {
	t.Parallel()
	figuresOf := map[string]int{"append": 2, "send": 1, "latency": 10, "read": 2, "broadcast": 4, "rebuild": 2, "publish": 1}
	if runtime.GOOS == "linux" {
		figuresOf["broadcast"] = 5
	}
	for name, figures := range figuresOf {
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

// benchProcess runs the program in a folder of its own, and gives what it measured.
func benchProcess(t *testing.T, args ...string) (report benchReport) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(executable(t), append([]string{"bench", "--dir", dir, "--output", "json"}, args...)...)
	cmd.Env = environment()
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	require.NoError(t, err, said.String())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, json.Unmarshal(out, &report))
	return report
}

// What players cost is measured in a process that does nothing else.
func TestBenchOfConnectedPlayers(t *testing.T) {
	t.Parallel()
	profiles := t.TempDir()
	report := benchProcess(t, "--only", "players", "--players", "30", "--profiles", profiles)
	units := map[string]int{}
	for _, f := range report.Figures {
		units[f.Unit]++
		require.Contains(t, f.Name, "30 players, ")
		require.NotEmpty(t, f.BaselineIs)
		if f.Unit == "ms" { // that of so few players is lost in the memory of the rest
			require.Positive(t, f.Baseline, f.Name)
			if !strings.Contains(f.Name, "202") {
				require.Positive(t, f.Value, f.Name)
			}
		}
	}
	require.Equal(t, 7, units["ms"])
	require.GreaterOrEqual(t, units["KB"], 1)
	require.FileExists(t, filepath.Join(profiles, "players.heap.pprof"))
}

// Servers that are killed, or find a long history, are processes of their own.
func TestBenchOfServers(t *testing.T) {
	t.Parallel()
	figuresOf := map[string]int{"takeover": 3, "history": 6}
	if runtime.GOOS == "linux" {
		figuresOf["history"] = 8
	}
	for name, figures := range figuresOf {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := benchProcess(t, "--only", name, "--history", "400")
			require.Len(t, report.Figures, figures)
			for _, f := range report.Figures {
				require.Positive(t, f.Value, f.Name)
				require.Positive(t, f.Baseline, f.Name)
				require.NotEmpty(t, f.BaselineIs)
			}
		})
	}
}

// Players that cannot be connected are an error that says why, and leave nothing running.
func TestAFleetThatCannotConnect(t *testing.T) {
	t.Parallel()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	refusing := httptest.NewServer(http.NotFoundHandler())
	defer refusing.Close()
	for address, want := range map[string]string{closed.Addr().String(): "refused", refusing.Listener.Addr().String(): "404"} {
		orders := fleetOrders{Address: address, Path: "/", Tokens: make([]string, 3)}
		require.ErrorContains(t, runFleet(t.Context(), orders, func(fleetNews) error { return nil }), want)
	}
	require.ErrorContains(t, allowFiles(1<<40), "ulimit -Hn")
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
	for _, args := range [][]string{{"--only", "everything"}, {"--duration", "0s"}, {"--rate", "-1"}, {"--output", "xml"}, {"--dir", "/nowhere/at/all"}, {"--locations", "0"}, {"--players", "100001"}, {"--events", "0"}, {"--history", "3"}} {
		cmd := newBench()
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetErr(&bytes.Buffer{})
		cmd.SetArgs(append([]string{"--dir", t.TempDir()}, args...))
		require.Error(t, cmd.ExecuteContext(t.Context()), args)
	}
}
