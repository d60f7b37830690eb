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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Options are what the reconcilers need of the world.
type Options struct {
	// ClusterDomain is cluster.local unless set.
	ClusterDomain string
	// ExternalPort is where the gateway takes traffic from outside. URLs name it unless it is
	// 80 or not known, so that what is shown can be used as it is.
	ExternalPort uint16
	// SecurePort is where the gateway takes TLS from outside.
	SecurePort uint16
	// Issuer makes the certificates of hosts. Nil means that somebody else sees to Certificates.
	Issuer Issuer
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

// Programming names a state of a Route, or of a DomainMapping.
type Programming struct {
	Kind            string // empty for a Route
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
		func() error { return addDomains(m, c) },
		func() error { return addCertificates(m, c) },
		func() error { return addCollector(m, c) },
	} {
		if err := add(); err != nil {
			return fmt.Errorf("serving control: %w", err)
		}
	}
	return nil
}

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
