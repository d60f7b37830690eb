// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Load adds the images in an OCI layout directory, an OCI archive or a docker
// archive, and gives names to an image that has none of its own.
func (s *Store) Load(ctx context.Context, path string, names ...string) ([]Image, error) {
	imgs, err := s.load(ctx, path, names)
	if err != nil {
		return imgs, fmt.Errorf("loading images from %s: %w", path, err)
	}
	return imgs, nil
}

func (s *Store) load(ctx context.Context, path string, names []string) ([]Image, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return s.loadFiles(ctx, layout{root}, names)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return s.loadArchive(ctx, f, names)
}

// LoadReader is Load for an archive that arrives as a stream.
func (s *Store) LoadReader(ctx context.Context, r io.Reader, names ...string) ([]Image, error) {
	f, err := s.spool(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("loading images: %w", err)
	}
	defer discard(f)
	imgs, err := s.loadArchive(ctx, f, names)
	if err != nil {
		return imgs, fmt.Errorf("loading images: %w", err)
	}
	return imgs, nil
}

// spool writes a stream to a file that has no name for long.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(s.tmpDir(), "archive-")
	if err != nil {
		return nil, err
	}
	for {
		_, err = io.CopyN(f, r, 16<<20)
		if err == nil {
			err = errors.Join(ctx.Err(), checkSpace(s.tmpDir(), s.opts.ReserveBytes))
		}
		if err == io.EOF {
			_, err = f.Seek(0, io.SeekStart)
			return f, err
		}
		if err != nil {
			discard(f)
			return nil, err
		}
	}
}

func discard(f *os.File) {
	f.Close()
	os.Remove(f.Name()) // what stays goes when the store is opened
}

func (s *Store) loadArchive(ctx context.Context, f *os.File, names []string) ([]Image, error) {
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: not an archive: %w", ErrCorrupt, err)
	}
	if bytes.HasPrefix(head, magicGzip) || bytes.HasPrefix(head, magicZstd) {
		zr, err := decompress(f)
		if err != nil {
			return nil, err
		}
		defer zr.Close()
		plain, err := s.spool(ctx, zr)
		if err != nil {
			return nil, err
		}
		defer discard(plain)
		f = plain
	}
	a, err := openArchive(f)
	if err != nil {
		return nil, err
	}
	return s.loadFiles(ctx, a, names)
}

// files is a set of files, in a directory or in an archive.
type files interface {
	open(name string) (io.ReadCloser, int64, error)
}

func (s *Store) loadFiles(ctx context.Context, fsys files, names []string) ([]Image, error) {
	index, err := readFile(fsys, "index.json", maxManifest)
	if err == nil {
		return s.loadOCI(ctx, fsys, index, names)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list, err := readFile(fsys, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("neither an OCI layout (index.json) nor a docker archive (manifest.json)")
	}
	if err != nil {
		return nil, err
	}
	return s.loadDocker(ctx, fsys, list, names)
}

func readFile(fsys files, name string, max int64) ([]byte, error) {
	f, size, err := fsys.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > max {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, name, max)
	}
	return io.ReadAll(io.LimitReader(f, max))
}

func (s *Store) loadOCI(ctx context.Context, fsys files, index []byte, names []string) ([]Image, error) {
	m, err := parseManifest(index)
	if err != nil {
		return nil, err
	}
	b := ociBlobs(fsys)
	var done []Image
	var foreign error
	for _, d := range m.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		r, err := b.resolve(ctx, d.Digest, 0)
		if errors.Is(err, ErrPlatform) {
			foreign = err
			continue
		}
		if err != nil {
			return done, err
		}
		refs, err := loadedRefs(or(d.Annotations["io.containerd.image.name"], fullName(d.Annotations["org.opencontainers.image.ref.name"])), r, names)
		if err != nil {
			return done, err
		}
		img, err := s.install(ctx, r, b, refs, func(Progress) {})
		if err != nil {
			return done, err
		}
		done = append(done, img)
	}
	if len(done) == 0 {
		return nil, errors.Join(errors.New("no image for this machine"), foreign)
	}
	return done, nil
}

// fullName is a name that is more than a tag; layouts have either.
func fullName(s string) string {
	if strings.ContainsAny(s, "/:") {
		return s
	}
	return ""
}

func loadedRefs(own string, r resolved, names []string) ([]string, error) {
	if own != "" {
		names = []string{own}
	}
	var refs []string
	for _, n := range names {
		ref, err := ParseRef(n)
		if err != nil {
			return nil, err
		}
		if ref.digest != "" {
			return nil, fmt.Errorf("%q: a name with a digest cannot be given", n)
		}
		refs = append(refs, ref.String())
		for _, d := range []string{r.named, r.manifest} {
			if d != "" {
				refs = append(refs, ref.Repository()+"@"+d)
			}
		}
	}
	return refs, nil
}

// ociBlobs are the blobs of an OCI layout, where a file's name is its digest.
func ociBlobs(fsys files) blobs {
	read := func(_ context.Context, digest string, max int64) ([]byte, error) {
		b, err := readFile(fsys, blobPath(digest), max)
		if err == nil && digestOf(b) != digest {
			err = fmt.Errorf("%w: blob %s is %s", ErrCorrupt, digest, digestOf(b))
		}
		return b, err
	}
	return blobs{
		manifest: func(ctx context.Context, d string) ([]byte, error) { return read(ctx, d, maxManifest) },
		config:   func(ctx context.Context, d string) ([]byte, error) { return read(ctx, d, maxConfig) },
		layer: func(_ context.Context, d descriptor, _ func(Status, int64)) (io.ReadCloser, error) {
			f, _, err := fsys.open(blobPath(d.Digest))
			return f, err
		},
	}
}

// blobPath is where a layout has a blob; digests have been checked before.
func blobPath(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, sha256Prefix)
}

// dockerImage is an entry of a docker archive's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Store) loadDocker(ctx context.Context, fsys files, list []byte, names []string) ([]Image, error) {
	var all []dockerImage
	if err := json.Unmarshal(list, &all); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrCorrupt, err)
	}
	var done []Image
	for _, d := range all {
		img, err := s.loadDockerImage(ctx, fsys, d, names)
		if err != nil {
			return done, err
		}
		done = append(done, img)
	}
	return done, nil
}

func (s *Store) loadDockerImage(ctx context.Context, fsys files, d dockerImage, names []string) (Image, error) {
	raw, err := readFile(fsys, d.Config, maxConfig)
	if err != nil {
		return Image{}, err
	}
	if len(d.Layers) > maxLayers {
		return Image{}, fmt.Errorf("%w: image has %d layers", ErrTooLarge, len(d.Layers))
	}
	c, err := parseConfig(raw, len(d.Layers))
	if err != nil {
		return Image{}, err
	}
	r := resolved{configID: digestOf(raw), config: c}
	if len(d.RepoTags) > 0 {
		names = d.RepoTags
	}
	refs, err := loadedRefs("", r, names)
	if err != nil {
		return Image{}, err
	}
	// The archive names files where a registry names digests: what they unpack
	// to is checked all the same.
	r.layers = make([]descriptor, len(d.Layers))
	for i, file := range d.Layers {
		r.layers[i] = descriptor{Size: -1, Annotations: map[string]string{"file": file}}
	}
	b := blobs{layer: func(_ context.Context, l descriptor, _ func(Status, int64)) (io.ReadCloser, error) {
		f, _, err := fsys.open(l.Annotations["file"])
		return f, err
	}}
	return s.install(ctx, r, b, refs, func(Progress) {})
}

// A layout is a directory; its links do not lead out of it.
type layout struct{ root *os.Root }

func (l layout) open(name string) (io.ReadCloser, int64, error) {
	f, err := l.root.Open(filepath.FromSlash(local(name)))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// An archive is a tar file that is read at random.
type archive struct {
	f       *os.File
	entries map[string]archived
}

type archived struct {
	offset, size int64
	link         string
}

const (
	maxArchived = 100_000
	maxLinks    = 8
)

func openArchive(f *os.File) (*archive, error) {
	a := &archive{f: f, entries: map[string]archived{}}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading archive: %w", badStream(err))
		}
		if len(a.entries) == maxArchived {
			return nil, fmt.Errorf("%w: archive has more than %d files", ErrTooLarge, maxArchived)
		}
		if err := a.add(h); err != nil {
			return nil, err
		}
	}
}

// add notes where a file's bytes are: the reader stands right before them.
func (a *archive) add(h *tar.Header) error {
	name := local(h.Name)
	switch h.Typeflag {
	case tar.TypeReg:
		if isSparse(h) {
			return fmt.Errorf("%w: archive has a sparse file", ErrUnsafe)
		}
		at, err := a.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		a.entries[name] = archived{offset: at, size: h.Size}
	case tar.TypeSymlink:
		a.entries[name] = archived{link: path.Join(path.Dir(name), h.Linkname)}
	case tar.TypeLink:
		a.entries[name] = archived{link: h.Linkname}
	}
	return nil
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	for range maxLinks {
		e, ok := a.entries[local(name)]
		if !ok {
			break
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(a.f, e.offset, e.size)), e.size, nil
		}
		name = e.link
	}
	return nil, 0, &fs.PathError{Op: "open", Path: clip(name, 256), Err: fs.ErrNotExist}
}
