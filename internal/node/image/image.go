// SPDX-License-Identifier: Apache-2.0

// Package image pulls and unpacks images.
//
// An image is visible only when it is whole: each layer is unpacked beside the
// store, checked against the two digests that name it, written to the disk and
// only then renamed into place. What an interrupted pull left is removed by
// Open. Layers are kept once, under the digest of their uncompressed bytes.
package image

import (
	"slices"
	"strings"
	"time"
)

// An Image is an image that is unpacked on this machine.
type Image struct {
	ID      string   // digest of the configuration
	Digest  string   // digest of the manifest (or of the index that led to it)
	Refs    []string // full names: repository:tag and repository@digest
	Size    int64    // bytes on this machine, layers shared with others included
	Created time.Time
	Used    time.Time // when it was last pulled or mounted
	Config  Config

	layers []string // diff IDs, lowest first
}

// Config is what an image says about how to run it.
type Config struct {
	Entrypoint   []string
	Cmd          []string
	Env          []string
	User         string
	WorkingDir   string
	StopSignal   string
	ExposedPorts []string // as "8080/tcp"
	Volumes      []string
	Labels       map[string]string
}

// Tags lists the names of the image that have a tag.
func (i Image) Tags() []string {
	return slices.DeleteFunc(slices.Clone(i.Refs), func(r string) bool { return strings.Contains(r, "@") })
}

// Digests lists the names of the image that have a digest.
func (i Image) Digests() []string {
	return slices.DeleteFunc(slices.Clone(i.Refs), func(r string) bool { return !strings.Contains(r, "@") })
}

// Pinned is what a container status calls the image that ref named:
// repository@digest, or the image's ID when it has no such name.
func (i Image) Pinned(ref string) string {
	n, err := ParseRef(ref)
	if err == nil {
		for _, r := range i.Digests() {
			if strings.HasPrefix(r, n.Repository()+"@") {
				return r
			}
		}
	}
	if d := i.Digests(); len(d) > 0 {
		return d[0]
	}
	return i.ID
}
