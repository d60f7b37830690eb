// SPDX-License-Identifier: Apache-2.0

// Package agent makes this machine match the pods bound to it.
//
// It is the only room on this machine that knows pods. Each pod has one worker
// that is woken by events (the pod changed, a container ended, a probe
// answered, a time came) and then compares what should be with what is. What
// it knows it can find out again: a new process adopts the containers,
// sandboxes and mounts that an earlier one made, and restarts none of them.
//
// The law of the room: from the binding of a pod to its first instruction
// nothing waits for a clock, and nothing asks the API but what the pod needs to
// start. Statuses and events are told after the fact.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/probe"
	"github.com/sonagi/sonagi/internal/node/volume"
	"github.com/sonagi/sonagi/internal/run"
)

// A PodEndpoint is what the data plane has to know of a pod, as soon as it is
// so. The API server hears of it later.
type PodEndpoint struct {
	Namespace, Name string
	UID             types.UID
	Labels          map[string]string
	IP              netip.Addr
	Ready           bool // takes requests
	Terminating     bool // is on its way out
	Gone            bool // nothing of it runs any more
}

// Options say what the agent works with.
type Options struct {
	Client   kubernetes.Interface
	NodeName string
	NodeIP   netip.Addr // where the machine is reached from pods
	Version  string     // of this platform, for the node's status

	Containers Containers
	Images     Images
	Network    Network
	Dir        string // pods' files: volumes, hosts, resolv.conf
	LogDir     string // pods' logs
	DataDir    string // whose file system is the node's storage

	ClusterDomain string // cluster.local when empty
	ClusterDNS    []netip.Addr
	ResolvConf    string // the machine's; found when empty

	MaxPods     int   // 1,000 when zero
	MaxPodPids  int64 // processes of one container; 4,096 when zero
	LogMaxBytes int64 // a container's log file is rotated at that size; 10 MiB when zero
	LogMaxFiles int   // 5 when zero

	// OnEndpoint is called in order for each pod and must not block.
	OnEndpoint func(PodEndpoint)
	// Drained returns once no request is in a pod that OnEndpoint has said is
	// terminating, or when ctx ends. Its containers get their signal after
	// that. It may be nil.
	Drained func(ctx context.Context, pod PodEndpoint)

	API API

	Log *slog.Logger
}

// API is where and for whom the agent answers.
type API struct {
	Listen      []string // addresses with ports; none: no server
	Certificate func() (*tls.Certificate, error)
	// ClientCAs sign the certificates of those who may ask; ClientNames are
	// their common names (none: any that is signed).
	ClientCAs   *x509.CertPool
	ClientNames []string
	// FrontProxyCAs and FrontProxyNames are for the aggregated metrics API.
	FrontProxyCAs   *x509.CertPool
	FrontProxyNames []string
}

// kubernetesVersion is the version of the API that the agent is made for.
const kubernetesVersion = "v1.36.3"

// An Agent makes this machine match the pods bound to it.
type Agent struct {
	o        Options
	log      *slog.Logger
	now      func() time.Time
	ctx      context.Context // ends with the agent
	machine  *machine
	volumes  *volume.Manager
	objects  *objects
	services *services
	asker    *probe.Asker
	recorder record.EventRecorder
	pulls    chan struct{} // turns to pull
	crowd    atomic.Int64  // containers that are waited for
	usage    *usage
	ready    chan struct{}

	mu      sync.Mutex
	workers map[types.UID]*worker
	exits   map[string][]chan struct{} // who waits for the end of containers that have no worker
	legacy  *legacy
}

// New returns an agent that has not begun.
func New(o Options) (*Agent, error) {
	if o.Client == nil || o.NodeName == "" || o.Containers == nil || o.Images == nil || o.Network == nil {
		return nil, errors.New("agent: client, node name, containers, images and network are required")
	}
	o.ClusterDomain = cmp.Or(o.ClusterDomain, "cluster.local")
	o.MaxPods = cmp.Or(o.MaxPods, 1000)
	o.MaxPodPids = cmp.Or(o.MaxPodPids, 4096)
	o.LogMaxBytes = cmp.Or(o.LogMaxBytes, 10<<20)
	o.LogMaxFiles = cmp.Or(o.LogMaxFiles, 5)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	m, err := readMachine(o)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a := &Agent{
		o: o, log: o.Log, now: time.Now, machine: m,
		asker: probe.New("1.36"), services: newServices(),
		pulls: make(chan struct{}, maxPulls), ready: make(chan struct{}),
		workers: map[types.UID]*worker{}, exits: map[string][]chan struct{}{},
	}
	a.usage = newUsage(a)
	return a, nil
}

// Task runs the agent. It is ready once what an earlier process left is
// adopted and the node says that it is ready.
func (a *Agent) Task() run.Task {
	return run.Task{Name: "node agent", Run: a.run, Ready: func(ctx context.Context) error {
		select {
		case <-a.ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

func (a *Agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	a.ctx = ctx
	if err := os.MkdirAll(a.o.LogDir, 0o755); err != nil {
		return fmt.Errorf("preparing logs: %w", err)
	}
	a.objects = newObjects(ctx, a.o.Client, a.objectChanged)
	var err error
	a.volumes, err = volume.Open(volume.Options{Dir: a.o.Dir, Objects: a.objects, Sources: a.fieldSources, Log: a.log})
	if err != nil {
		return err
	}
	recorder, stop := newRecorder(ctx, a.o.Client, a.o.NodeName)
	defer stop()
	a.recorder = recorder

	ends, err := a.o.Containers.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watching containers: %w", err)
	}
	if a.legacy, err = a.survey(ctx); err != nil {
		return err
	}
	failed := make(chan error, 1)
	serve, err := a.listen()
	if err != nil {
		return err
	}
	parts.Go(func() { a.takeExits(ctx, ends) })
	parts.Go(func() { a.services.run(ctx, a.o.Client) })
	parts.Go(func() { a.keepNode(ctx) })
	parts.Go(func() { a.collectImages(ctx) })
	parts.Go(func() { a.keepLogs(ctx) })
	parts.Go(func() { a.keepStorage(ctx) })
	parts.Go(func() {
		if err := serve(ctx); err != nil {
			failed <- err
		}
	})
	parts.Go(func() { a.watchPods(ctx) })
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// watchPods follows the pods bound to this machine until ctx ends.
func (a *Agent) watchPods(ctx context.Context) {
	api := a.o.Client.CoreV1().Pods("")
	f := &feed{
		put:  func(o runtime.Object) { a.observe(o, false) },
		gone: func(o runtime.Object) { a.observe(o, true) },
	}
	f.synced = func() {
		go a.adopted(func(uid types.UID) bool { return a.worker(uid) != nil })
	}
	f.run(ctx, listWatch(a.o.Client, api.List, api.Watch, fields.OneTermEqualSelector("spec.nodeName", a.o.NodeName).String()), &corev1.Pod{})
}

// adopted removes what an earlier process has left of pods that are no more,
// and says that the rest is ours.
func (a *Agent) adopted(keep func(types.UID) bool) {
	a.mu.Lock()
	found := a.legacy
	a.legacy = nil
	a.mu.Unlock()
	a.clearOrphans(found, keep)
	select {
	case <-a.machine.told:
	case <-a.ctx.Done():
		return
	}
	close(a.ready)
}

// observe takes a pod as the API has it.
func (a *Agent) observe(o runtime.Object, gone bool) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	p.ManagedFields = nil // nobody here reads them
	a.mu.Lock()
	w := a.workers[p.UID]
	if w != nil {
		a.mu.Unlock()
		w.observe(p, gone)
		return
	}
	if gone {
		a.mu.Unlock()
		return
	}
	w = a.newWorker(p, a.predecessor(p))
	w.mu.Lock() // what is told to it waits until it has adopted
	a.workers[p.UID] = w
	found, sandbox := a.legacy.of(p.UID)
	a.mu.Unlock()
	w.adopt(found, sandbox)
	w.mu.Unlock()
	go func() {
		w.run()
		a.forget(w)
	}()
}

// predecessor is the end of a pod of the same name that is still on its way
// out. The agent is locked.
func (a *Agent) predecessor(p *corev1.Pod) <-chan struct{} {
	for _, w := range a.workers {
		if w.first.Name == p.Name && w.first.Namespace == p.Namespace {
			return w.done
		}
	}
	return nil
}

func (a *Agent) forget(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.workers[w.uid] == w {
		delete(a.workers, w.uid)
	}
}

func (a *Agent) worker(uid types.UID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

func (a *Agent) all() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		out = append(out, w)
	}
	return out
}

// Pods lists the pods the agent knows.
func (a *Agent) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range a.all() {
		out = append(out, w.snapshot())
	}
	return out
}

// others are the pods that have a claim on this machine, but for one.
func (a *Agent) others(uid types.UID) []*corev1.Pod {
	var out []*corev1.Pod
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, w := range a.workers {
		if id != uid && w.claims.Load() {
			out = append(out, w.first)
		}
	}
	return out
}

// objectChanged is told that an object of a pod's volumes has changed.
func (a *Agent) objectChanged(uid types.UID) {
	if w := a.worker(uid); w != nil {
		w.volumesChanged()
	}
}

// takeExits passes the ends of containers to their pods.
func (a *Agent) takeExits(ctx context.Context, ends <-chan container.Event) {
	for {
		select {
		case e, ok := <-ends:
			if !ok {
				return
			}
			a.mu.Lock()
			w := a.workers[types.UID(e.Labels[labelUID])]
			waiting := a.exits[e.ID]
			delete(a.exits, e.ID)
			if w == nil {
				a.legacy.ended(e)
			}
			a.mu.Unlock()
			for _, c := range waiting {
				close(c)
			}
			if w != nil {
				w.exit(e)
			}
		case <-ctx.Done():
			return
		}
	}
}

// exitOf is closed when a container ends that has no worker.
func (a *Agent) exitOf(id string) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{})
	a.exits[id] = append(a.exits[id], c)
	return c
}

// sources is what a pod's variables and files are made from.
func (a *Agent) sources(p *corev1.Pod) pod.Sources {
	return pod.Sources{Pod: p, NodeName: a.o.NodeName, HostIP: a.hostIP(), PodIP: p.Status.PodIP, Allocatable: a.machine.allocatable()}
}

// fieldSources is sources with the address that the pod has by now.
func (a *Agent) fieldSources(p *corev1.Pod) pod.Sources {
	s := a.sources(p)
	if w := a.worker(p.UID); w != nil {
		if ip := w.address(); ip != "" {
			s.PodIP = ip
		}
	}
	return s
}

func (a *Agent) hostIP() string {
	if a.o.NodeIP.IsValid() {
		return a.o.NodeIP.String()
	}
	return ""
}

// dns is the resolver configuration that pods get theirs from.
func (a *Agent) dns() pod.DNS {
	d := pod.DNS{Domain: a.o.ClusterDomain}
	for _, ip := range a.o.ClusterDNS {
		d.Cluster = append(d.Cluster, ip.String())
	}
	paths := []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}
	if a.o.ResolvConf != "" {
		paths = []string{a.o.ResolvConf}
	}
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil {
			d.Host = pod.ParseResolvConf(string(text))
			break
		}
	}
	return d
}

// StopPods ends all containers on this machine, within the grace that is left
// and that their pods give them, and clears them away. The API is told nothing:
// the pods are still wanted. The agent must not be running any more.
func (a *Agent) StopPods(ctx context.Context) error {
	all, err := a.o.Containers.List(ctx)
	if err != nil {
		return fmt.Errorf("listing containers: %w", err)
	}
	ends, err := a.o.Containers.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watching containers: %w", err)
	}
	left := map[string]bool{}
	for _, c := range all {
		if c.Labels[labelUID] == "" || c.State != container.Running {
			continue
		}
		if err := a.o.Containers.Signal(ctx, c.ID, parseSignal(c.Labels[labelSignal])); err == nil {
			left[c.ID] = true
		}
	}
	for len(left) > 0 {
		e, ok := <-ends // closed when ctx ends
		if !ok {
			break
		}
		delete(left, e.ID)
	}
	return a.clearAll(context.WithoutCancel(ctx), all)
}

// clearAll removes all pods' containers, sandboxes and volumes.
func (a *Agent) clearAll(ctx context.Context, all []container.Status) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	pods := map[types.UID]bool{}
	for _, c := range all {
		if uid := types.UID(c.Labels[labelUID]); uid != "" {
			pods[uid] = true
			errs = append(errs, a.o.Containers.Delete(ctx, c.ID), a.o.Images.Unmount(ctx, c.ID))
		}
	}
	for _, s := range a.o.Network.Sandboxes() {
		pods[types.UID(s.PodUID)] = true
	}
	dirs, err := a.volumes.Pods()
	errs = append(errs, err)
	for _, uid := range dirs {
		pods[uid] = true
	}
	for uid := range pods {
		errs = append(errs, a.o.Network.Release(ctx, string(uid)), a.volumes.Remove(uid), removeCgroup(uid))
	}
	errs = append(errs, volume.Unmount(a.o.Dir))
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, container.ErrNotFound) })...)
}
