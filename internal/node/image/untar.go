// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // what aufs keeps for itself
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	xattrRecord    = "SCHILY.xattr."
)

// limits bound what unpacking one layer may take.
type limits struct {
	bytes   int64
	entries int
	reserve int64 // free space to leave
}

// unpacked is what came out of a layer.
type unpacked struct {
	Bytes    int64    `json:"bytes"`
	Entries  int      `json:"entries"`
	Implicit []string `json:"implicit,omitempty"` // directories that the layer uses but does not describe
}

// An untarrer writes the entries of one layer into an empty directory, in the
// form overlayfs wants: a removed file is a character device 0:0, a replaced
// directory is opaque. The layer is somebody else's: every name is confined to
// the directory and every size is bounded.
type untarrer struct {
	tree   *confined
	limits limits
	out    unpacked
	buf    []byte
	space  int64 // bytes written since free space was last looked at

	parent     *os.File // directory of the entry before
	parentName string

	dirs  map[string]dirAttributes // set at the end
	first []string                 // the first regular files, to sync one by one when they are all
}

// dirAttributes are what a layer says of a directory.
type dirAttributes struct {
	described bool
	uid, gid  int
	mode      uint32
	mtime     unix.Timespec
}

// untar unpacks r into dir.
func untar(ctx context.Context, r io.Reader, dir string, l limits) (*untarrer, error) {
	tree, err := confine(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	u := &untarrer{tree: tree, limits: l, buf: make([]byte, 256<<10), dirs: map[string]dirAttributes{}}
	defer u.forgetParent()
	if err := u.checkSpace(); err != nil {
		return nil, err
	}
	for tr := tar.NewReader(r); ; {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading layer: %w", badStream(err))
		}
		if err := u.entry(h, tr); err != nil {
			return nil, fmt.Errorf("unpacking %q: %w", clip(h.Name, 256), err)
		}
	}
	return u, u.finishDirs()
}

func (u *untarrer) entry(h *tar.Header, body io.Reader) error {
	u.out.Entries++
	if u.out.Entries > u.limits.entries {
		return fmt.Errorf("%w: layer has more than %d files", ErrTooLarge, u.limits.entries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := checkHeader(h); err != nil {
		return err
	}
	name := local(h.Name)
	if name == "." {
		return u.rootEntry(h)
	}
	dirName, base := path.Split(name)
	dir, err := u.openParent(strings.TrimSuffix(dirName, "/"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	return u.create(h, body, dir, name, base)
}

// rootEntry describes the root directory itself.
func (u *untarrer) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root is not a directory", ErrUnsafe)
	}
	u.describe(".", h)
	return setXattrs(h, onFile(u.tree.root))
}

func checkHeader(h *tar.Header) error {
	switch {
	case h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32:
		return fmt.Errorf("%w: owner %d:%d", ErrUnsafe, h.Uid, h.Gid)
	case strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0):
		return fmt.Errorf("%w: name with a zero byte", ErrUnsafe)
	}
	return nil
}

// openParent opens the directory an entry goes into. Neighbours in a layer
// mostly share it, so the last one is kept open.
func (u *untarrer) openParent(name string) (*os.File, error) {
	if name == "" {
		return u.tree.root, nil
	}
	if u.parent != nil && u.parentName == name {
		return u.parent, nil
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY
	dir, err := u.tree.open(name, flags, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = u.tree.mkdirAll(name, func(d string) { u.describe(d, nil) }); err == nil {
			dir, err = u.tree.open(name, flags, 0)
		}
	}
	if err != nil {
		return nil, err
	}
	u.forgetParent()
	u.parent, u.parentName = dir, name
	return dir, nil
}

// forgetParent must be called whenever a directory or a link may have gone:
// the kept name may then mean another directory.
func (u *untarrer) forgetParent() {
	if u.parent != nil {
		u.parent.Close()
		u.parent, u.parentName = nil, ""
	}
}

// describe notes the attributes of a directory for the end; nil stands for a
// directory that the layer does not describe, or not yet.
func (u *untarrer) describe(name string, h *tar.Header) {
	if h != nil {
		u.dirs[name] = dirAttributes{true, h.Uid, h.Gid, uint32(h.Mode) & 0o7777, times(h)[0]}
	} else if !u.dirs[name].described {
		u.dirs[name] = dirAttributes{mode: 0o755}
	}
}

func (u *untarrer) create(h *tar.Header, body io.Reader, dir *os.File, name, base string) error {
	opaque, err := u.makeRoom(h, dir, base)
	if err != nil {
		return err
	}
	fd := int(dir.Fd())
	mode := uint32(h.Mode) & 0o7777
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(h, dir, name, base, opaque)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse: // the reader makes TypeReg of what old archives have
		return u.regular(h, body, dir, name, base)
	case tar.TypeLink:
		return u.hardLink(h, dir, base)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return err
		}
	case tar.TypeChar:
		err = unix.Mknodat(fd, base, unix.S_IFCHR|mode, device(h))
	case tar.TypeBlock:
		err = unix.Mknodat(fd, base, unix.S_IFBLK|mode, device(h))
	case tar.TypeFifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|mode, 0)
	default:
		return fmt.Errorf("%w: entry of unknown type %q", ErrUnsafe, h.Typeflag)
	}
	if err != nil {
		return err
	}
	return u.attributes(h, dir, base)
}

func device(h *tar.Header) int { return int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))) }

// makeRoom removes what an earlier entry of this layer put in the place of h.
// It reports whether that was a whiteout, which a directory replaces by being
// opaque. A directory that meets a directory stays.
func (u *untarrer) makeRoom(h *tar.Header, dir *os.File, base string) (opaque bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR && h.Typeflag == tar.TypeDir {
		return false, nil
	}
	// The path of dir has been resolved; below it nothing is followed.
	if err := os.RemoveAll(procPath(dir, base)); err != nil {
		return false, err
	}
	if t := st.Mode & unix.S_IFMT; t == unix.S_IFDIR || t == unix.S_IFLNK {
		u.parentName = "" // the kept directory may have been reached through it
	}
	return isWhiteout(&st), nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (u *untarrer) directory(h *tar.Header, dir *os.File, name, base string, opaque bool) error {
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	set := onEntry(dir, base)
	if opaque {
		if err := makeOpaque(set); err != nil {
			return err
		}
	}
	u.describe(name, h)
	return setXattrs(h, set)
}

func (u *untarrer) regular(h *tar.Header, body io.Reader, dir *os.File, name, base string) error {
	if h.Size > u.limits.bytes-u.out.Bytes {
		return u.errTooLarge()
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(int(dir.Fd()), base, flags, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := u.write(f, body, h.Size, isSparse(h)); err != nil {
		return err
	}
	if len(u.first) <= syncOneByOne {
		u.first = append(u.first, name)
	}
	if h.Size >= 1<<20 {
		// The disk starts now, so that the sync at the end has less to wait for.
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	// After the owner: changing that takes file capabilities away.
	if err := setXattrs(h, onFile(f)); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dir.Fd()), base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *untarrer) errTooLarge() error {
	return fmt.Errorf("%w: layer unpacks to more than %d bytes", ErrTooLarge, u.limits.bytes)
}

func isSparse(h *tar.Header) bool {
	return h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.size"] != ""
}

// write copies a file's bytes. The holes of a sparse file arrive as zeros and
// become holes again; their length is bounded like that of any other bytes.
func (u *untarrer) write(f *os.File, body io.Reader, size int64, sparse bool) error {
	u.out.Bytes += size
	buf := u.buf
	if sparse {
		buf = buf[:32<<10] // holes are found in steps of this
	}
	for left := size; left > 0; {
		chunk := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(body, chunk); err != nil {
			return badStream(err)
		}
		left -= int64(len(chunk))
		if sparse && allZero(chunk) {
			if _, err := f.Seek(int64(len(chunk)), io.SeekCurrent); err != nil {
				return err
			}
			continue
		}
		if err := u.writeChunk(f, chunk); err != nil {
			return err
		}
	}
	if sparse {
		return f.Truncate(size)
	}
	return nil
}

func (u *untarrer) writeChunk(f *os.File, chunk []byte) error {
	if _, err := f.Write(chunk); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return err
	}
	u.space += int64(len(chunk))
	if u.space < 64<<20 {
		return nil
	}
	return u.checkSpace()
}

func (u *untarrer) checkSpace() error {
	u.space = 0
	return checkSpace(u.tree.path, u.limits.reserve)
}

// checkSpace refuses to go on when less than reserve bytes are free: a full
// disk would harm everything else on this machine.
func checkSpace(dir string, reserve int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < reserve {
		return fmt.Errorf("%w: %d MiB are free under %s, and %d MiB are kept free", ErrNoSpace, free>>20, dir, reserve>>20)
	}
	return nil
}

func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

func (u *untarrer) hardLink(h *tar.Header, dir *os.File, base string) error {
	targetDir, targetBase := path.Split(local(h.Linkname))
	from := u.tree.root
	if d := strings.TrimSuffix(targetDir, "/"); d != "" {
		f, err := u.tree.open(d, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", clip(h.Linkname, 256), err)
		}
		defer f.Close()
		from = f
	}
	if err := unix.Linkat(int(from.Fd()), targetBase, int(dir.Fd()), base, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(h.Linkname, 256), err)
	}
	return nil
}

// attributes sets owner, mode and time of an entry that is neither a regular
// file nor a directory.
func (u *untarrer) attributes(h *tar.Header, dir *os.File, base string) error {
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// The entry was made by the line before and nobody else is here.
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
		if err := setXattrs(h, onEntry(dir, base)); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(fd, base, times(h), unix.AT_SYMLINK_NOFOLLOW)
}

func times(h *tar.Header) []unix.Timespec {
	m := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return []unix.Timespec{m, m}
}

// A setXattr sets an extended attribute of one file.
type setXattr func(name string, value []byte) error

func onFile(f *os.File) setXattr {
	return func(name string, value []byte) error { return unix.Fsetxattr(int(f.Fd()), name, value, 0) }
}

// onEntry is for what cannot be opened, or not without consequences. A link is
// not followed.
func onEntry(dir *os.File, base string) setXattr {
	at := procPath(dir, base)
	return func(name string, value []byte) error { return unix.Lsetxattr(at, name, value, 0) }
}

func makeOpaque(set setXattr) error {
	if err := set(opaqueXattr, []byte("y")); err != nil {
		return fmt.Errorf("marking directory opaque: %w", err)
	}
	return nil
}

// setXattrs sets what an image may bring: file capabilities, access lists and
// users' own. What steers overlayfs or a security module is not an image's.
func setXattrs(h *tar.Header, set setXattr) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !allowedXattr(name) {
			continue
		}
		err := set(name, []byte(value))
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && name != "security.capability" {
			continue // not on this file system, or not on this kind of file
		}
		if err != nil {
			return fmt.Errorf("setting %s: %w", clip(name, 64), err)
		}
	}
	return nil
}

func allowedXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

// whiteout marks what the layers below have as removed.
func (u *untarrer) whiteout(dir *os.File, base string) error {
	if base == whiteoutOpaque {
		return makeOpaque(onEntry(dir, "."))
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout of %q", ErrUnsafe, name)
	}
	err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// This layer has put something there already: it stays, what is below it goes.
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return makeOpaque(onEntry(dir, name))
}

// finishDirs sets the attributes of directories: until now files were put into
// them, which changed their times.
func (u *untarrer) finishDirs() error {
	for name, a := range u.dirs {
		if !a.described {
			u.out.Implicit = append(u.out.Implicit, name)
		}
		if err := u.finishDir(name, a); err != nil {
			return fmt.Errorf("finishing %q: %w", clip(name, 256), err)
		}
	}
	slices.Sort(u.out.Implicit)
	return nil
}

func (u *untarrer) finishDir(name string, a dirAttributes) error {
	dir, err := u.tree.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // a later entry took its place
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	if a.uid != 0 || a.gid != 0 {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return err
	}
	if !a.described {
		return nil
	}
	return unix.UtimesNanoAt(fd, ".", []unix.Timespec{a.mtime, a.mtime}, 0)
}

// clip bounds what is shown of a string that somebody else chose.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
