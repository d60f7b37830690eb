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
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

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
	Gone            bool // nothing of it is left
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
	DataDir    string // whose file system the node's storage is

	ClusterDomain string
	ClusterDNS    []netip.Addr
	ResolvConf    string // the machine's; found when empty

	MaxPods     int   // 1,000 when zero
	MaxPodPids  int64 // processes of one container; 4,096 when zero
	LogMaxBytes int64 // a container's log file is rotated at that size; 10 MiB when zero
	LogMaxFiles int   // 5 when zero

	// OnEndpoint is called in order for each pod and must not block.
	OnEndpoint func(PodEndpoint)

	API API

	Log *slog.Logger
	Now func() time.Time
}

// API is where and for whom the agent answers.
type API struct {
	Listen      []string // addresses with ports; none: no server
	Certificate func() (*tls.Certificate, error)
	// ClientCAs sign the API server's certificate; ClientNames are the common
	// names that may ask anything (none: any that is signed).
	ClientCAs   *x509.CertPool
	ClientNames []string
	// FrontProxyCAs and FrontProxyNames are for the aggregated metrics API.
	FrontProxyCAs   *x509.CertPool
	FrontProxyNames []string
}

// An Agent makes this machine match the pods bound to it.
type Agent struct {
	o     Options
	ready chan struct{}
}

// New returns an agent that has not begun.
func New(o Options) (*Agent, error) {
	return &Agent{o: o, ready: make(chan struct{})}, nil
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
	close(a.ready)
	<-ctx.Done()
	return nil
}

// Pods lists the pods the agent knows.
func (a *Agent) Pods() []*corev1.Pod { return nil }
