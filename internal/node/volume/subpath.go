// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// Early reports whether the volumes that a container mounts have their place
// before they are filled, so that the container can be made meanwhile.
func Early(p *corev1.Pod, c *corev1.Container) bool {
	for _, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			return false
		}
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			ours := v.EmptyDir != nil || v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil
			if v.Name == m.Name && !ours {
				return false
			}
		}
	}
	return true
}

// Source is the path to bind into a container for its index-th mount. sub is
// the mount's subPath, expanded.
//
// What a pod writes to its volume must not lead a later mount out of it: the
// path is resolved by the kernel below the volume, and what was found is
// pinned by a bind mount before anyone can put something else there.
func (v *Pod) Source(container string, index int, m *corev1.VolumeMount, sub string) (string, error) {
	root := v.Path(m.Name)
	if sub == "" {
		return root, nil
	}
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	fd, err := openBelow(root, filepath.Clean(sub))
	if err != nil {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, container, err)
	}
	defer unix.Close(fd)
	target := filepath.Join(v.m.Made(v.uid), "subpaths", container, strconv.Itoa(index))
	if err := pin(fd, target); err != nil {
		return "", fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, container, err)
	}
	return target, nil
}

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// openBelow opens a path below root, making the directories that are missing
// with root's rights.
func openBelow(root, path string) (int, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(top)
	fd, err := resolve(top, path)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(top, &st); err != nil {
		return -1, err
	}
	parent, err := resolve(top, ".")
	if err != nil {
		return -1, err
	}
	words := strings.Split(path, "/")
	for i := range words {
		fd, err := resolve(top, strings.Join(words[:i+1], "/"))
		if errors.Is(err, unix.ENOENT) {
			if err = makeDir(parent, words[i], st.Mode&0o7777); err == nil {
				fd, err = resolve(top, strings.Join(words[:i+1], "/"))
			}
		}
		unix.Close(parent)
		if err != nil {
			return -1, err
		}
		parent = fd
	}
	return parent, nil
}

func makeDir(parent int, name string, mode uint32) error {
	if err := unix.Mkdirat(parent, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode) // not subject to the umask
}

func resolve(top int, path string) (int, error) {
	for {
		fd, err := unix.Openat2(top, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: beneath})
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EAGAIN): // something was renamed meanwhile
			continue
		}
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
}

// pin binds what fd is onto target.
func pin(fd int, target string) error {
	if err := Unmount(target); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(target, 0o750); err != nil {
			return err
		}
	} else if err := os.WriteFile(target, nil, 0o640); err != nil {
		return err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	return nil
}
