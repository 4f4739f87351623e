package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore/storetest"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/postgres/postgrestest"
	"github.com/musique/musique/workers/cloudevents"
)

// root is the repository.
const root = "../.."

// compose is docker-compose.yml as far as it is used: a key that is not here is refused, be it new or misspelt.
type compose struct {
	Name        string
	Musique     yaml.Node `yaml:"x-musique"`
	Environment yaml.Node `yaml:"x-environment"`
	Services    map[string]composeService
	Volumes     map[string]any
}

type composeService struct {
	Build *struct {
		Context string
		Args    map[string]string
	}
	Image       string
	Command     []string
	Restart     string
	ReadOnly    bool     `yaml:"read_only"`
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	Volumes     []string
	StopGrace   string `yaml:"stop_grace_period"`
	ShmSize     string `yaml:"shm_size"`
	Healthcheck struct {
		Test              []string
		Interval, Timeout string
		Retries           int
		StartPeriod       string `yaml:"start_period"`
	}
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Environment map[string]string
	Ports       []string
}

func readCompose(t *testing.T) compose {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var c compose
	require.NoError(t, decoder.Decode(&c))
	return c
}

// musique are the services that run this program, by name.
func (c compose) musique() map[string]composeService {
	found := maps.Clone(c.Services)
	maps.DeleteFunc(found, func(_ string, s composeService) bool { return s.Build == nil })
	return found
}

// substituted is a value with what ${NAME:-default} and ${NAME:?why} stand for.
func substituted(t *testing.T, value string, given map[string]string) string {
	t.Helper()
	return regexp.MustCompile(`\$\{(\w+):([-?])([^}]*)\}`).ReplaceAllStringFunc(value, func(all string) string {
		parts := regexp.MustCompile(`\$\{(\w+):([-?])([^}]*)\}`).FindStringSubmatch(all)
		if v, ok := given[parts[1]]; ok {
			return v
		}
		require.Equal(t, "-", parts[2], "%s has to be given", parts[1])
		return parts[3]
	})
}

// Everything in docker-compose.yml means something to the program and to the other services: settings, roles, ports, volumes.
func TestTheComposeFileFitsTheProgram(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	known := map[string]bool{}
	for _, s := range serveSettings {
		known[s.env] = true
	}
	secrets := map[string]string{"POSTGRES_PASSWORD": "p4ssw0rd", "MUSIQUE_OPS_TOKEN": "token", "MUSIQUE_SECRET_KEY": strings.Repeat("a1", 32)}
	var taken []string
	for name, s := range c.musique() {
		require.Equal(t, []string{"CMD", "/musique", "health"}, s.Healthcheck.Test)
		for env, value := range s.Environment {
			require.True(t, known[env], "%s: there is no setting %s", name, env)
			substituted(t, value, secrets)
		}
		its, err := parseRoles(s.Environment["MUSIQUE_ROLES"])
		require.NoError(t, err, name)
		taken = append(taken, its...)
		for part, url := range map[string]string{"eventstore": s.Environment["MUSIQUE_EVENTSTORE_URL"], "kafka": s.Environment["MUSIQUE_KAFKA_BROKERS"], "postgres": s.Environment["MUSIQUE_DATABASE_URL"]} {
			require.Contains(t, s.DependsOn, part)
			require.Regexp(t, `(^|[/@])`+part+`:\d+`, url, "%s: the host is the service", name)
		}
		if slices.Contains(its, "api") {
			_, port, _ := strings.Cut(s.Environment["MUSIQUE_HTTP_ADDR"], ":")
			require.Equal(t, []string{"127.0.0.1:8080:" + port}, s.Ports)
		} else {
			require.Empty(t, s.Ports)
		}
	}
	slices.Sort(taken)
	require.Equal(t, slices.Sorted(slices.Values(roles)), taken, "each role is that of one service")

	kafka, store, database := c.Services["kafka"].Environment, c.Services["eventstore"].Environment, c.Services["postgres"].Environment
	api := c.Services["api"].Environment
	require.Contains(t, kafka["KAFKA_ADVERTISED_LISTENERS"], "PLAINTEXT://"+api["MUSIQUE_KAFKA_BROKERS"])
	require.Contains(t, api["MUSIQUE_EVENTSTORE_URL"], "eventstore:"+store["EVENTSTORE_NODE_PORT"])
	require.Contains(t, api["MUSIQUE_DATABASE_URL"], "postgres://"+database["POSTGRES_USER"]+":"+database["POSTGRES_PASSWORD"]+"@postgres:5432/"+database["POSTGRES_DB"])
	require.Contains(t, c.Services["postgres"].Command, "max_connections=200")
	require.LessOrEqual(t, 40*len(c.musique()), 200)
	used := map[string]bool{}
	for name, s := range c.Services {
		require.Equal(t, "unless-stopped", s.Restart, name)
		require.NotEmpty(t, s.Healthcheck.Test, name)
		require.NotContains(t, s.Image, "latest", name)
		for _, volume := range s.Volumes {
			if from, _, named := strings.Cut(volume, ":"); named {
				require.Contains(t, c.Volumes, from)
				used[from] = true
			}
		}
		for _, port := range s.Ports {
			require.Regexp(t, `^127\.0\.0\.1:`, port, "%s is for this machine", name)
		}
	}
	require.Len(t, used, len(c.Volumes))

	for _, secret := range slices.Sorted(maps.Keys(secrets)) { // none has a value of its own
		raw, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
		require.NoError(t, err)
		require.Contains(t, string(raw), "${"+secret+":?")
		require.NotContains(t, string(raw), "${"+secret+":-")
	}
}

// What the image is built from is not left out of its build, and what is left out is there.
func TestTheImageIsBuiltFromEverything(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	require.NoError(t, err)
	var left []string
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			left = append(left, line)
		}
	}
	ignored := func(file string) bool {
		for at := file; at != "."; at = path.Dir(at) {
			for _, pattern := range left {
				if everywhere, ok := strings.CutPrefix(pattern, "**/"); ok {
					if match, _ := path.Match(everywhere, path.Base(at)); match {
						return true
					}
				} else if match, _ := path.Match(pattern, at); match {
					return true
				}
			}
		}
		return false
	}
	require.True(t, ignored("cmd/musique/compose_test.go"))
	require.True(t, ignored("infra/esnode/testdata/x"))
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=Dir,Standard,Module,GoFiles,EmbedFiles", "./cmd/musique")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	require.NoError(t, err)
	folder, err := filepath.Abs(root)
	require.NoError(t, err)
	files := 0
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir                 string
			Module              *struct{ Main bool }
			GoFiles, EmbedFiles []string
		}
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if p.Module == nil || !p.Module.Main {
			continue
		}
		dir, err := filepath.Rel(folder, p.Dir)
		require.NoError(t, err)
		for _, file := range append(p.GoFiles, p.EmbedFiles...) {
			require.False(t, ignored(path.Join(filepath.ToSlash(dir), file)), "%s/%s is part of the program", dir, file)
			files++
		}
	}
	require.Greater(t, files, 100)
}

// published waits until so many events of a type are on the topic of deliveries.
func published(t *testing.T, brokers, eventType string, count int) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(cloudevents.DeliveriesTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.UnknownTopicRetries(-1))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for found := map[string]bool{}; len(found) < count; {
		fetched := client.PollFetches(ctx)
		require.NoError(t, ctx.Err(), "%d of %d came", len(found), count)
		fetched.EachRecord(func(r *kgo.Record) {
			headers := map[string]string{}
			for _, h := range r.Headers {
				headers[h.Key] = string(h.Value)
			}
			if headers["ce_type"] == eventType {
				found[headers["ce_id"]] = true
			}
		})
	}
}

// The processes that docker-compose.yml has, with its settings, on servers of their own, do everything together: each of them ends in order, and is back.
func TestProcessesByRoleOnServers(t *testing.T) {
	t.Parallel()
	folder, err := blobs.FolderURL(filepath.Join(t.TempDir(), "blobs"))
	require.NoError(t, err)
	dir := t.TempDir()
	here := map[string]string{
		"MUSIQUE_DATA_DIR": dir, "MUSIQUE_BLOB_URL": folder, "MUSIQUE_EVENTSTORE_URL": storetest.URL(t), "MUSIQUE_KAFKA_BROKERS": strings.Join(kafkatest.OwnBrokers(t), ","),
		"MUSIQUE_DATABASE_URL": postgrestest.URL(t), "MUSIQUE_OPS_ADDR": "127.0.0.1:0", "MUSIQUE_HTTP_ADDR": "127.0.0.1:0", "MUSIQUE_PUBLIC_URL": "",
	}
	token := "the operators'"
	given := map[string]string{"POSTGRES_PASSWORD": "x", "MUSIQUE_OPS_TOKEN": token, "MUSIQUE_SECRET_KEY": strings.Repeat("c3", 32)}
	begin := func(s composeService) *server {
		settings := []string{}
		for name, value := range s.Environment {
			if changed, ok := here[name]; ok {
				value = changed
			}
			settings = append(settings, name+"="+substituted(t, value, given))
		}
		cmd := exec.Command(executable(t), "serve")
		cmd.Env = environment(settings...)
		p := start(t, cmd)
		var ready struct{ HTTP, Ops string }
		require.NoError(t, json.Unmarshal([]byte(p.awaits(&p.stderr, `(?m)^\{.*"msg":"ready".*\}$`)[0]), &ready))
		return &server{p, "http://" + ready.HTTP, ready.Ops}
	}
	services := readCompose(t).musique()
	running := map[string]*server{}
	for name, s := range services {
		running[name] = begin(s)
	}
	ask := func(name string, args ...string) (stdout string, code int) {
		cmd := exec.Command(executable(t), args...)
		cmd.Env = environment("MUSIQUE_OPS_ADDR="+running[name].ops, "MUSIQUE_OPS_TOKEN="+token)
		p := start(t, cmd)
		code = p.exit()
		return p.stdout.String(), code
	}
	for name := range services {
		said, code := ask(name, "health")
		require.Equal(t, "ready\n", said, name)
		require.Zero(t, code)
	}
	said, code := ask("api", "company", "create", "--name", "Acme", "--output", "json")
	require.Zero(t, code)
	var made companyMade
	require.NoError(t, json.Unmarshal([]byte(said), &made))
	partner := running["api"].signIn(t, made.CompanyToken, "hq")
	device := partner.location("store_001")
	audioID := partner.upload("Brief", aSecond())
	play := func() {
		player := running["api"].playAt(t, device, t.TempDir())
		partner.awaitStatus(partner.send(audioID, "store_001"), "played", "sent")
		player.terminate()
	}
	play()
	published(t, here["MUSIQUE_KAFKA_BROKERS"], "AudioPlayed", 1)

	for name, s := range services { // one after the other, as an update goes
		running[name].terminate()
		running[name] = begin(s)
		partner = partner.on(running["api"])
		require.Equal(t, "Brief", want[object](partner.get("/audio/"+audioID), http.StatusOK)["name"])
	}
	play()
	published(t, here["MUSIQUE_KAFKA_BROKERS"], "AudioPlayed", 2)
	for name := range services {
		running[name].terminate()
		_, code := ask(name, "health")
		require.Equal(t, 1, code)
	}
}
