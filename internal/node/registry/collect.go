// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// CollectOptions say what may go.
type CollectOptions struct {
	MinAge time.Duration // blobs and uploads younger than that stay: a push may be about to name them

	// Untagged, when set, is asked about manifests that have no tag and are not
	// young. They may be what a revision runs by digest, so by default they stay.
	Untagged func(repository, digest string) (remove bool)
}

// Collected is what a collection removed.
type Collected struct {
	Manifests int
	Blobs     int
	Bytes     int64
}

// Collect removes blobs that no manifest names, and uploads nobody goes on
// with. Manifests that are being pushed wait meanwhile.
func (r *Registry) Collect(ctx context.Context, o CollectOptions) (Collected, error) {
	r.mu.Lock()
	r.dropIdleLocked(r.opts.UploadIdle)
	r.mu.Unlock()
	r.names.Lock()
	defer r.names.Unlock()
	var done Collected
	if o.Untagged != nil {
		n, err := r.dropUntagged(o)
		if err != nil {
			return done, fmt.Errorf("collecting manifests: %w", err)
		}
		done.Manifests = n
	}
	named, err := r.allNamed()
	if err != nil {
		return done, fmt.Errorf("collecting blobs: %w", err)
	}
	entries, err := os.ReadDir(r.path("blobs", "sha256"))
	if err != nil {
		return done, fmt.Errorf("collecting blobs: %w", err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		info, err := e.Info()
		if err != nil || named[e.Name()] || time.Since(info.ModTime()) < o.MinAge {
			continue
		}
		if err := os.Remove(r.path("blobs", "sha256", e.Name())); err != nil {
			return done, fmt.Errorf("collecting blobs: %w", err)
		}
		done.Blobs++
		done.Bytes += info.Size()
	}
	return done, nil
}

// allNamed is every blob that some manifest needs, by the hex of its digest.
func (r *Registry) allNamed() (map[string]bool, error) {
	names, err := r.repositories()
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, name := range names {
		hexes, err := r.list(name, "_manifests")
		if err != nil {
			return nil, err
		}
		roots = append(roots, hexes...)
	}
	return r.reach(roots)
}

// reach follows manifests to all that they name. One that cannot be read ends
// the collection: what it names is not known.
func (r *Registry) reach(roots []string) (map[string]bool, error) {
	named, walked := map[string]bool{}, map[string]bool{}
	for len(roots) > 0 {
		hex := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		named[hex] = true
		if walked[hex] || !validHex(hex) {
			continue
		}
		walked[hex] = true
		b, err := os.ReadFile(r.blobPath(sha256Prefix + hex))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := parseManifest(b)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", hex, err)
		}
		for _, d := range m.Manifests { // they may be in no repository by themselves
			roots = append(roots, hexOf(d.Digest))
		}
		for _, d := range m.names() {
			named[hexOf(d.Digest)] = true
		}
	}
	return named, nil
}

func (r *Registry) dropUntagged(o CollectOptions) (int, error) {
	names, err := r.repositories()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, name := range names {
		kept, err := r.keptBy(name)
		if err != nil {
			return n, err
		}
		hexes, err := r.list(name, "_manifests")
		if err != nil {
			return n, err
		}
		for _, h := range hexes {
			info, err := os.Stat(r.repoPath(name, "_manifests", h))
			if err != nil || kept[h] || time.Since(info.ModTime()) < o.MinAge || !o.Untagged(name, sha256Prefix+h) {
				continue
			}
			if err := r.dropManifest(name, sha256Prefix+h); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// keptBy is what the tags of a repository lead to, and what refers to that.
func (r *Registry) keptBy(name string) (map[string]bool, error) {
	tags, err := r.list(name, "_tags")
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, t := range tags {
		b, err := os.ReadFile(r.repoPath(name, "_tags", t))
		if err != nil {
			return nil, err
		}
		roots = append(roots, hexOf(string(b)))
	}
	kept, err := r.reach(roots)
	if err != nil {
		return nil, err
	}
	subjects, err := r.list(name, "_subjects")
	for _, s := range subjects {
		referring, lerr := r.list(name, "_subjects", s)
		err = errors.Join(err, lerr)
		for _, h := range referring {
			if kept[s] {
				kept[h] = true
			}
		}
	}
	return kept, err
}
