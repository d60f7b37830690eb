// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Unmount takes down every mount at or below dir, the deepest first. A mount
// that is busy goes as soon as it no longer is.
func Unmount(dir string) error {
	for range 10 { // mounts can lie on top of each other
		below, err := mountsBelow(dir)
		if err != nil || len(below) == 0 {
			return err
		}
		for _, at := range slices.Backward(below) {
			err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EBUSY) {
				err = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmounting %s: %w", at, err)
			}
		}
	}
	return fmt.Errorf("unmounting %s: mounts keep coming back", dir)
}

// mountsBelow lists mount points at or below dir, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		at := unescape.Replace(fields[4])
		if at == real || strings.HasPrefix(at, real+"/") {
			out = append(out, at)
		}
	}
	return out, nil
}

// unescape undoes the octal of mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// isMountPoint reports whether a file system is mounted at dir.
func isMountPoint(dir string) (bool, error) {
	var own, parent unix.Stat_t
	if err := unix.Lstat(dir, &own); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(dir), &parent); err != nil {
		return false, err
	}
	return own.Dev != parent.Dev, nil
}
