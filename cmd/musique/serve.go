package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // locations have IANA time zones, and a bare machine may have no database of them

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
	"github.com/musique/musique/infra/telemetry"
)

// embedded is the value of a part's setting that runs the part inside this program.
const embedded = "embedded"

const (
	// drainTimeout bounds the end of the requests in hand, recordTimeout the recording of what was served, stopTimeout the end of each thing
	// behind them.
	drainTimeout  = 15 * time.Second
	recordTimeout = 10 * time.Second
	stopTimeout   = 15 * time.Second
	// tracesTimeout bounds the sending of the last spans.
	tracesTimeout = 5 * time.Second
	// A client that is slow to say what it wants, or says nothing more, is let go.
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	// maxReadHeaderBytes is what is read of headers at all. Those between that and httpapi.MaxHeaderBytes are refused as the API refuses; beyond it net/http hangs up.
	maxReadHeaderBytes = 16 * httpapi.MaxHeaderBytes
	// maxSilence is how long the other end of a connection may leave what it was sent unconfirmed: two of a player stream's heartbeats.
	maxSilence = 30 * time.Second
)

// roles are the parts of the work that a process can take.
var roles = []string{"api", "projections", "publisher", "delivery", "scheduler", "webhooks"}

var serveSettings = []setting{
	{"http-addr", "MUSIQUE_HTTP_ADDR", "127.0.0.1:8080", "address of the Partner API; port 0 takes a free one and prints it"},
	{"ops-addr", "MUSIQUE_OPS_ADDR", "127.0.0.1:9090", "address for operators: /livez, /readyz, /metrics, /ops"},
	{"data-dir", "MUSIQUE_DATA_DIR", "./data", "folder for all that the embedded parts keep, and for the secret key"},
	{"eventstore", "MUSIQUE_EVENTSTORE_URL", embedded, "'embedded' or the esdb:// connection string of an EventStoreDB"},
	{"eventstore-listen", "MUSIQUE_EVENTSTORE_LISTEN", "127.0.0.1:2113", "address of the embedded event store"},
	{"kafka", "MUSIQUE_KAFKA_BROKERS", embedded, "'embedded' or Kafka brokers, host:port,…"},
	{"kafka-listen", "MUSIQUE_KAFKA_LISTEN", "127.0.0.1:9092", "address of the embedded Kafka broker"},
	{"database", "MUSIQUE_DATABASE_URL", embedded, "'embedded' or the postgres:// URL of a PostgreSQL"},
	{"blobs", "MUSIQUE_BLOB_URL", "", "file:///folder or s3://bucket?…; empty is a folder in the data folder"},
	{"roles", "MUSIQUE_ROLES", "all", "'all' or some of " + strings.Join(roles, ",")},
	{"topic-partitions", "MUSIQUE_TOPIC_PARTITIONS", "12", "partitions that the topics of public events are made with; to change those of a topic that is there is to lose the order of its keys"},
	{"topic-retention", "MUSIQUE_TOPIC_RETENTION", "168h", "how long public events stay on their topics, as the topics are made: such as 168h"},
	headsSetting,
	headsKeySetting,
	{"heads-every", "MUSIQUE_HEADS_EVERY", "1m", "how often a head of the event history is signed, if there is something new: such as 1m"},
	{"log-format", "MUSIQUE_LOG_FORMAT", "text", "text or json"},
	{"log-level", "MUSIQUE_LOG_LEVEL", "info", "debug, info, warn or error"},
	{"traces-endpoint", "MUSIQUE_TRACES_ENDPOINT", "", "base URL of an OTLP/HTTP receiver that gets the traces, such as http://127.0.0.1:4318; empty is what OTEL_EXPORTER_OTLP_ENDPOINT says, or no traces"},
	{"traces-sample", "MUSIQUE_TRACES_SAMPLE", "", "share of the requests that are traced, from 0 to 1; empty is what OTEL_TRACES_SAMPLER says, or 1"},
	{"ops-token", "MUSIQUE_OPS_TOKEN", "", "bearer token for /ops; required where the ops address is not loopback; prefer the variable, since flags show in process lists"},
	{"secret-key", "MUSIQUE_SECRET_KEY", "", "64 hexadecimal digits that tokens are hashed with, several parted by commas to rotate; empty is the file secret.key in the data folder; prefer the variable"},
	{"public-url", "MUSIQUE_PUBLIC_URL", "", "what URLs in answers begin with, such as https://api.example.com; empty is what each caller reached the server by, and the address of --http-addr in messages to endpoints"},
	{"allow-private-endpoints", "MUSIQUE_ALLOW_PRIVATE_ENDPOINTS", "false", "true lets endpoints of locations have private addresses, and be asked without TLS: only where partners may reach what this server reaches"},
	{"trust-forwarded", "MUSIQUE_TRUST_FORWARDED", "false", "true believes X-Forwarded-For, -Proto and -Host: only behind a proxy that overwrites them"},
	{"demo", "MUSIQUE_DEMO", "true", "false makes no demo company on a first run with everything embedded"},
}

// serveSections are the parts of the configuration file that are no settings.
func serveSections() []string {
	sections := []string{"plans"}
	for _, s := range serveSettings {
		sections = append(sections, s.flag)
	}
	return sections
}

// serveConfig is what the settings say.
type serveConfig struct {
	httpAddr, opsAddr, dataDir   string
	eventStore, eventStoreListen string
	kafka, kafkaListen           string
	database, blobs              string
	heads, headsKey              string
	headsEvery                   time.Duration
	roles                        []string
	logFormat, logLevel          string
	opsToken, secretKey          string
	tracesEndpoint               string
	tracesSample                 *float64 // nil is not said
	publicURL                    *url.URL // nil is none
	trustForwarded, demo         bool
	allowPrivateEndpoints        bool
	plans                        company.Plans
	topicPartitions              int32
	topicRetention               time.Duration
}

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: the Partner API, the projections and the delivery",
		Long: `Run the server. Without settings it runs everything that it needs inside itself, durable in --data-dir, and makes a demo company on its
first run. When it is ready it says where, in one line of JSON with --log-format json.

The role publisher puts the public events on Kafka topics for analytics (docs/events). The role webhooks has no work in this version.

The configuration file may also have a section 'plans': the figures of plans by name, each a whole number of 1 or more. What a plan does not say stays
as it is; a plan with a name of its own begins as the standard one.

  plans:
    standard: {perMinute: 200}
    gold:
` + planHelp() + `
perMinute, perHour, perDay and uploadsPerHour count per token; the quotas that begin with monthly, and storageBytes, per company and environment.`,
		Example: `  musique serve
  musique serve --http-addr 0.0.0.0:8080 --data-dir /var/lib/musique
  MUSIQUE_DATABASE_URL=postgres://… MUSIQUE_KAFKA_BROKERS=kafka:9092 MUSIQUE_EVENTSTORE_URL=esdb://… musique serve --roles api`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := readServeConfig(cmd)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), config, newLogger(config.logFormat, config.logLevel))
		},
	}
	bindSettings(cmd, serveSettings)
	return cmd
}

func readServeConfig(cmd *cobra.Command) (serveConfig, error) {
	rest, err := resolveSettings(cmd, serveSettings, "plans")
	if err != nil {
		return serveConfig{}, err
	}
	get := func(name string) string {
		v, _ := cmd.Flags().GetString(name) // all settings are declared as strings
		return v
	}
	c := serveConfig{
		httpAddr: get("http-addr"), opsAddr: get("ops-addr"), dataDir: get("data-dir"),
		eventStore: get("eventstore"), eventStoreListen: get("eventstore-listen"),
		kafka: get("kafka"), kafkaListen: get("kafka-listen"), database: get("database"), blobs: get("blobs"),
		heads: get("heads"), headsKey: get("heads-key"),
		tracesEndpoint: get("traces-endpoint"),
		logFormat:      get("log-format"), logLevel: get("log-level"), opsToken: get("ops-token"), secretKey: get("secret-key"),
	}
	for _, flag := range []struct {
		name string
		to   *bool
	}{{"allow-private-endpoints", &c.allowPrivateEndpoints}, {"trust-forwarded", &c.trustForwarded}, {"demo", &c.demo}} {
		switch get(flag.name) {
		case "true":
			*flag.to = true
		case "false":
		default:
			return serveConfig{}, fmt.Errorf("--%s is true or false, not %q", flag.name, get(flag.name))
		}
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		return serveConfig{}, fmt.Errorf("--log-format is text or json, not %q", c.logFormat)
	}
	if err := checkLogLevel(c.logLevel); err != nil {
		return serveConfig{}, err
	}
	for _, name := range []string{"http-addr", "ops-addr", "eventstore-listen", "kafka-listen"} {
		if err := checkAddress(get(name)); err != nil {
			return serveConfig{}, fmt.Errorf("--%s: %w", name, err)
		}
	}
	if c.kafka != embedded {
		for broker := range strings.SplitSeq(c.kafka, ",") {
			if err := checkAddress(broker); err != nil {
				return serveConfig{}, fmt.Errorf("--kafka is 'embedded' or host:port,…: %w", err)
			}
		}
	}
	if text := get("traces-sample"); text != "" {
		share, err := telemetry.ParseShare(text)
		if err != nil {
			return serveConfig{}, fmt.Errorf("--traces-sample: %w", err)
		}
		c.tracesSample = &share
	}
	if c.roles, err = parseRoles(get("roles")); err != nil {
		return serveConfig{}, err
	}
	if c.topicPartitions, err = parsePartitions(get("topic-partitions")); err != nil {
		return serveConfig{}, err
	}
	if c.topicRetention, err = parseRetention(get("topic-retention")); err != nil {
		return serveConfig{}, err
	}
	if c.headsEvery, err = parseHeadsEvery(get("heads-every")); err != nil {
		return serveConfig{}, err
	}
	if c.publicURL, err = parsePublicURL(get("public-url")); err != nil {
		return serveConfig{}, err
	}
	if c.plans, err = parsePlans(rest); err != nil {
		return serveConfig{}, err
	}
	if loopback, err := isLoopback(c.opsAddr); err != nil {
		return serveConfig{}, fmt.Errorf("--ops-addr: %w", err)
	} else if !loopback && c.opsToken == "" {
		return serveConfig{}, fmt.Errorf("the ops address %s is not loopback: set MUSIQUE_OPS_TOKEN", c.opsAddr)
	}
	return c, nil
}

// parsePublicURL reads a scheme and a host, and nothing else; nil for an empty text.
func parsePublicURL(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	given, err := url.Parse(text)
	if err != nil || (given.Scheme != "http" && given.Scheme != "https") || given.Hostname() == "" || strings.TrimSuffix(text, "/") != given.Scheme+"://"+given.Host {
		return nil, fmt.Errorf("--public-url is a scheme and a host such as https://api.example.com, not %q", text)
	}
	return &url.URL{Scheme: given.Scheme, Host: given.Host}, nil
}

func parseRoles(text string) ([]string, error) {
	if text == "all" {
		return roles, nil
	}
	var chosen []string
	for name := range strings.SplitSeq(text, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(roles, name) {
			return nil, fmt.Errorf("--roles: there is no role %q; choose from all, %s", name, strings.Join(roles, ", "))
		}
		chosen = append(chosen, name)
	}
	return chosen, nil
}

// maxPartitions keeps a slip of the pen from making more partitions than a cluster bears.
const maxPartitions = 10_000

func parsePartitions(text string) (int32, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 || n > maxPartitions {
		return 0, fmt.Errorf("--topic-partitions is a whole number from 1 to %d, not %q", maxPartitions, text)
	}
	return int32(n), nil
}

// minRetention is the shortest that leaves consumers any time.
const minRetention = time.Minute

func parseRetention(text string) (time.Duration, error) {
	retention, err := time.ParseDuration(text)
	if err != nil || retention < minRetention {
		return 0, fmt.Errorf("--topic-retention is a time of a minute or more such as 168h, not %q", text)
	}
	return retention, nil
}

// parsePlans reads the plans of the configuration file over the usual ones; a plan there may name only the figures that differ.
func parsePlans(sections map[string]yaml.Node) (company.Plans, error) {
	plans, usual := company.DefaultPlans(), company.DefaultPlans()
	node, ok := sections["plans"]
	if !ok {
		return plans, nil
	}
	var overrides map[string]yaml.Node
	if node.Decode(&overrides) != nil {
		return nil, errors.New("configuration file, plans: give figures by the name of a plan, such as 'standard: {perMinute: 200}'")
	}
	for name, override := range overrides {
		plan, known := plans[name]
		if !known {
			plan = usual[company.Standard]
		}
		if err := setFigures(&plan, override); err != nil {
			return nil, fmt.Errorf("configuration file, plan %s: %w", name, err)
		}
		plans[name] = plan
	}
	return plans, nil
}

// planKeys are the figures of a plan in the order that they are shown in.
var planKeys = []struct {
	name string
	get  func(company.Plan) int64
	set  func(*company.Plan, int64)
}{
	{"perMinute", func(p company.Plan) int64 { return int64(p.PerMinute) }, func(p *company.Plan, n int64) { p.PerMinute = int(n) }},
	{"perHour", func(p company.Plan) int64 { return int64(p.PerHour) }, func(p *company.Plan, n int64) { p.PerHour = int(n) }},
	{"perDay", func(p company.Plan) int64 { return int64(p.PerDay) }, func(p *company.Plan, n int64) { p.PerDay = int(n) }},
	{"uploadsPerHour", func(p company.Plan) int64 { return int64(p.UploadsPerHour) }, func(p *company.Plan, n int64) { p.UploadsPerHour = int(n) }},
	{"uploadBytes", func(p company.Plan) int64 { return p.UploadBytes }, func(p *company.Plan, n int64) { p.UploadBytes = n }},
	{"monthlySends", func(p company.Plan) int64 { return p.MonthlySends }, func(p *company.Plan, n int64) { p.MonthlySends = n }},
	{"monthlyUploads", func(p company.Plan) int64 { return p.MonthlyUploads }, func(p *company.Plan, n int64) { p.MonthlyUploads = n }},
	{"storageBytes", func(p company.Plan) int64 { return p.StorageBytes }, func(p *company.Plan, n int64) { p.StorageBytes = n }},
}

// planHelp shows all figures of a plan, with those of the standard one.
func planHelp() string {
	var b strings.Builder
	for _, key := range planKeys {
		fmt.Fprintf(&b, "      %s: %d\n", key.name, key.get(company.DefaultPlans()[company.Standard]))
	}
	return b.String()
}

// setFigures gives a plan the figures that the file names.
func setFigures(plan *company.Plan, node yaml.Node) error {
	var figures map[string]yaml.Node
	if node.Decode(&figures) != nil {
		return errors.New("give its figures by name, such as {perMinute: 200}")
	}
	for _, key := range planKeys {
		figure, given := figures[key.name]
		if !given {
			continue
		}
		delete(figures, key.name)
		var n int64
		if figure.ShortTag() != "!!int" || figure.Decode(&n) != nil || n < 1 || n > maxFigure {
			return fmt.Errorf("%s is a whole number from 1 to %d, not %s", key.name, int64(maxFigure), figure.Value)
		}
		key.set(plan, n)
	}
	if unknown := slices.Sorted(maps.Keys(figures)); len(unknown) > 0 {
		var names []string
		for _, key := range planKeys {
			names = append(names, key.name)
		}
		return fmt.Errorf("there is no figure %q; choose from %s", unknown[0], strings.Join(names, ", "))
	}
	return nil
}

// maxFigure keeps what is reckoned with the figures of a plan in range, and exact in every JSON reader (RFC 8259 §6).
const maxFigure = 1 << 52

// checkAddress refuses what is no host:port.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %s: the port is no number below 65536", address)
	}
	return nil
}

func isLoopback(address string) (bool, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	if host == "localhost" {
		return true, nil
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback(), nil
}

// serve runs the roles until ctx ends, and then ends them in the order that loses nothing: no more requests, then no more work, then the parts.
func serve(ctx context.Context, config serveConfig, log *slog.Logger) (err error) {
	if err := os.MkdirAll(config.dataDir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	tracer, err := telemetry.Open(ctx, telemetry.Config{Endpoint: config.tracesEndpoint, Sample: config.tracesSample, Version: version, Roles: config.roles, Log: log})
	if err != nil {
		return err
	}
	defer func() { // after what records spans
		ctx, cancel := context.WithTimeout(context.Background(), tracesTimeout)
		defer cancel()
		if err := tracer.Close(ctx); err != nil {
			log.Warn("the last traces could not be sent", "error", err)
		}
	}()
	parts, err := openParts(ctx, config, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.close()) }()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	background, stopBackground := context.WithCancel(tracer.In(context.WithoutCancel(ctx)))
	running, background := errgroup.WithContext(background)
	defer func() {
		stopBackground()
		if ended := within(stopTimeout, "the workers", running.Wait); !errors.Is(err, ended) { // what ended them may be in err already
			err = errors.Join(err, ended)
		}
	}()
	// Requests are served to their end, so what they wait for runs as long as they do.
	app := assemble(config, parts, registry, tracer, log)
	if err := app.observe(background, running); err != nil {
		return err
	}
	app.start(background, running)
	running.Go(func() error { return parts.watch(background) })

	var servers []*http.Server
	defer func() { // whatever is still served when something failed: the workers' end waits for it
		for _, server := range servers {
			err = errors.Join(err, server.Close())
		}
	}()
	// Every process has an ops address: probes and metrics are of workers too.
	api, err := app.api()
	if err != nil {
		return err
	}
	addresses := readyLine{EventStore: parts.eventStoreURL, Kafka: strings.Join(parts.brokers, ",")}
	serveOn := func(setting, on string, handler http.Handler) (string, error) {
		server, address, err := listen(ctx, on, handler, running)
		if err != nil {
			return "", explain(err, setting)
		}
		servers = append(servers, server)
		return address, nil
	}
	if slices.Contains(config.roles, "api") {
		if addresses.HTTP, err = serveOn("--http-addr", config.httpAddr, api.Partner()); err != nil {
			return err
		}
	}
	if addresses.Ops, err = serveOn("--ops-addr", config.opsAddr, api.Ops()); err != nil {
		return err
	}
	if err := app.startEndpoints(background, running, addresses.HTTP); err != nil {
		return err
	}
	demo, err := app.demo(ctx)
	if err != nil {
		return err
	}
	announce(config, log, addresses, demo)

	select {
	case <-ctx.Done():
		log.Info("stopping: finishing what is in hand")
	case <-background.Done():
		return errors.Join(fmt.Errorf("a part of the server ended: %w", context.Cause(background)), drain(api, servers, log))
	}
	return drain(api, servers, log)
}

// listen serves a handler on an address and gives the address that it became.
func listen(ctx context.Context, address string, handler http.Handler, running *errgroup.Group) (*http.Server, string, error) {
	config := net.ListenConfig{Control: limitSilence}
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, "", err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxReadHeaderBytes}
	running.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return server, listener.Addr().String(), nil
}

// drain ends the requests in hand, the streams at once, and records what was served. A client that neither sends nor takes its part within
// drainTimeout is cut off: it has no answer that it could lose.
func drain(api *httpapi.Server, servers []*http.Server, log *slog.Logger) error {
	api.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var err error
	for _, server := range servers {
		ended := server.Shutdown(ctx)
		if errors.Is(ended, context.DeadlineExceeded) {
			log.Warn("requests did not end in time; their clients are cut off", "after", drainTimeout.String())
			ended = server.Close()
		}
		err = errors.Join(err, ended)
	}
	recording, cancelRecording := context.WithTimeout(context.Background(), recordTimeout)
	defer cancelRecording()
	return errors.Join(err, api.Close(recording))
}

// within gives up waiting after a while.
func within(limit time.Duration, what string, wait func() error) error {
	done := make(chan error, 1)
	go func() { done <- wait() }()
	select {
	case err := <-done:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-time.After(limit):
		return fmt.Errorf("%s did not end within %v", what, limit)
	}
}
