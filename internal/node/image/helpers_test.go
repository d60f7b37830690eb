// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// newStore opens a store that is closed, with nothing mounted, at the end.
func newStore(t testing.TB, opts ...func(*Options)) *Store {
	t.Helper()
	s := openStore(t, t.TempDir(), opts...)
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func openStore(t testing.TB, dir string, opts ...func(*Options)) *Store {
	t.Helper()
	o := Options{Dir: dir, Stall: 2 * time.Second, ReserveBytes: 1}
	for _, set := range opts {
		set(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.backoff = 5 * time.Millisecond
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	for _, m := range s.Mounts() {
		if err := s.Unmount(t.Context(), m.Key); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), s.opts.Dir) {
		t.Errorf("mounts are left under %s", s.opts.Dir)
	}
}

// peer is a registry of other people, in this process.
func peer(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// ent is an entry of a layer.
type ent struct {
	name  string
	typ   byte // '-' file (default), 'd', 'l' symlink, 'h' hard link, 'c', 'p'
	body  string
	mode  int64
	uid   int
	xattr map[string]string
	dev   int64
}

func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.uid, ModTime: time.Unix(1_600_000_000, 0), Format: tar.FormatPAX}
		switch e.typ {
		case 'd':
			h.Typeflag = tar.TypeDir
		case 'l':
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.body
		case 'h':
			h.Typeflag, h.Linkname = tar.TypeLink, e.body
		case 'c':
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, e.dev>>8, e.dev&255
		case 'p':
			h.Typeflag = tar.TypeFifo
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if e.typ == 'd' {
				h.Mode = 0o755
			}
		}
		for k, v := range e.xattr {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrRecord+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, e.body)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, c compression.Compression, raw []byte) v1.Layer {
	t.Helper()
	mt := types.OCILayer
	if c == compression.ZStd {
		mt = types.OCILayerZStd
	} else if c == compression.None {
		mt = types.OCIUncompressedLayer
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithCompression(c), tarball.WithMediaType(mt))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	p := thisPlatform()
	cf.OS, cf.Architecture = p.OS, p.Architecture
	cf.Config = v1.Config{
		Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"A=1"}, User: "65532", WorkingDir: "/srv",
		StopSignal: "SIGINT", ExposedPorts: map[string]struct{}{"8080/tcp": {}}, Labels: map[string]string{"l": "v"},
	}
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func simpleImage(t testing.TB, files ...ent) v1.Image {
	return imageOf(t, layerOf(t, compression.GZip, tarOf(t, files...)))
}

func push(t testing.TB, ref string, what any) string {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	var d v1.Hash
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(r, w)
		d, _ = w.Digest()
	case v1.ImageIndex:
		err = remote.WriteIndex(r, w)
		d, _ = w.Digest()
	}
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func mustPull(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func mustMount(t testing.TB, s *Store, img Image, key string) string {
	t.Helper()
	root, _, err := s.Mount(t.Context(), img, key)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func read(t testing.TB, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func exists(elem ...string) bool {
	_, err := os.Lstat(filepath.Join(elem...))
	return err == nil
}

// nothingLeft checks that a failed pull has left nothing that could be taken
// for an image.
func nothingLeft(t testing.TB, s *Store) {
	t.Helper()
	for _, dir := range []string{"layers", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.opts.Dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s/%s is left", dir, e.Name())
		}
	}
	if all := s.List(); len(all) > 0 {
		t.Errorf("images are listed: %v", all)
	}
}
