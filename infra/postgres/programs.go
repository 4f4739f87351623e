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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// fetchedVersion is what is fetched for a machine that has no PostgreSQL.
const fetchedVersion = embeddedpostgres.V17

// fetchTimeout bounds the fetching: about 20 MB and a first start.
const fetchTimeout = 5 * time.Minute

const howToInstall = "install PostgreSQL (Debian, Ubuntu: 'apt-get install postgresql'; Fedora: 'dnf install postgresql-server'; " +
	"macOS: 'brew install postgresql@17'), or give the URL of a running one"

// programFolders are where packages put the server's programs. Those of Debian and Fedora are not on the PATH.
var programFolders = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // PostgreSQL's own packages for Fedora and Red Hat
	"/usr/libexec/postgresql*",           // Alpine
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on Apple silicon
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
}

// findPrograms gives the folder of PostgreSQL's programs: of the version that made the data, if there is any; otherwise the newest that the machine
// has, or a fetched one.
func findPrograms(ctx context.Context, data string, log *slog.Logger) (string, error) {
	made, err := madeBy(data)
	if err != nil {
		return "", err
	}
	var others []string
	for _, dir := range append(installed(ctx), fetchedFolder()) {
		version, err := versionOf(ctx, dir)
		switch {
		case err != nil:
			continue // another folder may have them
		case made == "" || made == version:
			return dir, nil
		default:
			others = append(others, version)
		}
	}
	if made != "" && made != major(string(fetchedVersion)) {
		return "", fmt.Errorf("the data in %s was made by PostgreSQL %s, and this machine has %v: install that version, or choose another data folder", data, made, others)
	}
	dir, err := fetch(ctx, log)
	if err != nil {
		return "", fmt.Errorf("this machine has no PostgreSQL, and fetching it failed (%w): %s", err, howToInstall)
	}
	return dir, nil
}

// madeBy is the major version that made a data directory, or "" if there is none.
func madeBy(data string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// installed lists the folders that may hold the machine's own programs, the newest version first.
func installed(ctx context.Context) []string {
	var dirs []string
	for _, pattern := range programFolders {
		found, _ := filepath.Glob(pattern) // fails for bad patterns only
		dirs = append(dirs, found...)
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return numberIn(b) - numberIn(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	return dirs
}

var number = regexp.MustCompile(`\d+`)

// numberIn reads the version in a folder's name such as /usr/lib/postgresql/15/bin.
func numberIn(dir string) int {
	n, err := strconv.Atoi(number.FindString(dir))
	if err != nil {
		return 0
	}
	return n
}

// versionOf is the major version of the programs in dir. An error says that it does not hold what a server needs: pg_config is part of
// packages for developers too.
func versionOf(ctx context.Context, dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return "", err
	}
	// "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output() //nolint:gosec // PostgreSQL's own program
	if err != nil {
		return "", err
	}
	words := strings.Fields(string(out))
	if len(words) < 3 {
		return "", fmt.Errorf("unexpected version %q", out)
	}
	return major(words[2]), nil
}

func major(version string) string {
	before, _, _ := strings.Cut(version, ".")
	return before
}

// cacheDir is where fetched programs are kept for all runs. Root's must be where the server's account can go.
func cacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/musique"
	}
	base, err := os.UserCacheDir()
	if err != nil { // no home: an account of a service
		base = os.TempDir()
	}
	return filepath.Join(base, "musique")
}

func fetchedFolder() string {
	return filepath.Join(cacheDir(), "postgresql-"+string(fetchedVersion), "bin")
}

// fetch lets the library get the programs into the cache. The library has no call for that alone: it starts a server as well, in a folder
// of its own, which is stopped again; root cannot even start one, but has the programs by then.
func fetch(ctx context.Context, log *slog.Logger) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	cache := cacheDir()
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
	bin := fetchedFolder()
	if _, err := versionOf(ctx, bin); err == nil { // another program has fetched them meanwhile
		return bin, nil
	}
	log.Info("this machine has no PostgreSQL: fetching it, this once", "version", string(fetchedVersion), "into", cache)
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch) // a leftover scratch folder harms nothing
	port, err := freePort(ctx)
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
	fetched := make(chan error, 1)
	go func() { // the library knows no deadline
		err := library.Start()
		if err == nil {
			err = library.Stop()
		}
		fetched <- err
	}()
	select {
	case err = <-fetched:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if _, missing := versionOf(ctx, filepath.Join(making, "bin")); missing != nil {
		return "", errors.Join(err, missing)
	}
	if err := os.Rename(making, filepath.Dir(bin)); err != nil {
		return "", err
	}
	return bin, nil
}
