package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/musique/musique/domain/company"
)

// A flag wins over the variable, the variable over the file, the file over the default: for every setting there is, in every combination.
func TestPrecedence(t *testing.T) {
	for command, settings := range map[string][]setting{"serve": serveSettings, "player": playerSettings, "list": opsSettings} {
		for _, s := range settings {
			for given := range 8 {
				flag, env, file := given&1 != 0, given&2 != 0, given&4 != 0
				t.Run(fmt.Sprintf("%s %s flag=%v env=%v file=%v", command, s.flag, flag, env, file), func(t *testing.T) {
					for _, other := range settings {
						t.Setenv(other.env, "")
					}
					cmd := &cobra.Command{Use: command}
					bindSettings(cmd, settings)
					want := s.value
					path := filepath.Join(t.TempDir(), "musique.yaml")
					text := "# nothing is set here\n"
					if file {
						want, text = "from the file", s.flag+": from the file\n"
					}
					require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
					args := []string{"--config", path}
					if env {
						want = "from the environment"
						t.Setenv(s.env, want)
					}
					if flag {
						want = "from the command line"
						args = append(args, "--"+s.flag, want)
					}
					require.NoError(t, cmd.ParseFlags(args))
					_, err := resolveSettings(cmd, settings, serveSections()...)
					require.NoError(t, err)
					got, err := cmd.Flags().GetString(s.flag)
					require.NoError(t, err)
					require.Equal(t, want, got)
				})
			}
		}
	}
}

// The file is found by $MUSIQUE_CONFIG, too; its lists are read as flags write them, and its plans over the usual ones.
func TestConfigurationFile(t *testing.T) {
	for _, s := range serveSettings {
		t.Setenv(s.env, "")
	}
	path := filepath.Join(t.TempDir(), "musique.yaml")
	t.Setenv("MUSIQUE_CONFIG", path)
	require.NoError(t, os.WriteFile(path, []byte(`
roles: [api, projections]
public-url: https://api.example.com/
kafka: [kafka-1:9092, "kafka-2:9092"]
demo: false
topic-partitions: 3
plans:
  standard: {perMinute: 7}
  gold: {monthlySends: 9}
`), 0o600))
	cmd := newServe()
	require.NoError(t, cmd.ParseFlags(nil))
	c, err := readServeConfig(cmd)
	require.NoError(t, err)
	require.Equal(t, []string{"api", "projections"}, c.roles)
	require.Equal(t, "kafka-1:9092,kafka-2:9092", c.kafka)
	require.False(t, c.demo)
	require.EqualValues(t, 3, c.topicPartitions)
	require.Equal(t, 7*24*time.Hour, c.topicRetention, "the default")
	require.Equal(t, "https://api.example.com", c.publicURL.String())
	require.Equal(t, 7, c.plans["standard"].PerMinute)
	require.Equal(t, 1_000, c.plans["standard"].PerHour)
	require.Equal(t, int64(9), c.plans["gold"].MonthlySends)
	require.Equal(t, 100, c.plans["gold"].PerMinute, "what a new plan does not say is as the standard plan is sold")
}

// The plans of the operators' page are taken as they stand there, and the page has the figures of all plans.
func TestThePlansOfTheGuide(t *testing.T) {
	raw, err := os.ReadFile("../../docs/plans.md")
	require.NoError(t, err)
	_, example, found := strings.Cut(string(raw), "```yaml\n")
	require.True(t, found)
	example, _, _ = strings.Cut(example, "```")
	var file map[string]yaml.Node
	require.NoError(t, yaml.Unmarshal([]byte(example), &file))
	plans, err := parsePlans(file)
	require.NoError(t, err)
	require.NotEqual(t, company.DefaultPlans(), plans)
	for _, key := range planKeys {
		row := "| `" + key.name + "` |"
		for _, name := range []string{company.Standard, company.Plus, company.Unlimited} {
			row += " " + strconv.FormatInt(key.get(company.DefaultPlans()[name]), 10) + " |"
		}
		require.Contains(t, string(raw), row)
	}
}

// What is set wrongly is told in one line that names it, and nothing starts.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	config := func(text string) string {
		path := filepath.Join(t.TempDir(), "musique.yaml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return "serve --config " + path
	}
	for _, c := range []struct{ args, says string }{
		{"frobnicate", `unknown command "frobnicate" for "musique"`},
		{"company crate", `unknown command "crate" for "musique company"`},
		{"projections crate", `unknown command "crate" for "musique projections"`},
		{"serve now", `unknown command "now" for "musique serve"`},
		{"serve --htp-addr :0", "unknown flag: --htp-addr"},
		{"serve --http-addr 8080", "--http-addr: address 8080: missing port in address"},
		{"serve --http-addr 127.0.0.1:http", "--http-addr: address 127.0.0.1:http: the port is no number below 65536"},
		{"serve --ops-addr 127.0.0.1:65536", "--ops-addr: address 127.0.0.1:65536: the port is no number below 65536"},
		{"serve --ops-addr 0.0.0.0:0", "the ops address 0.0.0.0:0 is not loopback: set MUSIQUE_OPS_TOKEN"},
		{"serve --eventstore-listen x", "--eventstore-listen: address x: missing port in address"},
		{"serve --kafka-listen x", "--kafka-listen: address x: missing port in address"},
		{"serve --kafka broker", "--kafka is 'embedded' or host:port,…: address broker: missing port in address"},
		{"serve --kafka a:1,", "--kafka is 'embedded' or host:port,…: missing port in address"},
		{"serve --roles cook", `--roles: there is no role "cook"; choose from all, api, projections, publisher, delivery, scheduler, webhooks`},
		{"serve --topic-partitions 0", `--topic-partitions is a whole number from 1 to 10000, not "0"`},
		{"serve --topic-partitions 10001", `--topic-partitions is a whole number from 1 to 10000, not "10001"`},
		{"serve --topic-partitions few", `--topic-partitions is a whole number from 1 to 10000, not "few"`},
		{"serve --topic-retention 59s", `--topic-retention is a time of a minute or more such as 168h, not "59s"`},
		{"serve --topic-retention 7", `--topic-retention is a time of a minute or more such as 168h, not "7"`},
		{"serve --roles api,,delivery", `--roles: there is no role ""`},
		{"serve --log-format xml", `--log-format is text or json, not "xml"`},
		{"serve --log-level loud", `--log-level is debug, info, warn or error, not "loud"`},
		{"serve --demo perhaps", `--demo is true or false, not "perhaps"`},
		{"serve --trust-forwarded 2", `--trust-forwarded is true or false, not "2"`},
		{"serve --public-url api.example.com", `--public-url is a scheme and a host such as https://api.example.com, not "api.example.com"`},
		{"serve --public-url ftp://api.example.com", "--public-url is a scheme and a host"},
		{"serve --public-url https://", "--public-url is a scheme and a host"},
		{"serve --public-url https://:443", "--public-url is a scheme and a host"},
		{"serve --public-url https://a@api.example.com", "--public-url is a scheme and a host"},
		{"serve --public-url https://api.example.com/v1", "--public-url is a scheme and a host"},
		{"serve --public-url https://api.example.com?a", "--public-url is a scheme and a host"},
		{"serve --public-url https://api.example.com#a", "--public-url is a scheme and a host"},
		{"serve --secret-key 0123", "--secret-key: a secret key is 64 hexadecimal digits"},
		{"serve --data-dir /dev/null/data", "data folder: mkdir /dev/null: not a directory"},
		{"serve --config /nowhere.yaml", "configuration file: open /nowhere.yaml: no such file or directory"},
		{config("http-adr: 127.0.0.1:0"), `configuration file: there is no setting "http-adr"; 'musique serve --help' lists them`},
		{config("log-level: loud"), `--log-level is debug, info, warn or error, not "loud"`},
		{config("demo: {a: 1}"), "configuration file, demo: give one value, or a list of values"},
		{config("demo: [{a: 1}]"), "configuration file, demo: give one value, or a list of values"},
		{config("- a\n- b"), "it has settings by name, such as 'http-addr: 127.0.0.1:8080'"},
		{config("a: ["), "configuration file "},
		{config("plans: {standard: {perMinute: many}}"), "configuration file, plan standard: perMinute is a whole number from 1 to 4503599627370496, not many"},
		{config("plans: {standard: {perMinute: -5}}"), "configuration file, plan standard: perMinute is a whole number from 1 to 4503599627370496, not -5"},
		{config("plans: {gold: {storageBytes: 0}}"), "configuration file, plan gold: storageBytes is a whole number from 1 to 4503599627370496, not 0"},
		{config("plans: {standard: {perHour: 1.5}}"), "configuration file, plan standard: perHour is a whole number from 1"},
		{config("plans: {standard: {perDay: 9223372036854775807}}"), "configuration file, plan standard: perDay is a whole number from 1"},
		{config("plans: {standard: {perMinuet: 7}}"), `configuration file, plan standard: there is no figure "perMinuet"; choose from perMinute, perHour, perDay, uploadsPerHour, uploadBytes, monthlySends, monthlyUploads, storageBytes`},
		{config("plans: {standard: 7}"), "configuration file, plan standard: give its figures by name, such as {perMinute: 200}"},
		{config("plans: [standard]"), "configuration file, plans: give figures by the name of a plan, such as 'standard: {perMinute: 200}'"},
		{"player", "a device token is needed"},
		{"player --device-token dev_x --server example.com", `"example.com" is no server address such as https://api.example.com`},
		{"player --device-token dev_x --backend organ", `--backend: there is no backend "organ"; choose from auto, mpv, ffplay, aplay, simulated`},
		{"player --device-token dev_x --cache-bytes 1G", `--cache-bytes is a number of bytes, not "1G"`},
		{"player --device-token dev_x --cache-bytes 0", `--cache-bytes is a number of bytes, not "0"`},
		{"player --device-token dev_x --log-level loud", "--log-level is debug, info, warn or error"},
		{"company create", "--name is required"},
		{"company set-plan co_x", "--plan is required"},
		{"company rotate-token", "accepts 1 arg(s), received 0"},
		{"company list --output yaml", `--output is text or json, not "yaml"`},
		{"company list --ops-addr 127.0.0.1:1", "no server at http://127.0.0.1:1: is 'musique serve' running?"},
		{"company list --ops-addr %:1", "--ops-addr: "},
		{"projections status --ops-addr 127.0.0.1:1", "no server at http://127.0.0.1:1: is 'musique serve' running?"},
	} {
		cmd := c.args
		if strings.HasPrefix(cmd, "serve") && !strings.Contains(cmd, "data-dir") {
			cmd += " --data-dir " + filepath.Join(t.TempDir(), "data")
		}
		_, stderr, code := musique(t, strings.Fields(cmd)...)
		require.Equal(t, 1, code, c.args)
		require.Contains(t, stderr, c.says, c.args)
		require.Contains(t, stderr, "musique: ", c.args)
	}
}

// What the parts do not understand is told with the name of its setting, too.
func TestWrongSettingsOfParts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct{ args, says string }{
		{"--eventstore http://x --kafka x:1 --database postgres://x", "--eventstore: event store connection string: "},
		{"--eventstore esdb://x:1 --kafka x:1 --database mysql://x", "--database: postgres: cannot parse"},
		{"--eventstore esdb://x:1 --kafka x:1 --database postgres://x --blobs ftp://x", `--blobs: open blob storage ftp://x: scheme "ftp" is not supported`},
	} {
		_, stderr, code := musique(t, append([]string{"serve", "--data-dir", dir}, strings.Fields(c.args)...)...)
		require.Equal(t, 1, code, c.args)
		require.Contains(t, stderr, "musique: "+c.says, c.args)
	}
}

// An address that somebody else has is told with the name of its setting, and so is a data folder that somebody else uses.
func TestWhatIsTaken(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	dir := filepath.Join(t.TempDir(), "data")
	serve := append([]string{"serve", "--data-dir", dir}, freePorts...)
	for _, setting := range []string{"--http-addr", "--ops-addr", "--eventstore-listen", "--kafka-listen"} {
		_, stderr, code := musique(t, append(serve, setting, taken.Addr().String())...)
		require.Equal(t, 1, code, setting)
		require.Regexp(t, `(?m)^musique: `+setting+`: .*address already in use; is another server running\? Choose another address$`, stderr)
		require.NotContains(t, stderr, "level=ERROR", "nothing else is wrong")
	}
	s := serveOn(t, dir)
	for range 5 { // whichever part notices first
		_, stderr, code := musique(t, serve...)
		require.Equal(t, 1, code)
		require.Regexp(t, `(?m)^musique: .*`+dir+`.*; stop it or choose another data folder$`, stderr)
	}
	s.terminate()
}

// Every command explains itself, with all its flags and where else they can be set.
func TestHelp(t *testing.T) {
	t.Parallel()
	run := func(args ...string) string {
		stdout, stderr, code := musique(t, args...)
		require.Equal(t, 0, code, "%v: %s", args, stderr)
		require.Empty(t, stderr)
		return stdout
	}
	var walk func(cmd *cobra.Command, path []string)
	walk = func(cmd *cobra.Command, path []string) {
		require.NotEmpty(t, cmd.Short, path)
		help := run(append(path, "--help")...)
		require.Equal(t, help, run(append([]string{"help"}, path...)...))
		require.Contains(t, help, "Usage:\n  "+strings.Join(append([]string{"musique"}, path...), " "))
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			require.NotEmpty(t, f.Usage)
			require.Contains(t, help, "--"+f.Name)
		})
		for _, sub := range cmd.Commands() {
			if sub.Hidden { // it is for the program itself
				continue
			}
			require.Contains(t, help, sub.Name())
			walk(sub, append(path[:len(path):len(path)], sub.Name()))
		}
	}
	walk(newRoot(), nil)
	serve := run("serve", "--help")
	for _, s := range serveSettings {
		require.Contains(t, serve, "($"+s.env+")")
	}
	for _, key := range planKeys {
		require.Contains(t, serve, "      "+key.name+": ")
	}
	require.Equal(t, run("--help"), run())
	require.Equal(t, run("company", "--help"), run("company"))
	require.Equal(t, "musique version dev\n", run("--version"))
}
