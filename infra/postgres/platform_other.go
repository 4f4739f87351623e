//go:build !linux

package postgres

import (
	"os/exec"
	"strconv"
	"strings"
)

// clusterPath names the cluster's folder for the server. The folders on its way must be open to the server's account.
func (e *Embedded) clusterPath() string { return e.clusterDir() }

// serves reports whether the process is a PostgreSQL server on data. A process that merely got the number of one that is gone is none.
func serves(pid int, data string) bool {
	command, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output() //nolint:noctx // ps answers at once
	return err == nil && strings.Contains(string(command), data)
}
