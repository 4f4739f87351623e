package player

import "syscall"

// endsWithUs makes a program the leader of a group of its own, since it can be a script that runs the real one, and has the kernel end it when the player is
// killed: the next run plays what it played, and two would be heard at the same time.
func endsWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
