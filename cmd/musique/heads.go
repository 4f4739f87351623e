package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"time"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/usage"
	"github.com/musique/musique/infra/translog"
	"github.com/musique/musique/workers"
)

// Where the signed heads of the event history are. The server and the commands that check them read the same settings.
var (
	headsSetting    = setting{"heads", "MUSIQUE_HEADS_DIR", "", "folder for the signed heads of the event history, shared by all processes with the role scheduler; empty is the folder heads in the data folder"}
	headsKeySetting = setting{"heads-key", "MUSIQUE_HEADS_KEY", "", "file of the key that heads are signed with, made when it is not there; empty is heads.key in the data folder"}
)

// minHeadsEvery keeps a slip of the pen from filling the disk with heads.
const minHeadsEvery = 100 * time.Millisecond

func parseHeadsEvery(text string) (time.Duration, error) {
	every, err := time.ParseDuration(text)
	if err != nil || every < minHeadsEvery {
		return 0, fmt.Errorf("--heads-every is a time of %v or more such as 1m, not %q", minHeadsEvery, text)
	}
	return every, nil
}

// headsIn gives the folder of the heads and the file of their key.
func headsIn(dataDir, heads, key string) (dir, keyFile string) {
	return cmp.Or(heads, filepath.Join(dataDir, "heads")), cmp.Or(key, filepath.Join(dataDir, "heads.key"))
}

func (a *app) historyConfig() workers.HistoryConfig {
	dir, keyFile := headsIn(a.config.dataDir, a.config.heads, a.config.headsKey)
	return workers.HistoryConfig{Dir: dir, KeyFile: keyFile, Every: a.config.headsEvery, Registry: a.registry}
}

// retained are the streams that the store may forget old events of.
func retained() []translog.Retained {
	return []translog.Retained{{Prefix: usage.StreamPrefix, Age: commands.UsageAge}}
}
