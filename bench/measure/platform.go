// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/sonagi/sonagi/test/platform"
)

// Flags are those that all benchmarks share.
type Flags struct {
	Attach  string // the data directory of a platform that runs already
	Publish bool
	Peers   bool // measure only those
}

// Main runs a benchmark as a command, in a directory that is removed after it.
func Main(bench func(ctx context.Context, f Flags, dir string) error) {
	var f Flags
	flag.StringVar(&f.Attach, "attach", "", "measure the platform that runs with this data directory, instead of starting one")
	flag.BoolVar(&f.Publish, "publish", false, "write the figures to bench/README.md")
	flag.BoolVar(&f.Peers, "peers", false, "measure the peers only")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	dir, err := os.MkdirTemp("", "sonagi-bench-")
	if err == nil {
		err = errors.Join(bench(ctx, f, dir), os.RemoveAll(dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Report prints the rows of a benchmark, and publishes them if that is asked for.
func (f Flags) Report(name string, rows []Row, notes string) error {
	fmt.Printf("\n%s\n%s\n", Table(rows), notes)
	if !f.Publish {
		return nil
	}
	return Publish(filepath.Join(Root(), "bench", "README.md"), name, rows, notes)
}

// Services is what a Knative Service is called in the API.
var Services = schema.GroupVersionResource{Group: "serving.knative.dev", Version: "v1", Resource: "services"}

// Namespace is where benchmarks put their objects.
const Namespace = "default"

// Platform is a running Sonagi with clients for its API.
type Platform struct {
	*platform.Platform
	Core    kubernetes.Interface
	Dynamic dynamic.Interface
	UpTook  time.Duration
	own     bool // started here, and to be removed
}

// Start starts a platform with its data below dir, or attaches to one.
func Start(ctx context.Context, f Flags, dir string, extra ...string) (*Platform, error) {
	p, err := find(ctx, f, dir, extra)
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig())
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	cfg.QPS, cfg.WarningHandler = -1, rest.NoWarnings{}
	if p.Core, err = kubernetes.NewForConfig(cfg); err == nil {
		p.Dynamic, err = dynamic.NewForConfig(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

func find(ctx context.Context, f Flags, dir string, extra []string) (p *Platform, err error) {
	p = &Platform{}
	if f.Attach != "" {
		p.Platform, err = attach(f.Attach)
		return p, err
	}
	if p.Platform, err = platform.New(filepath.Join(dir, "data")); err != nil {
		return p, err
	}
	p.own = true
	begin := time.Now()
	err = p.Up(ctx, extra...)
	p.UpTook = time.Since(begin)
	return p, err
}

// attach reads where a running platform is from its settings.
func attach(dataDir string) (*platform.Platform, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, "settings.json"))
	if err != nil {
		return nil, fmt.Errorf("is there a platform? %w", err)
	}
	var s struct {
		Domain                             string
		GatewayPort, APIPort, RegistryPort int
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("settings in %s: %w", dataDir, err)
	}
	return &platform.Platform{
		Root: Root(), DataDir: dataDir, Domain: s.Domain, GatewayPort: s.GatewayPort, APIPort: s.APIPort,
		Registry: fmt.Sprint("localhost:", s.RegistryPort),
	}, nil
}

// Stop removes what Start has started.
func (p *Platform) Stop() error {
	if !p.own {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return p.Purge(ctx)
}

// Gateway is where requests go.
func (p *Platform) Gateway() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.GatewayPort))
}

// Procs are the platform's own processes: no containers.
func (p *Platform) Procs() Procs { return ProcsOf(p.DataDir) }

// Push builds the Go program in dir, puts it into the built-in registry and
// returns the image.
func (p *Platform) Push(ctx context.Context, dir, name string) (image string, err error) {
	if _, err = p.Sonagi(ctx, "deploy", dir, "--name", name); err != nil {
		return "", err
	}
	s, err := p.Dynamic.Resource(Services).Namespace(Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	containers, _, err := unstructured.NestedSlice(s.Object, "spec", "template", "spec", "containers")
	if err != nil || len(containers) == 0 {
		return "", fmt.Errorf("service %s has no container: %w", name, err)
	}
	image, _, err = unstructured.NestedString(containers[0].(map[string]any), "image")
	return image, errors.Join(err, p.Delete(ctx, name))
}

// A Service is a Knative Service to be.
type Service struct {
	Name, Image string
	Annotations map[string]string // of its revisions, without the group
	Env         map[string]string
	Concurrency int64
}

// Create creates a service.
func (p *Platform) Create(ctx context.Context, s Service) error {
	annotations, env := map[string]any{}, []any{}
	for k, v := range s.Annotations {
		annotations["autoscaling.knative.dev/"+k] = v
	}
	for k, v := range s.Env {
		env = append(env, map[string]any{"name": k, "value": v})
	}
	_, err := p.Dynamic.Resource(Services).Namespace(Namespace).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": map[string]any{"name": s.Name},
		"spec": map[string]any{"template": map[string]any{
			"metadata": map[string]any{"annotations": annotations},
			"spec": map[string]any{
				"containerConcurrency": s.Concurrency,
				"containers":           []any{map[string]any{"image": s.Image, "env": env}},
			},
		}},
	}}, metav1.CreateOptions{})
	return err
}

// CreateReady creates a service and returns how long it took to be ready.
func (p *Platform) CreateReady(ctx context.Context, s Service) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	w, err := p.Dynamic.Resource(Services).Namespace(Namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", s.Name).String(),
	})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	begin := time.Now()
	if err := p.Create(ctx, s); err != nil {
		return 0, err
	}
	for e := range w.ResultChan() {
		if o, ok := e.Object.(*unstructured.Unstructured); ok && isReady(o) {
			return time.Since(begin), nil
		}
	}
	return 0, fmt.Errorf("service %s is not ready: %w", s.Name, context.Cause(ctx))
}

// Delete deletes services and waits until their pods are gone.
func (p *Platform) Delete(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, name := range names {
		if err := p.Dynamic.Resource(Services).Namespace(Namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return nil
	}
	return p.WaitNoPods(ctx, Of(names...))
}

// Of selects what belongs to services.
func Of(names ...string) string {
	return "serving.knative.dev/service in (" + strings.Join(names, ",") + ")"
}

// WaitReady waits until all these services are ready, and returns when each
// was seen to be.
func (p *Platform) WaitReady(ctx context.Context, names ...string) (map[string]time.Time, error) {
	waiting, ready := map[string]bool{}, map[string]time.Time{}
	for _, n := range names {
		waiting[n] = true
	}
	list := p.Dynamic.Resource(Services).Namespace(Namespace)
	_, err := watchtools.UntilWithSync(ctx, cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return list.Watch(ctx, o)
		},
	}, p.Dynamic), &unstructured.Unstructured{}, nil, func(e watch.Event) (bool, error) {
		s, ok := e.Object.(*unstructured.Unstructured)
		if ok && waiting[s.GetName()] && isReady(s) {
			delete(waiting, s.GetName())
			ready[s.GetName()] = time.Now()
		}
		return len(waiting) == 0, nil
	})
	if err != nil {
		return ready, fmt.Errorf("%d of %d services are not ready: %w", len(waiting), len(names), err)
	}
	return ready, nil
}

func isReady(s *unstructured.Unstructured) bool {
	observed, _, _ := unstructured.NestedInt64(s.Object, "status", "observedGeneration")
	conditions, _, _ := unstructured.NestedSlice(s.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == "Ready" {
			return c["status"] == "True" && observed == s.GetGeneration()
		}
	}
	return false
}

// WaitNoPods waits until no pod has these labels: not one that is going, either.
func (p *Platform) WaitNoPods(ctx context.Context, labels string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	left := map[string]bool{}
	_, err := watchtools.UntilWithSync(ctx, cache.NewFilteredListWatchFromClient(
		p.Core.CoreV1().RESTClient(), "pods", Namespace, func(o *metav1.ListOptions) {
			o.LabelSelector, o.FieldSelector = labels, fields.Everything().String()
		},
	), &corev1.Pod{}, func(s cache.Store) (bool, error) {
		for _, k := range s.ListKeys() {
			left[k] = true
		}
		return len(left) == 0, nil
	}, func(e watch.Event) (bool, error) {
		pod, ok := e.Object.(*corev1.Pod)
		if !ok {
			return false, nil
		}
		if key := pod.Namespace + "/" + pod.Name; e.Type == watch.Deleted {
			delete(left, key)
		} else {
			left[key] = true
		}
		return len(left) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%d pods are left: %w", len(left), err)
	}
	return nil
}
