// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A layerSource is a layer that is not here yet.
type layerSource struct {
	diffID string // of the uncompressed bytes
	digest string // of the bytes that open gives; empty when nothing says
	size   int64  // of the bytes that open gives
	open   func(ctx context.Context, report func(Progress)) (io.ReadCloser, error)
}

const sha256Prefix = "sha256:"

// checkDigest makes a digest safe to be a file name.
func checkDigest(d string) error {
	h, ok := strings.CutPrefix(d, sha256Prefix)
	if !ok {
		return fmt.Errorf("digest %q is not a sha256 digest", clip(d, 80))
	}
	if len(h) != 64 || strings.Trim(h, "0123456789abcdef") != "" {
		return fmt.Errorf("malformed digest %q", clip(d, 80))
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return sha256Prefix + hex.EncodeToString(sum[:])
}

func digestSum(h hash.Hash) string { return sha256Prefix + hex.EncodeToString(h.Sum(nil)) }

func (s *Store) layerDir(diffID string) string {
	return filepath.Join(s.opts.Dir, "layers", strings.TrimPrefix(diffID, sha256Prefix))
}

// layerFS is the directory that overlayfs is given.
func (s *Store) layerFS(diffID string) string { return filepath.Join(s.layerDir(diffID), "fs") }

// layer tells what an unpacked layer holds.
func (s *Store) layer(diffID string) (unpacked, error) {
	var u unpacked
	b, err := os.ReadFile(filepath.Join(s.layerDir(diffID), "layer.json"))
	if err != nil {
		return u, err
	}
	return u, json.Unmarshal(b, &u)
}

// ensureLayer unpacks a layer unless it is here. Images that share a layer and
// are pulled at the same time share the work.
func (s *Store) ensureLayer(ctx context.Context, l layerSource, report func(Progress)) error {
	if _, err := s.layer(l.diffID); err == nil {
		report(Progress{Layer: l.digest, Status: StatusExists, Done: l.size, Total: l.size})
		return nil
	}
	if err := s.shareLayer(ctx, l, report); err != nil {
		return fmt.Errorf("layer %s: %w", or(l.digest, l.diffID), err)
	}
	return nil
}

func (s *Store) shareLayer(ctx context.Context, l layerSource, report func(Progress)) error {
	_, err := s.layers.do(ctx, l.diffID, report, func(ctx context.Context, report func(Progress)) (struct{}, error) {
		if _, err := s.layer(l.diffID); err == nil { // unpacked while we came here
			return struct{}{}, nil
		}
		if err := s.slot(ctx); err != nil {
			return struct{}{}, err
		}
		defer s.freeSlot()
		return struct{}{}, s.unpackLayer(ctx, l, report)
	})
	return err
}

// unpackLayer unpacks a layer beside the store, checks it and moves it in.
func (s *Store) unpackLayer(ctx context.Context, l layerSource, report func(Progress)) (err error) {
	tmp, err := os.MkdirTemp(s.tmpDir(), "layer-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	fs := filepath.Join(tmp, "fs")
	if err := errors.Join(os.Mkdir(fs, 0o755), os.Chmod(fs, 0o755)); err != nil {
		return err
	}
	u, err := s.fillLayer(ctx, l, fs, report)
	if err != nil {
		return err
	}
	if err := s.sealLayer(tmp, u, l.diffID); err != nil {
		return err
	}
	report(Progress{Layer: l.digest, Status: StatusUnpacked, Done: l.size, Total: l.size})
	return nil
}

// fillLayer unpacks a layer into dir and checks both of its digests.
func (s *Store) fillLayer(ctx context.Context, l layerSource, dir string, report func(Progress)) (*untarrer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src, err := l.open(ctx, report)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	packed, plain := sha256.New(), sha256.New()
	counted := &counter{r: io.TeeReader(src, packed)}
	u, err := s.fillFrom(ctx, cancel, counted, plain, dir)
	if counted.err != nil && counted.err != io.EOF {
		return nil, counted.err // what went wrong after that is its doing
	}
	if err != nil {
		return nil, err
	}
	return u, l.check(counted.n, packed, plain)
}

func (s *Store) fillFrom(ctx context.Context, cancel func(), src io.Reader, plain hash.Hash, dir string) (*untarrer, error) {
	zr, err := decompress(src)
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	lim := s.limits()
	// The end of a tar is not the end of the stream: what follows counts too.
	whole := &bounded{r: zr, left: lim.bytes + int64(lim.entries)*1024}
	ahead := newReadAhead(io.TeeReader(whole, plain))
	defer func() {
		cancel() // the reader below may be waiting for the network
		ahead.Close()
	}()
	u, err := untar(ctx, ahead, dir, lim)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, ahead); err != nil {
		return nil, badStream(err)
	}
	_, err = io.Copy(io.Discard, src)
	return u, err
}

// badStream is for what a decompressor or tar reader says of its input.
func badStream(err error) error {
	if errors.Is(err, ErrTooLarge) || errors.Is(err, ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

func (l layerSource) check(n int64, packed, plain hash.Hash) error {
	if l.size >= 0 && n != l.size {
		return fmt.Errorf("%w: it has %d bytes, the manifest says %d", ErrCorrupt, n, l.size)
	}
	if got := digestSum(packed); l.digest != "" && got != l.digest {
		return fmt.Errorf("%w: it arrived as %s", ErrCorrupt, got)
	}
	if got := digestSum(plain); got != l.diffID {
		return fmt.Errorf("%w: it unpacks to %s, the image says %s", ErrCorrupt, got, l.diffID)
	}
	return nil
}

// sealLayer writes a layer to the disk and only then makes it visible.
func (s *Store) sealLayer(tmp string, u *untarrer, diffID string) error {
	meta, err := json.Marshal(u.out)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), meta, 0o600); err != nil {
		return err
	}
	if err := syncTree(tmp, u); err != nil {
		return fmt.Errorf("writing layer to disk: %w", err)
	}
	if err := os.Rename(tmp, s.layerDir(diffID)); err != nil {
		return err
	}
	return syncPath(filepath.Join(s.opts.Dir, "layers"))
}

// syncOneByOne is up to how many files a tree is synced file by file. Above it
// one syncfs is cheaper, although it also waits for what others have written.
const syncOneByOne = 32

func syncTree(tmp string, u *untarrer) error {
	fs := filepath.Join(tmp, "fs")
	if len(u.first) > syncOneByOne || len(u.dirs) > syncOneByOne {
		return syncFS(fs)
	}
	tree, err := confine(fs)
	if err != nil {
		return err
	}
	defer tree.Close()
	names := append([]string{"."}, u.first...)
	for d := range u.dirs {
		names = append(names, d)
	}
	for _, name := range names {
		f, err := tree.open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return syncFS(fs) // a later entry took its place
		}
		err = errors.Join(f.Sync(), f.Close())
		if err != nil {
			return err
		}
	}
	return errors.Join(syncPath(filepath.Join(tmp, "layer.json")), syncPath(tmp))
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// A counter counts what is read and keeps the error that ended it.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

// A bounded reader fails when there is more to read than left.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("%w: layer is larger than it may be", ErrTooLarge)
	}
	return n, err
}
