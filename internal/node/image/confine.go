// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// A confined tree is a directory in which names are resolved as if it were the
// root: neither ".." nor a symbolic link, absolute or not, leads out of it.
type confined struct {
	path string
	root *os.File
}

func confine(dir string) (*confined, error) {
	root, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &confined{path: dir, root: root}, nil
}

func (c *confined) Close() error { return c.root.Close() }

// open resolves name inside the tree; the last component is followed too,
// unless flags have O_NOFOLLOW.
func (c *confined) open(name string, flags int, mode uint32) (*os.File, error) {
	name = local(name)
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(int(c.root.Fd()), name, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), filepath.Join(c.path, name)), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // a rename elsewhere disturbed the walk
			continue
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			return c.openWithout(name, flags, mode)
		}
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
}

// openWithout does without openat2, for kernels before 5.6 and sandboxes that
// forbid it. It is safe only where nobody else renames.
func (c *confined) openWithout(name string, flags int, mode uint32) (*os.File, error) {
	dir, base := path.Split(name)
	full, err := securejoin.SecureJoin(c.path, dir)
	if err != nil {
		return nil, err
	}
	if flags&unix.O_NOFOLLOW != 0 {
		full = filepath.Join(full, base)
	} else if full, err = securejoin.SecureJoin(c.path, name); err != nil {
		return nil, err
	}
	fd, err := unix.Open(full, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// mkdirAll makes a directory and those above it and tells made of each that
// was missing, by its name inside the tree. Only one process may change the
// tree meanwhile.
func (c *confined) mkdirAll(name string, made func(string)) error {
	full, err := securejoin.SecureJoin(c.path, name)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(c.path, full)
	if err != nil {
		return err
	}
	at := c.path
	for part := range strings.SplitSeq(rel, "/") {
		if part == "." {
			continue
		}
		at = filepath.Join(at, part)
		err := os.Mkdir(at, 0o755)
		switch {
		case err == nil:
			inside, _ := filepath.Rel(c.path, at)
			made(inside)
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	return nil
}

// local is a name relative to the root of a tree: cleaned, with no leading
// slash and no ".." that would go above it.
func local(name string) string {
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return "."
	}
	return name
}

// readSmall reads a regular file of a tree that others wrote: it does not
// block on a pipe and does not read more than max bytes.
func (c *confined) readSmall(name string, max int64) ([]byte, error) {
	f, err := c.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	if info.Size() > max {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", name, ErrTooLarge, max)
	}
	return io.ReadAll(io.LimitReader(f, max))
}

// procPath is a path to an entry of an open directory that no rename or link
// above it can change.
func procPath(dir *os.File, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + base
}
