// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func twoLayers(t testing.TB) v1.Image {
	return imageOf(t, layerOf(t, compression.GZip, tarOf(t, ent{name: "a", body: "1"}, ent{name: "b", body: "1"})),
		layerOf(t, compression.ZStd, tarOf(t, ent{name: "a", body: "2"})))
}

// layoutOf writes an OCI layout, with annotations for its image.
func layoutOf(t testing.TB, img v1.Image, annotations map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	p, err := ocilayout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, ocilayout.WithAnnotations(annotations)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tarDir packs a directory.
func tarDir(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return b.Bytes()
}

func TestLoad(t *testing.T) {
	img := twoLayers(t)
	id, _ := img.ConfigName()
	digest, _ := img.Digest()
	dir := layoutOf(t, img, map[string]string{"org.opencontainers.image.ref.name": "example.com/team/app:v1"})
	bare := layoutOf(t, img, map[string]string{"org.opencontainers.image.ref.name": "v1"})
	containerd := layoutOf(t, img, map[string]string{"org.opencontainers.image.ref.name": "v1", "io.containerd.image.name": "docker.io/library/app:v1"})
	idx := t.TempDir()
	p := thisPlatform()
	ocilayout.Write(idx, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add:        mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture}}}),
		Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": "example.com/multi:v1"}},
	}))
	file := func(name string, b []byte) string {
		at := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(at, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return at
	}
	var docker bytes.Buffer
	tag, _ := name.NewTag("example.com/docker:v2")
	if err := tarball.Write(tag, img, &docker); err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(docker.Bytes())
	zw.Close()
	tests := []struct {
		name, path string
		names      []string
		refs       []string
	}{
		{"layout", dir, nil, []string{"example.com/team/app:v1", "example.com/team/app@" + digest.String()}},
		{"layout without a name", bare, nil, nil},
		{"layout that is named", bare, []string{"given"}, []string{"docker.io/library/given:latest", "docker.io/library/given@" + digest.String()}},
		{"layout of containerd", containerd, nil, []string{"docker.io/library/app:v1", "docker.io/library/app@" + digest.String()}},
		{"archive of a layout", file("oci.tar", tarDir(t, dir)), nil, []string{"example.com/team/app:v1", "example.com/team/app@" + digest.String()}},
		{"docker archive", file("docker.tar", docker.Bytes()), nil, []string{"example.com/docker:v2"}},
		{"docker archive, zipped", file("docker.tgz", zipped.Bytes()), nil, []string{"example.com/docker:v2"}},
		{"docker archive of old, with links", file("old.tar", oldDocker(t, img)), nil, []string{"docker.io/library/old:v0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			got, err := s.Load(t.Context(), tt.path, tt.names...)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ID != id.String() || !slices.Equal(got[0].Refs, tt.refs) {
				t.Fatalf("got %+v", got)
			}
			root := mustMount(t, s, got[0], "c1")
			if read(t, root, "a") != "2" || read(t, root, "b") != "1" {
				t.Error("the layers are not as they were")
			}
			if left, _ := os.ReadDir(s.tmpDir()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	t.Run("index in a layout", func(t *testing.T) {
		got, err := newStore(t).Load(t.Context(), idx)
		if err != nil || len(got) != 1 || len(got[0].Digests()) != 2 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("stream", func(t *testing.T) {
		got, err := newStore(t).LoadReader(t.Context(), &docker)
		if err != nil || len(got) != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// oldDocker is an archive as docker once wrote them: plain layers, some of
// which are links to others.
func oldDocker(t testing.TB, img v1.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, body []byte) {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(body)), Typeflag: tar.TypeReg})
		w.Write(body)
	}
	layers, _ := img.Layers()
	var files []string
	for i, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(r)
		add(fmt.Sprintf("real%d/layer.tar", i), raw)
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("l%d/layer.tar", i), Typeflag: tar.TypeSymlink, Linkname: fmt.Sprintf("../real%d/layer.tar", i)})
		files = append(files, fmt.Sprintf("l%d/layer.tar", i))
	}
	config, _ := img.RawConfigFile()
	add("config.json", config)
	list, _ := json.Marshal([]dockerImage{{Config: "config.json", RepoTags: []string{"old:v0"}, Layers: files}})
	add("manifest.json", list)
	w.Close()
	return b.Bytes()
}

func TestLoadOfWhatIsNoImage(t *testing.T) {
	img := twoLayers(t)
	layers, _ := img.Layers()
	first, _ := layers[0].Digest()
	broken := layoutOf(t, img, nil)
	blob := filepath.Join(broken, "blobs/sha256", first.Hex)
	b, _ := os.ReadFile(blob)
	b[len(b)/2] ^= 1
	os.WriteFile(blob, b, 0o600)

	escaping := layoutOf(t, img, nil)
	blob = filepath.Join(escaping, "blobs/sha256", first.Hex)
	os.Rename(blob, filepath.Join(t.TempDir(), "elsewhere"))
	os.Symlink("/etc/passwd", blob)

	manifest := func(list string) []byte { return tarOf(t, ent{name: "manifest.json", body: list}) }
	tests := map[string]struct {
		raw  []byte
		dir  string
		kind error
	}{
		"layer of other bytes":     {dir: broken, kind: ErrCorrupt},
		"blob that leads out":      {dir: escaping},
		"empty directory":          {dir: t.TempDir()},
		"nothing there":            {dir: "/none/such", kind: os.ErrNotExist},
		"not an archive":           {raw: []byte(strings.Repeat("words ", 200)), kind: ErrCorrupt},
		"a byte":                   {raw: []byte("x"), kind: ErrCorrupt},
		"other archive":            {raw: tarOf(t, ent{name: "readme"})},
		"list that is not one":     {raw: manifest("{"), kind: ErrCorrupt},
		"config that is not there": {raw: manifest(`[{"Config":"../../../etc/passwd","Layers":[]}]`), kind: os.ErrNotExist},
		"links in a circle":        {raw: tarOf(t, ent{name: "manifest.json", typ: 'l', body: "m"}, ent{name: "m", typ: 'l', body: "manifest.json"})},
		"huge list":                {raw: tarOf(t, ent{name: "index.json", body: strings.Repeat(" ", maxManifest+1)}), kind: ErrTooLarge},
		"index of nothing":         {raw: tarOf(t, ent{name: "index.json", body: `{"manifests":[]}`})},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			var err error
			if tt.raw != nil {
				_, err = s.LoadReader(t.Context(), bytes.NewReader(tt.raw))
			} else {
				_, err = s.Load(t.Context(), tt.dir)
			}
			if err == nil || tt.kind != nil && !errors.Is(err, tt.kind) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
			if all := s.List(); len(all) > 0 {
				t.Errorf("images are listed: %v", all)
			}
			if left, _ := os.ReadDir(s.tmpDir()); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
