package postgres

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// RunningURL is what clients connect with to the embedded server that another program runs in a folder (EmbeddedOptions.Dir). Whoever can read the folder can.
func RunningURL(dir string) (string, error) {
	password, err := os.ReadFile(filepath.Join(dir, "password"))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("there is no embedded PostgreSQL in %s", dir)
	}
	if err != nil {
		return "", fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "cluster", "data", "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("the embedded PostgreSQL in %s does not run", dir)
	}
	if err != nil {
		return "", fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	lines := strings.Split(string(raw), "\n")
	if len(lines) < 4 {
		return "", fmt.Errorf("the embedded PostgreSQL in %s is starting", dir)
	}
	port, err := strconv.ParseUint(strings.TrimSpace(lines[3]), 10, 16) // PostgreSQL, miscadmin.h: LOCK_FILE_LINE_PORT
	if err != nil {
		return "", fmt.Errorf("embedded PostgreSQL: its port: %w", err)
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(embeddedUser, strings.TrimSpace(string(password))), Host: net.JoinHostPort("127.0.0.1", strconv.FormatUint(port, 10)),
		Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return u.String(), nil
}
