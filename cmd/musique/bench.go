package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/send"
)

const (
	// benchCallers is how many write or send at the same time where it is not one alone.
	benchCallers = 64
	// benchTurns is in how many slices a thing and its baseline are measured by turns.
	benchTurns = 4
	// contentionSamples is the share of waits for locks that a profile holds: one in so many.
	contentionSamples = 5
	// defaultCrowd is how many players are connected at once unless it is said.
	defaultCrowd = 10_000
)

// benchFigure is one measurement and its baseline, from the same run and the same disk.
type benchFigure struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"` // "/s", of which more is better, or "ms", "KB" (1,024 bytes) or "MB" (1,024 KB), of which less is
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline"`
	// Ratio is Value in parts of Baseline.
	Ratio float64 `json:"ratio"`
	// BaselineIs says what the baseline does.
	BaselineIs string `json:"baselineIs"`
}

func newFigure(name, unit string, value, baseline float64, baselineIs string) benchFigure {
	return benchFigure{name, unit, value, baseline, value / baseline, baselineIs}
}

// benchReport is everything that a run found out.
type benchReport struct {
	Version string        `json:"version"`
	Cores   int           `json:"cores"`
	OS      string        `json:"os"`
	Arch    string        `json:"arch"`
	Go      string        `json:"go"`
	Disk    string        `json:"disk"`
	Seconds float64       `json:"secondsEach"`
	Figures []benchFigure `json:"figures"`
}

// bench is one run of the measurements.
type bench struct {
	dir      string // a folder of its own on the disk
	duration time.Duration
	rate     float64
	profiles string
	// locations is to how many a broadcast goes, and players how many are connected at once.
	locations, players int
	// events is how many a rebuild has to apply, and a publisher to publish; historyEvents is how many a long history has.
	events, historyEvents int
}

// benchmarks are the measurements by name, in the order of the report.
var benchmarks = []struct {
	name string
	run  func(*bench, context.Context) ([]benchFigure, error)
	// furnishes says that it needs much before it begins, and writes its profiles without that.
	furnishes bool
}{
	{"append", (*bench).appends, false},
	{"send", (*bench).sends, false},
	{"latency", (*bench).latency, false},
	{"read", (*bench).reads, false},
	{"broadcast", (*bench).broadcasts, true},
	{"players", (*bench).crowd, true},
	{"rebuild", (*bench).rebuilds, true},
	{"publish", (*bench).publishes, false},
	{"takeover", (*bench).takeovers, false},
	{"history", (*bench).history, false},
}

func newBench() *cobra.Command {
	var b bench
	var dir, only, output string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the main path on this machine, each figure beside its baseline",
		Long: `Measure the main path on this machine and disk. Everything that it takes is started inside this program, on free ports and in a folder that
is removed at the end, and nothing that runs or lies elsewhere is touched.

  append   events appended per second by the official client to the embedded event store, by 1 writer and by 64;
           the baseline writes the same bytes to a file, with one fsync for each group of waiting writers
  send     sends accepted per second from 64 callers over HTTP, each to one location, with players connected;
           the baseline appends the same event by the official client from 64 writers
  latency  time from a send's request, and from its 202, to its arrival at the player, in a quiet system and at a steady rate;
           the baseline is one append to a file with its fsync, one way through Kafka and one commit in PostgreSQL, bare and one after the other.
           And how far apart 50 reference players, on the simulated clock, begin with what is scheduled for one moment; the baseline is bare timers
  read     lists of audio, and tests of a token, answered per second from 64 callers with one token over HTTP;
           the baseline is a bare net/http handler that does one indexed query with pgx, and checks, counts and notes nothing
  broadcast  one send to all of --locations over HTTP: time until it is accepted, and until it is in all inboxes, and the memory of this process, which
           all embedded parts but PostgreSQL are in; the baseline appends the same events in the same sizes by the official client, and copies the same rows
  players  --players connected at once from a process of their own: what each costs this process, how long connecting all takes, and the time from a
           send to all of them to its arrival; the baseline is a bare net/http server with as many event streams, which writes one event to all
  rebuild  --events sends to one location each, from all of which the read model of sends is built anew while it serves: events applied per second, from
           the command to the swap; the baselines read $all by the official client, and COPY the same rows. These are measured one after the other
  publish  --events such sends put on their Kafka topics by the publisher; the baseline is a bare franz-go producer of the same records
  takeover the time until a send is shown, at its player and on its topic when the process that was active in everything else than the API is killed
           at the moment of the send, and another takes over; the baseline is the same without a kill
  history  --history events of sends that were played: read models that catch up with all of it, and one built anew; the time of a start on it, after a
           stop and after kill -9; memory and disk. The baselines read $all by the official client, and have no history. With a million it takes minutes

A baseline is measured by turns with what it stands beside. A ratio is the figure in parts of its baseline. A time is 0 where the
player was faster than the answer.`,
		Example: `  musique bench
  musique bench --only send --duration 20s --profiles /tmp/profiles
  musique bench --dir /var/lib --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if output != "text" && output != "json" {
				return fmt.Errorf("--output is text or json, not %q", output)
			}
			if b.duration <= 0 || b.rate <= 0 {
				return errors.New("--duration and --rate are more than zero")
			}
			if b.locations < 1 || b.locations > send.MaxDestinations || b.players < 1 || b.players > send.MaxDestinations {
				return fmt.Errorf("--locations and --players are 1 to %d", send.MaxDestinations)
			}
			if b.events < 1 || b.historyEvents < eventsPerSend {
				return fmt.Errorf("--events is 1 or more, --history %d or more", eventsPerSend)
			}
			if b.profiles != "" {
				if err := os.MkdirAll(b.profiles, 0o755); err != nil { //nolint:gosec // it holds no secrets
					return fmt.Errorf("--profiles: %w", err)
				}
			}
			if b.dir, err = os.MkdirTemp(dir, "musique-bench-"); err != nil {
				return fmt.Errorf("--dir: %w", err)
			}
			defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
			report, err := b.run(cmd.Context(), only, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if output == "json" {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(report)
			}
			return report.print(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", ".", "a folder on the disk to measure; the files are made in a folder below it, and removed")
	flags.DurationVar(&b.duration, "duration", 5*time.Second, "how long each measurement takes, and each baseline")
	flags.Float64Var(&b.rate, "rate", 200, "sends a second of the latency at a steady rate; halved until the machine bears it")
	flags.IntVar(&b.locations, "locations", send.MaxDestinations, "to how many locations the broadcast goes")
	flags.IntVar(&b.players, "players", defaultCrowd, "how many players are connected at once")
	flags.IntVar(&b.events, "events", rebuildEvents, "how many events the rebuild and the publisher have")
	flags.IntVar(&b.historyEvents, "history", historyEvents, "how many events the long history has")
	flags.StringVar(&only, "only", "", "measure only this: append, send, latency, read, broadcast, players, rebuild, publish, takeover or history")
	flags.StringVar(&b.profiles, "profiles", "", "a folder that gets a CPU, a block and a mutex profile of each measurement, baseline included")
	flags.StringVar(&output, "output", "text", "text or json")
	return cmd
}

func (b *bench) run(ctx context.Context, only string, progress io.Writer) (benchReport, error) {
	disk, err := filepath.Abs(filepath.Dir(b.dir))
	if err != nil {
		return benchReport{}, err
	}
	report := benchReport{
		Version: version, Cores: runtime.GOMAXPROCS(0), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version(), Disk: disk, Seconds: b.duration.Seconds(),
	}
	var names []string
	for _, one := range benchmarks {
		names = append(names, one.name)
		if only != "" && only != one.name {
			continue
		}
		fmt.Fprintf(progress, "measuring: %s\n", one.name)
		var figures []benchFigure
		measure := func() (err error) {
			figures, err = one.run(b, ctx)
			return err
		}
		if one.furnishes {
			err = measure()
		} else {
			err = b.profiled(one.name, measure)
		}
		if err != nil {
			return benchReport{}, fmt.Errorf("%s: %w", one.name, err)
		}
		report.Figures = append(report.Figures, figures...)
	}
	if len(report.Figures) == 0 {
		return benchReport{}, fmt.Errorf("--only is one of %v, not %q", names, only)
	}
	return report, nil
}

func (r benchReport) print(out io.Writer) error {
	fmt.Fprintf(out, "musique %s, %d cores, %s/%s, %s, disk %s, %gs for each figure and each baseline\n\n", r.Version, r.Cores, r.OS, r.Arch, r.Go, r.Disk, r.Seconds)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MEASURED\tFIGURE\tBASELINE\tRATIO\tTHE BASELINE IS")
	for _, f := range r.Figures {
		digits := 2
		if f.Unit == "/s" {
			digits = 0
		}
		fmt.Fprintf(table, "%s\t%.*f %s\t%.*f %s\t%.2f\t%s\n", f.Name, digits, f.Value, f.Unit, digits, f.Baseline, f.Unit, f.Ratio, f.BaselineIs)
	}
	return table.Flush()
}

// tally is how often something was done, and in what time.
type tally struct {
	count int
	took  time.Duration
}

func (t tally) perSecond() float64 { return float64(t.count) / t.took.Seconds() }

// byTurns measures two things in slices, one after the other, so that what else the machine does meanwhile falls on both.
func (b *bench) byTurns(baseline, product func(time.Duration) (tally, error)) (baselineRate, productRate float64, err error) {
	var sums [2]tally
	for turn := range 2 * benchTurns {
		of := turn % 2
		t, err := []func(time.Duration) (tally, error){baseline, product}[of](b.duration / benchTurns)
		if err != nil {
			return 0, 0, err
		}
		sums[of] = tally{sums[of].count + t.count, sums[of].took + t.took}
	}
	return sums[0].perSecond(), sums[1].perSecond(), nil
}

// many has so many callers do something again and again for a while. What is begun then is finished and counts.
func many(ctx context.Context, callers int, d time.Duration, do func(context.Context) error) (tally, error) {
	var count atomic.Int64
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for range callers {
		group.Go(func() error {
			for time.Since(began) < d {
				if err := do(ctx); err != nil {
					return err
				}
				count.Add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	return tally{int(count.Load()), time.Since(began)}, err
}

// profiled writes the profiles of what f does, if they were asked for.
func (b *bench) profiled(name string, f func() error) (err error) {
	if b.profiles == "" {
		return f()
	}
	runtime.SetBlockProfileRate(1)
	runtime.SetMutexProfileFraction(contentionSamples)
	defer runtime.SetBlockProfileRate(0)
	defer runtime.SetMutexProfileFraction(0)
	err = b.profile(name, "cpu", func(out io.Writer) error {
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return f()
	})
	for _, kind := range []string{"block", "mutex"} {
		err = errors.Join(err, b.profile(name, kind, func(out io.Writer) error { return pprof.Lookup(kind).WriteTo(out, 0) }))
	}
	return err
}

func (b *bench) profile(name, kind string, write func(io.Writer) error) error {
	out, err := os.Create(filepath.Join(b.profiles, name+"."+kind+".pprof"))
	if err != nil {
		return fmt.Errorf("--profiles: %w", err)
	}
	return errors.Join(write(out), out.Close())
}

// percentile is the value that so many percent of the samples do not exceed, in milliseconds.
func percentile(samples []time.Duration, percent int) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[(len(sorted)-1)*percent/100].Seconds() * 1000
}
