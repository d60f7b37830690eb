// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// minFree is what a first start with one small image needs, with room to spare.
const minFree = 1 << 30 // bytes

// Machine is what containers need of the kernel and of the user, and what the
// store needs of the disk under dataDir.
func Machine(dataDir string) []Check {
	return []Check{
		{"root", root},
		{"cgroup", cgroup},
		{"overlayfs", overlay},
		{"namespaces", namespaces},
		{"disk", func() error { return disk(dataDir) }},
	}
}

func root() error {
	if os.Geteuid() != 0 {
		return problem("Run it with sudo", "Sonagi runs containers itself and therefore needs root; you are user %d", os.Geteuid())
	}
	return nil
}

func cgroup() error {
	const at = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil || (st.Type != unix.CGROUP2_SUPER_MAGIC && st.Type != unix.TMPFS_MAGIC) {
		return problem("Mount it: mount -t cgroup2 none "+at, "no cgroup hierarchy is mounted at %s", at)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return problem("Inside a container, give it a private cgroup namespace with write access (docker run --privileged --cgroupns=private)", "%s is read-only", at)
	}
	return nil
}

func overlay() error {
	for _, path := range []string{"/proc/filesystems", "/sys/module/overlay"} {
		if path != "/proc/filesystems" {
			if _, err := os.Stat(path); err == nil {
				return nil
			}
			continue
		}
		if lists(path, "overlay") {
			return nil
		}
	}
	return problem("Load it: modprobe overlay", "the kernel has no overlay file system")
}

func lists(path, word string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasSuffix(lines.Text(), "\t"+word) {
			return true
		}
	}
	return false
}

func namespaces() error {
	for _, ns := range []string{"net", "ipc", "uts", "pid", "mnt"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return problem("Use a kernel of version 5.10 or later with CONFIG_NAMESPACES", "the kernel has no %s namespaces", ns)
		}
	}
	return nil
}

func disk(dir string) error {
	at, err := nearest(dir)
	if err != nil {
		return problem("Choose another with --data-dir", "the data directory %s cannot be used (%v)", dir, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return problem("Choose another with --data-dir", "the data directory %s cannot be used (%v)", dir, err)
	}
	switch free := st.Bavail * uint64(st.Bsize); {
	case st.Flags&unix.ST_RDONLY != 0:
		return problem("Choose another with --data-dir", "the data directory %s is on a read-only file system", dir)
	case st.Type == unix.OVERLAYFS_SUPER_MAGIC:
		return problem("Put it on a disk or a volume with --data-dir", "the data directory %s is on an overlay file system, on which images cannot be mounted", dir)
	case free < minFree:
		return problem("Free some, or choose another place with --data-dir", "only %d MiB are free where the data directory %s is; Sonagi needs %d MiB to start", free>>20, dir, minFree>>20)
	}
	return nil
}

// nearest is dir, or its nearest parent that exists.
func nearest(dir string) (string, error) {
	for {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", syscall.ENOTDIR
		case err == nil:
			return dir, nil
		case !errors.Is(err, os.ErrNotExist) || dir == "/":
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}
