// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// record is an image as it is written down.
type record struct {
	Image
	Manifests []string // digests under which the image was pulled, whatever the repository
	Layers    []string
}

// catalog is what the store knows; the caller holds Store.mu.
type catalog struct {
	byID   map[string]*record
	byRef  map[string]string // full name -> ID
	leased map[string]int    // layers that a pull under way needs
}

// catalogVersion changes when an older program could not read the file.
const catalogVersion = 1

type catalogFile struct {
	Version int
	Images  []*record
}

func openCatalog(path string) (*catalog, error) {
	c := &catalog{byID: map[string]*record{}, byRef: map[string]string{}, leased: map[string]int{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	var f catalogFile
	if err := json.Unmarshal(b, &f); err != nil {
		// Written whole or not at all, so a disk has failed. Images can be had again.
		slog.Warn("list of images is damaged, starting with none", "file", path, "err", err)
		return c, os.Rename(path, path+".damaged")
	}
	if f.Version != catalogVersion {
		return nil, fmt.Errorf("%s was written by another version of this program (%d, this is %d)", path, f.Version, catalogVersion)
	}
	for _, r := range f.Images {
		r.Image.layers = r.Layers
		c.put(r)
	}
	return c, nil
}

func (c *catalog) put(r *record) {
	c.byID[r.ID] = r
	for _, ref := range r.Refs {
		c.byRef[ref] = r.ID
	}
}

func (c *catalog) encode() ([]byte, error) {
	f := catalogFile{Version: catalogVersion}
	for _, r := range c.byID {
		f.Images = append(f.Images, r)
	}
	slices.SortFunc(f.Images, func(a, b *record) int { return strings.Compare(a.ID, b.ID) })
	return json.Marshal(f)
}

func (s *Store) catalogPath() string { return filepath.Join(s.opts.Dir, "images.json") }

// save writes the catalog to the disk. The caller does not hold s.mu: a
// container that starts must not wait for the disk because an image arrives.
func (s *Store) save() error {
	s.saving.Lock() // so that what is written last is what was true last
	defer s.saving.Unlock()
	s.mu.Lock()
	b, err := s.cat.encode()
	s.unsaved = false
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return writeFile(s.catalogPath(), b)
}

// saveUse writes down when images were last used, if that has changed.
func (s *Store) saveUse() error {
	s.mu.Lock()
	unsaved := s.unsaved
	s.mu.Unlock()
	if !unsaved {
		return nil
	}
	return s.save()
}

// writeFile replaces a file so that after a crash it is the old one or the new.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return syncPath(filepath.Dir(path))
}

// add enters an image under refs, which leave the images that had them.
func (c *catalog) add(img Image, manifest string, refs []string) *record {
	r := c.byID[img.ID]
	if r == nil {
		r = &record{Image: img, Layers: img.layers}
		c.byID[img.ID] = r
	}
	r.Digest, r.Used = img.Digest, time.Now()
	for _, d := range []string{manifest, img.Digest} {
		if d != "" && !slices.Contains(r.Manifests, d) {
			r.Manifests = append(r.Manifests, d)
		}
	}
	for _, ref := range refs {
		c.drop(ref)
		r.Refs = append(r.Refs, ref)
		c.byRef[ref] = r.ID
	}
	slices.Sort(r.Refs)
	return r
}

// drop takes a name away; an image may be left with none.
func (c *catalog) drop(ref string) {
	r := c.byID[c.byRef[ref]]
	delete(c.byRef, ref)
	if r != nil {
		r.Refs = slices.DeleteFunc(slices.Clone(r.Refs), func(s string) bool { return s == ref })
	}
}

func (c *catalog) remove(id string) {
	for _, ref := range c.byID[id].Refs {
		delete(c.byRef, ref)
	}
	delete(c.byID, id)
}

// find looks an image up by full name, ID, or unambiguous start of an ID.
func (c *catalog) find(name string) *record {
	if r := c.byID[name]; r != nil {
		return r
	}
	if ref, err := ParseRef(name); err == nil {
		if r := c.byID[c.byRef[ref.String()]]; r != nil {
			return r
		}
	}
	return c.findShort(strings.TrimPrefix(name, sha256Prefix))
}

// minShortID keeps a name such as "cafe" from being taken for an ID.
const minShortID = 7

func (c *catalog) findShort(short string) *record {
	if len(short) < minShortID {
		return nil
	}
	var found *record
	for id, r := range c.byID {
		if strings.HasPrefix(id, sha256Prefix+short) {
			if found != nil {
				return nil
			}
			found = r
		}
	}
	return found
}

// layersInUse are the layers that must stay.
func (c *catalog) layersInUse() map[string]bool {
	use := map[string]bool{}
	for d, n := range c.leased {
		use[d] = n > 0
	}
	for _, r := range c.byID {
		for _, d := range r.Layers {
			use[d] = true
		}
	}
	return use
}

func (c *catalog) lease(layers []string, n int) {
	for _, d := range layers {
		if c.leased[d] += n; c.leased[d] <= 0 {
			delete(c.leased, d)
		}
	}
}
