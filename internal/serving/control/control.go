// SPDX-License-Identifier: Apache-2.0

// Package control reconciles serving objects.
//
// A reconciler reads what is from the caches, has package desired say what should be, writes
// the difference, and puts what it found into the status. It writes nothing that says what is
// there already, and holds a status back that a following event is sure to change: on one
// machine each write costs all other parts a piece of the processor. Nothing is asked for
// again and again; every wait ends with an event.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/serving/desired"
)

// Options are what the reconcilers need of the world.
type Options struct {
	// ClusterDomain is cluster.local unless set.
	ClusterDomain string
	// Programmed returns once the gateway serves a Route as its status of at least this
	// resource version says. Nil means that it does so at once.
	Programmed func(ctx context.Context, route Programming) error
	// ResolveDigest turns an image reference with a tag into one with a digest. Nil means to
	// ask the registry, with the pull secrets at hand.
	ResolveDigest func(ctx context.Context, image Image) (string, error)
	// Aliases are registry names and the addresses (host:port) at which they are found by
	// plain HTTP. Registries on loopback are spoken to by plain HTTP anyway.
	Aliases map[string]string
	// PrivateServices has each revision get a Service that selects its pods. Nothing on one
	// machine asks for it, and it costs writes whenever a pod comes or goes.
	PrivateServices bool
	Log             *slog.Logger
}

// Programming names a state of a Route.
type Programming struct {
	Namespace, Name string
	Generation      int64
	ResourceVersion string
}

// common is what all reconcilers share.
type common struct {
	client   fresh         // reads serving objects from the cache
	services freshReader   // reads the Services of serving
	lean     cache.Cache   // holds the pods and Services of serving
	direct   client.Reader // reads past the caches
	settings *settingsSource
	options  Options
	news     *news
	held     *held
	log      *slog.Logger
}

// Setup adds the reconcilers to the manager.
func Setup(m manager.Manager, o Options) error {
	if o.ClusterDomain == "" {
		o.ClusterDomain = "cluster.local"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	c, err := newCommon(m, o)
	if err != nil {
		return fmt.Errorf("serving control: %w", err)
	}
	if err := addIndices(m.GetFieldIndexer(), c.lean); err != nil {
		return fmt.Errorf("serving control: %w", err)
	}
	kubeClient, err := kubernetes.NewForConfig(unlimited(m.GetConfig()))
	if err != nil {
		return fmt.Errorf("serving control: %w", err)
	}
	for _, add := range []func() error{
		func() error { return addServices(m, c) },
		func() error { return addConfigurations(m, c) },
		func() error { return addRevisions(m, c, kubeClient) },
		func() error { return addRoutes(m, c) },
		func() error { return addCollector(m, c) },
	} {
		if err := add(); err != nil {
			return fmt.Errorf("serving control: %w", err)
		}
	}
	return nil
}

func newCommon(m manager.Manager, o Options) (*common, error) {
	cfg := unlimited(m.GetConfig())
	lean, err := leanCache(m, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.Add(leanRunner{lean}); err != nil {
		return nil, err
	}
	writer, err := client.New(cfg, client.Options{
		Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), Cache: &client.CacheOptions{Reader: m.GetCache()},
	})
	if err != nil {
		return nil, err
	}
	memory := newMemory()
	return &common{
		client: fresh{writer, memory}, services: freshReader{lean, memory}, lean: lean, direct: m.GetAPIReader(), options: o, log: o.Log,
		settings: &settingsSource{reader: m.GetCache(), clusterDomain: o.ClusterDomain, log: o.Log},
		held:     &held{since: map[string]time.Time{}},
		news:     newNews(m.GetEventRecorder("serving")),
	}, nil
}

// unlimited takes the brake off a client: the API server decides how much it can take. It
// also leaves the encoding to the kind: only built-in ones have protocol buffers.
func unlimited(cfg *rest.Config) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst, cfg.RateLimiter = -1, 0, nil
	cfg.ContentType, cfg.AcceptContentTypes = "", ""
	return cfg
}

// leanCache holds the pods and Services of serving, and of the pods little more than their
// status.
func leanCache(m manager.Manager, cfg *rest.Config) (cache.Cache, error) {
	pods, err := labels.NewRequirement(serving.RevisionLabelKey, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	services, err := labels.NewRequirement(desired.RoleLabel, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	return cache.New(cfg, cache.Options{
		Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), DefaultTransform: kube.Lean,
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:     {Label: labels.NewSelector().Add(*pods), Transform: leanPod},
			&corev1.Service{}: {Label: labels.NewSelector().Add(*services)},
		},
	})
}

func leanPod(obj any) (any, error) {
	if pod, ok := obj.(*corev1.Pod); ok {
		pod.Spec = corev1.PodSpec{}
		pod.Annotations, pod.OwnerReferences = nil, nil
	}
	return kube.Lean(obj)
}

// leanRunner has the manager start the cache with its own, before any reconciler.
type leanRunner struct{ cache.Cache }

func (l leanRunner) GetCache() cache.Cache { return l.Cache }

// workers is how many objects of a kind are reconciled at a time. Reconcilers mostly wait for
// the API server.
const workers = 8

func tuned() controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: workers,
		// Failures back off each by itself. The default also shares a budget of ten a second
		// among all, which would have two hundred new services wait for each other.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](10*time.Millisecond, time.Minute),
	}
}

func key(o metav1.Object) client.ObjectKey {
	return client.ObjectKey{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func request(o metav1.Object) reconcile.Request {
	return reconcile.Request{NamespacedName: key(o)}
}
