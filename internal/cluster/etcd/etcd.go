// SPDX-License-Identifier: Apache-2.0

// Package etcd runs the store in this process.
//
// It is a whole etcd with one member and no network: no peer listener, and
// one unix socket for the few clients that insist on dialling (etcdctl, and
// one allocator inside the API server). The API server itself reads and
// writes through Store, which calls the server's methods directly.
//
// The law of the room:
//
//   - What was acknowledged is on disk. Every write passes the write-ahead
//     log and its fdatasync; nothing here trades that for speed. (The bolt
//     file is committed later; after a crash the log is replayed into it.)
//   - The store is small. Raft keeps entries in memory for followers that a
//     single member does not have, so they are let go early.
//   - The library may log and exit, or panic, when it finds its files
//     damaged. Both end here as an error of Run, never as an exit.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/utils/clock"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"

	"github.com/sonagi/sonagi/internal/run"
)

const (
	// compactAfter is how long old revisions can still be watched from.
	compactAfter = 5 * time.Minute

	// A log segment is 64 MiB, allocated ahead, and two can exist at once;
	// the rest is for the bolt file and a snapshot. Less free space than
	// this would end in a half-written store within minutes.
	minimumFree = 256 << 20

	// sun_path is 108 bytes with its terminating zero.
	maxSocketPath = 107
)

// Options say where the store lives.
type Options struct {
	Dir    string
	Socket string
	Log    *slog.Logger // nil discards
}

// A Server is the store; it runs once.
type Server struct {
	options Options
	log     *slog.Logger

	ready    chan struct{} // closed when client can be used
	failed   chan struct{} // closed when it never will be
	stopping chan struct{} // closed when it is told to end
	broken   chan error    // a fatal complaint of the library, at most one
	once     sync.Once

	client  *kubernetes.Client
	compact compactor
}

type compactor interface {
	etcd3.Compactor
	Stop()
}

// New prepares a store; it touches nothing before its task runs.
func New(o Options) *Server {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		options:  o,
		log:      log,
		ready:    make(chan struct{}),
		failed:   make(chan struct{}),
		stopping: make(chan struct{}),
		broken:   make(chan error, 1),
	}
}

// Endpoint is what a client that dials is given.
func (s *Server) Endpoint() string { return "unix://" + s.options.Socket }

// Task runs the store until its context ends.
func (s *Server) Task() run.Task {
	return run.Task{Name: "etcd", Run: s.run, Ready: s.Ready}
}

// Ready blocks until the store answers.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.failed:
		return errors.New("the store did not start")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) run(ctx context.Context) error {
	defer s.once.Do(func() { close(s.failed) })
	lock, err := s.prepare()
	if err != nil {
		return err
	}
	defer lock.Close()
	member, err := s.start()
	if err != nil {
		return fmt.Errorf("start the store in %s: %w", s.options.Dir, err)
	}
	select {
	case <-member.Server.ReadyNotify():
	case err := <-s.broken:
		return fmt.Errorf("the store in %s is damaged or cannot be written: %w", s.options.Dir, err)
	case <-ctx.Done():
		member.Close()
		return nil
	}
	s.open(member)
	return s.serve(ctx, member)
}

func (s *Server) serve(ctx context.Context, member *embed.Etcd) error {
	select {
	case <-ctx.Done():
		close(s.stopping)
		s.compact.Stop()
		_ = s.client.Close() // it holds no connection; its streams end with the server
		member.Close()
		return nil
	case err := <-member.Err():
		return fmt.Errorf("store: %w", err)
	case err := <-s.broken:
		// The raft loop has ended where it stood: closing would wait for it.
		return fmt.Errorf("the store in %s cannot go on: %w", s.options.Dir, err)
	case <-member.Server.StopNotify():
		return errors.New("the store stopped by itself")
	}
}

// open publishes the client that calls the server directly.
func (s *Server) open(member *embed.Etcd) {
	client := &kubernetes.Client{Client: v3client.New(member.Server)}
	client.Kubernetes = client
	client.KV = etcd3.NewETCDLatencyTracker(client.KV)
	s.client = client
	s.compact = newCompactor(client.Client)
	s.once.Do(func() { close(s.ready) })
}

func newCompactor(client *clientv3.Client) compactor {
	return etcd3.NewCompactor(client, compactAfter, clock.RealClock{}, nil)
}

// prepare checks what would otherwise fail late or hang: the library waits
// without end for the lock of a store that another process has open.
func (s *Server) prepare() (*os.File, error) {
	if len(s.options.Socket) > maxSocketPath {
		return nil, fmt.Errorf("the path %s is too long for a unix socket (%d bytes at most): choose a shorter data directory",
			s.options.Socket, maxSocketPath)
	}
	for _, dir := range []string{s.options.Dir, filepath.Dir(s.options.Socket)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("store directory: %w", err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.options.Dir, &fs); err != nil {
		return nil, fmt.Errorf("store directory %s: %w", s.options.Dir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < minimumFree {
		return nil, fmt.Errorf("no room for the store: %s has %d MiB free, and %d MiB are needed: make room or choose another data directory",
			s.options.Dir, free>>20, minimumFree>>20)
	}
	return lock(s.options.Dir)
}

func lock(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process has the store in %s open: stop it first", dir)
		}
		return nil, fmt.Errorf("store lock: %w", err)
	}
	return file, nil
}
