// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where images are kept and how registries are spoken to. The zero
// value of each bound stands for its default.
type Options struct {
	Dir           string
	InsecureHosts []string          // registries spoken to by plain HTTP, or HTTPS with any certificate
	Aliases       map[string]string // registry as named -> registry to ask

	Stall        time.Duration // a registry that sends nothing for so long has failed
	Parallel     int           // layers unpacked at a time, over all pulls
	MaxLayer     int64         // bytes a layer may unpack to
	MaxEntries   int           // files a layer may have
	ReserveBytes int64         // disk space that unpacking must leave free
}

const (
	defaultStall      = 30 * time.Second
	defaultParallel   = 3
	defaultMaxLayer   = 64 << 30
	defaultMaxEntries = 2_000_000
	defaultReserve    = 512 << 20
	defaultBackoff    = 250 * time.Millisecond

	// orphanAge is how long a layer waits for the image that it was pulled for:
	// the next try of a pull that failed then finds it.
	orphanAge = time.Hour
)

func (o Options) withDefaults() Options {
	o.Stall = or(o.Stall, defaultStall)
	o.Parallel = or(o.Parallel, defaultParallel)
	o.MaxLayer = or(o.MaxLayer, defaultMaxLayer)
	o.MaxEntries = or(o.MaxEntries, defaultMaxEntries)
	o.ReserveBytes = or(o.ReserveBytes, defaultReserve)
	return o
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// A Store keeps unpacked images and mounts them. Its methods may be called at
// the same time.
//
//	images.json    what there is
//	layers/HEX/fs  unpacked layers, by digest of their uncompressed bytes
//	mounts/        root file systems
//	spares/        root file systems that nobody has yet
//	tmp/           what is not whole yet, and what is being removed
type Store struct {
	opts     Options
	lock     *os.File
	insecure insecureHosts
	backoff  time.Duration

	secure, anyCertificate *http.Transport

	pulls  flights[Image]
	layers flights[struct{}]
	slots  chan struct{}

	work  sync.WaitGroup
	ended context.Context // is done once the store is closed
	end   context.CancelFunc
	close func() error

	saving sync.Mutex // held while the catalog is written; taken before mu

	mu          sync.Mutex // never held while waiting for the disk or the network
	cat         *catalog
	unsaved     bool // the catalog has younger times of use than the disk
	mounts      map[string]Mounted
	busy        map[string]bool     // keys that are being mounted or unmounted
	strangers   bool                // something is mounted of an image that the catalog has lost
	spares      map[string][]string // image ID -> directories
	spareCount  int                 // of all images
	spareNumber int                 // of the spare made last
}

// Open takes the store over: what interrupted pulls and unmounted containers
// left is removed, root file systems that are still mounted are adopted.
func Open(o Options) (*Store, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	s := &Store{opts: o.withDefaults(), insecure: newInsecureHosts(o.InsecureHosts), backoff: defaultBackoff}
	s.secure, s.anyCertificate = newTransport(false), newTransport(true)
	s.slots = make(chan struct{}, s.opts.Parallel)
	s.ended, s.end = context.WithCancel(context.Background())
	s.close = sync.OnceValue(s.shut)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening image store: %w", err), s.Close())
	}
	return s, nil
}

func (s *Store) open() (err error) {
	for _, d := range []string{"", "layers", mountsDir, sparesDir, "tmp", "empty"} {
		// Images have set-uid programs and devices: nobody else may enter.
		if err := os.MkdirAll(filepath.Join(s.opts.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if s.lock, err = takeLock(filepath.Join(s.opts.Dir, "lock")); err != nil {
		return err
	}
	if s.cat, err = openCatalog(s.catalogPath()); err != nil {
		return err
	}
	if err := s.dropTorn(); err != nil {
		return err
	}
	if err := s.adoptMounts(); err != nil {
		return err
	}
	if err := errors.Join(s.emptyTmp(), s.removeOrphans(orphanAge)); err != nil {
		return err
	}
	s.work.Go(s.firstSpares)
	return nil
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is held by another process: %w", path, err)
	}
	return f, nil
}

// dropTorn forgets images whose layers are not all here, as after somebody
// removed files by hand.
func (s *Store) dropTorn() error {
	torn := false
	for id, r := range s.cat.byID {
		if slices.ContainsFunc(r.Layers, func(d string) bool { _, err := s.layer(d); return err != nil }) {
			s.cat.remove(id)
			torn = true
		}
	}
	if !torn {
		return nil
	}
	return s.save()
}

func (s *Store) tmpDir() string { return filepath.Join(s.opts.Dir, "tmp") }

func (s *Store) emptyTmp() error {
	entries, err := os.ReadDir(s.tmpDir())
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.tmpDir(), e.Name())))
	}
	return err
}

// Close ends the pulls under way and waits for them. Mounts stay, spares go.
func (s *Store) Close() error { return s.close() }

func (s *Store) shut() error {
	s.end()
	for range cap(s.slots) {
		s.slots <- struct{}{} // until no layer is being unpacked
	}
	s.work.Wait()
	err := s.saveUse()
	s.mu.Lock()
	opened := s.spares != nil
	s.spares, s.spareCount = map[string][]string{}, 0
	s.mu.Unlock()
	if opened {
		err = errors.Join(err, s.clearSpares())
	}
	s.secure.CloseIdleConnections()
	s.anyCertificate.CloseIdleConnections()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// slot waits until one more layer may be unpacked.
func (s *Store) slot(ctx context.Context) error {
	if s.ended.Err() != nil {
		return ErrClosed
	}
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ended.Done():
		return ErrClosed
	}
}

func (s *Store) freeSlot() { <-s.slots }

func (s *Store) limits() limits {
	return limits{bytes: s.opts.MaxLayer, entries: s.opts.MaxEntries, reserve: s.opts.ReserveBytes}
}

// Find looks for an image on this machine, by name or ID.
func (s *Store) Find(ref string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.cat.find(ref)
	if r == nil {
		return Image{}, false
	}
	return r.copy(), true
}

// copy is an image that later changes of its names do not reach.
func (r *record) copy() Image {
	img := r.Image
	img.Refs = slices.Clone(img.Refs)
	return img
}

// List lists the images on this machine, by name.
func (s *Store) List() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Image
	for _, r := range s.cat.byID {
		all = append(all, r.copy())
	}
	slices.SortFunc(all, func(a, b Image) int {
		return strings.Compare(strings.Join(append(a.Tags(), a.Refs...), " ")+a.ID, strings.Join(append(b.Tags(), b.Refs...), " ")+b.ID)
	})
	return all
}
