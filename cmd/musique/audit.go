package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/event"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/infra/postgres"
	"github.com/musique/musique/projections"
	"github.com/musique/musique/projections/tokens"
)

// databaseSettings are what a command needs to reach the database itself.
var databaseSettings = []setting{
	{"database", "MUSIQUE_DATABASE_URL", embedded, "the postgres:// URL of the PostgreSQL; 'embedded' is that of a server on this machine, in --data-dir"},
	{"data-dir", "MUSIQUE_DATA_DIR", "./data", "where a server on this machine keeps its embedded parts"},
}

// auditPath is where the API that is replayed has its paths.
const auditPath = "/api/v1/integration"

func newAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Look at what the API would have answered at a time",
		Long: `Look at what the API would have answered at a time. 'replay' builds the read models as of then from the event store alone, in a database of their own beside
the one that serves, in the same PostgreSQL; nothing that serves is touched. 'query' and 'serve' answer from it, by the code that answers partners.`,
	}
	return choose(cmd, auditReplay(), auditList(), auditQuery(), auditServe(), auditDrop())
}

// openDatabase connects to the database that the settings name.
func openDatabase(cmd *cobra.Command) (*pgxpool.Pool, error) {
	address, _ := cmd.Flags().GetString("database")
	if address == embedded {
		dir, _ := cmd.Flags().GetString("data-dir")
		var err error
		if address, err = postgres.RunningURL(filepath.Join(dir, "postgres")); err != nil {
			return nil, fmt.Errorf("--database, --data-dir: %w", err)
		}
	}
	pool, err := postgres.Connect(cmd.Context(), address)
	if err != nil {
		return nil, fmt.Errorf("--database: %w", err)
	}
	return pool, nil
}

// noDatabase says what to do about a database that is away.
func noDatabase(err error) error {
	if postgres.IsUnavailable(err) {
		return fmt.Errorf("the database does not answer: is it running, and is --database right? (%w)", err)
	}
	return err
}

// replayCommand makes cmd one that works with replays: the settings for it, --output, and run with the serving database.
func replayCommand(cmd *cobra.Command, settings []setting, run func(cmd *cobra.Command, serving *pgxpool.Pool, out printer) error) *cobra.Command {
	bindSettings(cmd, settings)
	output := cmd.Flags().String("output", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("--output is text or json, not %q", *output)
		}
		if _, err := resolveSettings(cmd, settings, serveSections()...); err != nil {
			return err
		}
		serving, err := openDatabase(cmd)
		if err != nil {
			return err
		}
		defer serving.Close()
		return interrupted(cmd.Context(), noDatabase(run(cmd, serving, printer{*output})))
	}
	return cmd
}

func auditReplay() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay --until TIME",
		Short: "Build the read models as of a time, from the event store alone, beside those that serve",
		Long: `Build the read models as of a time, from the event store alone, in a database of their own in the PostgreSQL of --database, whose user needs to be allowed to
create databases. What the API shows depends on the events that stand before the first one that was recorded later than the time.

Ctrl-C, or whatever else ends it, leaves what is built: the same command goes on from there. --fresh begins again. It takes room for a copy of the tables.

` + timeHelp + `

An event that cannot be applied ends the replay and is named. Where an operator had it skipped, --skip does so too.`,
		Example: `  musique audit replay --until 2026-11-01T00:00:00Z
  musique audit query --as-of 2026-11-01T00:00:00Z --company co_… 'sends?status=failed'`,
		Args: cobra.NoArgs,
	}
	until := cmd.Flags().String("until", "", "the time (required)")
	name := cmd.Flags().String("name", "", "what the replay is called (default: by its time, such as 20261101t000000z)")
	fresh := cmd.Flags().Bool("fresh", false, "throw away what there is of it")
	skip := cmd.Flags().StringSlice("skip", nil, "the ID of an event to pass where it cannot be applied; may be repeated")
	return replayCommand(cmd, slices.Concat(databaseSettings, eventStoreSettings), func(cmd *cobra.Command, serving *pgxpool.Pool, out printer) error {
		if *until == "" {
			return errors.New("--until is required")
		}
		asOf, err := parseTime("until", *until, true, time.Now())
		if err != nil {
			return err
		}
		var skipped []uuid.UUID
		for _, text := range *skip {
			id, err := uuid.Parse(text)
			if err != nil {
				return fmt.Errorf("--skip is the ID of an event, not %q", text)
			}
			skipped = append(skipped, id)
		}
		called := *name
		if called == "" {
			called = projections.ReplayName(asOf)
		}
		if *fresh {
			if err := projections.DropReplay(cmd.Context(), serving, called); err != nil && !errors.Is(err, projections.ErrNoReplay) {
				return err
			}
		}
		info, err := replay(cmd, serving, called, asOf, skipped)
		if err != nil {
			return err
		}
		return out.print(cmd, info, func(w io.Writer) {
			fmt.Fprintf(w, "Replay %s is as of %s, through position %d\n", info.Name, info.AsOf.Format(time.RFC3339Nano), info.Through)
		})
	})
}

// replay makes a replay, or finishes one.
func replay(cmd *cobra.Command, serving *pgxpool.Pool, name string, asOf time.Time, skip []uuid.UUID) (projections.ReplayInfo, error) {
	ctx := cmd.Context()
	store, err := openEventStore(cmd)
	if err != nil {
		return projections.ReplayInfo{}, err
	}
	defer store.Close() // it always returns nil
	if err := store.Ping(ctx); err != nil {
		return projections.ReplayInfo{}, noEventStore(err)
	}
	info, pool, err := projections.CreateReplay(ctx, serving, name, asOf, time.Now())
	if err != nil {
		return info, err
	}
	defer pool.Close()
	if info.FinishedAt != nil {
		return info, nil
	}
	told := time.Now()
	done, err := projections.Replay(ctx, projections.ReplayConfig{
		Store: store, Pool: pool, AsOf: info.AsOf, Skip: skip, Log: newLogger("text", "warn"),
		Progress: func(r projections.Replayed) {
			if time.Since(told) >= lineEvery {
				told = time.Now()
				fmt.Fprintf(cmd.ErrOrStderr(), "%d events, up to %s\n", r.Events, r.At.Format(time.RFC3339))
			}
		},
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return info, errors.New("the replay is not finished; the same command goes on from where it is")
	}
	if err != nil {
		return info, noEventStore(err)
	}
	return projections.FinishReplay(ctx, serving, info, done.Through, time.Now())
}

func auditList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the replays that there are", Args: cobra.NoArgs}
	return replayCommand(cmd, databaseSettings, func(cmd *cobra.Command, serving *pgxpool.Pool, out printer) error {
		all, err := projections.Replays(cmd.Context(), serving)
		if err != nil {
			return err
		}
		return out.print(cmd, all, func(w io.Writer) {
			table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "REPLAY\tAS OF\tTHROUGH\tSTATE")
			for _, r := range all {
				state := "not finished"
				if r.FinishedAt != nil {
					state = "finished " + r.FinishedAt.Format(time.RFC3339)
				}
				fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", r.Name, r.AsOf.Format(time.RFC3339Nano), r.Through, state)
			}
			_ = table.Flush() // w is the terminal: nothing to do about a failed write
		})
	})
}

func auditDrop() *cobra.Command {
	cmd := &cobra.Command{Use: "drop REPLAY", Short: "Drop a replay, whoever still reads it", Args: cobra.ExactArgs(1)}
	return replayCommand(cmd, databaseSettings, func(cmd *cobra.Command, serving *pgxpool.Pool, out printer) error {
		name := cmd.Flags().Arg(0)
		if err := projections.DropReplay(cmd.Context(), serving, name); err != nil {
			return err
		}
		return out.print(cmd, map[string]string{"dropped": name}, func(w io.Writer) { fmt.Fprintln(w, "Dropped", name) })
	})
}

// chosenReplay is which replay is read, and whose data.
type chosenReplay struct{ asOf, name, company, environment string }

func bindChosenReplay(cmd *cobra.Command) *chosenReplay {
	c := &chosenReplay{}
	flags := cmd.Flags()
	flags.StringVar(&c.asOf, "as-of", "", "the time that the replay is as of")
	flags.StringVar(&c.name, "replay", "", "the replay's name, instead of its time")
	flags.StringVar(&c.company, "company", "", "the company whose data is shown, by its ID (required)")
	flags.StringVar(&c.environment, "environment", "live", "live or test")
	return c
}

// open gives the API over the replay.
func (c *chosenReplay) open(ctx context.Context, serving *pgxpool.Pool) (info projections.ReplayInfo, handler http.Handler, closeReplay func(), err error) {
	env, ok := event.ParseEnvironment(c.environment)
	switch {
	case !ok:
		return info, nil, nil, fmt.Errorf("--environment is live or test, not %q", c.environment)
	case c.company == "":
		return info, nil, nil, errors.New("--company is required")
	case (c.name == "") == (c.asOf == ""):
		return info, nil, nil, errors.New("give --as-of or --replay")
	}
	name := c.name
	if name == "" {
		asOf, err := parseTime("as-of", c.asOf, true, time.Now())
		if err != nil {
			return info, nil, nil, err
		}
		if name, err = replayAsOf(ctx, serving, asOf); err != nil {
			return info, nil, nil, err
		}
	}
	info, pool, err := projections.OpenReplay(ctx, serving, name)
	if err != nil {
		return info, nil, nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	if info.FinishedAt == nil {
		return info, nil, nil, fmt.Errorf("the replay %s is not finished: 'musique audit replay' finishes it", name)
	}
	companies, err := tokens.Companies(ctx, pool)
	if err != nil {
		return info, nil, nil, err
	}
	if !slices.ContainsFunc(companies, func(known tokens.Company) bool { return known.CompanyID == c.company }) {
		return info, nil, nil, fmt.Errorf("there was no company %s at %s", c.company, info.AsOf.Format(time.RFC3339Nano))
	}
	// The key seals cursors alone, which open what their reader sees anyway; it is the same each time, so that pages can be walked command by command.
	secret := sha256.Sum256([]byte("cursors of replay " + name + " of " + info.AsOf.String()))
	ring, err := keys.Open("", hex.EncodeToString(secret[:]))
	if err != nil {
		return info, nil, nil, err
	}
	handler, err = httpapi.NewReplay(httpapi.ReplayConfig{
		Pool: pool, AsOf: info.AsOf, CompanyID: c.company, Environment: env, Keys: ring, Log: newLogger("text", "warn"),
	})
	return info, handler, pool.Close, err
}

// replayAsOf finds the replay as of a time.
func replayAsOf(ctx context.Context, serving *pgxpool.Pool, asOf time.Time) (name string, err error) {
	all, err := projections.Replays(ctx, serving)
	if err != nil {
		return "", err
	}
	for _, r := range all {
		if r.AsOf.Equal(asOf) && (name == "" || r.FinishedAt != nil) {
			name = r.Name
		}
	}
	if name == "" {
		at := asOf.Format(time.RFC3339Nano)
		return "", fmt.Errorf("there is no replay as of %s; make one: musique audit replay --until %s", at, at)
	}
	return name, nil
}

func auditQuery() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "query (--as-of TIME | --replay NAME) --company COMPANY PATH",
		Short: "Print what the API would have answered",
		Long: `Print what the API would have answered at the time of a replay. The path is that of a list or resource below ` + auditPath + `, with its parameters: audio,
audio/{audioId}, sends, sends/{sendId}, sends/{sendId}/deliveries, locations, locations/{externalId}, locations/{externalId}/devices, tokens, logs, audit.

--all walks the pages of a list and prints a line of JSON for each item. What is kept beside the events is not in a replay: which players were online, rate counters, the bytes of audio.`,
		Example: `  musique audit query --as-of 2026-11-01 --company co_… sends
  musique audit query --as-of 2026-11-01 --company co_… --all 'sends/snd_…/deliveries?status=failed&limit=100'`,
		Args: cobra.ExactArgs(1),
	}
	chosen := bindChosenReplay(cmd)
	all := cmd.Flags().Bool("all", false, "walk all pages of a list, and print a line for each item")
	bindSettings(cmd, databaseSettings)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := resolveSettings(cmd, databaseSettings, serveSections()...); err != nil {
			return err
		}
		serving, err := openDatabase(cmd)
		if err != nil {
			return err
		}
		defer serving.Close()
		_, handler, closeReplay, err := chosen.open(cmd.Context(), serving)
		if err != nil {
			return noDatabase(err)
		}
		defer closeReplay()
		path := auditPath + "/" + strings.TrimPrefix(strings.TrimPrefix(args[0], auditPath), "/")
		if !*all {
			raw, err := ask(cmd.Context(), handler, path)
			if err != nil {
				return err
			}
			var shown bytes.Buffer
			if err := json.Indent(&shown, raw, "", "  "); err != nil {
				return err
			}
			_, err = shown.WriteTo(cmd.OutOrStdout())
			return err
		}
		return walk(cmd, handler, path)
	}
	return cmd
}

// ask asks a handler for a path, and gives its answer, or its refusal as an error.
func ask(ctx context.Context, handler http.Handler, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("the path %q is none: %w", path, err)
	}
	request.RequestURI = path
	got := &heldAnswer{header: http.Header{}}
	handler.ServeHTTP(got, request)
	raw := got.body.Bytes()
	if got.status == http.StatusOK {
		return raw, nil
	}
	var refused struct {
		Error struct{ Code, Message string } `json:"error"`
	}
	if err := json.Unmarshal(raw, &refused); err != nil {
		return nil, fmt.Errorf("%s: %d", path, got.status)
	}
	return nil, fmt.Errorf("%s (%s)", refused.Error.Message, refused.Error.Code)
}

// heldAnswer is an answer that goes no further.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *heldAnswer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *heldAnswer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter.
func (a *heldAnswer) Write(p []byte) (int, error) { return a.body.Write(p) }

// walk prints the items of all pages of a list.
func walk(cmd *cobra.Command, handler http.Handler, path string) error {
	at, err := url.Parse(path)
	if err != nil {
		return fmt.Errorf("the path %q is none: %w", path, err)
	}
	for {
		raw, err := ask(cmd.Context(), handler, at.String())
		if err != nil {
			return err
		}
		var page struct {
			Data       []json.RawMessage `json:"data"`
			Pagination *struct {
				NextCursor *string `json:"nextCursor"`
			} `json:"pagination"`
		}
		if err := json.Unmarshal(raw, &page); err != nil || page.Pagination == nil {
			return errors.New("--all is for lists, and this is none")
		}
		for _, item := range page.Data {
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", item); err != nil {
				return err
			}
		}
		if page.Pagination.NextCursor == nil {
			return nil
		}
		query := at.Query()
		query.Set("cursor", *page.Pagination.NextCursor)
		at.RawQuery = query.Encode()
	}
}

func auditServe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve (--as-of TIME | --replay NAME) --company COMPANY",
		Short: "Serve what the API would have answered, on a loopback address",
		Long: `Serve the lists and resources of the API as they were at the time of a replay, to whoever reaches the address, which is a loopback one: no token is needed, and
GET and HEAD are all that is answered. Each answer tells the time in the header Musique-As-Of. Ctrl-C ends it.`,
		Example: `  musique audit serve --as-of 2026-11-01 --company co_… --listen 127.0.0.1:8090
  curl -s http://127.0.0.1:8090/api/v1/integration/sends`,
		Args: cobra.NoArgs,
	}
	chosen := bindChosenReplay(cmd)
	listen := cmd.Flags().String("listen", "127.0.0.1:0", "a loopback address, host:port; port 0 takes a free one and prints it")
	bindSettings(cmd, databaseSettings)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := resolveSettings(cmd, databaseSettings, serveSections()...); err != nil {
			return err
		}
		if loopback, err := isLoopback(*listen); err != nil {
			return fmt.Errorf("--listen: %w", err)
		} else if !loopback {
			return fmt.Errorf("--listen is a loopback address, since nobody who reaches it is asked for a token; %s is none", *listen)
		}
		serving, err := openDatabase(cmd)
		if err != nil {
			return err
		}
		defer serving.Close()
		info, handler, closeReplay, err := chosen.open(cmd.Context(), serving)
		if err != nil {
			return noDatabase(err)
		}
		defer closeReplay()
		return serveReplay(cmd, info, sameOrigin(handler), *listen)
	}
	return cmd
}

// sameOrigin keeps the pages of other sites, which a browser here may show, from reading a loopback address under a name of their own (DNS rebinding).
func sameOrigin(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if loopback, err := isLoopback(net.JoinHostPort(strings.Trim(host, "[]"), "0")); err != nil || !loopback {
			http.Error(w, "ask for it by its loopback address", http.StatusForbidden)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// serveReplay serves until the command's context ends.
func serveReplay(cmd *cobra.Command, info projections.ReplayInfo, handler http.Handler, address string) error {
	ctx := cmd.Context()
	running, background := errgroup.WithContext(context.WithoutCancel(ctx))
	server, at, err := listen(ctx, address, handler, running)
	if err != nil {
		return explain(err, "--listen")
	}
	fmt.Fprintf(cmd.OutOrStdout(), "As of %s at http://%s%s\n", info.AsOf.Format(time.RFC3339Nano), at, auditPath)
	select {
	case <-ctx.Done():
	case <-background.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	return errors.Join(server.Shutdown(closing), running.Wait())
}
