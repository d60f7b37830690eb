// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CollectOptions say which images may go. Images that are mounted never go.
type CollectOptions struct {
	InUse       func(Image) bool
	MinAge      time.Duration // an image used more recently stays
	MaxAge      time.Duration // an image not used for so long goes; 0: age alone is no reason
	HighPercent int           // disk use at which images are removed, longest unused first; 0: disk use is no reason
	LowPercent  int           // disk use at which that stops
}

// Collected is what a collection removed.
type Collected struct {
	Images []Image
	Bytes  int64 // freed
}

// Remove takes a name from an image, or all names when an ID is given; the
// image goes with its last tag. An image that is mounted stays (ErrInUse).
func (s *Store) Remove(ctx context.Context, ref string) error {
	_, err := s.remove(ref)
	if err != nil {
		return fmt.Errorf("removing image %q: %w", ref, err)
	}
	return nil
}

func (s *Store) remove(ref string) (freed int64, err error) {
	s.mu.Lock()
	r := s.cat.find(ref)
	if r == nil {
		s.mu.Unlock()
		return 0, ErrNotPresent
	}
	name, err := ParseRef(ref)
	if err == nil && name.digest == "" && s.cat.byRef[name.String()] == r.ID && len(r.Tags()) > 1 {
		s.cat.drop(name.String())
		s.mu.Unlock()
		return 0, s.save()
	}
	for key, m := range s.mounts {
		if m.Image == r.ID {
			s.mu.Unlock()
			return 0, fmt.Errorf("%w by %s", ErrInUse, strings.TrimPrefix(key, "@"))
		}
	}
	s.cat.remove(r.ID)
	var spares []string
	for dir := s.takeSpare(r.ID); dir != ""; dir = s.takeSpare(r.ID) {
		spares = append(spares, dir)
	}
	s.mu.Unlock()
	// The list on the disk first: it must not name layers that have gone.
	if err := s.save(); err != nil {
		return 0, err
	}
	orphans, err := s.orphan(r.Layers)
	freed, sweepErr := s.sweep(spares, orphans)
	return freed, errors.Join(err, sweepErr)
}

// orphan moves those of some layers that nothing needs out of sight.
func (s *Store) orphan(layers []string) (aside []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	use := s.cat.layersInUse()
	for _, d := range layers {
		if use[d] {
			continue
		}
		dir, asideErr := s.setAside(d)
		if err = errors.Join(err, asideErr); asideErr == nil {
			aside = append(aside, dir)
		}
	}
	return aside, err
}

// setAside moves a layer out of sight, which is quick, so that it can be
// removed without holding the lock.
func (s *Store) setAside(diffID string) (string, error) {
	dir, err := os.MkdirTemp(s.tmpDir(), "orphan-")
	if err != nil {
		return "", err
	}
	err = os.Rename(s.layerDir(diffID), filepath.Join(dir, "layer"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil // an image may name a layer twice
	}
	return dir, err
}

func (s *Store) sweep(spares, orphans []string) (freed int64, err error) {
	for _, dir := range spares {
		err = errors.Join(err, s.clearMount(dir))
	}
	for _, dir := range orphans {
		u, _ := DiskUsage(context.Background(), dir)
		if rmErr := os.RemoveAll(dir); rmErr != nil {
			err = errors.Join(err, rmErr)
			continue
		}
		freed += u.Bytes
	}
	return freed, err
}

// Collect removes images that are not in use: those of MaxAge first, then,
// while the disk is too full, the longest unused.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (Collected, error) {
	var done Collected
	if err := errors.Join(s.saveUse(), s.removeOrphans(orphanAge)); err != nil {
		return done, err
	}
	now := time.Now()
	full := false
	if o.HighPercent > 0 {
		used, err := s.diskPercent()
		if err != nil {
			return done, err
		}
		full = used >= o.HighPercent
	}
	for _, img := range s.unused(o, now) {
		if err := ctx.Err(); err != nil {
			return done, context.Cause(ctx)
		}
		old := o.MaxAge > 0 && now.Sub(img.Used) >= o.MaxAge
		if !old && !full {
			continue
		}
		freed, err := s.remove(img.ID)
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrNotPresent) {
			continue // since it was listed
		}
		if err != nil {
			return done, err
		}
		done.Images, done.Bytes = append(done.Images, img), done.Bytes+freed
		if full {
			used, err := s.diskPercent()
			if err != nil {
				return done, err
			}
			full = used > o.LowPercent
		}
	}
	return done, nil
}

// unused lists the images that may go, the longest unused first.
func (s *Store) unused(o CollectOptions, now time.Time) []Image {
	all := slices.DeleteFunc(s.List(), func(img Image) bool {
		return now.Sub(img.Used) < o.MinAge || o.InUse != nil && o.InUse(img)
	})
	slices.SortStableFunc(all, func(a, b Image) int { return a.Used.Compare(b.Used) })
	return all
}

// diskPercent is how full the disk is for those who are not root, as df says.
func (s *Store) diskPercent() (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: s.opts.Dir, Err: err}
	}
	used := st.Blocks - st.Bfree
	if total := used + st.Bavail; total > 0 {
		return int((used*100 + total - 1) / total), nil
	}
	return 0, nil
}

// removeOrphans removes layers that no image has and that are older than age:
// younger ones may be wanted by the next try of a pull that failed.
func (s *Store) removeOrphans(age time.Duration) error {
	if s.strangers {
		return nil // some running container stands on layers that nobody names
	}
	entries, err := os.ReadDir(filepath.Join(s.opts.Dir, "layers"))
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) >= age {
			old = append(old, sha256Prefix+e.Name())
		}
	}
	aside, err := s.orphan(old)
	_, sweepErr := s.sweep(nil, aside)
	return errors.Join(err, sweepErr)
}
