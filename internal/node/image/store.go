// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"io"
	"time"
)

// Options say where images are kept and how registries are spoken to. The zero
// value of each bound stands for its default.
type Options struct {
	Dir           string
	InsecureHosts []string          // registries spoken to by plain HTTP, or HTTPS with any certificate
	Aliases       map[string]string // registry as named -> registry to ask

	Stall        time.Duration // a registry that sends nothing for so long has failed
	Parallel     int           // layers downloaded at a time, over all pulls
	MaxLayer     int64         // bytes a layer may unpack to
	MaxEntries   int           // files a layer may have
	ReserveBytes int64         // disk space that unpacking must leave free
}

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

// A Mounted is a root file system that is mounted, or was when the machine or
// this process went down.
type Mounted struct {
	Key    string
	Image  string // ID
	Rootfs string
	Upper  string
}

// CollectOptions say which images may go. Images that are mounted never go.
type CollectOptions struct {
	InUse       func(Image) bool
	MinAge      time.Duration // an image used more recently stays
	MaxAge      time.Duration // an image not used for so long goes; 0: age alone is no reason
	HighPercent int           // disk use at which images are removed, oldest use first; 0: disk use is no reason
	LowPercent  int           // disk use at which that stops
}

// Collected is what a collection removed.
type Collected struct {
	Images []Image
	Bytes  int64
}

// Usage is what a container has written to its root file system.
type Usage struct {
	Bytes  int64
	Inodes int64
}

var errUnbuilt = errors.New("not built yet")

// A Store keeps unpacked images and mounts them.
type Store struct {
	opts Options
}

// Open takes the store over: what interrupted pulls and unmounted containers
// left is removed, root file systems that are still mounted are adopted.
func Open(o Options) (*Store, error) { return &Store{opts: o}, nil }

// Close ends the pulls under way. Mounts stay.
func (s *Store) Close() error { return nil }

// Pull makes the image that ref names present, whether or not it is already.
// Pulls of the same name with the same credentials at the same time are one.
func (s *Store) Pull(ctx context.Context, ref string, creds Credentials, progress func(Progress)) (Image, error) {
	return Image{}, errUnbuilt
}

// Find looks for an image on this machine, by name or ID.
func (s *Store) Find(ref string) (Image, bool) { return Image{}, false }

// List lists the images on this machine, by name.
func (s *Store) List() []Image { return nil }

// Remove takes a name from an image, or all names when an ID is given; the
// image goes with its last name. An image that is mounted stays (ErrInUse).
func (s *Store) Remove(ctx context.Context, ref string) error { return errUnbuilt }

// Load adds the images in an OCI layout directory, an OCI archive or a docker
// archive.
func (s *Store) Load(ctx context.Context, path string) ([]Image, error) { return nil, errUnbuilt }

// LoadReader is Load for an archive that arrives as a stream.
func (s *Store) LoadReader(ctx context.Context, r io.Reader) ([]Image, error) { return nil, errUnbuilt }

// Collect removes images that are not in use.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (Collected, error) {
	return Collected{}, errUnbuilt
}

// Mount makes a root file system of an image, of its own for each key.
func (s *Store) Mount(ctx context.Context, img Image, key string) (rootfs, upper string, err error) {
	return "", "", errUnbuilt
}

// Unmount takes down what Mount made and removes what was written to it. A key
// that is not mounted is not an error.
func (s *Store) Unmount(ctx context.Context, key string) error { return errUnbuilt }

// Mounts lists the root file systems that are mounted.
func (s *Store) Mounts() []Mounted { return nil }

// Usage counts what was written to a root file system.
func (s *Store) Usage(ctx context.Context, key string) (Usage, error) { return Usage{}, errUnbuilt }
