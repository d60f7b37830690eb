// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// setSandboxSysctl sets a parameter in the namespace it belongs to, and only
// if it belongs to one: any other would change the whole machine.
func setSandboxSysctl(s Sandbox, name, value string) error {
	file, err := sysctlFile(name)
	if err != nil {
		return err
	}
	set := func() error { return writeSysctl(file, value) }
	switch {
	case strings.HasPrefix(file, "net/"):
		return inNamespace(s.NetNS, unix.CLONE_NEWNET, set)
	case ipcSysctl(file):
		return inNamespace(s.IPCNS, unix.CLONE_NEWIPC, set)
	}
	return fmt.Errorf("sysctl %q does not belong to a pod", name)
}

func ipcSysctl(file string) bool {
	if strings.HasPrefix(file, "fs/mqueue/") {
		return true
	}
	rest, ok := strings.CutPrefix(file, "kernel/")
	if !ok || strings.Contains(rest, "/") {
		return false
	}
	return rest == "sem" || strings.HasPrefix(rest, "shm") || strings.HasPrefix(rest, "msg")
}

// sysctlFile turns a name into a path below /proc/sys. Whichever of dot and
// slash comes first separates; the other then stands for a dot in a name.
func sysctlFile(name string) (string, error) {
	at := strings.IndexAny(name, "./")
	if at < 0 {
		return "", fmt.Errorf("%q is not a sysctl", name)
	}
	if name[at] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("%q is not a sysctl", name)
		}
	}
	return name, nil
}
