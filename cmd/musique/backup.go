package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	httpapi "github.com/musique/musique/http"
)

const (
	// eventsFolder is the embedded event store's in the data folder, and checkpointFolder is where backups of it are made, each in a folder of its own.
	eventsFolder     = "events"
	checkpointFolder = "events.backup"
	// staleFolder is where a checkpoint goes before it is removed, so that at its own path it is whole or not at all.
	staleFolder = "events.backup.stale"
	blobsFolder = "blobs"
	// unfinished is what the name of a backup ends with until it is whole.
	unfinished = ".unfinished"
)

// leftOut are the folders of the data folder that a backup does not copy as they are: the events, and what is made anew of them.
var leftOut = []string{eventsFolder, checkpointFolder, staleFolder, "kafka", "postgres"}

// backup makes what a backup is copied from; nil where the events are not in the data folder. One at a time is made, and takes the place of the one before.
func (p *parts) backup(dataDir string) func() (httpapi.BackupParts, error) {
	if p.node == nil {
		return nil
	}
	return func() (httpapi.BackupParts, error) {
		dir, err := filepath.Abs(dataDir)
		if err != nil {
			return httpapi.BackupParts{}, err
		}
		before, stale := filepath.Join(dir, checkpointFolder), filepath.Join(dir, staleFolder)
		at := httpapi.BackupParts{DataDir: dir, Events: filepath.Join(before, uuid.NewString())}
		p.backingUp.Lock()
		defer p.backingUp.Unlock()
		err = os.RemoveAll(stale)
		if gone := os.Rename(before, stale); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone, os.RemoveAll(stale))
		}
		if err != nil {
			return httpapi.BackupParts{}, fmt.Errorf("remove the backup before: %w", err)
		}
		return at, p.node.Checkpoint(at.Events)
	}
}

func newBackup() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup --to FOLDER",
		Short: "Copy a running server's data into a new folder, from which a server can be started",
		Long: `Copy a running server's data into a new folder: its events, the audio, the secret key and what else lies in its data folder. The server goes on. Everything
that it answered before the command began is in the copy.

It is for a server with an embedded event store, on its machine, as a user who reads its data folder. What follows from the events is left out (PostgreSQL's and
Kafka's folders): a server that is started on the copy, with --data-dir, makes it anew. Audio in a bucket and a secret key from the environment are not in it either.`,
		Example: `  musique backup --to /backups/musique-2026-11-24`,
		Args:    cobra.NoArgs,
	}
	to := cmd.Flags().String("to", "", "the folder to be made (required)")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		if *to == "" {
			return errors.New("--to is required")
		}
		target, err := filepath.Abs(*to)
		if err != nil {
			return err
		}
		if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--to: %s is there already", *to)
		}
		var about httpapi.BackupParts
		if _, err := ops.call(ctx, http.MethodPost, "/ops/backup", nil, &about); err != nil {
			return err
		}
		if inside(about.DataDir, target) {
			return fmt.Errorf("--to: %s is in the data folder itself, %s", *to, about.DataDir)
		}
		making := target + unfinished
		if err := os.RemoveAll(making); err != nil {
			return err
		}
		// The signed heads must not know of events that are not there, and audio that a partner deletes meanwhile must be: so the rest is copied before the events
		// of this moment, and the audio that is new since after them.
		if err := copyNew(ctx, about.DataDir, making, leftOut...); err != nil {
			return err
		}
		raw, err := ops.call(ctx, http.MethodPost, "/ops/backup", nil, &about)
		if err != nil {
			return err
		}
		if err := copyNew(ctx, about.Events, filepath.Join(making, eventsFolder)); err != nil {
			return err
		}
		if _, err := os.Stat(about.Events); err != nil { // what was copied of it may lack files
			return fmt.Errorf("another backup was begun while this one was made, which is not whole: %w", err)
		}
		if err := copyNew(ctx, filepath.Join(about.DataDir, blobsFolder), filepath.Join(making, blobsFolder)); err != nil {
			return err
		}
		if err := errors.Join(os.Rename(making, target), syncFolder(filepath.Dir(target)), os.RemoveAll(about.Events)); err != nil {
			return err
		}
		_ = os.Remove(filepath.Dir(about.Events)) // unless another backup is being made there
		return ops.print(cmd, raw, func(w io.Writer) { fmt.Fprintf(w, "%s is a backup: musique serve --data-dir %s\n", *to, *to) })
	})
}

// inside is whether a path, of which the last part is not there yet, is in a folder.
func inside(folder, path string) bool {
	real := func(path string) string {
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			return resolved
		}
		return path
	}
	from, err := filepath.Rel(real(folder), filepath.Join(real(filepath.Dir(path)), filepath.Base(path)))
	return err == nil && filepath.IsLocal(from)
}

// copyNew copies a folder with all that is in it but for what is named, durably, leaving alone what is there already. A link, as to a folder on another disk, is copied
// as what it leads to. Files that go meanwhile are left out.
func copyNew(ctx context.Context, from, to string, without ...string) error {
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return errors.New("interrupted before the backup was whole")
		}
		source, target := filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())
		if slices.Contains(without, entry.Name()) {
			continue
		}
		kind, err := os.Stat(source)
		switch {
		case err != nil:
		case kind.IsDir():
			err = copyNew(ctx, source, target)
		case kind.Mode().IsRegular() && !strings.HasPrefix(entry.Name(), ".") && !strings.HasSuffix(entry.Name(), ".tmp"): // those are being written
			err = copyFile(source, target)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncFolder(to)
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Sync(), target.Close())
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
