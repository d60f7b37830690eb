// SPDX-License-Identifier: Apache-2.0

// Package shell makes an image with a shell and a tool for the pods of scenarios.
//
// Law: nothing is fetched from a registry: the shell is the machine's busybox.
package shell

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const busybox = "/bin/busybox"

// Image has busybox with all its commands, test/shell/tool as /bin/tool, and a user app (1000).
var Image = sync.OnceValues(build)

// Archive writes the image as a docker archive under the given names.
func Archive(path string, names ...string) error {
	img, err := Image()
	if err != nil {
		return err
	}
	return WriteArchive(path, img, names...)
}

// With is the image with one more small file, so that its digest differs.
func With(file, content string) (v1.Image, error) {
	img, err := Image()
	if err != nil {
		return nil, err
	}
	layer, err := layerOf(func(w *tar.Writer) error {
		return add(w, tar.Header{Name: file, Mode: 0o644}, []byte(content))
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

func build() (v1.Image, error) {
	if err := install(); err != nil {
		return nil, err
	}
	tool, err := buildTool()
	if err != nil {
		return nil, err
	}
	layer, err := layerOf(func(w *tar.Writer) error { return fill(w, tool) })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux",
		RootFS: rootFS(img),
		Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"}},
	})
}

func rootFS(img v1.Image) v1.RootFS {
	if c, err := img.ConfigFile(); err == nil {
		return c.RootFS
	}
	return v1.RootFS{Type: "layers"}
}

// install brings busybox where it is missing.
func install() error {
	if _, err := os.Stat(busybox); err == nil {
		return nil
	}
	out, err := exec.Command("sh", "-c", "apt-get install -y busybox-static || { apt-get update && apt-get install -y busybox-static; }").CombinedOutput()
	if err != nil {
		return fmt.Errorf("a static busybox is needed at %s: %w\n%s", busybox, err, out)
	}
	return nil
}

func buildTool() ([]byte, error) {
	dir, err := os.MkdirTemp("", "sonagi-tool-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "tool"), "./tool")
	cmd.Dir, cmd.Env = filepath.Dir(here), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the tool: %w\n%s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "tool"))
}

// fill writes the file system.
func fill(w *tar.Writer, tool []byte) error {
	box, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	for _, dir := range []struct {
		name string
		mode int64
	}{{"bin/", 0o755}, {"etc/", 0o755}, {"tmp/", 0o1777}, {"root/", 0o700}, {"srv/", 0o777}, {"usr/", 0o755}, {"var/", 0o755}} {
		if err := add(w, tar.Header{Name: dir.name, Mode: dir.mode, Typeflag: tar.TypeDir}, nil); err != nil {
			return err
		}
	}
	files := map[string][]byte{
		"bin/busybox": box, "bin/tool": tool,
		"etc/passwd": []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/srv:/bin/sh\n"),
		"etc/group":  []byte("root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
	}
	for name, content := range files {
		if err := add(w, tar.Header{Name: name, Mode: 0o755}, content); err != nil {
			return err
		}
	}
	for _, name := range strings.Fields(string(list)) {
		if name == "busybox" || strings.Contains(name, "/") {
			continue
		}
		if err := add(w, tar.Header{Name: "bin/" + name, Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil); err != nil {
			return err
		}
	}
	return nil
}

func add(w *tar.Writer, h tar.Header, content []byte) error {
	h.Size = int64(len(content))
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func layerOf(write func(*tar.Writer) error) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := write(w); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}
