package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/musique/musique/infra/telemetry"
)

// newRoot returns the command tree. Every subcommand stands in a file of its own name.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "musique",
		Short: "Musique's Partner API: upload audio, send it to locations, prove that it was heard",
		Long: `Musique's Partner API: shops, franchises and marketing platforms upload audio through a REST API and send it
to players at their locations: one, some or all, now or later, by priority.

'musique serve' runs the whole system with everything embedded; the other commands talk to a running one.

Every setting is a flag, an environment variable and a line in an optional YAML file (--config), in that order of
precedence. The line in the file has the flag's name: 'http-addr: 0.0.0.0:8080'.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newServe(),
		newHealth(),
		newBackup(),
		newCompany(),
		newPlayer(),
		newProjections(),
		newEvents(),
		newAudit(),
		newBench(),
		newBenchPlayers(),
	)
	return root
}

// checkLogLevel refuses a level that newLogger does not know.
func checkLogLevel(level string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return fmt.Errorf("--log-level is debug, info, warn or error, not %q", level)
	}
	return nil
}

// choose makes cmd one that only has subcommands: alone it shows them, and with anything else it says that there is no such one.
func choose(cmd *cobra.Command, from ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(from...)
	return cmd
}

// newLogger writes to standard error: JSON lines for machines, or text for people.
func newLogger(format, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(telemetry.LogHandler(slog.NewJSONHandler(os.Stderr, options)))
	}
	return slog.New(telemetry.LogHandler(slog.NewTextHandler(os.Stderr, options)))
}
