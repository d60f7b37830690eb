// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/controlplane"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/kubeapiserver"

	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	apiextensionsapiserver "k8s.io/apiextensions-apiserver/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
)

// assemble configures the three layers. It follows the order upstream's
// command does, because the steps depend on it: storage before
// authentication, authentication before authorization, both before admission.
func (s *Server) assemble(ctx context.Context, listener *manyListener) (*app.Config, error) {
	options, err := s.complete(ctx, listener)
	if err != nil {
		return nil, err
	}
	shared := s.shared
	generic, stores, err := s.generic(options)
	if err != nil {
		return nil, err
	}
	kube, resolver, initializers, err := app.CreateKubeAPIServerConfig(options, generic, shared, stores)
	if err != nil {
		return nil, fmt.Errorf("built-in kinds: %w", err)
	}
	s.tune(kube)

	transport := kube.ControlPlane.ProxyTransport
	webhookAuth := webhook.NewDefaultAuthenticationInfoResolverWrapper(transport, nil, generic.LoopbackClientConfig, generic.TracerProvider)
	custom, err := controlplaneapiserver.CreateAPIExtensionsConfig(*generic, shared, initializers, options.CompletedOptions, 1, resolver, webhookAuth)
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	custom.GenericConfig.RESTOptionsGetter = s.stores(custom.GenericConfig.RESTOptionsGetter)
	custom.ExtraConfig.CRDRESTOptionsGetter = s.stores(custom.ExtraConfig.CRDRESTOptionsGetter)

	aggregator, err := controlplaneapiserver.CreateAggregatorConfig(*generic, options.CompletedOptions, shared, resolver, transport, nil, initializers)
	if err != nil {
		return nil, fmt.Errorf("aggregation: %w", err)
	}
	aggregator.GenericConfig.RESTOptionsGetter = s.stores(aggregator.GenericConfig.RESTOptionsGetter)
	aggregator.GenericConfig.OpenAPIConfig = nil
	aggregator.GenericConfig.DisabledPostStartHooks = sets.NewString("apiservice-openapiv3-controller")

	return &app.Config{Options: options, KubeAPIs: kube, ApiExtensions: custom, Aggregator: aggregator}, nil
}

// generic configures what the three layers share.
func (s *Server) generic(o kubeoptions.CompletedOptions) (*server.Config, *serverstorage.DefaultStorageFactory, error) {
	c := server.NewConfig(legacyscheme.Codecs)
	c.MergedResourceConfig = controlplane.DefaultAPIResourceConfigSource()
	c.LoopbackClientConfig = s.loop.config()
	c.DisabledPostStartHooks = sets.NewString()
	if err := o.GenericServerRunOptions.ApplyTo(c); err != nil {
		return nil, nil, err
	}
	if err := o.SecureServing.SecureServingOptions.ApplyTo(&c.SecureServing); err != nil {
		return nil, nil, fmt.Errorf("serving: %w", err)
	}
	client, err := kubernetes.NewForConfig(c.LoopbackClientConfig)
	if err != nil {
		return nil, nil, err
	}
	if err := o.Features.ApplyTo(c, client, s.shared); err != nil {
		return nil, nil, err
	}
	if err := o.APIEnablement.ApplyTo(c, c.MergedResourceConfig, legacyscheme.Scheme); err != nil {
		return nil, nil, fmt.Errorf("served versions: %w", err)
	}
	describe(c)
	stores, err := s.storage(o, c)
	if err != nil {
		return nil, nil, fmt.Errorf("storage: %w", err)
	}
	if err := protect(o, c, client, s.shared); err != nil {
		return nil, nil, err
	}
	c.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	return c, stores, nil
}

// describe sets what the API says about itself, and which requests may last.
func describe(c *server.Config) {
	definitions := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(generatedopenapi.GetOpenAPIDefinitions)
	namer := openapinamer.NewDefinitionNamer(legacyscheme.Scheme, apiextensionsapiserver.Scheme, aggregatorscheme.Scheme)
	c.OpenAPIConfig = server.DefaultOpenAPIConfig(definitions, namer)
	c.OpenAPIConfig.Info.Title = "Kubernetes"
	c.OpenAPIV3Config = server.DefaultOpenAPIV3Config(definitions, namer)
	c.OpenAPIV3Config.Info.Title = "Kubernetes"
	// The documents are made when they are asked for: see openapi.go.
	c.SkipOpenAPIInstallation = true
	c.LongRunningFunc = filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)
}

func (s *Server) storage(o kubeoptions.CompletedOptions, c *server.Config) (*serverstorage.DefaultStorageFactory, error) {
	o.Etcd.StorageConfig.Transport.TracerProvider = noopoteltrace.NewTracerProvider()
	config := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(c.EffectiveVersion)
	config.APIResourceConfig = c.MergedResourceConfig
	config.DefaultResourceEncoding.SetEffectiveVersion(c.EffectiveVersion)
	stores, err := config.Complete(o.Etcd).New()
	if err != nil {
		return nil, err
	}
	stores.StorageConfig.StorageObjectCountTracker = c.StorageObjectCountTracker
	if err := o.Etcd.ApplyWithStorageFactoryTo(stores, c); err != nil {
		return nil, err
	}
	c.RESTOptionsGetter = s.stores(c.RESTOptionsGetter)
	return stores, nil
}

// protect sets who may do what: authentication, authorization, audit.
func protect(o kubeoptions.CompletedOptions, c *server.Config, client kubernetes.Interface, shared informers.SharedInformerFactory) error {
	ctx := wait.ContextForChannel(c.DrainedNotify())
	err := o.Authentication.ApplyTo(ctx, &c.Authentication, c.SecureServing, nil, c.OpenAPIConfig, c.OpenAPIV3Config, client, shared, c.APIServerID)
	if err != nil {
		return fmt.Errorf("authentication: %w", err)
	}
	c.Authorization.Authorizer, c.RuleResolver, _, err = controlplaneapiserver.BuildAuthorizer(ctx, o.CompletedOptions, nil, c.APIServerID, shared)
	if err != nil {
		return fmt.Errorf("authorization: %w", err)
	}
	if err := o.Audit.ApplyTo(c); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// withoutManagedFields drops what no admission plugin or authorizer reads.
func withoutManagedFields(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}
