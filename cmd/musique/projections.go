package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/musique/musique/projections"
)

func newProjections() *cobra.Command {
	cmd := &cobra.Command{Use: "projections", Short: "Look after the projections of a running server"}
	return choose(cmd, projectionsStatus(), projectionsRebuild(), projectionsSkip())
}

func projectionsStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What each projection does, how far behind it is, and what stopped it",
		Args:  cobra.NoArgs,
	}
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		var all []projections.Status
		raw, err := ops.call(ctx, http.MethodGet, "/ops/projections", nil, &all)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) { printStatuses(w, all) })
	})
}

// printStatuses writes a line for each projection, and below what an operator has to know of some of them.
func printStatuses(w io.Writer, all []projections.Status) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PROJECTION\tVERSION\tREBUILDS\tSTATE\tPOSITION\tLAG\tBEHIND\tEVENTS\tRATE")
	for _, p := range all {
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%d\t%d\t%s\t%d\t%.0f/s\n", p.Name, p.Version, p.Rebuilds, p.State, p.Position, p.Lag,
			seconds(p.LagSeconds), p.Events, p.Rate)
	}
	_ = table.Flush() // w is the terminal: nothing to do about a failed write
	for _, p := range all {
		printError(w, p.Name, p.Progress)
		if r := p.Rebuild; r != nil {
			fmt.Fprintf(w, "\n%s is rebuilt since %s: %s, %s\n", p.Name, r.BegunAt.Format(time.RFC3339), r.State, amount(r))
			printError(w, "The rebuild of "+p.Name, r.Progress)
		}
		for _, s := range p.Skipped {
			fmt.Fprintf(w, "\n%s skipped event %s (%s %d@%s) at %s, by %s", p.Name, s.ID, s.Type, s.Revision, s.Stream, s.SkippedAt.Format(time.RFC3339), s.SkippedBy)
			if s.Reason != "" {
				fmt.Fprintf(w, ": %s", s.Reason)
			}
			if s.AppliedAt != nil {
				fmt.Fprintf(w, "; a rebuild applied it at %s", s.AppliedAt.Format(time.RFC3339))
			}
			fmt.Fprintln(w)
		}
	}
}

func printError(w io.Writer, name string, p projections.Progress) {
	if p.Error == "" {
		return
	}
	fmt.Fprintf(w, "\n%s stands still", name)
	if p.FailingSince != nil {
		fmt.Fprintf(w, " since %s", p.FailingSince.Format(time.RFC3339))
	}
	fmt.Fprintf(w, ": %s\n", p.Error)
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

func amount(r *projections.RebuildStatus) string {
	return fmt.Sprintf("%d events, %.1f %%, %.0f events/s", r.Events, r.Percent, r.Rate)
}

func projectionsSkip() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "skip PROJECTION",
		Short: "Have a projection pass the event that it stands at, without applying it",
		Long: `Have a projection pass the event that it stands at, without applying it. Its rows lack what the event says from then
on, so mend the program instead if you can: the projection tries the event again every few seconds.

'musique projections status' tells which event it stands at; naming it is the confirmation. That it was skipped, when,
by whom and why is recorded, and status shows it. A rebuild tries the event again.`,
		Args: cobra.ExactArgs(1),
	}
	eventID := cmd.Flags().String("event", "", "the ID of the event that it stands at (required)")
	reason := cmd.Flags().String("reason", "", "why, for the record")
	by := cmd.Flags().String("by", "", "who, for the record (default: the user and machine that run this command)")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		if *eventID == "" {
			return errors.New("--event is required: the ID of the event that the projection stands at, as 'musique projections status' tells it")
		}
		var skipped projections.Skipped
		body := map[string]string{"event": *eventID, "reason": *reason, "by": cmp.Or(*by, whoami())}
		raw, err := ops.call(ctx, http.MethodPost, projectionPath(cmd, "skip"), body, &skipped)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) {
			fmt.Fprintf(w, "%s goes on without event %s (%s %d@%s)\n", cmd.Flags().Arg(0), skipped.ID, skipped.Type, skipped.Revision, skipped.Stream)
		})
	})
}

// whoami is who runs this command, as far as the machine knows.
func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

func projectionPath(cmd *cobra.Command, action string) string {
	return "/ops/projections/" + url.PathEscape(cmd.Flags().Arg(0)) + "/" + action
}

const (
	// watchEvery is how often a command asks how far a rebuild is, and lineEvery how often it says so where there is no terminal.
	watchEvery, lineEvery = 500 * time.Millisecond, 10 * time.Second
	// patienceWithServer is for how long a server may be away while a rebuild is watched.
	patienceWithServer = 30 * time.Second
	// barWidth is how wide the bar is, in characters.
	barWidth = 30
)

func projectionsRebuild() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rebuild PROJECTION",
		Short: "Build a projection's tables anew from all events, beside those that serve, and put them in their place",
		Long: `Build a projection's tables anew from all events, beside those that serve, and put them in their place when they have
caught up. Readers notice nothing. The server does the work, and goes on after a restart.

Ctrl-C pauses it; the same command goes on from where it was. --fresh begins again from the first event, which is what
you want when the program has changed since.`,
		Args: cobra.ExactArgs(1),
	}
	fresh := cmd.Flags().Bool("fresh", false, "throw away what a paused rebuild has built")
	detach := cmd.Flags().Bool("detach", false, "do not wait: 'musique projections status' tells how far it is")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		name := cmd.Flags().Arg(0)
		before, _, err := rebuildOf(ctx, ops, name)
		if err != nil {
			return err
		}
		raw, err := ops.call(ctx, http.MethodPost, projectionPath(cmd, "rebuild"), map[string]bool{"fresh": *fresh}, nil)
		if err != nil {
			return err
		}
		if *detach {
			return ops.print(cmd, raw, func(w io.Writer) { fmt.Fprintln(w, "The server rebuilds", name) })
		}
		w := &rebuildWatch{ops: ops, name: name, before: before.Rebuilds, out: cmd.ErrOrStderr(), began: time.Now()}
		w.terminal = isTerminal(w.out)
		after, err := w.run(cmd.Context())
		if cmd.Context().Err() != nil {
			return pauseRebuild(ops, cmd)
		}
		if err != nil {
			return err
		}
		return ops.print(cmd, after.raw, func(out io.Writer) {
			fmt.Fprintf(out, "%s is rebuilt: %d events in %s\n", name, after.status.Events, time.Since(w.began).Round(time.Second))
		})
	})
}

// pauseRebuild is what Ctrl-C does.
func pauseRebuild(ops opsClient, cmd *cobra.Command) error {
	if _, err := ops.call(context.Background(), http.MethodPost, projectionPath(cmd, "pause-rebuild"), nil, nil); err != nil {
		return fmt.Errorf("the rebuild goes on, it could not be paused: %w", err)
	}
	return errors.New("the rebuild is paused; the same command goes on from where it is")
}
