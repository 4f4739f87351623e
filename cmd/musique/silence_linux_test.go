package main

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAcceptedConnectionsEndWithTheirPeer(t *testing.T) {
	t.Parallel()
	config := net.ListenConfig{Control: limitSilence}
	listener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	caller, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { caller.Close() })
	accepted, err := listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { accepted.Close() })
	raw, err := accepted.(*net.TCPConn).SyscallConn() //nolint:forcetypeassert // it listens to TCP
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		limit, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
		require.NoError(t, err)
		require.Equal(t, maxSilence, time.Duration(limit)*time.Millisecond)
	}))
}
