package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
)

// eventStoreSettings are what a command needs to read the event store itself.
var eventStoreSettings = []setting{
	{"eventstore", "MUSIQUE_EVENTSTORE_URL", embedded, "the esdb:// connection string of the event store; 'embedded' is that of a server on this machine, at --eventstore-listen"},
	{"eventstore-listen", "MUSIQUE_EVENTSTORE_LISTEN", "127.0.0.1:2113", "where a server on this machine has its embedded event store"},
}

func newEvents() *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Read the event store, which is where everything that happened is recorded"}
	return choose(cmd, eventsTail(), eventsExport(), eventsVerify(), eventsProve())
}

// openEventStore connects to the event store that the settings name.
func openEventStore(cmd *cobra.Command) (*eventstore.Store, error) {
	address, _ := cmd.Flags().GetString("eventstore")
	if address == embedded {
		listen, _ := cmd.Flags().GetString("eventstore-listen")
		address = "esdb://" + listen + "?tls=false"
	}
	store, err := eventstore.Open(address, newLogger("text", "error"))
	if err != nil {
		return nil, fmt.Errorf("--eventstore: %w", err)
	}
	return store, nil
}

// timeHelp explains what parseTime reads.
const timeHelp = `A time is RFC 3339 with an offset (2026-12-24T09:00:00Z), a day (2026-12-24, UTC), or a while ago (90m, 48h). It is compared with when the store
recorded an event, by the store's clock.`

// maxAgo bounds a while ago.
const maxAgo = 100 * 365 * 24 * time.Hour

// parseTime reads a time of the command line: of a day its beginning, or with end its last moment.
func parseTime(flag, text string, end bool, now time.Time) (time.Time, error) {
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		if end {
			day = day.AddDate(0, 0, 1).Add(-time.Nanosecond)
		}
		return day, nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at.UTC(), nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 && ago <= maxAgo {
		return now.Add(-ago).UTC(), nil
	}
	return time.Time{}, fmt.Errorf("--%s is a time such as 2026-12-24T09:00:00Z, a day such as 2026-12-24, or a while ago such as 48h, not %q", flag, text)
}

// parsePosition reads a place in the event store: its commit position or, where the two differ, that and its prepare position.
func parsePosition(flag, text string) (event.Position, error) {
	commit, prepare, both := strings.Cut(text, "/")
	if !both {
		prepare = commit
	}
	c, err := strconv.ParseUint(commit, 10, 63)
	p, err2 := strconv.ParseUint(prepare, 10, 63)
	if errors.Join(err, err2) != nil || p > c {
		return event.Position{}, fmt.Errorf("--%s is a position in the event store as an export prints it, such as 1234, not %q", flag, text)
	}
	return event.Position{Commit: c, Prepare: p}, nil
}

// formatPosition writes what parsePosition reads.
func formatPosition(p event.Position) string {
	if p.Commit == p.Prepare {
		return strconv.FormatUint(p.Commit, 10)
	}
	return strconv.FormatUint(p.Commit, 10) + "/" + strconv.FormatUint(p.Prepare, 10)
}

// eventFilter says which events a command shows.
type eventFilter struct {
	company, environment string
	streams, types       []string
	since, until, after  string

	from, to *time.Time
	begin    event.Position
	passed   bool // the first event of the time was there
}

// bindEventFilter declares the flags of a filter.
func bindEventFilter(cmd *cobra.Command) *eventFilter {
	f := &eventFilter{}
	flags := cmd.Flags()
	flags.StringVar(&f.company, "company", "", "the events of this company only, by its ID")
	flags.StringVar(&f.environment, "environment", "", "live or test; what happened to a company as a whole is in neither")
	flags.StringSliceVar(&f.streams, "stream", nil, "the events of this stream only; with * at its end, of all that begin so; may be repeated")
	flags.StringSliceVar(&f.types, "type", nil, "the events of this type only, such as AudioUploaded; may be repeated")
	flags.StringVar(&f.since, "since", "", "from the first event on that was recorded at this time or later")
	flags.StringVar(&f.until, "until", "", "to the last event before the first that was recorded later than this")
	flags.StringVar(&f.after, "after", "", "only what stands after this position")
	return f
}

// resolve reads the flags' values. It says what a time that was told otherwise became.
func (f *eventFilter) resolve(now time.Time) error {
	if f.environment != "" {
		env, ok := event.ParseEnvironment(f.environment)
		if !ok {
			return fmt.Errorf("--environment is live or test, not %q", f.environment)
		}
		f.environment = string(env)
	}
	for _, bound := range []struct {
		flag, text string
		end        bool
		to         **time.Time
	}{{"since", f.since, false, &f.from}, {"until", f.until, true, &f.to}} {
		if bound.text == "" {
			continue
		}
		at, err := parseTime(bound.flag, bound.text, bound.end, now)
		if err != nil {
			return err
		}
		*bound.to = &at
	}
	if f.from != nil && f.to != nil && f.to.Before(*f.from) {
		return errors.New("--until is before --since")
	}
	if f.after != "" {
		var err error
		if f.begin, err = parsePosition("after", f.after); err != nil {
			return err
		}
	}
	return nil
}

// over says that an event, and all after it, are later than what is asked for.
func (f *eventFilter) over(e eventstore.Stored) bool { return f.to != nil && e.Created.After(*f.to) }

// shows says whether an event is asked for. The events come in order.
func (f *eventFilter) shows(e eventstore.Stored) bool {
	if !f.passed && f.from != nil && e.Created.Before(*f.from) {
		return false
	}
	f.passed = true
	return (f.company == "" || e.Metadata.CompanyID == f.company) && (f.environment == "" || string(e.Metadata.Environment) == f.environment) &&
		(len(f.types) == 0 || slices.Contains(f.types, e.Type)) && (len(f.streams) == 0 || slices.ContainsFunc(f.streams, func(s string) bool { return ofStream(e.Stream, s) }))
}

// ofStream says whether a stream has a name, or begins with it where that ends with an asterisk.
func ofStream(stream, name string) bool {
	prefix, open := strings.CutSuffix(name, "*")
	return stream == name || open && strings.HasPrefix(stream, prefix)
}

// errEnough ends what has shown all that was asked for.
var errEnough = errors.New("that is enough")

func eventsTail() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show events as they are recorded",
		Long: `Show events as they are recorded, from now on or, with --since or --after, those from before too. It goes on when the event store was away, and loses none.
Ctrl-C ends it; so does the first event that is later than --until.

` + timeHelp + `

What is shown is what is stored, hashes of tokens and sealed secrets included: keep it among operators.`,
		Example: `  musique events tail
  musique events tail --since 1h --company co_… --type AudioUploaded,AudioDeleted
  musique events tail --stream 'token-*' --output json`,
		Args: cobra.NoArgs,
	}
	bindSettings(cmd, eventStoreSettings)
	filter := bindEventFilter(cmd)
	output := cmd.Flags().String("output", "text", "text, a line for each event, or json, a line of JSON for each")
	limit := cmd.Flags().Int("limit", 0, "end after so many events; 0 is never")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("--output is text or json, not %q", *output)
		}
		if *limit < 0 {
			return fmt.Errorf("--limit is 0 or more, not %d", *limit)
		}
		if _, err := resolveSettings(cmd, eventStoreSettings, serveSections()...); err != nil {
			return err
		}
		if err := filter.resolve(time.Now()); err != nil {
			return err
		}
		store, err := openEventStore(cmd)
		if err != nil {
			return err
		}
		defer store.Close() // it always returns nil
		if filter.begin.IsZero() && filter.from == nil {
			if filter.begin, err = store.Head(cmd.Context()); err != nil {
				return noEventStore(err)
			}
		} else if err := store.Ping(cmd.Context()); err != nil {
			return noEventStore(err)
		}
		out, shown := newEventWriter(cmd.OutOrStdout(), *output), 0
		err = store.Follow(cmd.Context(), filter.begin, func(e eventstore.Stored) error {
			if filter.over(e) {
				return errEnough
			}
			if !filter.shows(e) {
				return nil
			}
			if err := out.write(e); err != nil {
				return err
			}
			if err := out.flush(); err != nil {
				return err
			}
			if shown++; shown == *limit {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	}
	return cmd
}

// noEventStore says what to do about an event store that is away.
func noEventStore(err error) error {
	if errors.Is(err, eventstore.ErrUnavailable) {
		return fmt.Errorf("the event store does not answer: is 'musique serve' running, and is --eventstore right? (%w)", err)
	}
	return err
}

// interrupted makes an error of a command that was ended before it was done. The program takes it for a failure; that the context ended alone is none.
func interrupted(ctx context.Context, err error) error {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return errors.New("interrupted before it was done")
	}
	return err
}

func eventsExport() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the events of a time as NDJSON or CSV, the same bytes each time",
		Long: `Write events as NDJSON, a line of JSON for each, or as CSV (RFC 4180), in the order of the store. It holds a few of them at a time, however many there are.

The same command, with --through, gives the same bytes each time: what was recorded is never changed. Without --through it ends with the newest event that is
there when it begins, and when it is done it prints to standard error which positions it went from and to, how many events and bytes it wrote, and their SHA-256. With
--after the position where it ended, the next export goes on.

` + timeHelp + `

With --file the file is there when it is whole, and not before. Standard output is whole if the exit status is 0; any other says that it is not, or that there is
none. A value in CSV that a spreadsheet would take for a formula has an apostrophe before it.

What is written is what is stored, hashes of tokens and sealed secrets included: keep it among operators.`,
		Example: `  musique events export > all.ndjson
  musique events export --company co_… --since 2026-11-01 --until 2026-11-30 --format csv --file november.csv
  musique events export --after 4711 --through 9042 > next.ndjson`,
		Args: cobra.NoArgs,
	}
	bindSettings(cmd, eventStoreSettings)
	filter := bindEventFilter(cmd)
	format := cmd.Flags().String("format", "ndjson", "ndjson or csv")
	through := cmd.Flags().String("through", "", "the last position to look at; it has to be there already")
	file := cmd.Flags().String("file", "", "write to this file and not to standard output")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *format != "ndjson" && *format != "csv" {
			return fmt.Errorf("--format is ndjson or csv, not %q", *format)
		}
		if _, err := resolveSettings(cmd, eventStoreSettings, serveSections()...); err != nil {
			return err
		}
		now := time.Now()
		if err := filter.resolve(now); err != nil {
			return err
		}
		day, _ := time.Parse(time.DateOnly, filter.until)
		if filter.to != nil && filter.to.After(now) && *through == "" && !day.Equal(now.UTC().Truncate(24*time.Hour)) {
			return fmt.Errorf("--until %s is in the future: what will be recorded until then cannot be exported yet", filter.until)
		}
		store, err := openEventStore(cmd)
		if err != nil {
			return err
		}
		defer store.Close() // it always returns nil
		bound, err := store.Head(cmd.Context())
		if err != nil {
			return interrupted(cmd.Context(), noEventStore(err))
		}
		if *through != "" {
			last, err := parsePosition("through", *through)
			if err != nil {
				return err
			}
			if bound.Before(last) {
				return fmt.Errorf("--through %s is later than the newest event, which is at %s", *through, formatPosition(bound))
			}
			bound = last
		}
		return export(cmd, store, filter, *format, *file, bound)
	}
	return cmd
}

// export writes the events that a filter shows, up to a position.
func export(cmd *cobra.Command, store *eventstore.Store, filter *eventFilter, format, file string, bound event.Position) (err error) {
	to, err := openExport(cmd.OutOrStdout(), file)
	if err != nil {
		return err
	}
	defer func() { err = to.end(err) }()
	out, events := newEventWriter(to, format), 0
	if err := out.begin(); err != nil {
		return err
	}
	reached, err := store.Scan(cmd.Context(), filter.begin, func(e eventstore.Stored) (bool, error) {
		if bound.Before(e.Position) || filter.over(e) {
			return false, nil
		}
		if !filter.shows(e) {
			return true, nil
		}
		events++
		return true, out.write(e)
	})
	if err == nil {
		err = out.flush()
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("the export was interrupted at position %s and is not whole", formatPosition(reached))
	}
	if err != nil {
		return fmt.Errorf("the export broke off at position %s and is not whole: %w", formatPosition(reached), noEventStore(err))
	}
	if bound.Before(reached) { // past events of the store's own
		reached = bound
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d events, %d bytes, sha256 %s; the same again: %s\n", events, to.bytes, to.sum(), filter.again(reached))
	return nil
}

// again is the flags that give the same events.
func (f *eventFilter) again(through event.Position) string {
	var b strings.Builder
	flag := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, " --%s %s", name, shellQuoted(value))
		}
	}
	flag("company", f.company)
	flag("environment", f.environment)
	flag("stream", strings.Join(f.streams, ","))
	flag("type", strings.Join(f.types, ","))
	if f.from != nil {
		flag("since", f.from.Format(time.RFC3339Nano))
	}
	if f.to != nil {
		flag("until", f.to.Format(time.RFC3339Nano))
	}
	flag("after", f.after)
	flag("through", formatPosition(through))
	return strings.TrimPrefix(b.String(), " ")
}

// shellQuoted is a value as a POSIX shell takes it whole.
func shellQuoted(value string) string {
	if !strings.ContainsFunc(value, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.:/,@", r)
	}) {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
