// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"
	pkgcontroller "k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/certificates/approver"
	"k8s.io/kubernetes/pkg/controller/certificates/cleaner"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/certificates/signer"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/nodelifecycle"
	"k8s.io/kubernetes/pkg/controller/podgc"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controller/tainteviction"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
	tokens "k8s.io/kubernetes/pkg/serviceaccount"
)

// kindsPeriod is how often garbage collector and quota look whether kinds
// came or went. The look is at a kept answer, so it may be often.
const kindsPeriod = 5 * time.Second

// cluster are the controllers that keep house: names, identities, endpoints, rubbish.
func cluster(ctx context.Context, t *tools) ([]loop, error) {
	var loops []loop
	for _, group := range []func(context.Context, *tools) ([]loop, error){
		namespaces, identities, certificates, endpoints, nodes, garbage, quota,
	} {
		more, err := group(ctx, t)
		if err != nil {
			return nil, err
		}
		loops = append(loops, more...)
	}
	return loops, nil
}

func namespaces(ctx context.Context, t *tools) ([]loop, error) {
	// Deleting a namespace asks for the kinds afresh: forgetting one that was
	// just added would leave its objects behind.
	c := namespace.NewNamespaceController(ctx, t.client, t.metadata, onceRunning(t.client.Discovery().ServerPreferredNamespacedResources),
		t.informers.Core().V1().Namespaces(), 0, corev1.FinalizerKubernetes)
	roles := clusterroleaggregation.NewClusterRoleAggregation(t.informers.Rbac().V1().ClusterRoles(), t.client.RbacV1())
	return []loop{
		func(ctx context.Context) { c.Run(ctx, workers) },
		func(ctx context.Context) { roles.Run(ctx, 1) },
	}, nil
}

// onceRunning answers the first question itself. Constructors of upstream ask
// which kinds there are (one to save itself a refusal later, one to watch them
// early), and there is no server yet. An empty answer would end the process.
func onceRunning(ask func() ([]*metav1.APIResourceList, error)) func() ([]*metav1.APIResourceList, error) {
	var asked atomic.Bool
	return func() ([]*metav1.APIResourceList, error) {
		if !asked.Swap(true) {
			return []*metav1.APIResourceList{{GroupVersion: "v1"}}, nil
		}
		return ask()
	}
}

// identities gives each namespace its default account and the CA, and fills token secrets.
func identities(ctx context.Context, t *tools) ([]loop, error) {
	core := t.informers.Core().V1()
	accounts, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), core.ServiceAccounts(), core.Namespaces(), t.client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return nil, fmt.Errorf("service account controller: %w", err)
	}
	roots, err := rootcacertpublisher.NewPublisher(t.roots.Core().V1().ConfigMaps(), core.Namespaces(), t.client, t.PKI.CABundle)
	if err != nil {
		return nil, fmt.Errorf("root CA publisher: %w", err)
	}
	text, err := os.ReadFile(t.PKI.Token.Key)
	if err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(text)
	if err != nil {
		return nil, fmt.Errorf("service account key %s: %w", t.PKI.Token.Key, err)
	}
	generator, err := tokens.JWTTokenGenerator(tokens.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("service account token generator: %w", err)
	}
	secrets, err := serviceaccount.NewTokensController(klog.FromContext(ctx), core.ServiceAccounts(), t.secrets.Core().V1().Secrets(), t.client,
		serviceaccount.TokensControllerOptions{TokenGenerator: generator, RootCA: t.PKI.CABundle})
	if err != nil {
		return nil, fmt.Errorf("token controller: %w", err)
	}
	return []loop{
		func(ctx context.Context) { accounts.Run(ctx, 2) },
		func(ctx context.Context) { roots.Run(ctx, 2) },
		func(ctx context.Context) { secrets.Run(ctx, 1) },
	}, nil
}

// certificates signs what was approved; users ask for client certificates this way.
func certificates(ctx context.Context, t *tools) ([]loop, error) {
	requests := t.informers.Certificates().V1().CertificateSigningRequests()
	const life = 365 * 24 * time.Hour
	var loops []loop
	for _, group := range []func(context.Context) (*signer.CSRSigningController, error){
		func(ctx context.Context) (*signer.CSRSigningController, error) {
			return signer.NewKubeAPIServerClientCSRSigningController(ctx, t.client, requests, t.PKI.CA.Cert, t.PKI.CA.Key, life)
		},
		func(ctx context.Context) (*signer.CSRSigningController, error) {
			return signer.NewKubeletClientCSRSigningController(ctx, t.client, requests, t.PKI.CA.Cert, t.PKI.CA.Key, life)
		},
		func(ctx context.Context) (*signer.CSRSigningController, error) {
			return signer.NewKubeletServingCSRSigningController(ctx, t.client, requests, t.PKI.CA.Cert, t.PKI.CA.Key, life)
		},
	} {
		c, err := group(ctx)
		if err != nil {
			return nil, fmt.Errorf("certificate signer: %w", err)
		}
		loops = append(loops, func(ctx context.Context) { c.Run(ctx, 1) })
	}
	approve := approver.NewCSRApprovingController(ctx, t.client, requests)
	clean := cleaner.NewCSRCleanerController(t.client.CertificatesV1().CertificateSigningRequests(), requests)
	return append(loops,
		func(ctx context.Context) { approve.Run(ctx, 1) },
		func(ctx context.Context) { clean.Run(ctx, 1) },
	), nil
}

func endpoints(ctx context.Context, t *tools) ([]loop, error) {
	core, slices := t.informers.Core().V1(), t.informers.Discovery().V1().EndpointSlices()
	const perSlice, perSubset = 100, 1000
	own := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(), slices, perSlice, t.client, 0)
	mirrored := endpointslicemirroring.NewController(ctx, core.Endpoints(), slices, core.Services(), perSubset, t.client, 0)
	return []loop{
		func(ctx context.Context) { own.Run(ctx, workers) },
		func(ctx context.Context) { mirrored.Run(ctx, 1) },
	}, nil
}

// nodes taints a node that is not ready, and evicts what does not tolerate
// its taints. A new node is tainted at admission and only untainted here, so
// nothing is scheduled without it.
func nodes(ctx context.Context, t *tools) ([]loop, error) {
	core := t.informers.Core().V1()
	const (
		monitorPeriod = 5 * time.Second // these are upstream's
		startupGrace  = time.Minute
		monitorGrace  = 50 * time.Second
		evictionRate  = 0.1
		secondaryRate = 0.01
		largeCluster  = 50
		unhealthyZone = 0.55
		terminated    = 500 // pods kept after they ended; upstream's 12,500 is for 5,000 nodes
	)
	life, err := nodelifecycle.NewNodeLifecycleController(ctx, t.informers.Coordination().V1().Leases(), core.Pods(), core.Nodes(),
		t.informers.Apps().V1().DaemonSets(), t.client, monitorPeriod, startupGrace, monitorGrace,
		evictionRate, secondaryRate, largeCluster, unhealthyZone)
	if err != nil {
		return nil, fmt.Errorf("node lifecycle controller: %w", err)
	}
	evict, err := tainteviction.New(ctx, t.client, core.Pods(), core.Nodes(), "taint-eviction-controller")
	if err != nil {
		return nil, fmt.Errorf("taint eviction controller: %w", err)
	}
	pods := podgc.NewPodGC(ctx, t.client, core.Pods(), core.Nodes(), terminated)
	return []loop{life.Run, evict.Run, pods.Run}, nil
}

func garbage(ctx context.Context, t *tools) ([]loop, error) {
	c, err := garbagecollector.NewGarbageCollector(ctx, t.client, t.metadata, t.mapper, garbagecollector.DefaultIgnoredResources(),
		wholeOrNames{t.informers, t.names}, t.started)
	if err != nil {
		return nil, fmt.Errorf("garbage collector: %w", err)
	}
	return []loop{
		func(ctx context.Context) { c.Run(ctx, workers, 30*time.Second) },
		func(ctx context.Context) { c.Sync(ctx, t.kinds, kindsPeriod) },
	}, nil
}

func quota(ctx context.Context, t *tools) ([]loop, error) {
	config, err := quotainstall.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(t.informers.ForResource), t.informers)
	if err != nil {
		return nil, fmt.Errorf("quota evaluators: %w", err)
	}
	resync := pkgcontroller.StaticResyncPeriodFunc(5 * time.Minute)
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               t.client.CoreV1(),
		ResourceQuotaInformer:     t.informers.Core().V1().ResourceQuotas(),
		ResyncPeriod:              resync,
		ReplenishmentResyncPeriod: resync,
		InformerFactory:           wholeOrNames{t.informers, t.names},
		InformersStarted:          t.started,
		DiscoveryFunc:             onceRunning(t.kinds.ServerPreferredNamespacedResources),
		IgnoredResourcesFunc:      config.IgnoredResources,
		Registry:                  generic.NewRegistry(config.Evaluators()),
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, fmt.Errorf("quota controller: %w", err)
	}
	return []loop{
		func(ctx context.Context) { c.Run(ctx, 2) },
		func(ctx context.Context) { c.Sync(ctx, t.kinds.ServerPreferredNamespacedResources, kindsPeriod) },
	}, nil
}
