package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	httpapi "github.com/musique/musique/http"
)

// A server that was killed before is copied while it works, and another one is started on the copy alone: what was answered before the backup began is there, and
// what was asked for since is made by asking again.
func TestABackupOfARunningServer(t *testing.T) {
	t.Parallel()
	dir, saved := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "saved")
	signing := []string{"--heads-every", "100ms"}
	s := serveOn(t, dir, signing...)
	c := &chaos{t: t, api: s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "unlimited").CompanyToken, "hq")}
	c.audio = []string{c.api.upload("the first", aSecond())}
	devices := map[string]string{}
	for _, name := range crashShops {
		devices[name] = c.api.location(name)
	}
	begin := func(part uint64) (working *sync.WaitGroup, stop context.CancelFunc) {
		work, stop := context.WithCancel(t.Context())
		working = &sync.WaitGroup{}
		for caller := range uint64(callers) {
			working.Go(func() { c.work(work, rand.New(rand.NewPCG(part, caller))) })
		}
		return working, stop
	}
	answered := func() (found []*crashRequest) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range c.requests {
			if r.id != "" {
				found = append(found, r)
			}
		}
		return found
	}
	atLeast := func(n int) {
		require.Eventually(t, func() bool { return len(answered()) >= n }, patience, time.Millisecond)
	}
	working, stop := begin(1)
	atLeast(10)
	s.kill()
	stop()
	working.Wait()
	s = serveOn(t, dir, signing...)
	c.api = c.api.on(s)

	working, stop = begin(2)
	atLeast(len(answered()) + 10)
	before := answered()
	stdout, stderr, code := musique(t, "backup", "--to", saved, "--ops-addr", s.ops)
	require.Zero(t, code, "%s%s", stdout, stderr)
	atLeast(len(answered()) + 5)
	stop()
	working.Wait()
	_, stderr, code = musique(t, "backup", "--to", saved, "--ops-addr", s.ops)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "is there already")
	s.terminate()
	for _, folder := range []string{"kafka", "postgres", "events.backup"} {
		require.NoDirExists(t, filepath.Join(saved, folder))
	}
	require.NoDirExists(t, filepath.Join(dir, "events.backup"))

	restored := serveOn(t, saved, signing...)
	stdout, stderr, code = musique(t, "events", "verify", "--data-dir", saved, "--eventstore", restored.awaits(&restored.stderr, `"eventstore":"(esdb://[^"]+)"`)[1])
	require.Zero(t, code, "%s%s", stdout, stderr)
	require.FileExists(t, filepath.Join(saved, "heads.key"))
	c.api = c.api.on(restored)
	for _, r := range before {
		got, err := c.ask(t.Context(), r)
		require.NoError(t, err)
		id, ok := r.made(got)
		require.True(t, ok, "%s: %d %s", r.key, got.status, got.body)
		require.Equal(t, r.id, id)
		require.Equal(t, "true", got.header.Get("Idempotency-Replayed"), r.key)
	}
	for _, uploads := range []bool{true, false} { // what is sent has to be there
		for _, r := range c.requests {
			if uploads != (r.content != nil) {
				continue
			}
			got, err := c.ask(t.Context(), r)
			require.NoError(t, err)
			id, ok := r.made(got)
			require.True(t, ok, "%s: %d %s", r.key, got.status, got.body)
			if r.id != "" {
				require.Equal(t, r.id, id)
			}
			r.id = id
		}
	}
	var shops []*crashShop
	for _, name := range crashShops {
		shops = append(shops, newCrashShop(t, name, devices[name], restored.url))
	}
	c.check(shops)
	restored.terminate()
}

// Audio may lie on another disk, a backup may not lie in what it is of, and what one is copied from is whole for as long as it is there.
func TestWhereBackupsAreMade(t *testing.T) {
	t.Parallel()
	dir, disk, saved := filepath.Join(t.TempDir(), "data"), t.TempDir(), filepath.Join(t.TempDir(), "saved")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "kept"), 0o700))
	require.NoError(t, os.Symlink(disk, filepath.Join(dir, "blobs")))
	s := serveOn(t, dir)
	partner := s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme").CompanyToken, "hq")
	partner.upload("Brief", aSecond())
	begun := func() string {
		resp, err := http.Post("http://"+s.ops+"/ops/backup", "", nil)
		require.NoError(t, err)
		defer resp.Body.Close()
		var made struct{ Data httpapi.BackupParts }
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&made))
		require.DirExists(t, made.Data.Events)
		return made.Data.Events
	}
	first := begun()
	second := begun()
	require.NoDirExists(t, first, "whoever still copies it learns that it is not whole")
	require.DirExists(t, second)

	for _, within := range []string{dir + "/saved", dir + "/kept/saved", dir + "/kept/../saved/"} {
		_, stderr, code := musique(t, "backup", "--to", within, "--ops-addr", s.ops)
		require.Equal(t, 1, code, within)
		require.Contains(t, stderr, "is in the data folder itself")
	}
	stdout, stderr, code := musique(t, "backup", "--to", saved+"/", "--ops-addr", s.ops)
	require.Zero(t, code, "%s%s", stdout, stderr)
	require.NoDirExists(t, filepath.Join(dir, "events.backup"))
	files := func(folder string) (all []string) {
		require.NoError(t, filepath.WalkDir(folder, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				name, _ := filepath.Rel(folder, path)
				all = append(all, name)
			}
			return err
		}))
		return all
	}
	require.NotEmpty(t, files(disk))
	require.Equal(t, files(disk), files(filepath.Join(saved, "blobs")))
	s.terminate()
	require.NoError(t, filepath.WalkDir(saved, func(path string, entry os.DirEntry, err error) error {
		if err == nil {
			about, _ := entry.Info()
			require.Zero(t, about.Mode().Perm()&0o077, "%s is its owner's alone", path)
		}
		return err
	}))
}

// A request to the ops address has its time, and not all that a command does: to copy much audio takes longer.
func TestOpsCommandsTakeTheirTime(t *testing.T) {
	t.Parallel()
	ran := false
	cmd := opsCommand(&cobra.Command{}, func(ctx context.Context, _ opsClient) error {
		_, bounded := ctx.Deadline()
		require.False(t, bounded)
		ran = true
		return nil
	})
	cmd.SetArgs(nil)
	require.NoError(t, cmd.ExecuteContext(t.Context()))
	require.True(t, ran)
	ctx, end := context.WithCancel(t.Context())
	end()
	from := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(from, "file"), nil, 0o600))
	require.ErrorContains(t, copyNew(ctx, from, filepath.Join(t.TempDir(), "to")), "interrupted")
}

// What is in the folders of Kafka and PostgreSQL is made anew of the events when they are lost: reads, tokens, and what players are still to be told, but nothing that
// they were.
func TestAFolderThatIsLost(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serveOn(t, dir)
	partner := s.signIn(t, operator[companyMade](s, "company", "create", "--name", "Acme", "--plan", "plus").CompanyToken, "hq")
	device, audioID := partner.location("store_001"), partner.upload("Brief", aSecond())
	player := s.playAt(t, device, t.TempDir())
	played := partner.send(audioID, "store_001")
	partner.awaitStatus(played, "played", "sent")
	player.terminate()
	waiting := []string{partner.send(audioID, "store_001")}
	for _, lost := range [][]string{{"kafka"}, {"postgres"}, {"kafka", "postgres"}} {
		s.kill()
		for _, folder := range lost {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, folder)))
		}
		s = serveOn(t, dir)
		partner = partner.on(s)
		var sends []string
		require.Eventually(t, func() bool { // the read models are made, too
			got := partner.get("/sends")
			if got.status != http.StatusOK {
				return false
			}
			sends = nil
			for _, one := range want[[]struct{ SendID string }](got, http.StatusOK) {
				sends = append(sends, one.SendID)
			}
			return len(sends) == 1+len(waiting)
		}, patience, 50*time.Millisecond, "%v", lost)
		require.ElementsMatch(t, append(slices.Clone(waiting), played), sends)
		partner.awaitStatus(played, "played", "sent")
		require.Equal(t, 1, partner.timesPlayed(audioID))
		waiting = append(waiting, partner.send(audioID, "store_001"))
	}
	player = s.playAt(t, device, t.TempDir())
	for _, id := range waiting {
		partner.awaitStatus(id, "played", "sent")
	}
	player.terminate()
	require.Equal(t, 1+len(waiting), partner.timesPlayed(audioID))
	s.terminate()
}
