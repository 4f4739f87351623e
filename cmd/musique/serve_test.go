package main

import (
	"bufio"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	httpapi "github.com/musique/musique/http"
)

// From nothing to a proof that audio was played, then a stop and a second start that finds all of it again.
func TestServe(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serveOn(t, dir)
	made := operator[companyMade](s, "company", "create", "--name", "Coffee & Co", "--plan", "plus", "--prefix", "coffee")
	require.Regexp(t, `^comp_`, made.CompanyToken)
	partner := s.signIn(t, made.CompanyToken, "store_001")
	require.Regexp(t, `^coffee_live_`, partner.token)
	device := partner.location("store_001")
	sample := welcome(t)
	audioID := partner.upload("Welcome", sample)

	player := s.playAt(t, device, t.TempDir())
	first := partner.send(audioID, "store_001")
	player.awaits(&player.stdout, `▶ playing "Welcome" \(4\.\d s\) \(normal, volume 100 %\)`)
	player.awaits(&player.stdout, `✓ played "Welcome" \(4\.\d s\)`)
	partner.awaitStatus(first, "played", "sent")
	companies := operator[[]object](s, "company", "list")

	waiting := partner.location("store_002") // whose player comes later
	brief := partner.upload("Brief", aSecond())
	second := partner.send(brief, "store_002")
	s.terminate() // with an open stream
	player.awaits(&player.stdout, "… the connection is gone; connecting again")

	s = serveOn(t, dir, "--http-addr", strings.TrimPrefix(s.url, "http://"))
	partner = partner.on(s)
	require.Equal(t, companies, operator[[]object](s, "company", "list"))
	require.Equal(t, "played", partner.deliveries(first)[0].Status)
	audio := want[struct {
		Name, URL string
		Stats     struct{ TimesPlayed int }
	}](partner.get("/audio/"+audioID), http.StatusOK)
	require.Equal(t, "Welcome", audio.Name)
	require.Equal(t, 1, audio.Stats.TimesPlayed)
	stored, err := http.Get(audio.URL)
	require.NoError(t, err)
	defer stored.Body.Close()
	require.Equal(t, int64(len(sample)), stored.ContentLength)

	third := partner.send(brief, "store_001")
	late := s.playAt(t, waiting, t.TempDir())
	partner.awaitStatus(second, "played", "sent")
	partner.awaitStatus(third, "played", "sent")
	late.terminate()
	player.terminate()
	require.Equal(t, 2, strings.Count(player.stdout.String(), "✓ played"), "each is played once")
	s.terminate()
}

// What an operator does to a company holds at once.
func TestCompanyCommands(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	made := operator[companyMade](s, "company", "create", "--name", "Acme")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	device := partner.location("store_001")
	player := s.playAt(t, device, t.TempDir())

	text := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := musique(t, append(args, "--ops-addr", s.ops)...)
		require.Equal(t, 0, code, "%s", stderr)
		return stdout
	}
	require.Regexp(t, `(?m)^COMPANY +NAME +PLAN +STATE +CREATED$`, text("company", "list"))
	require.Regexp(t, `(?m)^`+made.CompanyID+` +Acme +standard +active +20`, text("company", "list"))
	require.Regexp(t, `(?m)^\S+ +Demo company +\S+ +active`, text("company", "list"))

	rotated := operator[companyMade](s, "company", "rotate-token", made.CompanyID)
	require.Regexp(t, `^comp_`, rotated.CompanyToken)
	require.NotEqual(t, made.CompanyToken, rotated.CompanyToken)
	api{t: t, url: s.url}.post("/auth", object{"externalId": "x", "companyToken": made.CompanyToken}).refused(http.StatusUnauthorized, "invalid_token")
	s.signIn(t, rotated.CompanyToken, "x")
	partner.get("/audio") // a token outlives the company token that it was made with
	require.Regexp(t, `^Company token comp_\S+\n`, text("company", "rotate-token", made.CompanyID))

	require.Equal(t, "Plan changed to plus\n", text("company", "set-plan", made.CompanyID, "--plan", "plus"))
	require.Equal(t, "unlimited", operator[object](s, "company", "set-plan", made.CompanyID, "--plan", "unlimited")["plan"])
	require.Equal(t, "unlimited", want[struct{ Plan string }](partner.get("/limits"), http.StatusOK).Plan)
	require.Regexp(t, `(?s)^Company +co_\S+\nCompany token comp_\S+\n.*not shown again`, text("company", "create", "--name", "Another"))
	require.Regexp(t, `(?m)^PROJECTION +VERSION +REBUILDS +STATE +POSITION +LAG +BEHIND +EVENTS +RATE$`, text("projections", "status"))
	require.NotEmpty(t, operator[[]object](s, "projections", "status"))

	require.Equal(t, "Suspended\n", text("company", "suspend", made.CompanyID, "--reason", "unpaid"))
	partner.get("/audio").refused(http.StatusUnauthorized, "invalid_token")
	require.Regexp(t, `(?m)^`+made.CompanyID+` +Acme +unlimited +suspended`, text("company", "list"))
	require.Equal(t, 77, player.exit())
	require.Contains(t, player.stderr.String(), "musique: the device token is not accepted; make a new one for the location")

	for _, c := range []struct{ args, says string }{
		{"company create --name Acme --plan gold", "gold"},
		{"company create --name Acme --prefix -", "prefix"},
		{"company rotate-token co_nobody", "(not_found)"},
		{"company set-plan co_nobody --plan plus", "(not_found)"},
		{"company suspend co_nobody", "(not_found)"},
	} {
		_, stderr, code := musique(t, append(strings.Fields(c.args), "--ops-addr", s.ops)...)
		require.Equal(t, 1, code, c.args)
		require.Contains(t, stderr, c.says)
		require.Regexp(t, `^musique: [^\n]+\n$`, stderr, "one line says it")
	}
	s.terminate()
}

// The commands that the banner prints are what a newcomer tries first, so they are read off the banner and run as they stand.
func TestTheCommandsOfTheBanner(t *testing.T) {
	t.Parallel()
	home := t.TempDir() // with bin/musique and samples/, as in the repository
	program, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(home, "bin"), 0o700))
	wrapper := "#!/bin/sh\n" + asProgram + "=1 exec '" + program + "' \"$@\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(home, "bin", "musique"), []byte(wrapper), 0o700))
	require.NoError(t, os.CopyFS(filepath.Join(home, "samples"), os.DirFS(filepath.Join("..", "..", "samples"))))
	in := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Dir = home
		cmd.Env = environment("HOME="+home, "XDG_CACHE_HOME=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	}

	s := start(t, in(exec.Command("bin/musique", append([]string{"serve"}, freePorts...)...)))
	banner := s.awaits(&s.stdout, `(?s)Musique \S+ is ready\..*Its company token:\n\n  (comp_\S+)\n\nTry it, in another terminal:\n\n(.*"externalIds":\["store_001"\]\}'\n)\n`)
	require.DirExists(t, filepath.Join(home, "data"), "the default of --data-dir")

	shell := exec.Command("bash")
	typed, err := shell.StdinPipe()
	require.NoError(t, err)
	terminal := start(t, in(shell))
	t.Cleanup(func() { _ = syscall.Kill(-terminal.Process.Pid, syscall.SIGKILL) }) // the player in the background
	for line := range strings.Lines(banner[2] + "echo; echo \"token=$TOKEN audio=$AUDIO device=$DEVICE\"\n") {
		_, err := typed.Write([]byte(line))
		require.NoError(t, err)
	}
	got := terminal.awaits(&terminal.stdout, `(?s)"sendId":"(snd_\w+)".*token=(msk_live_\w+) audio=aud_\w+ device=dev_\w+\n`)
	terminal.awaits(&terminal.stdout, `✓ played "Welcome"`)
	api{t: t, url: "http://" + strings.Split(terminal.awaits(&s.stdout, `Partner API +http://(\S+)/api`)[1], "/")[0], token: got[2]}.awaitStatus(got[1], "played", "sent")
	_, err = typed.Write([]byte("kill $! && wait; exit\n"))
	require.NoError(t, err)
	require.Equal(t, 0, terminal.exit())
	require.Empty(t, terminal.stderr.String())
	s.terminate()

	again := start(t, in(exec.Command("bin/musique", append([]string{"serve"}, freePorts...)...)))
	again.awaits(&again.stdout, `Its company token:\n\n  `+banner[1]+`\n`)
	again.terminate()
}

// nobody is the user ID of the account without rights.
const nobody = 65534

// The program needs no rights. Root runs it as nobody, for the sake of this test; everybody else as themselves.
func TestServeAsAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "musique-ordinary-") // t.TempDir's is closed to others
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	cmd := exec.Command(executable(t), append([]string{"serve", "--log-format", "json", "--data-dir", filepath.Join(dir, "data")}, freePorts...)...)
	cmd.Dir = dir
	cmd.Env = environment("HOME=/nonexistent", "MUSIQUE_OPS_TOKEN=open-sesame")
	uid := os.Geteuid()
	if uid == 0 {
		uid = nobody
		require.NoError(t, os.Chown(dir, nobody, nobody))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	s := awaitReady(t, start(t, cmd))
	_, stderr, code := musique(t, "company", "list", "--ops-addr", s.ops)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "(invalid_token)", "where there is a token, loopback needs it too")
	made := operator[companyMade](s, "company", "create", "--name", "Acme", "--ops-token", "open-sesame")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	partner.location("store_001")
	sendID := partner.send(partner.upload("Welcome", welcome(t)), "store_001")
	require.Len(t, partner.deliveries(sendID), 1)
	s.terminate()

	secret, err := os.Stat(filepath.Join(dir, "data", "secret.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), secret.Mode().Perm())
	owner, isUnix := secret.Sys().(*syscall.Stat_t)
	require.True(t, isUnix)
	require.Equal(t, uint32(uid), owner.Uid)
}

// Behind a proxy that speaks TLS and HTTP/2, players are told URLs that lead through it.
func TestBehindAProxy(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"), "--trust-forwarded", "true")
	target, err := url.Parse(s.url)
	require.NoError(t, err)
	var requests, second atomic.Int64
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.SetXForwarded()
		r.Out.Host = r.In.Host
	}}
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.ProtoMajor == 2 {
			second.Add(1)
		}
		forward.ServeHTTP(w, r)
	}))
	proxy.EnableHTTP2 = true
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	certificate := filepath.Join(t.TempDir(), "proxy.pem")
	require.NoError(t, os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: proxy.Certificate().Raw}), 0o600))

	made := operator[companyMade](s, "company", "create", "--name", "Acme")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	device := partner.location("store_001")
	player := exec.Command(executable(t), "player", "--server", proxy.URL, "--backend", "simulated", "--state-dir", t.TempDir())
	player.Env = environment("MUSIQUE_DEVICE_TOKEN="+device, "SSL_CERT_FILE="+certificate)
	playing := start(t, player)
	sendID := partner.send(partner.upload("Brief", aSecond()), "store_001")
	playing.awaits(&playing.stdout, `✓ played "Brief"`)
	partner.awaitStatus(sendID, "played", "sent")
	playing.terminate()
	require.GreaterOrEqual(t, requests.Load(), int64(5), "the stream, the audio and three reports")
	require.Equal(t, requests.Load(), second.Load())
	s.terminate()
}

// A server whose stop is asked for amid a request answers it.
func TestStopAmidARequest(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	made := operator[companyMade](s, "company", "create", "--name", "Acme")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	contentType, body := uploadForm(t, "Welcome", welcome(t))
	conn, in := partner.beginUpload(contentType, len(body))
	require.NoError(t, s.Process.Signal(syscall.SIGTERM))
	s.awaits(&s.stderr, "stopping: finishing what is in hand")
	_, err := conn.Write(body)
	require.NoError(t, err)
	resp, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	require.Equal(t, 0, s.exit())
}

// Headers that are too large for the API reach it all the same, and are refused as it refuses.
func TestLargeHeadersReachTheAPI(t *testing.T) {
	t.Parallel()
	sizes := make(chan int, 1)
	running, ctx := errgroup.WithContext(t.Context())
	server, address, err := listen(ctx, "127.0.0.1:0", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { sizes <- len(r.Header.Get("X-Fill")) }), running)
	require.NoError(t, err)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address, nil)
	require.NoError(t, err)
	request.Header.Set("X-Fill", strings.Repeat("x", 8*httpapi.MaxHeaderBytes))
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, 8*httpapi.MaxHeaderBytes, <-sizes)
	require.NoError(t, server.Close())
	require.NoError(t, running.Wait())
}

// beginUpload begins an upload and gives the connection when the server has the request in hand and asks for its body (RFC 9110 §10.1.1).
func (a api) beginUpload(contentType string, length int) (net.Conn, *bufio.Reader) {
	a.t.Helper()
	host := strings.TrimPrefix(a.url, "http://")
	conn, err := net.Dial("tcp", host)
	require.NoError(a.t, err)
	a.t.Cleanup(func() { conn.Close() })
	require.NoError(a.t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = fmt.Fprintf(conn, "POST %s/audio HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nX-API-Key: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n",
		v1, host, contentType, a.token, length)
	require.NoError(a.t, err)
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	require.NoError(a.t, err)
	require.Equal(a.t, "HTTP/1.1 100 Continue\r\n", line)
	_, err = in.ReadString('\n')
	require.NoError(a.t, err)
	return conn, in
}
