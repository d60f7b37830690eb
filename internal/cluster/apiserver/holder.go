// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const tcpListening = "0A" // TCP_LISTEN in /proc/net/tcp

// holder names the process that listens on the port of an address, or
// returns nothing when the kernel does not say.
func holder(address string) string {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return ""
	}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		for _, inode := range listening(table, uint16(port)) {
			if who := owner("socket:[" + inode + "]"); who != "" {
				return who
			}
		}
	}
	return ""
}

// listening returns the inodes of the sockets that listen on port.
func listening(table string, port uint16) []string {
	file, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer file.Close()
	var inodes []string
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], suffix) && fields[3] == tcpListening {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

func owner(link string) string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, path := range links {
		if target, err := os.Readlink(path); err == nil && target == link {
			pid := strings.Split(path, "/")[2]
			name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}
