// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bytes"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// noise is a layer of 1 MiB that does not get smaller when packed.
func noise(t *testing.T, seed string) v1.Layer {
	t.Helper()
	h := fnv.New64()
	_, _ = io.WriteString(h, seed)
	content := make([]byte, 1<<20)
	for r, i := rand.New(rand.NewPCG(h.Sum64(), 1)), 0; i < len(content); i++ {
		content[i] = byte(r.Uint32())
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "noise", Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(content)
	_ = w.Close()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return layer
}
