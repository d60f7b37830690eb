// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Progress is how far a pull is.
type Progress struct {
	Ref    string
	Layer  string // digest of the layer, empty for the image as a whole
	Status Status
	Done   int64 // compressed bytes
	Total  int64
}

// A Status is what is being done to a layer or an image.
type Status string

const (
	StatusResolving   Status = "resolving"
	StatusDownloading Status = "downloading"
	StatusExists      Status = "already exists"
	StatusRetrying    Status = "retrying"
	StatusUnpacked    Status = "unpacked"
	StatusDone        Status = "done"
)

// Pull makes the image that ref names present, and up to date if it is a
// tag. Pulls of the same name with the same credentials at the same time are
// one. Progress is called from several
// goroutines, one at a time, and not after Pull has returned.
func (s *Store) Pull(ctx context.Context, ref string, creds Credentials, progress func(Progress)) (Image, error) {
	name, err := ParseRef(ref)
	if err != nil {
		return Image{}, err
	}
	logins := creds.For(name.Repository())
	img, err := s.pulls.do(ctx, name.String()+" "+fingerprint(logins), progress, func(ctx context.Context, report func(Progress)) (Image, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(s.ended, func() { cancel(ErrClosed) })()
		return s.pull(ctx, name, logins, func(p Progress) { p.Ref = name.String(); report(p) })
	})
	if err != nil {
		return Image{}, &Error{Ref: ref, Reason: ReasonPull, Err: err}
	}
	return img, nil
}

// fingerprint keeps pulls with different logins apart: one must not get what
// only the other may have.
func fingerprint(logins []Credential) string {
	b, _ := json.Marshal(logins) // strings only
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// pull tries the logins in turn, or none when there is none.
func (s *Store) pull(ctx context.Context, ref Ref, logins []Credential, report func(Progress)) (Image, error) {
	tries := []*Credential{nil}
	if len(logins) > 0 {
		tries = nil
		for i := range logins {
			tries = append(tries, &logins[i])
		}
	}
	var failed []error
	for _, login := range tries {
		img, err := s.pullAs(ctx, ref, login, report)
		if err == nil {
			report(Progress{Status: StatusDone, Done: img.Size, Total: img.Size})
			return img, nil
		}
		err = explain(err)
		failed = append(failed, err)
		// Registries say "not found" for what one may not see.
		if !errors.Is(err, ErrUnauthorized) && !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return Image{}, fmt.Errorf("failed to pull image %q: %w", ref, several(failed))
}

// several is one error of many; what is said twice is kept once.
func several(errs []error) error {
	seen := map[string]bool{}
	var all error
	for _, err := range errs {
		if seen[err.Error()] {
			continue
		}
		seen[err.Error()] = true
		if all == nil {
			all = err
		} else {
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// resolved is an image as a registry or an archive describes it.
type resolved struct {
	named    string // digest that the name led to: of an index, or the manifest
	manifest string
	layers   []descriptor
	configID string
	config   configFile
}

func (s *Store) pullAs(ctx context.Context, ref Ref, login *Credential, report func(Progress)) (Image, error) {
	if ref.digest != "" {
		if err := checkDigest(ref.digest); err != nil {
			return Image{}, err
		}
	}
	report(Progress{Status: StatusResolving})
	se, err := s.openSession(ctx, ref, login)
	if err != nil {
		return Image{}, err
	}
	b := blobs{
		manifest: se.manifest,
		config:   func(ctx context.Context, digest string) ([]byte, error) { return se.smallBlob(ctx, digest, maxConfig) },
		layer: func(ctx context.Context, d descriptor, report func(Status, int64)) (io.ReadCloser, error) {
			return &blobReader{ctx: ctx, se: se, digest: d.Digest, size: d.Size, report: report}, nil
		},
	}
	r, err := b.resolve(ctx, ref.Identifier(), 0)
	if err != nil {
		return Image{}, err
	}
	refs := []string{ref.String(), ref.Repository() + "@" + r.named, ref.Repository() + "@" + r.manifest}
	return s.install(ctx, r, b, refs, report)
}

// blobs is where the parts of an image come from. What manifest and config
// give has been checked against its digest.
type blobs struct {
	manifest func(ctx context.Context, identifier string) ([]byte, error)
	config   func(ctx context.Context, digest string) ([]byte, error)
	layer    func(ctx context.Context, d descriptor, report func(Status, int64)) (io.ReadCloser, error)
}

// maxNesting is how deep indexes may lie in each other.
const maxNesting = 3

// resolve follows a name through indexes to the image for this machine.
func (b blobs) resolve(ctx context.Context, identifier string, depth int) (resolved, error) {
	raw, err := b.manifest(ctx, identifier)
	if err != nil {
		return resolved{}, err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return resolved{}, err
	}
	if m.isIndex() {
		return b.resolveIndex(ctx, digestOf(raw), m, depth)
	}
	config, err := b.config(ctx, m.Config.Digest)
	if err != nil {
		return resolved{}, err
	}
	if !strings.Contains(string(m.Config.MediaType), "image") && m.Config.MediaType != "" {
		return resolved{}, fmt.Errorf("not a container image: its configuration is of type %s", clip(string(m.Config.MediaType), 128))
	}
	c, err := parseConfig(config, len(m.Layers))
	if err != nil {
		return resolved{}, err
	}
	d := digestOf(raw)
	return resolved{named: d, manifest: d, layers: m.Layers, configID: m.Config.Digest, config: c}, nil
}

func (b blobs) resolveIndex(ctx context.Context, digest string, m manifest, depth int) (resolved, error) {
	if depth == maxNesting {
		return resolved{}, fmt.Errorf("%w: indexes lie more than %d deep", ErrTooLarge, maxNesting)
	}
	d, err := m.choose(thisPlatform())
	if err != nil {
		return resolved{}, err
	}
	r, err := b.resolve(ctx, d.Digest, depth+1)
	r.named = digest
	return r, err
}

// install unpacks the layers that are missing and enters the image.
func (s *Store) install(ctx context.Context, r resolved, b blobs, refs []string, report func(Progress)) (Image, error) {
	diffIDs := r.config.RootFS.DiffIDs
	s.lease(diffIDs, 1)
	defer s.lease(diffIDs, -1)
	g, gctx := errgroup.WithContext(ctx)
	for i, d := range r.layers {
		g.Go(func() error {
			return s.ensureLayer(gctx, layerSource{
				diffID: diffIDs[i], digest: d.Digest, size: d.Size,
				open: func(ctx context.Context, report func(Progress)) (io.ReadCloser, error) {
					return b.layer(ctx, d, func(st Status, done int64) {
						report(Progress{Layer: d.Digest, Status: st, Done: done, Total: d.Size})
					})
				},
			}, report)
		})
	}
	if err := g.Wait(); err != nil {
		return Image{}, err
	}
	repair, release, err := s.repairLayer(ctx, diffIDs)
	if err != nil {
		return Image{}, err
	}
	defer release()
	if repair != "" {
		diffIDs = append(slices.Clone(diffIDs), repair)
	}
	return s.enter(r, diffIDs, refs)
}

func (s *Store) lease(layers []string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cat.lease(layers, n)
}

// enter makes an image visible. Its layers are on the disk and leased.
func (s *Store) enter(r resolved, layers, refs []string) (Image, error) {
	img := Image{
		ID: r.configID, Digest: r.named, Created: r.config.Created,
		Config: r.config.config(), layers: layers,
	}
	for _, d := range img.layers {
		u, err := s.layer(d)
		if err != nil {
			return Image{}, fmt.Errorf("layer %s has gone: %w", d, err)
		}
		img.Size += u.Bytes
	}
	if s.ended.Err() != nil {
		return Image{}, ErrClosed
	}
	s.mu.Lock()
	now := s.cat.add(img, r.manifest, refs).copy()
	s.mu.Unlock()
	return now, errors.Join(s.save(), s.firstSpare(img.ID))
}
