package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// These tests run the program as its users do, as a process of its own. With this variable the test binary is the program, so that what the tests are built
// with, the race detector above all, is in it.
const asProgram = "MUSIQUE_TEST_AS_PROGRAM"

// patience bounds the waits. Nothing takes that long unless it fails.
const patience = time.Minute

func TestMain(m *testing.M) {
	if what := os.Getenv(asPart); what != "" {
		if err := runPart(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asProgram) != "" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// executable is the test binary, as another user can run it, too.
func executable(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "linux" {
		return "/proc/self/exe"
	}
	path, err := os.Executable()
	require.NoError(t, err)
	return path
}

// environment is this process's without settings of the program, and with some.
func environment(settings ...string) []string {
	var clean []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MUSIQUE_") {
			clean = append(clean, v)
		}
	}
	// The race detector would let every process linger for a second.
	return append(append(clean, asProgram+"=1", "GORACE=atexit_sleep_ms=0"), settings...)
}

// process is the program, or another one, running.
type process struct {
	*exec.Cmd
	t      *testing.T
	stdout transcript
	stderr transcript
	ended  chan struct{} // closed when it has ended
}

// launch starts the program.
func launch(t *testing.T, args ...string) *process {
	t.Helper()
	cmd := exec.Command(executable(t), args...)
	cmd.Env = environment()
	return start(t, cmd)
}

// start starts a command, which does not outlive its test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	require.NoError(t, cmd.Start())
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // ProcessState says how it ended
	}()
	t.Cleanup(func() {
		p.kill()
		require.NotContains(t, p.stderr.String(), "DATA RACE")
		if t.Failed() {
			t.Logf("%v\n%s\n%s", cmd.Args, p.stdout.String(), tail(p.stderr.String()))
		}
	})
	return p
}

// tail is the end of a long text.
func tail(text string) string { return text[max(0, len(text)-20_000):] }

// kill ends the process as a loss of power would.
func (p *process) kill() {
	_ = p.Process.Kill() // it may have ended
	<-p.ended
}

// exit waits for the process to end and gives its exit code.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("%v does not end: %s", p.Args, tail(p.stderr.String()))
		return 0
	}
}

// terminate asks the process to end, and requires that it does so in order.
func (p *process) terminate() {
	p.t.Helper()
	require.NoError(p.t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(p.t, 0, p.exit(), "%s", tail(p.stderr.String()))
}

// awaits waits until a transcript has what a pattern says, and gives the groups of the first match.
func (p *process) awaits(said *transcript, pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.After(patience)
	for {
		text, more := said.read()
		if found := re.FindStringSubmatch(text); found != nil {
			return found
		}
		select {
		case <-more:
		case <-p.ended:
			text, _ := said.read()
			found := re.FindStringSubmatch(text)
			require.NotNil(p.t, found, "%v ended before it said %q: %s%s", p.Args, pattern, p.stdout.String(), tail(p.stderr.String()))
			return found
		case <-timeout:
			p.t.Fatalf("%v does not say %q: %s%s", p.Args, pattern, p.stdout.String(), tail(p.stderr.String()))
		}
	}
}

// transcript keeps what a process says. The zero transcript is ready.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed at the next word; nil if nobody waits
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return s.text.Write(p)
}

func (s *transcript) read() (text string, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return s.text.String(), s.more
}

func (s *transcript) String() string {
	text, _ := s.read()
	return text
}

// musique runs the program to its end.
func musique(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	p := launch(t, args...)
	code = p.exit()
	return p.stdout.String(), p.stderr.String(), code
}

// server is `musique serve`, running and ready.
type server struct {
	*process
	url string
	ops string // host:port
}

// freePorts lets the system choose every address.
var freePorts = []string{"--http-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0", "--eventstore-listen", "127.0.0.1:0", "--kafka-listen", "127.0.0.1:0"}

// serveOn starts a server on a data folder. Later args win over the free ports.
func serveOn(t *testing.T, dir string, args ...string) *server {
	t.Helper()
	return awaitReady(t, launch(t, append(append([]string{"serve", "--data-dir", dir, "--log-format", "json"}, freePorts...), args...)...))
}

// awaitReady waits for the line that a start ends with, and reads it as a program would.
func awaitReady(t *testing.T, p *process) *server {
	t.Helper()
	var ready struct{ Msg, HTTP, Ops, EventStore, Kafka string }
	line := p.awaits(&p.stderr, `(?m)^\{.*"msg":"ready".*\}$`)[0]
	require.NoError(t, json.Unmarshal([]byte(line), &ready))
	for _, address := range []string{ready.HTTP, ready.Ops, ready.Kafka} {
		require.Regexp(t, `^127\.0\.0\.1:[1-9]\d*$`, address)
	}
	require.Regexp(t, `^esdb://127\.0\.0\.1:[1-9]\d*`, ready.EventStore)
	return &server{p, "http://" + ready.HTTP, ready.Ops}
}

// operator runs a command that talks to the server's ops address, and decodes the JSON that it prints.
func operator[T any](s *server, args ...string) T {
	s.t.Helper()
	stdout, stderr, code := musique(s.t, append(args, "--ops-addr", s.ops, "--output", "json")...)
	require.Equal(s.t, 0, code, "%s%s", stdout, stderr)
	var out T
	require.NoError(s.t, json.Unmarshal([]byte(stdout), &out), "%s", stdout)
	return out
}

type companyMade struct{ CompanyID, CompanyToken string }

// api is the Partner API as the holder of a token uses it.
type api struct {
	t     *testing.T
	url   string
	token string
}

const v1 = "/api/v1/integration"

type object = map[string]any

// signIn generates a token for an external ID.
func (s *server) signIn(t *testing.T, companyToken, externalID string) api {
	t.Helper()
	a := api{t: t, url: s.url}
	a.token = want[struct{ Token string }](a.post("/auth", object{"externalId": externalID, "companyToken": companyToken}), http.StatusCreated).Token
	return a
}

// on is the same caller at another address of the server.
func (a api) on(s *server) api { return api{a.t, s.url, a.token} }

// answer is an answer, read to its end.
type answer struct {
	t      *testing.T
	status int
	header http.Header
	body   []byte
}

// want checks the status of an answer and decodes its data.
func want[T any](a answer, status int) T {
	a.t.Helper()
	require.Equal(a.t, status, a.status, "%s", a.body)
	var envelope struct{ Data T }
	require.NoError(a.t, json.Unmarshal(a.body, &envelope), "%s", a.body)
	return envelope.Data
}

// refused checks that an answer is an error with a code.
func (a answer) refused(status int, code string) {
	a.t.Helper()
	require.Equal(a.t, status, a.status, "%s", a.body)
	var envelope struct{ Error struct{ Code string } }
	require.NoError(a.t, json.Unmarshal(a.body, &envelope), "%s", a.body)
	require.Equal(a.t, code, envelope.Error.Code)
}

// try makes a request. The error says that there was no whole answer.
func (a api) try(ctx context.Context, method, path, contentType, key string, body []byte) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, a.url+v1+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Header.Set("Content-Type", contentType)
	if a.token != "" {
		r.Header.Set("X-API-Key", a.token)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return answer{a.t, resp.StatusCode, resp.Header, raw}, err
}

func (a api) call(method, path string, body any) answer {
	a.t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(a.t, err)
	if body == nil {
		raw = nil
	}
	got, err := a.try(a.t.Context(), method, path, "application/json", "", raw)
	require.NoError(a.t, err)
	return got
}

func (a api) get(path string) answer { a.t.Helper(); return a.call(http.MethodGet, path, nil) }

func (a api) post(path string, body any) answer {
	a.t.Helper()
	return a.call(http.MethodPost, path, body)
}

// uploadForm is a form with audio.
func uploadForm(t *testing.T, name string, content []byte) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	require.NoError(t, form.WriteField("name", name))
	file, err := form.CreateFormFile("file", name)
	require.NoError(t, err)
	_, err = file.Write(content)
	require.NoError(t, errors.Join(err, form.Close()))
	return form.FormDataContentType(), b.Bytes()
}

// upload uploads audio and gives its ID.
func (a api) upload(name string, content []byte) string {
	a.t.Helper()
	contentType, body := uploadForm(a.t, name, content)
	got, err := a.try(a.t.Context(), http.MethodPost, "/audio", contentType, "", body)
	require.NoError(a.t, err)
	return want[struct{ AudioID string }](got, http.StatusCreated).AudioID
}

// location makes a location with a device, and gives the device's token.
func (a api) location(externalID string) string {
	a.t.Helper()
	want[object](a.post("/locations", object{"externalId": externalID, "name": externalID}), http.StatusCreated)
	return want[struct{ Token string }](a.post("/locations/"+externalID+"/devices", object{}), http.StatusCreated).Token
}

// send sends audio to locations and gives the send's ID.
func (a api) send(audioID string, externalIDs ...string) string {
	a.t.Helper()
	return want[struct{ SendID string }](a.post("/audio/"+audioID+"/send", object{"externalIds": externalIDs}), http.StatusAccepted).SendID
}

type deliveryData struct{ DeliveryID, ExternalID, Status string }

// deliveries lists all deliveries of a send.
func (a api) deliveries(sendID string) []deliveryData {
	a.t.Helper()
	return want[[]deliveryData](a.get("/sends/"+sendID+"/deliveries?limit=100"), http.StatusOK)
}

// awaitStatus waits until every delivery of a send has a status, and the send its own.
func (a api) awaitStatus(sendID, ofEach, ofAll string) {
	a.t.Helper()
	require.Eventually(a.t, func() bool {
		all := a.deliveries(sendID)
		for _, d := range all {
			if d.Status != ofEach {
				return false
			}
		}
		return len(all) > 0 && want[struct{ Status string }](a.get("/sends/"+sendID), http.StatusOK).Status == ofAll
	}, patience, 50*time.Millisecond, "%s is not %s everywhere", sendID, ofEach)
}

// welcome is the sample.
func welcome(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "samples", "welcome.mp3"))
	require.NoError(t, err)
	return raw
}

// playAt starts the reference player of a device.
func (s *server) playAt(t *testing.T, deviceToken, stateDir string) *process {
	t.Helper()
	cmd := exec.Command(executable(t), "player", "--server", s.url, "--backend", "simulated", "--state-dir", stateDir)
	cmd.Env = environment("MUSIQUE_DEVICE_TOKEN=" + deviceToken)
	p := start(t, cmd)
	p.awaits(&p.stdout, "● connected to "+s.url)
	return p
}
