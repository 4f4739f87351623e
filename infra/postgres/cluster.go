package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Dir holds
//
//	lock       held by the program that runs the server
//	password   the server's, readable by this program's user only
//	cluster/   the server's own, the only folder that its account needs
//	    data/  PostgreSQL's data directory
//
// and cluster/making-… while a data directory is being made.

const (
	initTimeout = 2 * time.Minute
	// removeAttempts is how often the removal of a half made data directory is tried, since the processes that were making it may still be
	// about to end.
	removeAttempts = 50
)

func (e *Embedded) clusterDir() string { return filepath.Join(e.options.Dir, "cluster") }
func (e *Embedded) dataDir() string    { return filepath.Join(e.clusterDir(), "data") }

// openCluster makes cluster/, gives it to the account, and opens it for the server to inherit.
func (e *Embedded) openCluster() error {
	if err := os.MkdirAll(e.clusterDir(), 0o700); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	if err := e.account.own(e.clusterDir()); err != nil {
		return err
	}
	if e.options.Disposable { // the watchdog, which runs under the account, removes all of it
		if err := e.account.own(e.options.Dir); err != nil {
			return err
		}
	}
	var err error
	if e.cluster, err = os.Open(e.clusterDir()); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return nil
}

// initialise makes the data directory where there is none, and reads the password. It is made beside its place and renamed, so a crash leaves
// nothing half done.
func (e *Embedded) initialise(ctx context.Context) error {
	passwordFile := filepath.Join(e.options.Dir, "password")
	if _, err := os.Stat(e.dataDir()); err == nil {
		raw, err := os.ReadFile(passwordFile)
		if err != nil {
			return fmt.Errorf("embedded PostgreSQL: the password of the data in %s: %w", e.dataDir(), err)
		}
		e.password = string(raw)
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	if err := e.removeHalfMade(ctx); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	e.password = rand.Text()
	if err := e.makeData(ctx, passwordFile); err != nil {
		return fmt.Errorf("embedded PostgreSQL: %w", err)
	}
	return nil
}

func (e *Embedded) makeData(ctx context.Context, passwordFile string) error {
	making, err := os.MkdirTemp(e.clusterDir(), "making-")
	if err != nil {
		return err
	}
	// initdb reads the password from a file, and runs under the account, so it gets one of its own.
	forInit := filepath.Join(making, "password")
	if err := os.WriteFile(forInit, []byte(e.password), 0o600); err != nil {
		return err
	}
	if err := errors.Join(e.account.own(making), e.account.own(forInit)); err != nil {
		return err
	}
	if err := e.initdb(ctx, filepath.Base(making)); err != nil {
		return err
	}
	if err := e.writePassword(passwordFile); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(making, "data"), e.dataDir()); err != nil {
		return err
	}
	if err := e.cluster.Sync(); err != nil {
		return err
	}
	return os.RemoveAll(making)
}

// initdb makes a data directory in cluster/making/data, synced.
func (e *Embedded) initdb(ctx context.Context, making string) error {
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	args := []string{
		"-D", filepath.Join(e.clusterPath(), making, "data"),
		"--username", embeddedUser, "--pwfile", filepath.Join(e.clusterPath(), making, "password"), "--auth=scram-sha-256",
		"--encoding=UTF8", "--no-locale", "--no-instructions",
	}
	if e.options.Disposable {
		args = append(args, "--no-sync")
	}
	run, err := e.run("KILL", "", "initdb", args...)
	if err != nil {
		return err
	}
	select {
	case <-run.ended:
	case <-ctx.Done():
		run.pipe.Close() // ends it at once
		<-run.ended
		return fmt.Errorf("initdb: %w", ctx.Err())
	}
	if run.err != nil {
		return fmt.Errorf("initdb: %w: %s", run.err, run.output)
	}
	return nil
}

// writePassword is in place before the data that needs it is.
func (e *Embedded) writePassword(file string) error {
	half := file + ".new"
	f, err := os.OpenFile(half, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(e.password)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(half, file); err != nil {
		return err
	}
	dir, err := os.Open(e.options.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// removeHalfMade removes what a killed run was making.
func (e *Embedded) removeHalfMade(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := error(nil)
		half, globErr := filepath.Glob(filepath.Join(e.clusterDir(), "making-*"))
		for _, dir := range half {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if err = errors.Join(err, globErr); err == nil || attempt == removeAttempts {
			return err
		}
		select {
		case <-time.After(10 * pollEvery):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
