// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrUnfit is why a directory cannot hold images; the text says what to do.
var ErrUnfit = errors.New("images cannot be kept here")

// Check tries in a directory what images need: devices, overlayfs's attributes
// and a mount. Nothing is left of it.
func Check(dir string) error {
	tmp, err := os.MkdirTemp(dir, ".check-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	err = errors.Join(try(dir, tmp), unmount(filepath.Join(tmp, "mount", "rootfs")))
	return errors.Join(err, os.RemoveAll(tmp))
}

func try(dir, tmp string) error {
	lower := filepath.Join(tmp, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	if err := unix.Mknod(filepath.Join(lower, "gone"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("%w: device files cannot be made in %s (%w): run as root of the machine, and use a directory on ext4, xfs or btrfs", ErrUnfit, dir, err)
	}
	if err := unix.Setxattr(lower, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("%w: %s takes no trusted attributes (%w): use a directory on ext4, xfs or btrfs, as root", ErrUnfit, dir, err)
	}
	err := mountLayers(filepath.Join(tmp, "mount"), []string{lower})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the kernel has no overlayfs: load it with `modprobe overlay`", ErrUnfit)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: this process may not mount (%w): run as root, and not in an unprivileged container", ErrUnfit, err)
	}
	return fmt.Errorf("%w: overlayfs does not take the file system of %s (%w): use a directory on ext4, xfs or btrfs", ErrUnfit, dir, err)
}
