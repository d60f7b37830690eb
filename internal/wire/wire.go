// SPDX-License-Identifier: Apache-2.0

// Package wire opens listeners and transports.
//
// Listeners come from addresses or from descriptors that a parent has passed
// on, so that a restart refuses no connection. Buffers come from pools, in two
// sizes. Join carries bytes between two connections without looking at them;
// between TCP connections the kernel moves them without copying them to us.
package wire

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listen opens a TCP listener on an address that need not exist yet: the pods'
// bridge may come up later than the listener on it.
func Listen(ctx context.Context, addr string) (*net.TCPListener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		})
		if err == nil {
			err = failed
		}
		return err
	}}
	// Keep-alive probes are set where connections are accepted, if at all.
	config.KeepAlive = -1
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return l.(*net.TCPListener), nil
}

// Inherit opens the listener that a parent has passed on as a descriptor.
func Inherit(fd uintptr, name string) (net.Listener, error) {
	f := os.NewFile(fd, name)
	if f == nil {
		return nil, fmt.Errorf("listener %s: descriptor %d is not valid", name, fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", name, err)
	}
	return l, nil
}

// File returns a descriptor of the listener, to pass on to a child.
func File(l net.Listener) (*os.File, error) {
	filer, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("listener %s has no descriptor", l.Addr())
	}
	f, err := filer.File()
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", l.Addr(), err)
	}
	return f, nil
}

// DialTimeout is how long a pod may take to accept a connection. It answers in
// a fraction of a millisecond, unless its backlog is full; the kernel then
// tries again after one second and after three.
const DialTimeout = 4 * time.Second

// Dial connects to an address.
func Dial(ctx context.Context, addr netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: DialTimeout, KeepAlive: -1}
	return d.DialTCP(ctx, "tcp", netip.AddrPort{}, addr) // whose errors say what was dialled
}
