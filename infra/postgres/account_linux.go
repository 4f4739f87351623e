package postgres

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// capDacReadSearch is CAP_DAC_READ_SEARCH of capabilities(7): search folders and read files whatever their permissions.
const capDacReadSearch = 2

// attributes are how the server's processes are started: in a group of their own, so that a Ctrl-C at the terminal reaches the program and not the
// server under it, and under the account. Where a folder above the data is closed to the account (a private temporary folder of root), the
// server gets the one capability to pass through it.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
		if a.closedAbove {
			attr.AmbientCaps = []uintptr{capDacReadSearch}
		}
	}
	return attr
}

// runsPostgres reports whether the process is a PostgreSQL server that still runs.
func runsPostgres(pid int) bool {
	command, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	return err == nil && bytes.Contains(command, []byte("postgres"))
}

// reachable reports whether the account may pass through every folder above dir.
func (a account) reachable(dir string) (bool, error) {
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return false, fmt.Errorf("embedded PostgreSQL: %w", err)
		}
		owner := info.Sys().(*syscall.Stat_t)
		mode := info.Mode().Perm()
		if mode&0o001 == 0 && (owner.Uid != a.uid || mode&0o100 == 0) && (owner.Gid != a.gid || mode&0o010 == 0) {
			return false, nil
		}
		if parent == filepath.Dir(parent) {
			return true, nil
		}
	}
}
