package player_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOnePlayerPerFolder(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		first := opened(t, s)
		second := newShop(t, s)
		second.options.StateDir = first.options.StateDir
		second.start()
		require.ErrorContains(t, second.exit(), "another player uses "+first.options.StateDir)
		first.end()
		second.start()
		pass(time.Second)
		second.end()
	})
}

// A state that cannot be read is put aside, and the server tells again all that is open.
func TestAStateThatCannotBeRead(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"empty": "", "zeros": "\x00\x00\x00\x00", "cut off": `{"lastEventId":"1","orders":[{"deliveryId":"dl`, "of another kind": `["a"]`, "odd": `{"orders":{"a":1}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, s *station) {
				s.deliver(order{id: "dlv_1", audio: "one", length: time.Second})
				p := newShop(t, s)
				require.NoError(t, os.WriteFile(filepath.Join(p.options.StateDir, "state.json"), []byte(content), 0o600))
				p.start()
				pass(5 * time.Second)
				require.Equal(t, []string{""}, s.streams())
				require.Equal(t, []string{"one"}, p.stage.heard())
				require.Contains(t, p.out.String(), "the player's state cannot be read; it begins anew")
				kept, err := os.ReadFile(filepath.Join(p.options.StateDir, "state.json.corrupt"))
				require.NoError(t, err)
				require.Equal(t, content, string(kept))
				p.end()
				p.start()
				pass(5 * time.Second)
				require.Equal(t, []string{"", "1"}, s.streams())
				require.Equal(t, []string{"one"}, p.stage.heard())
			})
		})
	}
}

// A folder that another device used: what was played stays played, what was reported is reported, but the place in the stream means nothing.
func TestAnotherDeviceOnTheSameFolder(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: time.Second})
		s.deliver(order{id: "dlv_2", audio: "two", length: time.Second})
		s.deliver(order{id: "dlv_3", audio: "three", length: time.Second, playAt: time.Now().Add(time.Hour)})
		pass(5 * time.Second)
		p.end()
		s.change(func() { s.closed["dlv_3"] = true }) // it is none of the other's
		s.change(func() { s.closed["dlv_1"] = false })
		p.options.DeviceToken = "dev_other"
		p.start()
		pass(2 * time.Hour)
		require.Equal(t, []string{"", ""}, s.streams())
		require.Equal(t, []string{"one", "two"}, p.stage.heard())
	})
}

// A folder that is away for a while: a disk that was unplugged, or a network's.
func TestADiskThatIsAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, s *station) {
		p := opened(t, s)
		s.deliver(order{id: "dlv_1", audio: "one", length: time.Second})
		pass(5 * time.Second)
		away := p.options.StateDir + ".away"
		require.NoError(t, os.Rename(p.options.StateDir, away))
		s.deliver(order{id: "dlv_2", audio: "two", length: time.Second})
		pass(time.Minute)
		require.Equal(t, []string{"one"}, p.stage.heard())
		require.Len(t, s.told(), 3)
		require.Contains(t, p.out.String(), "the audio could not be fetched; trying again")
		require.NoError(t, os.Rename(away, p.options.StateDir))
		pass(time.Minute)
		require.Equal(t, []string{"one", "two"}, p.stage.heard())
		require.Len(t, s.told(), 6)
	})
}

// A full disk stops no sound that is there: it plays at its time, and is reported. The rest comes when there is room again.
func TestADiskThatIsFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Log("only root can make a small disk to fill")
		return
	}
	disk := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(disk, 0)) })
	bubble(t, func(t *testing.T, s *station) {
		p := newShop(t, s)
		p.options.StateDir = disk
		p.start()
		s.deliver(order{id: "dlv_1", audio: "one", length: time.Second})
		s.deliver(order{id: "dlv_2", audio: "two", length: time.Second, playAt: time.Now().Add(time.Hour), life: 72 * time.Hour})
		s.deliver(order{id: "dlv_3", audio: "hours long", length: 9 * time.Hour, playAt: time.Now().Add(2 * time.Hour), life: 72 * time.Hour})
		s.deliver(order{id: "dlv_4", audio: "four", length: time.Second, playAt: time.Now().Add(3 * time.Hour), life: 72 * time.Hour})
		pass(time.Minute)
		fill(t, filepath.Join(disk, "filler"))
		large := strings.Repeat("five ", 4000) // for more than what is not needed any more leaves
		s.deliver(order{id: "dlv_5", audio: large, length: time.Second, life: 72 * time.Hour})
		pass(90 * time.Minute)
		require.Equal(t, []string{"one", "two"}, p.stage.heard())
		require.Equal(t, "dlv_2 played", s.last().String())
		require.Contains(t, p.out.String(), "no space left on device")
		require.NotContains(t, p.out.String(), "the player's state cannot be written", "there is room for the progress of what is there")

		p.end() // the disk is full at a start, too
		p.start()
		pass(11 * time.Hour) // in which there is more progress than the journal has room for
		require.Equal(t, []string{"one", "two", "hours long", "four"}, p.stage.heard())
		require.Equal(t, "dlv_4 played", s.last().String())
		require.Equal(t, []int{1, 1, 1}, []int{s.downloaded("two"), s.downloaded("hours long"), s.downloaded("four")}, "nothing that is needed made room")
		require.Equal(t, 1, strings.Count(p.out.String(), "the player's state cannot be written; it plays on and tries again"), "it is said once")
		require.NoError(t, os.Remove(filepath.Join(disk, "filler")))
		pass(time.Minute)
		require.Contains(t, p.out.String(), "the player's state is written again")
		require.Contains(t, p.stage.heard(), large)
		require.Equal(t, "dlv_5 played", s.last().String())
		p.end()
		heard := p.stage.heard()
		p.start()
		pass(time.Hour)
		require.Equal(t, heard, p.stage.heard())
	})
}

// fill fills the disk that a file is on.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	for n := 64 << 10; n > 0; n /= 2 {
		for err = nil; err == nil; {
			_, err = file.Write(make([]byte, n))
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
	}
}
