// SPDX-License-Identifier: Apache-2.0

// Package controllers runs upstream controllers in this process.
//
// They are upstream's own, constructed one by one below (workloads.go,
// cluster.go, storage.go) instead of by upstream's command, which brings
// cloud providers, leader election and a server along. To them comes one
// controller of ours: the provisioner of node-local volumes (localpath.go).
//
// The law of the room:
//
//   - One informer per kind, shared by all controllers (and, through
//     Options.Informers, with the API server and the scheduler), and never a
//     full copy of what is only listed by name: Secrets and ConfigMaps are
//     watched as metadata, except for the few a controller writes itself.
//   - Nothing polls the API for what an event tells. Upstream asks twice a
//     minute which kinds exist; here that answer is kept until a kind comes
//     or goes (kinds.go).
//   - Every controller is made before any informer starts. Some of upstream's
//     are not whole yet when they register for events, and rely on that.
//   - Clients are unthrottled: the way to the API server is a function call,
//     and it has its own bound on requests in flight.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"

	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/run"
)

// stopGrace bounds how long controllers may take to finish what they do.
const stopGrace = 5 * time.Second

// Options say what the controllers work with.
type Options struct {
	REST *rest.Config

	// Informers are shared with whoever else reads the same kinds. They must
	// not carry managed fields (nobody reads them), and not be started yet.
	Informers informers.SharedInformerFactory

	PKI    *pki.Files
	Issuer string // of service account tokens; empty as in package apiserver

	// LocalPathDir is where volumes of the class local-path live.
	LocalPathDir string
	NodeName     string

	Log *slog.Logger // nil discards
}

// Controllers are all controllers of this process.
type Controllers struct {
	tools  *tools
	loops  []loop
	err    error
	life   context.Context // of what the constructors start
	end    context.CancelFunc
	synced chan struct{}
	failed chan struct{}
}

// New makes the controllers. It talks to nobody, but asks for informers: call
// it before any task runs that starts them. What is wrong, the task says.
func New(o Options) *Controllers {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controllers{synced: make(chan struct{}), failed: make(chan struct{})}
	c.life, c.end = context.WithCancel(context.Background())
	if c.tools, c.err = newTools(o); c.err == nil {
		c.loops, c.err = construct(c.life, c.tools)
	}
	return c
}

// Task runs all controllers until its context ends. It may start together
// with the API server: its first requests wait for it.
func (c *Controllers) Task() run.Task {
	return run.Task{Name: "controllers", Run: c.run, Ready: c.ready}
}

func (c *Controllers) ready(ctx context.Context) error {
	select {
	case <-c.synced:
		return nil
	case <-c.failed:
		return errors.New("the controllers did not start")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Controllers) run(ctx context.Context) error {
	defer close(c.failed)
	defer c.end()
	if c.err != nil {
		return c.err
	}
	c.tools.start(ctx)
	var running sync.WaitGroup
	for _, loop := range c.loops {
		running.Go(func() { loop(ctx) })
	}
	go func() {
		c.tools.informers.WaitForCacheSync(ctx.Done())
		close(c.synced)
	}()
	<-ctx.Done()
	return wait(&running)
}

func wait(running *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(stopGrace):
		return fmt.Errorf("some controllers did not stop within %v", stopGrace)
	}
}

// A loop runs one controller until its context ends.
type loop func(context.Context)

// construct makes every controller.
func construct(ctx context.Context, t *tools) ([]loop, error) {
	var loops []loop
	for _, group := range []func(context.Context, *tools) ([]loop, error){workloads, cluster, storage} {
		more, err := group(ctx, t)
		if err != nil {
			return nil, err
		}
		loops = append(loops, more...)
	}
	return loops, nil
}

// tools are what constructors take from.
type tools struct {
	Options
	client    kubernetes.Interface
	json      *rest.Config // for what speaks of kinds it does not know
	metadata  metadata.Interface
	scales    scale.ScalesGetter
	kinds     *kinds
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	informers informers.SharedInformerFactory
	names     metadatainformer.SharedInformerFactory // metadata only
	secrets   informers.SharedInformerFactory        // service account tokens only
	roots     informers.SharedInformerFactory        // the root CA's ConfigMaps only
	started   chan struct{}
}

func newTools(o Options) (*tools, error) {
	client, err := kubernetes.NewForConfig(o.REST)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	json := rest.CopyConfig(o.REST)
	json.ContentType, json.AcceptContentTypes = "", ""
	meta, err := metadata.NewForConfig(json)
	if err != nil {
		return nil, fmt.Errorf("metadata client: %w", err)
	}
	t := &tools{
		Options:   o,
		client:    client,
		json:      json,
		metadata:  meta,
		informers: o.Informers,
		names:     metadatainformer.NewSharedInformerFactoryWithOptions(meta, 0, metadatainformer.WithTransform(withoutManagedFields)),
		secrets:   selected(client, "type=kubernetes.io/service-account-token"),
		roots:     selected(client, "metadata.name=kube-root-ca.crt"),
		started:   make(chan struct{}),
	}
	t.kinds = newKinds(client.Discovery())
	t.mapper = restmapper.NewDeferredDiscoveryRESTMapper(t.kinds)
	if err := t.kinds.watch(t.names); err != nil {
		return nil, err
	}
	t.scales, err = scale.NewForConfig(json, t.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(t.kinds))
	if err != nil {
		return nil, fmt.Errorf("scale client: %w", err)
	}
	return t, nil
}

// start begins to watch. The channel tells those who add informers later
// that they have to start them themselves.
func (t *tools) start(ctx context.Context) {
	t.informers.Start(ctx.Done())
	t.names.Start(ctx.Done())
	t.secrets.Start(ctx.Done())
	t.roots.Start(ctx.Done())
	close(t.started)
}
