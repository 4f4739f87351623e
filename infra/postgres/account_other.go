//go:build !linux

package postgres

import "syscall"

// attributes are how the server's processes are started: in a group of their own, so that a Ctrl-C at the terminal reaches the program and not the
// server under it, and under the account.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// runsPostgres reports whether the process still runs.
func runsPostgres(pid int) bool { return syscall.Kill(pid, 0) == nil }

// reachable is not examined here: where a folder above is closed to the account, the server says so itself.
func (a account) reachable(string) (bool, error) { return true, nil }
