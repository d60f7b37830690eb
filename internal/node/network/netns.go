// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InNetNS calls fn on a thread that is in the network namespace at path. What
// fn opens stays in that namespace; goroutines that fn starts are not in it.
func InNetNS(path string, fn func() error) error { return inNamespace(path, unix.CLONE_NEWNET, fn) }

// inNamespace calls fn on a thread that has joined the namespace at path.
func inNamespace(path string, kind int, fn func() error) error {
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening namespace: %w", err)
	}
	defer target.Close()
	return inNamespaceFD(int(target.Fd()), kind, fn)
}

func inNamespaceFD(target, kind int, fn func() error) error {
	runtime.LockOSThread()
	if onMainThread() {
		return besideMainThread(fn, func(fn func() error) error { return inNamespaceFD(target, kind, fn) })
	}
	own, err := os.Open("/proc/thread-self/ns/" + namespaceFile(kind))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening own namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(target, kind); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("joining namespace: %w", err)
	}
	defer func() {
		// A thread that cannot return must not serve other goroutines: it
		// stays locked and ends with this one.
		if unix.Setns(int(own.Fd()), kind) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// onMainThread reports whether the calling thread is the one for which
// /proc/self stands. It must not change its namespaces, even for a moment:
// whoever reads /proc/self/net or /proc/self/ns meanwhile would be misled,
// and unlike others it cannot end.
func onMainThread() bool { return unix.Gettid() == os.Getpid() }

// besideMainThread has how run fn on another thread. The caller is locked to
// the main thread, which therefore cannot be that thread.
func besideMainThread(fn func() error, how func(func() error) error) error {
	defer runtime.UnlockOSThread()
	done := make(chan error, 1)
	go func() { done <- how(fn) }()
	return <-done
}

func namespaceFile(kind int) string {
	switch kind {
	case unix.CLONE_NEWIPC:
		return "ipc"
	case unix.CLONE_NEWUTS:
		return "uts"
	}
	return "net"
}

// Dial connects from inside the network namespace at path. network is "tcp"
// or "udp", address an IP address and port. Only the making of the socket
// needs a thread in the namespace; connecting and the connection do not.
func Dial(ctx context.Context, path, network, address string) (net.Conn, error) {
	conn, err := dial(ctx, path, network, address)
	if err != nil {
		return nil, fmt.Errorf("dialing %s in %s: %w", address, path, err)
	}
	return conn, nil
}

func dial(ctx context.Context, path, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	file, err := socketIn(path, network, to)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := connect(ctx, file, to); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// socketIn makes an unconnected socket that belongs to the namespace at path.
func socketIn(path, network string, to netip.AddrPort) (*os.File, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if !to.Addr().Unmap().Is4() {
		family = unix.AF_INET6
	}
	switch network {
	case "udp":
		kind = unix.SOCK_DGRAM
	case "tcp":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	fd := -1
	err := InNetNS(path, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "socket"), nil
}

// connect connects a socket without holding a thread while it waits.
func connect(ctx context.Context, file *os.File, to netip.AddrPort) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := file.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	stop := context.AfterFunc(ctx, func() { file.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	started := false
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		if !started {
			started = true
			failed = unix.Connect(int(fd), sockaddr(to))
			return failed != unix.EINPROGRESS
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = err
		case code != 0:
			failed = syscall.Errno(code)
		default:
			_, err := unix.Getpeername(int(fd))
			if err == unix.ENOTCONN {
				return false // woken before the handshake ended
			}
			failed = err
		}
		return true
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	case err != nil:
		return err
	}
	return os.NewSyscallError("connect", failed)
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if addr := to.Addr().Unmap(); addr.Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// Listen listens for TCP connections inside the network namespace at path.
func Listen(ctx context.Context, path, network, address string) (net.Listener, error) {
	var l net.Listener
	err := InNetNS(path, func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening in %s: %w", path, err)
	}
	return l, nil
}

// ListenPacket listens for datagrams inside the network namespace at path.
func ListenPacket(ctx context.Context, path, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := InNetNS(path, func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening in %s: %w", path, err)
	}
	return c, nil
}
