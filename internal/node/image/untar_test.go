// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

var testLimits = limits{bytes: 1 << 20, entries: 1000, reserve: 1}

// unpack unpacks a layer beside a file that must not change.
func unpack(t testing.TB, raw []byte) (dir string, err error) {
	t.Helper()
	base := t.TempDir()
	outside := filepath.Join(base, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(base, "a", "b", "layer")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = untar(context.Background(), bytes.NewReader(raw), dir, testLimits)
	if read(t, outside) != "untouched" {
		t.Error("a file outside the layer was changed")
	}
	for _, d := range []string{base, filepath.Join(base, "a"), filepath.Join(base, "a", "b")} {
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if n := e.Name(); n != "outside" && n != "a" && n != "b" && n != "layer" {
				t.Errorf("%s was made in %s", n, d)
			}
		}
	}
	return dir, err
}

func TestHostileLayers(t *testing.T) {
	up := strings.Repeat("../", 20)
	tests := []struct {
		name    string
		entries []ent
		refused error
		inside  []string // what must exist in the layer instead
	}{
		{"dot dot", []ent{{name: up + "evil", body: "x"}}, nil, []string{"evil"}},
		{"absolute", []ent{{name: "/evil", body: "x"}}, nil, []string{"evil"}},
		{"dot dot in the middle", []ent{{name: "a/../../../outside", body: "x"}}, nil, []string{"outside"}},
		{"link to above, file through it", []ent{{name: "l", typ: 'l', body: "../../.."}, {name: "l/outside", body: "x"}}, nil, []string{"outside"}},
		{"absolute link, file through it", []ent{{name: "l", typ: 'l', body: "/etc"}, {name: "l/shadow", body: "x"}}, nil, []string{"etc/shadow"}},
		{"link to link", []ent{{name: "l", typ: 'l', body: "m"}, {name: "m", typ: 'l', body: up}, {name: "l/outside", body: "x"}}, nil, []string{"outside"}},
		{"link replaced by a file", []ent{{name: "l", typ: 'l', body: "../../../outside"}, {name: "l", body: "x"}}, nil, []string{"l"}},
		{"hard link to outside", []ent{{name: "h", typ: 'h', body: "../../../outside"}}, os.ErrNotExist, nil},
		{"hard link through a link", []ent{{name: "l", typ: 'l', body: "../../.."}, {name: "h", typ: 'h', body: "l/outside"}}, os.ErrNotExist, nil},
		{"hard link to a link, written through", []ent{{name: "l", typ: 'l', body: "../../../outside"}, {name: "h", typ: 'h', body: "l"}, {name: "h", body: "x"}}, nil, []string{"h"}},
		{"directory over a link", []ent{{name: "l", typ: 'l', body: "../../.."}, {name: "l", typ: 'd', mode: 0o777}, {name: "l/outside", body: "x"}}, nil, []string{"l/outside"}},
		{"whiteout of dot dot", []ent{{name: ".wh..."}}, ErrUnsafe, nil},
		{"whiteout of dot", []ent{{name: ".wh.."}}, ErrUnsafe, nil},
		{"whiteout of nothing", []ent{{name: ".wh."}}, ErrUnsafe, nil},
		{"whiteout through a link", []ent{{name: "l", typ: 'l', body: "../../.."}, {name: "l/.wh.outside"}}, nil, []string{"outside"}},
		{"opaque through a link", []ent{{name: "l", typ: 'l', body: "../../.."}, {name: "l/.wh..wh..opq"}}, nil, nil},
		{"root as a file", []ent{{name: ".", body: "x"}}, ErrUnsafe, nil},
		{"root as a link", []ent{{name: ".", typ: 'l', body: "/"}}, ErrUnsafe, nil},
		{"file under a file", []ent{{name: "a", body: "x"}, {name: "a/b", body: "x"}}, syscall.ENOTDIR, nil},
		{"links in a circle", []ent{{name: "a", typ: 'l', body: "b"}, {name: "b", typ: 'l', body: "a"}, {name: "a/x", body: "x"}}, syscall.ELOOP, nil},
		{"too many bytes", []ent{{name: "a", body: strings.Repeat("x", 1<<20)}, {name: "b", body: "x"}}, ErrTooLarge, nil},
		{"name too long", []ent{{name: strings.Repeat("x", 300), body: "x"}}, syscall.ENAMETOOLONG, nil},
		{"deep", []ent{{name: strings.Repeat("x/", 3000), typ: 'd'}}, syscall.ENAMETOOLONG, nil},
		{"overlay's own attributes", []ent{{name: "d", typ: 'd', xattr: map[string]string{"trusted.overlay.redirect": "/etc", "trusted.overlay.opaque": "y"}}}, nil, []string{"d"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := unpack(t, tarOf(t, tt.entries...))
			if !errors.Is(err, tt.refused) {
				t.Errorf("got %v, want %v", err, tt.refused)
			}
			for _, in := range tt.inside {
				if !exists(dir, in) {
					t.Errorf("%s is not in the layer", in)
				}
			}
			filepath.WalkDir(dir, func(p string, _ os.DirEntry, _ error) error {
				for _, x := range []string{"trusted.overlay.redirect", "trusted.overlay.metacopy"} {
					if _, err := unix.Lgetxattr(p, x, nil); err == nil {
						t.Errorf("%s has %s", p, x)
					}
				}
				return nil
			})
		})
	}
}

func TestTooManyFiles(t *testing.T) {
	var many []ent
	for i := range testLimits.entries + 1 {
		many = append(many, ent{name: fmt.Sprint("f", i)})
	}
	if _, err := unpack(t, tarOf(t, many...)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestHugeSparse: a file of zeros that takes no bytes to send is bounded too.
func TestHugeSparse(t *testing.T) {
	if _, err := unpack(t, sparseTar(t, 1<<60)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	dir, err := unpack(t, sparseTar(t, 1<<19))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Size() != 1<<19 || st.Blocks*512 > 1<<17 {
		t.Errorf("%d bytes take %d", info.Size(), st.Blocks*512)
	}
	if got := read(t, dir, "holes"); got[:4] != "data" || strings.Trim(got[4:], "\x00") != "" {
		t.Error("the file has other bytes")
	}
}

// sparseTar is an archive with a file "holes": "data" and then nothing up to
// size, in GNU's old format, which has the map in the header.
func sparseTar(t testing.TB, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "holes", Typeflag: tar.TypeReg, Size: 4, Mode: 0o644, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "data")
	w.Close()
	raw := b.Bytes()
	h := raw[:512]
	h[156] = 'S'
	number := func(at int, n int64) { // base 256
		h[at] = 0x80
		for i := range 11 {
			h[at+11-i] = byte(n >> (8 * min(i, 8)))
			if i >= 8 {
				h[at+11-i] = 0
			}
		}
		h[at] = 0x80
	}
	number(386, 0)
	number(398, 4)
	number(410, size)
	number(422, 0)
	number(483, size)
	sum := 0
	copy(h[148:156], "        ")
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

// TestAttributes: what a layer says of its files is what they get.
func TestAttributes(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir, err := unpack(t, tarOf(t,
		ent{name: "./", typ: 'd', mode: 0o711},
		ent{name: "d", typ: 'd', mode: 0o1777, uid: 7},
		ent{name: "d/suid", body: "x", mode: 0o4755, uid: 1000, xattr: map[string]string{"security.capability": capability, "user.k": "v", "trusted.k": "v"}},
		ent{name: "d/link", typ: 'l', body: "suid", uid: 5},
		ent{name: "d/hard", typ: 'h', body: "d/suid"},
		ent{name: "null", typ: 'c', dev: 1<<8 | 3, mode: 0o666},
		ent{name: "pipe", typ: 'p', mode: 0o600},
		ent{name: "implied/x", body: "x"},
	))
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	for name, want := range map[string]struct{ mode, uid uint32 }{
		".": {unix.S_IFDIR | 0o711, 0}, "d": {unix.S_IFDIR | 0o1777, 7}, "d/suid": {unix.S_IFREG | 0o4755, 1000},
		"d/link": {unix.S_IFLNK | 0o777, 5}, "null": {unix.S_IFCHR | 0o666, 0}, "pipe": {unix.S_IFIFO | 0o600, 0},
		"implied": {unix.S_IFDIR | 0o755, 0},
	} {
		st := stat(name)
		if st.Mode != want.mode || st.Uid != want.uid {
			t.Errorf("%s: mode %o, owner %d; want %o, %d", name, st.Mode, st.Uid, want.mode, want.uid)
		}
		if name != "implied" && st.Mtim.Sec != 1_600_000_000 {
			t.Errorf("%s: time %d", name, st.Mtim.Sec)
		}
	}
	if a, b := stat("d/suid"), stat("d/hard"); a.Ino != b.Ino {
		t.Error("the hard link is another file")
	}
	if st := stat("null"); st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null is device %x", st.Rdev)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "d/suid"), "security.capability", buf); err != nil || string(buf[:n]) != capability {
		t.Errorf("capability: %q, %v", buf[:max(n, 0)], err)
	}
	if n, _ := unix.Lgetxattr(filepath.Join(dir, "d/suid"), "user.k", buf); n != 1 || buf[0] != 'v' {
		t.Error("users' attribute is lost")
	}
	if _, err := unix.Lgetxattr(filepath.Join(dir, "d/suid"), "trusted.k", buf); err == nil {
		t.Error("a trusted attribute was set")
	}
}

// TestWhiteouts mounts layers that take away what lower ones have.
func TestWhiteouts(t *testing.T) {
	host := peer(t, nil)
	layer := func(e ...ent) []byte { return tarOf(t, e...) }
	push(t, host+"/app:v1", imageOf(t,
		layerOf(t, compression.GZip, layer(
			ent{name: "file", body: "1"}, ent{name: "dir", typ: 'd'}, ent{name: "dir/old", body: "1"},
			ent{name: "opaque", typ: 'd'}, ent{name: "opaque/old", body: "1"},
			ent{name: "again", typ: 'd'}, ent{name: "again/old", body: "1"},
			ent{name: "before", typ: 'd'}, ent{name: "before/old", body: "1"},
			ent{name: "link", typ: 'l', body: "dir"},
			ent{name: "kept", typ: 'd'}, ent{name: "kept/old", body: "1"},
		)),
		layerOf(t, compression.GZip, layer(
			ent{name: ".wh.file"}, ent{name: "dir/.wh.old"},
			ent{name: "opaque", typ: 'd'}, ent{name: "opaque/new", body: "2"}, ent{name: "opaque/.wh..wh..opq"},
			// removed and made again, in either order
			ent{name: ".wh.again"}, ent{name: "again", typ: 'd'}, ent{name: "again/new", body: "2"},
			ent{name: "before", typ: 'd'}, ent{name: "before/new", body: "2"}, ent{name: ".wh.before"},
			ent{name: "link", typ: 'd'}, ent{name: "link/x", body: "2"},
			ent{name: ".wh..wh.plnk", typ: 'd'}, ent{name: ".wh..wh.aufs"},
			ent{name: "kept", typ: 'd'}, ent{name: "kept/new", body: "2"},
		)),
		layerOf(t, compression.GZip, layer(ent{name: "file", body: "3"})),
	))
	s := newStore(t)
	root := mustMount(t, s, mustPull(t, s, host+"/app:v1"), "c1")
	if got := read(t, root, "file"); got != "3" {
		t.Errorf("file has %q", got)
	}
	for name, want := range map[string]bool{
		"dir": true, "dir/old": false, "opaque/old": false, "opaque/new": true, "again/old": false, "again/new": true,
		"before/old": false, "before/new": true, "link/x": true, "dir/x": false, ".wh..wh.plnk": false, ".wh..wh.aufs": false,
		"kept/old": true, "kept/new": true, ".wh.file": false,
	} {
		if exists(root, name) != want {
			t.Errorf("%s exists: %v", name, !want)
		}
	}
}

// TestImpliedDirectories: a layer that names only what is in a directory leaves
// the directory as the layers below have it.
func TestImpliedDirectories(t *testing.T) {
	host := peer(t, nil)
	layer := func(e ...ent) v1.Layer { return layerOf(t, compression.GZip, tarOf(t, e...)) }
	base := layer(
		ent{name: "tmp", typ: 'd', mode: 0o1777}, ent{name: "srv", typ: 'd', mode: 0o700, uid: 7},
		ent{name: "srv/data", typ: 'd', mode: 0o770, uid: 8}, ent{name: "gone", typ: 'd', mode: 0o700}, ent{name: "usual", typ: 'd'},
		ent{name: "later", typ: 'd', mode: 0o700}, ent{name: "opaque", typ: 'd', mode: 0o700}, ent{name: "hidden", typ: 'd', mode: 0o711}, ent{name: "hidden/in", typ: 'd', mode: 0o700},
	)
	push(t, host+"/app:v1", imageOf(t, base,
		layer(ent{name: "tmp/x", body: "x"}, ent{name: "later/x", body: "x"}, ent{name: ".wh.gone"}, ent{name: "usual/x", body: "x"}, ent{name: "hidden", typ: 'd', mode: 0o750}, ent{name: "hidden/.wh..wh..opq"}),
		layer(ent{name: "srv/data/x", body: "x"}, ent{name: "later", typ: 'd', mode: 0o750}, ent{name: "gone/x", body: "x"}, ent{name: "opaque/.wh..wh..opq"}, ent{name: "opaque/x", body: "x"}, ent{name: "hidden/in/x", body: "x"}),
	))
	push(t, host+"/usual:v1", imageOf(t, base, layer(ent{name: "usual/y", body: "y"}, ent{name: "new/y", body: "y"})))
	s := newStore(t)
	img := mustPull(t, s, host+"/app:v1")
	root := mustMount(t, s, img, "c1")
	for name, want := range map[string]struct{ mode, uid uint32 }{
		"tmp": {0o1777, 0}, "srv": {0o700, 7}, "srv/data": {0o770, 8}, "gone": {0o755, 0}, "usual": {0o755, 0},
		"later": {0o750, 0}, "opaque": {0o700, 0}, "hidden": {0o750, 0}, "hidden/in": {0o755, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil || st.Mode&0o7777 != want.mode || st.Uid != want.uid {
			t.Errorf("%s: mode %o, owner %d, %v; want %o, %d", name, st.Mode&0o7777, st.Uid, err, want.mode, want.uid)
		}
	}
	for _, name := range []string{"tmp/x", "srv/data/x", "later/x", "gone/x", "opaque/x", "hidden/in/x", "usual/x"} {
		if read(t, root, name) != "x" {
			t.Errorf("%s is lost", name)
		}
	}
	if n := len(s.cat.byID[img.ID].Layers); n != 4 {
		t.Errorf("%d layers", n)
	}
	if n := len(s.cat.byID[mustPull(t, s, host+"/usual:v1").ID].Layers); n != 2 {
		t.Errorf("an image that needs no repair has %d layers", n)
	}
	if again := mustPull(t, s, host+"/app:v1"); again.ID != img.ID {
		t.Error("pulled again, it is another image")
	}
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	for _, i := range s.List() {
		if err := s.Remove(t.Context(), i.ID); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t, s)
}

// FuzzUntar: whatever an archive names, nothing outside the directory changes.
func FuzzUntar(f *testing.F) {
	f.Add("a/../../x", "../../..", "l/outside", byte('l'), byte('-'))
	f.Add("l", "/", "l/etc/passwd", byte('l'), byte('-'))
	f.Add(".wh.x", "", "x/.wh..wh..opq", byte('-'), byte('-'))
	f.Add("a", "b", "a", byte('d'), byte('h'))
	f.Add("a/b/c", "../../../../", "a/b/c/d", byte('l'), byte('d'))
	f.Fuzz(func(t *testing.T, name1, link, name2 string, typ1, typ2 byte) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		flags := map[byte]byte{'l': tar.TypeSymlink, 'h': tar.TypeLink, 'd': tar.TypeDir, 'p': tar.TypeFifo}
		for i, name := range []string{name1, name2, name2} {
			h := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}
			if typ := []byte{typ1, typ2, '-'}[i]; flags[typ] != 0 {
				h.Typeflag, h.Linkname = flags[typ], link
			}
			if h.Typeflag == tar.TypeReg {
				h.Size = 1
			}
			if w.WriteHeader(h) != nil {
				return
			}
			w.Write(make([]byte, h.Size))
		}
		w.Close()
		unpack(t, b.Bytes())
	})
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c", "h:5000/x@sha256:" + strings.Repeat("0", 64), "UPPER", "../..", "h/..", "a//b", "[::1]:5000/x", ":", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			if ReasonOf(err) != ReasonInvalidName {
				t.Errorf("%q: reason %s", s, ReasonOf(err))
			}
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("%q is %q, which is %q, %v", s, r, again, err)
		}
		for part := range strings.SplitSeq(r.Path(), "/") {
			if part == "" || part == "." || part == ".." {
				t.Errorf("%q has path %q", s, r.Path())
			}
		}
	})
}
