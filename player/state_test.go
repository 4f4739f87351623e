package player_test

import (
	"os"
	"path/filepath"
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

// While the disk takes nothing, nothing is promised to the server and nothing is played; when it does again, all goes on.
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
		require.Contains(t, p.out.String(), "the player's state cannot be written; trying again")
		require.NoError(t, os.Rename(away, p.options.StateDir))
		pass(time.Minute)
		require.Equal(t, []string{"one", "two"}, p.stage.heard())
		require.Len(t, s.told(), 6)
	})
}
