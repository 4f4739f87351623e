package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// metrics is what /metrics says, and the names of the metrics there, those of their samples included.
func (s *server) metrics(t *testing.T) (text string, names map[string]bool) {
	t.Helper()
	response, err := http.Get("http://" + s.ops + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	names = map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		if !strings.HasPrefix(line, "#") {
			names[regexp.MustCompile(`^\w+`).FindString(line)] = true
		}
	}
	return string(raw), names
}

// measured is a server that did something of everything, and its metrics after that.
func measured(t *testing.T) (text string, names map[string]bool) {
	t.Helper()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	partner := s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "plus").CompanyToken, "hq")
	partner.location("store_001")
	partner.send(partner.upload("Welcome", welcome(t)), "store_001")
	require.Eventually(t, func() bool {
		text, names = s.metrics(t)
		return names["musique_monitor_up"] && strings.Contains(text, "musique_monitor_up 1\n") && strings.Contains(text, `musique_deliveries_open{state="queued"} 1`) &&
			!idle.MatchString(text)
	}, patience, 100*time.Millisecond)
	s.terminate()
	return text, names
}

// idle is a worker or a projection that no process runs: with all roles in one process there is none.
var idle = regexp.MustCompile(`(?m)^musique_(worker_leading|projection_running)\{.*\} 0$`)

// expression is a query of the dashboard or the alarms, as Prometheus takes it.
func expression(t *testing.T, text string) (metrics []string) {
	t.Helper()
	text = strings.ReplaceAll(text, "$__rate_interval", "5m")
	parsed, err := metricsql.Parse(text)
	require.NoError(t, err, text)
	metricsql.VisitAll(parsed, func(e metricsql.Expr) {
		switch e := e.(type) {
		case *metricsql.MetricExpr:
			for _, filters := range e.LabelFilterss {
				for _, filter := range filters {
					if filter.Label == "__name__" {
						require.False(t, filter.IsRegexp || filter.IsNegative, text)
						metrics = append(metrics, filter.Value)
					}
				}
			}
		case *metricsql.FuncExpr: // which this parser would take without a range, and Prometheus would not
			if slices.Contains([]string{"rate", "increase", "max_over_time"}, e.Name) {
				rollup, ranged := e.Args[0].(*metricsql.RollupExpr)
				require.True(t, ranged && rollup.Window != nil, text)
			}
		}
	})
	require.NotEmpty(t, metrics, text)
	return metrics
}

type alarmRule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func alarmRules(t *testing.T) (all []alarmRule) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "deploy", "observability", "alerts.yaml"))
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Name  string
			Rules []alarmRule
		}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(&file))
	named := map[string]bool{}
	for _, g := range file.Groups {
		require.NotEmpty(t, g.Name)
		require.False(t, named[g.Name], g.Name)
		named[g.Name] = true
		require.NotEmpty(t, g.Rules)
		all = append(all, g.Rules...)
	}
	return all
}

// Each alarm says what is the matter and where it is written what to do.
func TestAlarmsAreExplained(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", "alarms.md"))
	require.NoError(t, err)
	explained := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(raw), -1) {
		explained[heading[1]] = true
	}
	for _, rule := range alarmRules(t) {
		require.Regexp(t, `^Musique[A-Za-z]+$`, rule.Alert)
		require.Contains(t, []string{"critical", "warning"}, rule.Labels["severity"], rule.Alert)
		require.NotEmpty(t, rule.Annotations["summary"], rule.Alert)
		require.NotEmpty(t, rule.Annotations["description"], rule.Alert)
		if rule.For != "" {
			_, err := time.ParseDuration(rule.For)
			require.NoError(t, err, rule.Alert)
		}
		require.Equal(t, "https://github.com/musique/musique/blob/main/docs/alarms.md#"+strings.ToLower(rule.Alert), rule.Annotations["runbook_url"])
		require.True(t, explained[rule.Alert], "docs/alarms.md does not explain %s", rule.Alert)
		delete(explained, rule.Alert)
	}
	require.Empty(t, explained, "docs/alarms.md explains alarms that there are not")
}

// What the dashboard shows and the alarms go by is there, under these names, in a process that runs; and the documentation knows all that there is.
func TestMetrics(t *testing.T) {
	t.Parallel()
	text, names := measured(t)

	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "musique_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}

	allowed := []string{
		"operation", "status", "projection", "follower", "worker", "topic", "state", "outcome", "kind", "version", "goversion", "le",
	}
	for _, label := range regexp.MustCompile(`(?m)^musique_\w+\{(.*)\} `).FindAllStringSubmatch(text, -1) {
		for _, named := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(label[1], -1) {
			require.Contains(t, allowed, named[1], "a label has few values: no company, location or request is one")
		}
	}

	documented, err := os.ReadFile(filepath.Join("..", "..", "docs", "observability.md"))
	require.NoError(t, err)
	families := map[string]bool{}
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (musique_\w+)`).FindAllStringSubmatch(text, -1) {
		families[family[1]] = true
		require.Contains(t, string(documented), "| `"+family[1]+"`", "docs/observability.md lists all metrics")
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(musique_\\w+)`").FindAllStringSubmatch(string(documented), -1) {
		require.True(t, families[row[1]], "docs/observability.md lists %s, which is not there", row[1])
	}

	used := map[string]bool{}
	for _, rule := range alarmRules(t) {
		for _, name := range expression(t, rule.Expr) {
			require.True(t, names[name] || name == "up", "%s goes by %s, which is not there", rule.Alert, name)
		}
	}
	raw, err := os.ReadFile(filepath.Join("..", "..", "deploy", "observability", "dashboard.json"))
	require.NoError(t, err)
	var dashboard struct {
		UID, Title    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Targets     []struct{ RefID, Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(raw, &dashboard))
	require.Equal(t, "musique", dashboard.UID)
	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		require.False(t, ids[p.ID], "%s has the ID of another panel", p.Title)
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		ids[p.ID] = true
		require.Equal(t, p.Type == "row", len(p.Targets) == 0, p.Title)
		for _, target := range p.Targets {
			for _, name := range expression(t, target.Expr) {
				require.True(t, names[name], "%s shows %s, which is not there", p.Title, name)
				used[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] = true
			}
		}
	}
	require.Greater(t, len(used), 30)
}
