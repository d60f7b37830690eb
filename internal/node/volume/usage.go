// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// A Usage is how much a volume holds.
type Usage struct {
	Name   string
	Bytes  int64
	Inodes int64
	Memory bool  // held in memory, not on the disk
	Limit  int64 // that the pod set; zero: none
}

// Usage measures the volumes that count as the pod's own storage: those that
// go with it.
func (v *Pod) Usage(ctx context.Context, p *corev1.Pod) ([]Usage, error) {
	var out []Usage
	for i := range p.Spec.Volumes {
		vol := &p.Spec.Volumes[i]
		u := Usage{Name: vol.Name}
		var err error
		switch {
		case vol.EmptyDir != nil:
			if vol.EmptyDir.SizeLimit != nil {
				u.Limit = vol.EmptyDir.SizeLimit.Value()
			}
			u.Memory = vol.EmptyDir.Medium == corev1.StorageMediumMemory
			if u.Memory {
				err = u.statfs(v.Path(vol.Name))
			} else {
				u.Bytes, u.Inodes, err = DiskUsage(ctx, v.Path(vol.Name))
			}
		default:
			continue
		}
		if err != nil {
			return out, err
		}
		out = append(out, u)
	}
	return out, nil
}

func (u *Usage) statfs(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	u.Bytes = int64(st.Blocks-st.Bfree) * st.Bsize
	u.Inodes = int64(st.Files - st.Ffree)
	return nil
}

// DiskUsage is the space that a tree takes, hard links counted once, without
// other file systems mounted in it.
func DiskUsage(ctx context.Context, root string) (bytes, inodes int64, err error) {
	type id struct{ dev, ino uint64 }
	seen := map[id]bool{}
	var dev uint64
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil // it went away while we looked
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if dev == 0 {
			dev = uint64(st.Dev)
		}
		if uint64(st.Dev) != dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[id{uint64(st.Dev), st.Ino}] {
				return nil
			}
			seen[id{uint64(st.Dev), st.Ino}] = true
		}
		bytes += st.Blocks * 512
		inodes++
		return nil
	})
	return bytes, inodes, err
}
