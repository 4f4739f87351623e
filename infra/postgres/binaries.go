package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// fetchedVersion is what is fetched for a machine that has no PostgreSQL.
const fetchedVersion = embeddedpostgres.V17

const howToInstall = "install PostgreSQL (Debian, Ubuntu: 'apt-get install postgresql'; Fedora: 'dnf install postgresql-server'; macOS: 'brew install postgresql@17') or give --database postgres://… of a running one"

// findBinaries gives the folder of the machine's own PostgreSQL programs, or of fetched ones.
func findBinaries(ctx context.Context, log *slog.Logger) (string, error) {
	if dir, ok := installed(ctx); ok {
		return dir, nil
	}
	dir, err := fetch(log)
	if err != nil {
		return "", fmt.Errorf("this machine has no PostgreSQL, and fetching one failed (%w): %s", err, howToInstall)
	}
	return dir, nil
}

// installed looks where packages put the server's programs, newest version first.
func installed(ctx context.Context) (string, bool) {
	var candidates []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		sort.Slice(found, func(i, j int) bool { return versionIn(found[i]) > versionIn(found[j]) })
		candidates = append(candidates, found...)
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		candidates = append(candidates, filepath.Dir(path))
	}
	if config, err := exec.LookPath("pg_config"); err == nil {
		if out, err := exec.CommandContext(ctx, config, "--bindir").Output(); err == nil { //nolint:gosec // PostgreSQL's own program
			candidates = append(candidates, strings.TrimSpace(string(out)))
		}
	}
	for _, dir := range candidates {
		if complete(dir) {
			return dir, true
		}
	}
	return "", false
}

// versionIn reads the number in a folder's name such as /usr/lib/postgresql/15/bin.
func versionIn(dir string) int {
	digits := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, dir)
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

func complete(dir string) bool {
	for _, program := range []string{"postgres", "initdb"} {
		if info, err := os.Stat(filepath.Join(dir, program)); err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

// fetch lets the library get the programs into a cache that is shared by all runs. The library has no call for that alone: it starts a server, in
// a folder of its own, which is stopped again; root cannot even start one, but has the programs by then.
func fetch(log *slog.Logger) (string, error) {
	cache := "/var/cache/musique"
	if os.Geteuid() != 0 {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(base, "musique")
	}
	programs := filepath.Join(cache, "postgresql-"+string(fetchedVersion))
	bin := filepath.Join(programs, "bin")
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // the server's unprivileged user must reach its programs
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if complete(bin) {
		return bin, nil
	}
	log.Info("fetching PostgreSQL, this once", "version", string(fetchedVersion), "into", programs)
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // a leftover scratch folder harms nothing
	port, err := freePort(context.Background())
	if err != nil {
		return "", err
	}
	making := filepath.Join(scratch, "programs")
	library := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().
		Version(fetchedVersion).
		BinariesPath(making).
		CachePath(filepath.Join(scratch, "cache")).
		RuntimePath(filepath.Join(scratch, "run")).
		DataPath(filepath.Join(scratch, "data")).
		Port(uint32(port)).
		Logger(io.Discard))
	err = library.Start()
	if err == nil {
		err = library.Stop()
	}
	if !complete(filepath.Join(making, "bin")) {
		return "", errors.Join(errors.New("the programs did not arrive"), err)
	}
	if err := os.Chmod(scratch, 0o755); err != nil { //nolint:gosec // see above
		return "", err
	}
	return bin, os.Rename(making, programs)
}
