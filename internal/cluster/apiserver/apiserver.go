// SPDX-License-Identifier: Apache-2.0

// Package apiserver runs the Kubernetes API in this process.
//
// It is upstream's kube-apiserver, all three of its layers (built-in kinds,
// custom resources, aggregation), put together here rather than by upstream's
// command line, so that it can share what a process of its own could not:
//
//   - the store is called, not dialled: every resource goes through
//     Options.Store, which holds no connection;
//   - clients in this process call the handler, not a socket: RESTConfig's
//     transport is a function call, without TLS and without HTTP framing.
//
// The law of the room:
//
//   - What kubectl, oc, helm, kn and controllers can see is upstream's:
//     discovery, OpenAPI, tables, server-side apply, RBAC, admission. What is
//     left out is for clusters of several servers or for alpha users: see
//     features.go, where each omission has its reason.
//   - Our own admission is a plugin in the same chain as upstream's, in
//     process; no webhook, no certificate, no round trip.
//   - Upstream keeps globals (feature gates, metrics, klog), so a process
//     runs one Server, once. Its calls to log.Fatal end here as an error of
//     the task.
package apiserver

import (
	"context"
	"fmt"
	"log/slog"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/run"
)

// A Store opens the storage of one resource; it may block until it is up.
type Store func(config *storagebackend.ConfigForResource, newFunc, newListFunc func() runtime.Object, resourcePrefix string) (storage.Interface, factory.DestroyFunc, error)

// Options say what the API server needs to know.
type Options struct {
	PKI   *pki.Files
	Store Store

	// EtcdEndpoint is for the one allocator that does not go through Store.
	EtcdEndpoint string

	// Listen are host:port addresses, the first one the principal. They may
	// name addresses that do not exist yet.
	Listen []string

	// Advertise is the IP behind the Service default/kubernetes: one that
	// pods can reach.
	Advertise string

	ServiceCIDR string

	// Issuer is what service account tokens say they come from.
	Issuer string

	// Admission are our own plugins by name; each mutates, validates, or both.
	Admission map[string]admission.Interface

	Log *slog.Logger // nil discards
}

// A Server is the API server of this process.
type Server struct {
	options Options
	log     *slog.Logger
	loop    *loopback
	shared  informers.SharedInformerFactory
	ready   chan struct{}
	failed  chan struct{}
	fatal   chan error
}

// New prepares a server; nothing but upstream's logger changes before its task runs.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Issuer == "" {
		o.Issuer = "https://kubernetes.default.svc.cluster.local"
	}
	loop := newLoopback()
	s := &Server{
		options: o,
		log:     o.Log,
		loop:    loop,
		shared:  sharedInformers(loop.config()),
		ready:   make(chan struct{}),
		failed:  make(chan struct{}),
		fatal:   make(chan error, 1),
	}
	s.bridgeKlog()
	return s
}

// RESTConfig is how this process talks to the API: privileged, unthrottled,
// in protocol buffers, by function call. Before the server is up its requests wait.
// Clients of custom resources set ContentType to JSON.
func (s *Server) RESTConfig() *rest.Config { return s.loop.config() }

// Informers are the server's own, of built-in kinds. Others in this process
// may ask for more before the server is ready, and share what is there.
// Objects in them carry no managed fields.
func (s *Server) Informers() informers.SharedInformerFactory { return s.shared }

func sharedInformers(config *rest.Config) informers.SharedInformerFactory {
	// A config without files and flags cannot be wrong.
	client := kubernetes.NewForConfigOrDie(config)
	return informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(withoutManagedFields))
}

// Task runs the server until its context ends.
func (s *Server) Task() run.Task {
	return run.Task{Name: "kube-apiserver", Run: s.run, Ready: s.Ready}
}

// Ready blocks until the server can serve anybody: see ready.go.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-s.failed:
		return errNotStarted
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errNotStarted = fmt.Errorf("the API server did not start")

func (s *Server) run(ctx context.Context) error {
	defer close(s.failed)
	listener, err := listen(ctx, s.options.Listen)
	if err != nil {
		return err
	}
	defer listener.Close()

	own, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan error, 1)
	go func() { done <- s.serve(own, listener) }()
	select {
	case err := <-done:
		return err
	case err := <-s.fatal:
		stop(err)
		return err
	}
}

func (s *Server) serve(ctx context.Context, listener *manyListener) error {
	config, err := s.assemble(ctx, listener)
	if err != nil {
		return fmt.Errorf("configure the API server: %w", err)
	}
	prepared, err := build(config)
	if err != nil {
		return fmt.Errorf("build the API server: %w", err)
	}
	s.loop.open(prepared.handler)
	go s.awaitReady(ctx)
	if err := prepared.run(ctx); err != nil {
		return fmt.Errorf("API server: %w", err)
	}
	return nil
}
