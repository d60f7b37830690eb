// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/mesh/dns"
	"github.com/sonagi/sonagi/internal/mesh/gateway"
	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/mesh/watch"
	"github.com/sonagi/sonagi/internal/node/agent"
	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/proxy"
	"github.com/sonagi/sonagi/internal/node/registry"
	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/activator"
	"github.com/sonagi/sonagi/internal/serving/queue"
	"github.com/sonagi/sonagi/internal/wire"
)

// RunNode is the node process: pods and the data plane. Told to stop, it ends
// all containers and removes what they needed; killed, it leaves everything to
// the next one.
func RunNode(ctx context.Context, s Settings) error {
	err := play(ctx, "node", s, node)
	if ctx.Err() == nil {
		return err
	}
	return errors.Join(err, cleanUp(context.WithoutCancel(ctx), s))
}

func node(ctx context.Context, s Settings, log *slog.Logger) ([][]run.Task, error) {
	files, err := pki.Ensure(s.Path("pki"), s.certificates())
	if err != nil {
		return nil, err
	}
	// Before any other process is started, which would inherit the gateway's sockets.
	traffic, err := newTraffic(s, files, log)
	if err != nil {
		return nil, err
	}
	p, err := openPods(ctx, s, log)
	if err != nil {
		return nil, err
	}
	cfg, err := clientConfig(files.NodeKubeconfig)
	if err != nil {
		return nil, err
	}
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	// Services and their endpoints are the data plane's to read, not the node's.
	reader, err := kubernetes.NewForConfig(traffic.config)
	if err != nil {
		return nil, err
	}
	shared := informers.NewSharedInformerFactoryWithOptions(reader, 0)
	services, err := proxy.New(proxy.Options{Informers: shared, Network: p.network, NodeName: s.NodeName, Log: log})
	if err != nil {
		return nil, err
	}
	names, err := dns.New(dns.Options{
		Informers: shared, Listen: []string{net.JoinHostPort(s.BridgeIP().String(), strconv.Itoa(dnsPort))},
		Domain: s.ClusterDomain, Networks: []netip.Prefix{s.PodCIDR, s.ServiceCIDR}, Host: s.served,
		Own: []netip.Addr{s.DNSIP()}, Log: log,
	})
	if err != nil {
		return nil, err
	}
	options, err := s.agent(core, files, p, traffic, log)
	if err != nil {
		return nil, err
	}
	pods, err := agent.New(options)
	if err != nil {
		return nil, err
	}
	local := http.NewServeMux()
	local.Handle("/images", imagesHandler(p.images))
	local.Handle(watch.Path, traffic.watch.Handler())
	local.Handle("/metrics", traffic.metrics)
	return [][]run.Task{
		// Closed after all that uses it, and before it is cleaned up: an open one mends what is removed.
		{{Name: "pod network", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return p.network.Close()
		}}},
		{p.registryTask(s), listenUnix("node socket", s.nodeSocket(), local)},
		// Informers that find no API wait ever longer before they ask again, so they start when it answers.
		{answers("Kubernetes API", cfg), {Name: "pods", Run: stopPods(pods)}},
		// The records outlive the gateway, whose last requests are recorded too.
		{traffic.records.Task(), s.serveMetrics(traffic.metrics, log)},
		{traffic.watch.Task(), traffic.reporter.Task(), services.Task(), names.Task(), pods.Task()},
		{{Name: "routes", Run: untilDone, Ready: traffic.watch.Synced}},
		// Last, so that it ends first: requests finish before pods are told to. Until then connections wait in its sockets.
		{traffic.gateway.Task()},
	}, nil
}

// stopLimit is how long requests, and then containers, may take to end when the platform stops.
const stopLimit = 5 * time.Second

// stopPods ends the containers once the agent, of a later stage, has ended.
func stopPods(pods *agent.Agent) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		return pods.StopPods(ctx)
	}
}

// served says where pods find the names of routes: at the gateway.
func (s Settings) served(name string) (netip.Addr, bool) {
	return s.BridgeIP(), strings.HasSuffix(name, "."+s.Domain)
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// pods are the rooms that a pod is made of.
type podRooms struct {
	network  *network.Manager
	images   *image.Store
	runtime  *container.Client
	registry *registry.Registry
}

func openPods(ctx context.Context, s Settings, log *slog.Logger) (p podRooms, err error) {
	p.network, err = network.Open(s.network(log))
	if errors.Is(err, network.ErrConflict) {
		return p, fmt.Errorf("%w with --pod-cidr or --service-cidr", err)
	}
	if err != nil {
		return p, err
	}
	if p.images, err = image.Open(image.Options{
		Dir: s.Path("images"), InsecureHosts: s.InsecureRegistries, Aliases: s.registryAliases(),
	}); err != nil {
		return p, err
	}
	if p.registry, err = registry.Open(registry.Options{Dir: s.Path("registry")}); err != nil {
		return p, err
	}
	p.runtime, err = container.Launch(ctx, s.runtimeOptions())
	return p, err
}

// registryTask serves the built-in registry to this machine and to its pods.
func (p podRooms) registryTask(s Settings) run.Task {
	ready := make(chan struct{})
	return run.Task{
		Name: "image registry",
		Run: func(ctx context.Context) error {
			server := &http.Server{Handler: p.registry, ReadHeaderTimeout: 10 * time.Second}
			defer p.registry.Close()
			done := make(chan error, 3)
			go func() { done <- p.registry.Run(ctx) }()
			for _, host := range []string{"127.0.0.1", s.BridgeIP().String()} {
				l, err := wire.Listen(ctx, net.JoinHostPort(host, strconv.Itoa(int(s.RegistryPort))))
				if err != nil {
					return fmt.Errorf("image registry: %w", err)
				}
				go func() { done <- serve(ctx, server, l) }()
			}
			close(ready)
			return errors.Join(<-done, <-done, <-done)
		},
		Ready: func(ctx context.Context) error { return wait(ctx, ready) },
	}
}

// traffic is the data plane.
type traffic struct {
	config    *rest.Config
	api       client.Client
	gateway   *gateway.Gateway
	activator *activator.Activator
	reporter  *queue.Reporter
	tables    *routing.Live
	watch     *watch.Watch
	observation
	clusterDomain string
	places        sync.Map // of clients inside: netip.Addr to place
}

// place is where a pod is.
type place struct {
	uid             types.UID
	namespace, name string
}

// namespaceOf says in whose namespace a client is that has a pod's address.
func (t *traffic) namespaceOf(addr netip.Addr) (string, bool) {
	p, ok := t.places.Load(addr)
	if !ok {
		return "", false
	}
	return p.(place).namespace, true
}

func newTraffic(s Settings, files *pki.Files, log *slog.Logger) (*traffic, error) {
	cfg, err := clientConfig(files.DataPlaneKubeconfig)
	if err != nil {
		return nil, err
	}
	api, err := kube.NewClient(cfg)
	if err != nil {
		return nil, err
	}
	t := &traffic{config: cfg, api: api, clusterDomain: s.ClusterDomain, tables: &routing.Live{}}
	t.reporter = queue.NewReporter(s.controlSocket(), nil, log)
	t.activator = activator.New(t.reporter.Poke)
	t.reporter.SetSample(t.activator.Sample)
	t.gateway = gateway.New(gateway.Options{Times: gateway.Times{Drain: stopLimit}, Tables: t.tables, Pods: t.activator, NamespaceOf: t.namespaceOf, SecurePort: s.SecurePort, Log: log})
	t.observation = s.observation(t, log)
	t.watch = watch.New(watch.Options{
		Client: api, Live: t.tables, SystemNamespace: kube.SystemNamespace, ClusterDomain: s.ClusterDomain, Log: log,
		OnService: t.activator.SetEndpoint,
		OnGone: func(revision routing.Name) {
			t.activator.Forget(revision)
			t.records.Forget(revision)
		},
		OnConfigMap: t.configure(log),
	})
	for i, internal := range []bool{externalGateway: false, internalGateway: true} {
		l, err := inherited(i)
		if err != nil {
			return nil, err
		}
		t.gateway.Add(l, internal)
	}
	secure, err := inherited(secureGateway)
	if err != nil {
		return nil, err
	}
	t.gateway.AddTLS(secure)
	return t, nil
}

// endpoint takes news of a pod from the agent, in the same process and before the API has them.
func (t *traffic) endpoint(e agent.PodEndpoint) {
	if at := (place{e.UID, e.Namespace, e.Name}); e.Gone {
		t.places.CompareAndDelete(e.IP, at)
	} else {
		t.places.Store(e.IP, at)
	}
	revision := e.Labels[serving.RevisionLabelKey]
	if revision == "" {
		return
	}
	t.activator.SetEndpoint(routing.Endpoint{
		Revision: routing.Name{Namespace: e.Namespace, Name: revision},
		Pod:      e.Name, UID: string(e.UID), IP: e.IP, Ready: e.Ready, Gone: e.Terminating || e.Gone,
	})
	if e.Gone {
		t.gateway.Drop(string(e.UID))
	}
}

// drained waits until no request is in a pod of a revision.
func (t *traffic) drained(ctx context.Context, e agent.PodEndpoint) {
	if revision := e.Labels[serving.RevisionLabelKey]; revision != "" {
		// What is still in the pod when ctx ends has had the grace period to finish.
		_ = t.activator.Drained(ctx, routing.Name{Namespace: e.Namespace, Name: revision}, string(e.UID))
	}
}

func (s Settings) agent(core kubernetes.Interface, files *pki.Files, p podRooms, t *traffic, log *slog.Logger) (agent.Options, error) {
	port := strconv.Itoa(int(s.KubeletPort))
	clients, err := pool(files.CA.Cert)
	if err != nil {
		return agent.Options{}, err
	}
	aggregator, err := pool(files.FrontProxyCA.Cert)
	if err != nil {
		return agent.Options{}, err
	}
	return agent.Options{
		Client: core, NodeName: s.NodeName, NodeIP: s.BridgeIP(), Version: "sonagi",
		Containers: p.runtime, Images: p.images, Network: p.network,
		Dir: s.Path("pods"), LogDir: s.Path("logs", "pods"), DataDir: s.DataDir,
		ClusterDomain: s.ClusterDomain, ClusterDNS: []netip.Addr{s.DNSIP()},
		OnEndpoint: t.endpoint, Drained: t.drained,
		API: agent.API{
			Listen: []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort(s.BridgeIP().String(), port)},
			Certificate: func() (*tls.Certificate, error) {
				c, err := tls.LoadX509KeyPair(files.KubeletServer.Cert, files.KubeletServer.Key)
				return &c, err
			},
			ClientCAs: clients, FrontProxyCAs: aggregator, FrontProxyNames: []string{pki.FrontProxyName},
		},
		Log: log,
	}, nil
}

// pool is the authorities in a PEM file.
func pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p, nil
}

// clientConfig reads a kubeconfig for a part of the platform: on one machine the
// API server decides how much it takes, not each client.
func clientConfig(kubeconfig string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	cfg.QPS = -1
	return cfg, nil
}

// answers is ready once the API does, which no event tells another process.
func answers(name string, cfg *rest.Config) run.Task {
	return run.Task{Name: name, Run: untilDone, Ready: func(ctx context.Context) error {
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			return err
		}
		for {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/readyz", nil)
			if err != nil {
				return err
			}
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					return nil
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}}
}
