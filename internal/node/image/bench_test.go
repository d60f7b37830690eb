// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
)

// bigLayer is like a language's runtime: many small files, some large ones,
// half of it compressible.
func bigLayer(b testing.TB, small int, large int) []byte {
	b.Helper()
	r := rand.New(rand.NewSource(1))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	write := func(name string, size int) {
		body := make([]byte, size)
		r.Read(body[:size/2])
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg})
		w.Write(body)
	}
	for i := range small {
		if i%20 == 0 {
			w.WriteHeader(&tar.Header{Name: fmt.Sprintf("lib/d%d/", i/20), Mode: 0o755, Typeflag: tar.TypeDir})
		}
		write(fmt.Sprintf("lib/d%d/f%d", i/20, i), 4096+r.Intn(16<<10))
	}
	for i := range large {
		write(fmt.Sprintf("bin%d", i), 20<<20)
	}
	w.Close()
	return buf.Bytes()
}

// BenchmarkUnpack unpacks a zipped layer of 4,000 small and 4 large files,
// checked and on the disk at the end, beside what tar does without either.
func BenchmarkUnpack(b *testing.B) {
	raw := bigLayer(b, 4000, 4)
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(raw)
	zw.Close()
	file := filepath.Join(b.TempDir(), "layer.tgz")
	if err := os.WriteFile(file, zipped.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	b.Run("sonagi", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		s := newStore(b)
		src := layerSource{diffID: digestOf(raw), digest: digestOf(zipped.Bytes()), size: int64(zipped.Len()), open: openFile(file)}
		for b.Loop() {
			if err := s.ensureLayer(b.Context(), src, func(Progress) {}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			os.RemoveAll(s.layerDir(src.diffID))
			b.StartTimer()
		}
	})
	b.Run("sonagi-unsynced", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		s := newStore(b)
		src := layerSource{diffID: digestOf(raw), digest: digestOf(zipped.Bytes()), size: int64(zipped.Len()), open: openFile(file)}
		for b.Loop() {
			dir, _ := os.MkdirTemp(s.tmpDir(), "x")
			if _, err := s.fillLayer(b.Context(), src, dir, func(Progress) {}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			os.RemoveAll(dir)
			b.StartTimer()
		}
	})
	for name, script := range map[string]string{"tar": "tar xzf %s -C %s", "tar-synced": "tar xzf %s -C %s && sync -f %[2]s"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				if out, err := exec.Command("sh", "-c", fmt.Sprintf(script, file, dir)).CombinedOutput(); err != nil {
					b.Fatalf("%s", out)
				}
				b.StopTimer()
				os.RemoveAll(dir)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkMount(b *testing.B) {
	host := peer(b, nil)
	for _, layers := range []int{1, 10, 100} {
		push(b, fmt.Sprintf("%s/app:v%d", host, layers), manyLayers(b, layers))
		for _, spare := range []bool{false, true} {
			b.Run(fmt.Sprintf("layers=%d/spare=%v", layers, spare), func(b *testing.B) {
				s := newStore(b)
				img := mustPull(b, s, fmt.Sprintf("%s/app:v%d", host, layers))
				for b.Loop() {
					b.StopTimer()
					if !spare {
						s.mu.Lock()
						var dirs []string
						for dir := s.takeSpare(img.ID); dir != ""; dir = s.takeSpare(img.ID) {
							dirs = append(dirs, dir)
						}
						s.mu.Unlock()
						s.sweep(dirs, nil)
					} else if err := s.makeSpare(img.ID); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					if _, _, err := s.Mount(b.Context(), img, "k"); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := s.Unmount(b.Context(), "k"); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}

func BenchmarkUnmount(b *testing.B) {
	host := peer(b, nil)
	push(b, host+"/app:v1", manyLayers(b, 3))
	s := newStore(b)
	img := mustPull(b, s, host+"/app:v1")
	for b.Loop() {
		b.StopTimer()
		mustMount(b, s, img, "k")
		b.StartTimer()
		if err := s.Unmount(b.Context(), "k"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPullHello pulls an image like the sample's: one binary of 6 MB.
func BenchmarkPullHello(b *testing.B) {
	host := peer(b, nil)
	push(b, host+"/hello:v1", imageOf(b, layerOf(b, compression.GZip, bigLayer(b, 10, 0)), layerOf(b, compression.GZip, tarOf(b, ent{name: "app", body: string(bigLayer(b, 0, 1)[:6<<20])}))))
	s := newStore(b)
	for b.Loop() {
		img := mustPull(b, s, host+"/hello:v1")
		b.StopTimer()
		if err := s.Remove(b.Context(), img.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func openFile(path string) func(context.Context, func(Progress)) (io.ReadCloser, error) {
	return func(context.Context, func(Progress)) (io.ReadCloser, error) { return os.Open(path) }
}
