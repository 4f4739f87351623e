//go:build !linux

package player

import "syscall"

// endsWithUs makes a program the leader of a group of its own, since it can be a script that runs the real one.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
