package postgres_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/postgres"
)

// These variables make the test binary a program that runs a server on the folder they name and waits to be killed.
const (
	runServerOn   = "MUSIQUE_TEST_RUN_SERVER_ON"
	runDisposable = "MUSIQUE_TEST_RUN_DISPOSABLE"
)

// patience bounds the waits of these tests. Nothing takes that long unless it fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if dir := os.Getenv(runServerOn); dir != "" {
		server, err := postgres.StartEmbedded(context.Background(), postgres.EmbeddedOptions{Dir: dir, Disposable: os.Getenv(runDisposable) != ""})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(server.URL())
		<-server.Done()
	}
	os.Exit(m.Run())
}

// program is another process with an embedded server.
type program struct {
	*exec.Cmd
	url string
}

// launch starts a program on dir; uid 0 is this test's own user.
func launch(t *testing.T, dir string, uid uint32, environment ...string) (*program, *bufio.Reader) {
	t.Helper()
	exe := "/proc/self/exe" // reaches the test binary from another user, too
	if runtime.GOOS != "linux" {
		var err error
		exe, err = os.Executable()
		require.NoError(t, err)
	}
	p := &program{Cmd: exec.Command(exe)}
	p.Env = append(append(os.Environ(), runServerOn+"="+dir, "HOME=/nonexistent"), environment...)
	p.Dir = "/"
	p.Stderr = os.Stderr
	if uid != 0 {
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(p.kill)
	return p, bufio.NewReader(stdout)
}

func startProgram(t *testing.T, dir string, uid uint32, environment ...string) *program {
	t.Helper()
	p, stdout := launch(t, dir, uid, environment...)
	line, err := stdout.ReadString('\n')
	require.NoError(t, err, "the program did not start its server")
	p.url = strings.TrimSpace(line)
	return p
}

// kill is kill -9, which the program cannot notice.
func (p *program) kill() {
	_ = p.Process.Kill() // it may have ended
	_ = p.Wait()         // killed
}

// tempDir is as os.MkdirTemp makes it: closed to all other users, so that a server under another user has to get through.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "musique-embedded-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func start(t *testing.T, dir string) *postgres.Embedded {
	t.Helper()
	server, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	return server
}

func execute(t *testing.T, url, statement string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	require.NoError(t, err)
}

func ask(t *testing.T, url, statement string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	defer conn.Close(ctx)
	var answer string
	require.NoError(t, conn.QueryRow(ctx, statement).Scan(&answer))
	return answer
}

// postmaster is the process of the server on dir.
func postmaster(t *testing.T, dir string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "cluster", "data", "postmaster.pid"))
	require.NoError(t, err)
	line, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(line)
	require.NoError(t, err)
	return pid
}

// runs reports whether the process has not ended. One that ended and that nobody has waited for yet still takes signals.
func runs(pid int) bool {
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		_, rest, _ := strings.Cut(string(raw), ") ")
		return !strings.HasPrefix(rest, "Z")
	}
	return syscall.Kill(pid, 0) == nil
}

func refuses(t *testing.T, connection string) bool {
	t.Helper()
	u, err := url.Parse(connection)
	require.NoError(t, err)
	conn, err := net.DialTimeout("tcp", u.Host, time.Second)
	if err == nil {
		conn.Close()
	}
	return err != nil
}

func TestStopAndStartKeepTheData(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(tempDir(t), "postgres")
	server := start(t, dir)
	execute(t, server.URL(), "CREATE TABLE kept AS SELECT 'kept' AS word")
	require.NoError(t, server.Stop(t.Context()))
	select {
	case <-server.Done():
	default:
		require.Fail(t, "Done is open after Stop")
	}
	require.True(t, refuses(t, server.URL()))
	require.NoError(t, server.Stop(t.Context()), "a second Stop has nothing to do")

	again := start(t, dir)
	require.Equal(t, "kept", ask(t, again.URL(), "SELECT word FROM kept"))
}

func TestTheServerAsksForThePassword(t *testing.T) {
	t.Parallel()
	server := start(t, tempDir(t))
	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	u.User = url.UserPassword("musique", "guess")
	_, err = pgx.Connect(t.Context(), u.String())
	require.ErrorContains(t, err, "password authentication failed")
	require.Equal(t, "127.0.0.1", ask(t, server.URL(), "SHOW listen_addresses"))
	require.Empty(t, ask(t, server.URL(), "SHOW unix_socket_directories"))
}

func TestTheServerCanReadNothingThatItsAccountCannot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root starts the server under another account")
	}
	secret := filepath.Join(tempDir(t), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	server := start(t, tempDir(t))
	conn, err := pgx.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer conn.Close(t.Context())
	_, err = conn.Exec(t.Context(), "SELECT pg_read_file('"+secret+"')")
	require.ErrorContains(t, err, "ermission denied")
}

func TestASecondProgramOnTheSameFolderIsRefused(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	program := startProgram(t, dir, 0)
	_, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir})
	require.ErrorContains(t, err, "another program runs PostgreSQL on "+dir)
	require.Equal(t, "1", ask(t, program.url, "SELECT 1::text"), "the first one's server is unharmed")
}

func TestTheServerGoesDownWithAKilledProgram(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	program := startProgram(t, dir, 0)
	execute(t, program.url, "CREATE TABLE kept AS SELECT 'kept' AS word")
	pid := postmaster(t, dir)
	program.kill()
	require.Eventually(t, func() bool { return !runs(pid) }, patience, 5*time.Millisecond, "the server outlives its program")

	server := start(t, dir)
	require.Equal(t, "kept", ask(t, server.URL(), "SELECT word FROM kept"))
}

func TestAStartRightAfterAKillWaitsForTheOldServersEnd(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	for round := range 5 {
		program := startProgram(t, dir, 0)
		execute(t, program.url, fmt.Sprintf("CREATE TABLE round_%d (n int)", round))
		program.kill()
	}
	server := start(t, dir)
	require.Equal(t, "5", ask(t, server.URL(), "SELECT count(*)::text FROM pg_tables WHERE tablename LIKE 'round_%'"))
}

func TestAServerWithoutItsWatchdogIsEndedByTheNextStart(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("finds the watchdog in /proc")
	}
	dir := tempDir(t)
	program := startProgram(t, dir, 0)
	execute(t, program.url, "CREATE TABLE kept AS SELECT 'kept' AS word")
	pid := postmaster(t, dir)
	for _, shell := range shellsInSessionOf(t, pid) {
		require.NoError(t, syscall.Kill(shell, syscall.SIGKILL))
	}
	program.kill()
	require.True(t, runs(pid), "the server should be left over now")

	server := start(t, dir)
	require.Equal(t, "kept", ask(t, server.URL(), "SELECT word FROM kept"))
	require.NotEqual(t, pid, postmaster(t, dir))
	require.False(t, runs(pid))
}

// After a loss of power the number of the server that was may be that of anybody's process. PostgreSQL by itself takes one of the same user for its
// server, and refuses to start for as long as it runs.
func TestTheNumberOfALostServerIsAnotherProcesssNow(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("finds the watchdog in /proc")
	}
	dir := tempDir(t)
	program := startProgram(t, dir, 0)
	execute(t, program.url, "CREATE TABLE kept AS SELECT 'kept' AS word")
	pid := postmaster(t, dir)
	for _, process := range append(shellsInSessionOf(t, pid), pid) {
		require.NoError(t, syscall.Kill(process, syscall.SIGKILL))
	}
	program.kill()
	data := filepath.Join(dir, "cluster", "data")
	owner, err := os.Stat(data)
	require.NoError(t, err)
	other := exec.Command("sleep", "1000")
	other.Dir = "/"
	if os.Geteuid() == 0 {
		of := owner.Sys().(*syscall.Stat_t)
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: of.Uid, Gid: of.Gid}}
	}
	require.NoError(t, other.Start())
	t.Cleanup(func() {
		require.NoError(t, other.Process.Kill())
		_ = other.Wait() // says that it was killed
	})
	pidFile := filepath.Join(data, "postmaster.pid")
	raw, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(raw), "\n")
	require.NoError(t, os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", other.Process.Pid, rest), 0o600))

	server := start(t, dir)
	require.Equal(t, "kept", ask(t, server.URL(), "SELECT word FROM kept"))
	require.True(t, runs(other.Process.Pid), "a process that is none of ours is left alone")
}

// shellsInSessionOf finds the processes of the watchdog: the shells in the session of the server.
func shellsInSessionOf(t *testing.T, pid int) []int {
	t.Helper()
	// "pid (command) state parent group session …", proc_pid_stat(5)
	stat := func(dir string) (command, session string) {
		raw, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			return "", "" // it has ended
		}
		open, end := strings.IndexByte(string(raw), '('), strings.LastIndexByte(string(raw), ')')
		return string(raw[open+1 : end]), strings.Fields(string(raw[end+1:]))[3]
	}
	_, session := stat(fmt.Sprintf("/proc/%d", pid))
	all, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	var shells []int
	for _, dir := range all {
		if command, in := stat(dir); in == session && command == "sh" {
			n, err := strconv.Atoi(filepath.Base(dir))
			require.NoError(t, err)
			shells = append(shells, n)
		}
	}
	require.NotEmpty(t, shells)
	return shells
}

func TestAServerThatDiesIsStartedAgainOnTheSamePort(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	server := start(t, dir)
	execute(t, server.URL(), "CREATE TABLE kept AS SELECT 'kept' AS word")
	pool, err := postgres.Connect(t.Context(), server.URL())
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, pool.Ping(t.Context()))
	for range 2 {
		old := postmaster(t, dir)
		require.NoError(t, syscall.Kill(old, syscall.SIGKILL))
		require.Eventually(t, func() bool { return pool.Ping(t.Context()) == nil && postmaster(t, dir) != old }, patience, 20*time.Millisecond)
		require.Equal(t, "kept", ask(t, server.URL(), "SELECT word FROM kept"))
	}
}

func TestAKillWhileTheDataIsMadeLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	for _, moment := range []string{"password", "data/PG_VERSION", "data/base/1", "data/base/4"} { // in the order in which initdb makes them
		program, _ := launch(t, dir, 0)
		require.Eventually(t, func() bool {
			found, err := filepath.Glob(filepath.Join(dir, "cluster", "making-*", moment))
			return err == nil && len(found) > 0
		}, patience, time.Millisecond, moment)
		program.kill()
		require.NoFileExists(t, filepath.Join(dir, "cluster", "data"), "made before it was whole")
	}
	server := start(t, dir)
	require.Equal(t, "1", ask(t, server.URL(), "SELECT 1::text"))
	half, err := filepath.Glob(filepath.Join(dir, "cluster", "making-*"))
	require.NoError(t, err)
	require.Empty(t, half)
}

func TestAnOrdinaryUserRunsTheServer(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the other tests are this one when an ordinary user runs them")
	}
	const nobody = 65534
	dir := tempDir(t)
	require.NoError(t, os.Chown(dir, nobody, nobody))
	program := startProgram(t, dir, nobody)
	execute(t, program.url, "CREATE TABLE kept AS SELECT 'kept' AS word")
	program.kill()

	t.Run("and root goes on with its data, under the same user", func(t *testing.T) {
		server := start(t, dir)
		require.Equal(t, "kept", ask(t, server.URL(), "SELECT word FROM kept"))
	})
	t.Run("but another ordinary user is told why not", func(t *testing.T) {
		other := tempDir(t)
		require.NoError(t, os.MkdirAll(filepath.Join(other, "cluster"), 0o700))
		require.NoError(t, os.Chown(other, nobody, nobody))
		p, stdout := launchQuiet(t, other, nobody)
		_, err := stdout.ReadString('\n')
		require.ErrorIs(t, err, io.EOF)
		require.Error(t, p.Wait())
		require.Contains(t, p.Stderr.(*strings.Builder).String(), "belongs to user 0")
	})
}

// launchQuiet is launch for a program that is to fail: its complaint is kept.
func launchQuiet(t *testing.T, dir string, uid uint32) (*program, *bufio.Reader) {
	t.Helper()
	p := &program{Cmd: exec.Command("/proc/self/exe")}
	p.Env = append(os.Environ(), runServerOn+"="+dir)
	p.Dir = "/"
	p.Stderr = &strings.Builder{}
	p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(p.kill)
	return p, bufio.NewReader(stdout)
}

func TestADisposableServerLeavesNothing(t *testing.T) {
	t.Parallel()
	t.Run("when it is stopped", func(t *testing.T) {
		t.Parallel()
		dir := filepath.Join(tempDir(t), "disposable")
		server, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir, Disposable: true})
		require.NoError(t, err)
		require.NoError(t, server.Stop(t.Context()))
		require.NoDirExists(t, dir)
	})
	t.Run("when its program is killed", func(t *testing.T) {
		t.Parallel()
		dir := tempDir(t)
		program := startProgram(t, dir, 0, runDisposable+"=1")
		program.kill()
		require.Eventually(t, func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) }, patience, 10*time.Millisecond)
	})
}

func TestDataOfAnotherVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	data := filepath.Join(dir, "cluster", "data")
	require.NoError(t, os.MkdirAll(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("8\n"), 0o600))
	_, err := postgres.StartEmbedded(t.Context(), postgres.EmbeddedOptions{Dir: dir})
	require.ErrorContains(t, err, "made by PostgreSQL 8")
	require.FileExists(t, filepath.Join(data, "PG_VERSION"))
}

// BenchmarkStart is the time until the server answers: on an empty folder, on data that is there, and the disposable one of tests.
func BenchmarkStart(b *testing.B) {
	run := func(b *testing.B, disposable bool, dir func() string) {
		for b.Loop() {
			server, err := postgres.StartEmbedded(b.Context(), postgres.EmbeddedOptions{Dir: dir(), Disposable: disposable})
			require.NoError(b, err)
			b.StopTimer()
			require.NoError(b, server.Stop(b.Context()))
			b.StartTimer()
		}
	}
	b.Run("cold", func(b *testing.B) { run(b, false, b.TempDir) })
	b.Run("disposable", func(b *testing.B) { run(b, true, b.TempDir) })
	warm := b.TempDir()
	b.Run("warm", func(b *testing.B) { run(b, false, func() string { return warm }) })
}
