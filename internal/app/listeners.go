// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/supervise"
)

// The supervisor opens the gateway's sockets and hands them down, in this order:
// while node is started again, connections wait in the kernel instead of being refused.
const (
	externalGateway = iota
	internalGateway
	secureGateway
)

func listeners(s Settings) (files []*os.File, err error) {
	for _, at := range []netip.AddrPort{
		externalGateway: netip.AddrPortFrom(netip.IPv4Unspecified(), s.GatewayPort),
		internalGateway: netip.AddrPortFrom(s.BridgeIP(), s.InternalPort),
		secureGateway:   netip.AddrPortFrom(netip.IPv4Unspecified(), s.SecurePort),
	} {
		f, err := listen(at)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("gateway: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// listen binds also an address that the machine will have only later (the bridge's).
func listen(at netip.AddrPort) (*os.File, error) {
	free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		if cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := free.Listen(context.Background(), "tcp4", at.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// inherited is listener i of those that the supervisor handed down. It is to be
// asked for before another process is started: until then the descriptor that
// came with exec would be passed on.
func inherited(i int) (net.Listener, error) {
	f := os.NewFile(uintptr(supervise.FirstFile+i), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener %d from the supervisor: %w", i, err)
	}
	return l, nil
}

// containsArgs says whether a /proc/PID/cmdline holds the given words in a row.
func containsArgs(cmdline []byte, words ...string) bool {
	args := bytes.Split(cmdline, []byte{0})
	for i := range args {
		if i+len(words) > len(args) {
			return false
		}
		if slices.EqualFunc(args[i:i+len(words)], words, func(a []byte, w string) bool { return string(a) == w }) {
			return true
		}
	}
	return false
}
