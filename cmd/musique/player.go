package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/musique/musique/player"
)

var playerSettings = []setting{
	{"server", "MUSIQUE_SERVER", "http://127.0.0.1:8080", "address of the Partner API"},
	{"device-token", "MUSIQUE_DEVICE_TOKEN", "", "the dev_… token of the location's device (required); prefer the variable, since flags show in process lists"},
	{"state-dir", "MUSIQUE_PLAYER_DIR", "", "folder for what the player was told and the audio; empty is one for this device in the user's cache folder"},
	{"cache-bytes", "MUSIQUE_PLAYER_CACHE_BYTES", strconv.Itoa(player.DefaultCacheBytes), "most bytes of audio that the player keeps in its folder"},
	{"backend", "MUSIQUE_PLAYER_BACKEND", player.Auto, "what makes the sound: auto, mpv, ffplay, aplay or simulated"},
	{"log-level", "MUSIQUE_LOG_LEVEL", "warn", "debug, info, warn or error"},
}

func newPlayer() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "player --server URL --device-token TOKEN",
		Short: "The reference player: plays at one location what is sent to it",
		Long: `The reference player keeps a location's event stream open, fetches what it is told to play and checks its hash, obeys priority, repeat,
volume and time, and reports what became of it. It plays through mpv, ffplay or aplay if one of them is installed, else on a simulated clock, and says
what it does. It survives restarts, full disks and networks that come and go, and plays each delivery once. It ends with status 77 when the server does not
accept the device token.`,
		Example: `  musique player --server https://api.example.com --device-token dev_…
  MUSIQUE_DEVICE_TOKEN=dev_… musique player --backend simulated`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := resolveSettings(cmd, playerSettings, serveSections()...); err != nil {
				return err
			}
			get := func(name string) string {
				v, _ := cmd.Flags().GetString(name) // all settings are declared as strings
				return v
			}
			if err := checkLogLevel(get("log-level")); err != nil {
				return err
			}
			cacheBytes, err := strconv.ParseInt(get("cache-bytes"), 10, 64)
			if err != nil || cacheBytes < 1 {
				return fmt.Errorf("--cache-bytes is a number of bytes, not %q", get("cache-bytes"))
			}
			backend, err := player.Find(get("backend"))
			if err != nil {
				return fmt.Errorf("--backend: %w", err)
			}
			dir := get("state-dir")
			if dir == "" {
				cache, err := os.UserCacheDir()
				if err != nil {
					return fmt.Errorf("give a --state-dir: %w", err)
				}
				id := sha256.Sum256([]byte(get("server") + "\n" + get("device-token")))
				dir = filepath.Join(cache, "musique-player", hex.EncodeToString(id[:8]))
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Musique player, playing through %s. Ctrl-C ends it.\n", backend.Name())
			return player.Run(cmd.Context(), player.Options{
				Server: get("server"), DeviceToken: get("device-token"), StateDir: dir, CacheBytes: cacheBytes, Backend: backend, Output: out,
				Log: newLogger("text", get("log-level")),
			})
		},
	}
	bindSettings(cmd, playerSettings)
	return cmd
}
