package main

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT (RFC 5482; tcp(7)), which package syscall does not name.
const tcpUserTimeout = 18

// limitSilence ends connections whose other end has not confirmed anything for maxSilence. Without it a player that lost its power counts as online until
// the kernel gives up, which takes it a quarter of an hour. Accepted connections have it from their listener.
func limitSilence(_, _ string, socket syscall.RawConn) error {
	var err error
	controlErr := socket.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(maxSilence/time.Millisecond))
	})
	if controlErr != nil {
		return controlErr
	}
	return err
}
