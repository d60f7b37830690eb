// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Port says whether addr can be listened on, and if not, who holds it and which
// flag chooses another. An address that this machine does not have yet is free.
func Port(what, flag string, addr netip.AddrPort) Check {
	return Check{"port " + addr.String(), func() error {
		l, err := net.Listen("tcp", addr.String())
		if err == nil {
			return l.Close()
		}
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return problem(fmt.Sprintf("Stop it, or choose another port with %s", flag),
				"port %d, for the %s, is taken by %s", addr.Port(), what, Holder(addr.Port()))
		}
		return problem(fmt.Sprintf("Choose another port with %s", flag), "port %d, for the %s, cannot be used (%v)", addr.Port(), what, err)
	}}
}

// Holder names the process that listens on a TCP port, as "nginx (pid 12)".
func Holder(port uint16) string {
	inodes := listening(port)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
	}
	return "another process"
}

// listening is the set of socket links ("socket:[123]") that listen on port.
func listening(port uint16) map[string]bool {
	const listen = "0A" // TCP_LISTEN in /proc/net/tcp
	found := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			w := strings.Fields(lines.Text())
			if len(w) < 10 || w[3] != listen {
				continue
			}
			_, hex, _ := strings.Cut(w[1], ":")
			if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
				found["socket:["+w[9]+"]"] = true
			}
		}
		f.Close()
	}
	return found
}
