// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Some tools write "tmp/x" into a layer and leave out "tmp/". Such a layer,
// unpacked by itself, has a plain /tmp, which overlayfs would show in place of
// the lower layer's with its own owner and mode. An image that has this
// trouble is given one more layer on top, of directories as they should be.

// maxImplied bounds the work: an image with more such directories is left as
// it is.
const maxImplied = 10_000

// stack is the layers of an image, with what is needed to look at directories.
type stack struct {
	dirs    []string          // fs directories, lowest first
	implied []map[string]bool // directories that the layer does not describe
}

// dirInfo is what a layer says of a directory.
type dirInfo struct {
	uid, gid uint32
	mode     uint32
	mtime    time.Time
}

// plainDir is what a directory gets that no layer describes.
func plainDir() dirInfo { return dirInfo{mode: 0o755, mtime: time.Unix(0, 0)} }

// repairLayer makes the layer that an image needs on top, or none. The answer
// is leased until the release is called.
func (s *Store) repairLayer(ctx context.Context, layers []string) (diffID string, release func(), err error) {
	none := func() {}
	st, paths, err := s.implied(layers)
	if err != nil || len(paths) == 0 || len(paths) > maxImplied {
		return "", none, err
	}
	repairs := st.repairs(paths)
	if len(repairs) == 0 {
		return "", none, nil
	}
	raw, err := tarDirs(repairs)
	if err != nil {
		return "", none, err
	}
	l := layerSource{diffID: digestOf(raw), size: int64(len(raw)), open: func(context.Context, func(Progress)) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	}}
	s.lease([]string{l.diffID}, 1)
	release = func() { s.lease([]string{l.diffID}, -1) }
	if err := s.ensureLayer(ctx, l, func(Progress) {}); err != nil {
		release()
		return "", none, err
	}
	return l.diffID, release, nil
}

func (s *Store) implied(layers []string) (stack, []string, error) {
	var st stack
	all := map[string]bool{}
	for _, d := range layers {
		u, err := s.layer(d)
		if err != nil {
			return st, nil, err
		}
		here := map[string]bool{}
		for _, p := range u.Implicit {
			here[p], all[p] = true, true
		}
		st.dirs, st.implied = append(st.dirs, s.layerFS(d)), append(st.implied, here)
	}
	var paths []string
	for p := range all {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return st, paths, nil
}

// repairs are the directories to describe anew, with those above them: these
// would otherwise be implied again.
func (st stack) repairs(paths []string) map[string]dirInfo {
	repairs := map[string]dirInfo{}
	for _, p := range paths {
		should, shadowed := st.lookup(p)
		if !shadowed || should.uid == 0 && should.gid == 0 && should.mode == 0o755 {
			continue
		}
		repairs[p] = should
		for up := path.Dir(p); up != "."; up = path.Dir(up) {
			repairs[up], _ = st.lookup(up)
		}
	}
	return repairs
}

// lookup finds the uppermost layer that describes a directory. It reports
// whether a layer above that one has it without describing it.
func (st stack) lookup(p string) (info dirInfo, shadowed bool) {
	for i := len(st.dirs) - 1; i >= 0; i-- {
		found, info, last := look(st.dirs[i], p)
		switch {
		case found && !st.implied[i][p]:
			return info, shadowed
		case found:
			shadowed = true
		}
		if last {
			break
		}
	}
	return plainDir(), false
}

// look looks for a directory in one layer. Nothing below the last layer shows
// through: there is something else, or a directory above it is opaque. One that
// is opaque itself is still the same directory, emptied.
func look(layer, p string) (found bool, info dirInfo, last bool) {
	at, opaque := layer, false
	for part := range strings.SplitSeq(p, "/") {
		last = last || opaque
		at = filepath.Join(at, part)
		fi, err := os.Lstat(at)
		if err != nil {
			return false, info, last
		}
		if !fi.IsDir() {
			return false, info, true
		}
		opaque = isOpaque(at)
		info = infoOf(fi)
	}
	return true, info, last
}

func isOpaque(dir string) bool {
	var flag [1]byte
	n, err := unix.Lgetxattr(dir, opaqueXattr, flag[:])
	return err == nil && n == 1 && flag[0] == 'y'
}

func infoOf(fi fs.FileInfo) dirInfo {
	st := fi.Sys().(*syscall.Stat_t)
	return dirInfo{uid: st.Uid, gid: st.Gid, mode: st.Mode & 0o7777, mtime: fi.ModTime()}
}

func tarDirs(dirs map[string]dirInfo) ([]byte, error) {
	var names []string
	for name := range dirs {
		names = append(names, name)
	}
	slices.Sort(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		d := dirs[name]
		h := &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(d.mode), Uid: int(d.uid), Gid: int(d.gid), ModTime: d.mtime.Truncate(time.Second), Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}
