// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Mounted is a root file system that is mounted.
type Mounted struct {
	Key    string
	Image  string // ID
	Rootfs string
	Upper  string
}

// Root file systems are directories named KEY@IMAGE, so that the name alone
// tells a later process what is mounted there. In each: rootfs, where overlayfs
// is mounted; upper, what was written; work, which overlayfs needs.
//
// A spare is a root file system that is mounted before anybody asks: to become
// a container's, its directory is renamed, mount and all. One is made when an
// image arrives and when a container of it goes, because the next will come
// when a request waits. Making directories takes half a millisecond, and many
// when the disk's journal is busy; a rename takes a tenth of one.
const (
	mountsDir = "mounts"
	sparesDir = "spares"

	sparesOfOne = 32 // as many containers of an image that start at once
	sparesOfAll = 128
	sparesFirst = 8 // images that have one from the start
)

// validKey keeps keys inside the directory, and apart from the image's name.
var validKey = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

func (s *Store) mountDir(kind, key, imageID string) string {
	return filepath.Join(s.opts.Dir, kind, key+"@"+strings.TrimPrefix(imageID, sha256Prefix))
}

func mountedAt(dir, key, imageID string) Mounted {
	return Mounted{Key: key, Image: imageID, Rootfs: filepath.Join(dir, "rootfs"), Upper: filepath.Join(dir, "upper")}
}

// Mount makes a root file system of an image, of its own for each key. A key
// that is mounted already, of the same image, is given again as it is.
func (s *Store) Mount(ctx context.Context, img Image, key string) (rootfs, upper string, err error) {
	if !validKey.MatchString(key) {
		return "", "", fmt.Errorf("mounting %s: %q is not a valid key", img.ID, clip(key, 64))
	}
	if err := ctx.Err(); err != nil {
		return "", "", context.Cause(ctx)
	}
	m, r, spare, err := s.reserve(img.ID, key)
	if err != nil {
		return "", "", fmt.Errorf("mounting %s: %w", img.ID, err)
	}
	if r == nil { // mounted before
		return m.Rootfs, m.Upper, nil
	}
	dir := filepath.Dir(m.Rootfs)
	if spare == "" || os.Rename(spare, dir) != nil {
		err = mountLayers(dir, s.lowerDirs(r))
	}
	if err != nil {
		err = fmt.Errorf("mounting %s: %w", img.ID, errors.Join(err, s.clearMount(dir)))
	}
	s.settle(key, err == nil)
	return m.Rootfs, m.Upper, err
}

// reserve enters a mount, so that from here on its image stays, and tells what
// to mount. No record means that it is mounted already.
func (s *Store) reserve(id, key string) (m Mounted, r *record, spare string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[key] {
		return m, nil, "", fmt.Errorf("%s is being mounted or unmounted", key)
	}
	if m, ok := s.mounts[key]; ok {
		if m.Image != id {
			return m, nil, "", fmt.Errorf("%s is mounted of another image, %s", key, m.Image)
		}
		return m, nil, "", nil
	}
	if r = s.cat.byID[id]; r == nil {
		return m, nil, "", ErrNotPresent
	}
	r.Used, s.unsaved = time.Now(), true
	m = mountedAt(s.mountDir(mountsDir, key, id), key, id)
	s.mounts[key], s.busy[key] = m, true
	return m, r, s.takeSpare(id), nil
}

// lowerDirs are the directories to stack, the highest first. The layers of a
// record do not change.
func (s *Store) lowerDirs(r *record) []string {
	var dirs []string
	for _, d := range slices.Backward(r.Layers) {
		dirs = append(dirs, s.layerFS(d))
	}
	if len(dirs) == 0 {
		dirs = append(dirs, filepath.Join(s.opts.Dir, "empty"))
	}
	return dirs
}

// settle ends the mounting or unmounting of a key.
func (s *Store) settle(key string, mounted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, key)
	if !mounted {
		delete(s.mounts, key)
	}
}

// mountLayers makes dir and mounts a root file system in it.
func mountLayers(dir string, layers []string) error {
	for _, d := range []string{"", "upper", "work", "rootfs"} {
		at := filepath.Join(dir, d)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
	}
	// The upper directory's mode is that of the container's root directory.
	if err := os.Chmod(filepath.Join(dir, "upper"), 0o755); err != nil {
		return err
	}
	err := mountOverlay(dir, layers)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		err = mountOverlayOld(dir, layers)
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("overlayfs is not available on this machine: %w", err)
	}
	return err
}

// volatile: what a container wrote to its own root goes with the container, so
// nothing of it needs to survive the machine. Without it each unmount, and each
// fsync in a container, waits for the disk.
const overlayFlag = "volatile"

// mountOverlay uses the calls that take one layer at a time (Linux 6.8): their
// number is then bounded by overlayfs alone.
func mountOverlay(dir string, layers []string) error {
	ovl, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ovl)
	for _, l := range layers {
		if err := setPath(ovl, "lowerdir+", l); err != nil {
			return err
		}
	}
	err = errors.Join(setPath(ovl, "upperdir", filepath.Join(dir, "upper")), setPath(ovl, "workdir", filepath.Join(dir, "work")))
	if err != nil {
		return err
	}
	if err := unix.FsconfigSetFlag(ovl, overlayFlag); err != nil {
		return os.NewSyscallError("fsconfig volatile", err)
	}
	if err := unix.FsconfigCreate(ovl); err != nil {
		return os.NewSyscallError("fsconfig create", err)
	}
	mnt, err := unix.Fsmount(ovl, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mnt)
	err = unix.MoveMount(mnt, "", unix.AT_FDCWD, filepath.Join(dir, "rootfs"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	return os.NewSyscallError("move_mount", err)
}

// maxFsconfig is how long a string fsconfig takes.
const maxFsconfig = 255

func setPath(ovl int, option, path string) error {
	if len(path) > maxFsconfig {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	return os.NewSyscallError("fsconfig "+option, unix.FsconfigSetString(ovl, option, path))
}

// mountOverlayOld is for kernels before 6.8. All options must fit into a page;
// paths through open files let that be some 200 layers.
func mountOverlayOld(dir string, layers []string) error {
	paths := make([]string, 0, len(layers))
	for _, l := range append(slices.Clone(layers), dir) {
		fd, err := unix.Open(l, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: l, Err: err}
		}
		defer unix.Close(fd)
		paths = append(paths, fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	own, lower := paths[len(layers)], paths[:len(layers)]
	data := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + own + "/upper,workdir=" + own + "/work"
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("%w: %d layers are more than this kernel can stack (Linux 6.8 can)", ErrTooLarge, len(layers))
	}
	target := filepath.Join(dir, "rootfs")
	err := unix.Mount("overlay", target, "overlay", 0, data+","+overlayFlag)
	if errors.Is(err, unix.EINVAL) { // volatile is from Linux 5.10
		err = unix.Mount("overlay", target, "overlay", 0, data)
	}
	return os.NewSyscallError("mount", err)
}

// Unmount takes down what Mount made and removes what was written to it. A key
// that is not mounted is not an error.
func (s *Store) Unmount(ctx context.Context, key string) error {
	s.mu.Lock()
	m, ok := s.mounts[key]
	busy := s.busy[key]
	if ok && !busy {
		s.busy[key] = true
	}
	s.mu.Unlock()
	if busy {
		return fmt.Errorf("unmounting %s: it is being mounted or unmounted", key)
	}
	if !ok {
		return nil
	}
	err := s.clearMount(filepath.Dir(m.Rootfs))
	s.settle(key, err != nil)
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", key, err)
	}
	return s.makeSpare(m.Image)
}

// clearMount unmounts a root file system and removes its directory. Should this
// process end between, the rest lies in tmp and goes when the store is opened.
func (s *Store) clearMount(dir string) error {
	if err := unmount(filepath.Join(dir, "rootfs")); err != nil {
		return err
	}
	gone, err := os.MkdirTemp(s.tmpDir(), "gone-")
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(gone, "mount")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.RemoveAll(gone)
}

// unmount detaches a mount that is busy: a process that lingers must not keep
// a container from going.
func unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not mounted
		return nil
	}
	return os.NewSyscallError("umount", err)
}

// takeSpare gives a spare away; the caller holds s.mu.
func (s *Store) takeSpare(id string) string {
	n := len(s.spares[id])
	if n == 0 {
		return ""
	}
	dir := s.spares[id][n-1]
	if s.spares[id] = s.spares[id][:n-1]; n == 1 {
		delete(s.spares, id)
	}
	s.spareCount--
	return dir
}

// makeSpare mounts a root file system ahead of need, unless there are enough.
// The image is entered as mounted meanwhile, so that it stays.
func (s *Store) makeSpare(id string) error {
	s.mu.Lock()
	r := s.cat.byID[id]
	if r == nil || len(s.spares[id]) >= sparesOfOne || s.spareCount >= sparesOfAll || s.ended.Err() != nil {
		s.mu.Unlock()
		return nil
	}
	s.spareNumber++
	dir := s.mountDir(sparesDir, fmt.Sprintf("spare%d", s.spareNumber), id)
	key := "@" + dir // not a valid key
	s.mounts[key] = Mounted{Key: key, Image: id}
	s.mu.Unlock()

	err := mountLayers(dir, s.lowerDirs(r))
	s.mu.Lock()
	delete(s.mounts, key)
	keep := err == nil && s.ended.Err() == nil
	if keep {
		s.keepSpare(id, dir)
	}
	s.mu.Unlock()
	if keep {
		return nil
	}
	return errors.Join(err, s.clearMount(dir))
}

func (s *Store) keepSpare(id, dir string) {
	s.spares[id] = append(s.spares[id], dir)
	s.spareCount++
}

// firstSpare is makeSpare for an image that has none.
func (s *Store) firstSpare(id string) error {
	s.mu.Lock()
	has := len(s.spares[id]) > 0
	s.mu.Unlock()
	if has {
		return nil
	}
	return s.makeSpare(id)
}

// firstSpares makes one for each of the images that were used last.
func (s *Store) firstSpares() {
	all := s.List()
	slices.SortFunc(all, func(a, b Image) int { return b.Used.Compare(a.Used) })
	for _, img := range all[:min(len(all), sparesFirst)] {
		if err := s.firstSpare(img.ID); err != nil {
			slog.Warn("mounting an image ahead of need", "image", img.ID, "err", err)
		}
	}
}

// Mounts lists the root file systems that are mounted.
func (s *Store) Mounts() []Mounted {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Mounted
	for _, m := range s.mounts {
		if m.Rootfs != "" {
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(a, b Mounted) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// adoptMounts takes over what an earlier process mounted and removes what is
// no longer mounted, as after the machine was restarted.
func (s *Store) adoptMounts() error {
	s.mounts, s.spares, s.busy = map[string]Mounted{}, map[string][]string{}, map[string]bool{}
	dirs, err := s.mountDirs(mountsDir)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		key, hex, ok := strings.Cut(filepath.Base(dir), "@")
		m := mountedAt(dir, key, sha256Prefix+hex)
		if ok && validKey.MatchString(key) && isMountpoint(m.Rootfs) {
			s.mounts[key] = m
			s.strangers = s.strangers || s.cat.byID[m.Image] == nil
		} else {
			err = errors.Join(err, s.clearMount(dir))
		}
	}
	return errors.Join(err, s.clearSpares())
}

// clearSpares removes all spares; of those of a process that was killed nobody
// knows whether their number is still right.
func (s *Store) clearSpares() error {
	dirs, err := s.mountDirs(sparesDir)
	for _, dir := range dirs {
		err = errors.Join(err, s.clearMount(dir))
	}
	return err
}

func (s *Store) mountDirs(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.opts.Dir, kind))
	var dirs []string
	for _, e := range entries {
		dirs = append(dirs, filepath.Join(s.opts.Dir, kind, e.Name()))
	}
	return dirs, err
}

// isMountpoint: a mount is another device than the directory it is in.
func isMountpoint(path string) bool {
	var here, above unix.Stat_t
	if unix.Lstat(path, &here) != nil || unix.Lstat(filepath.Dir(path), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// Usage is what a container has written to its root file system.
type Usage struct {
	Bytes  int64
	Inodes int64
}

// Usage counts what was written to a root file system, as far as ctx lets it.
func (s *Store) Usage(ctx context.Context, key string) (Usage, error) {
	s.mu.Lock()
	m, ok := s.mounts[key]
	s.mu.Unlock()
	if !ok {
		return Usage{}, fmt.Errorf("%s: %w", key, os.ErrNotExist)
	}
	return DiskUsage(ctx, m.Upper)
}

// DiskUsage counts the blocks and files under a directory that others may be
// changing. Links lead nowhere, and a file with several names counts once.
func DiskUsage(ctx context.Context, dir string) (Usage, error) {
	var u Usage
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since its directory was read
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		u.Bytes += st.Blocks * 512
		u.Inodes++
		return nil
	})
	return u, err
}
