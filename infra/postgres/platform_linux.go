package postgres

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// clusterPath names the cluster's folder for the server. Root's server goes there through the open folder that it inherits as file descriptor 4:
// on the path itself there may be folders that are closed to its account, such as a temporary folder of root, /root, or another user's home.
// (The path in /proc resolves to the open folder itself, and asks no permission of the folders above it; proc(5).)
func (e *Embedded) clusterPath() string {
	if e.account.switched {
		return "/proc/self/fd/4"
	}
	return e.clusterDir()
}

// serves reports whether the process is a PostgreSQL server on data: it has made that its working directory. A process that merely got the number
// of one that is gone is none.
func serves(pid int, data string) bool {
	at, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if errors.Is(err, os.ErrPermission) { // a container may deny its root this look; the name, all may see
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.TrimSpace(string(name)) == "postgres"
	}
	if err != nil {
		return false
	}
	want, err := os.Stat(data)
	return err == nil && os.SameFile(at, want)
}
