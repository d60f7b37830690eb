// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"maps"
	"net/http"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/notfoundhandler"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	controlplaneapiserver "k8s.io/kubernetes/pkg/controlplane/apiserver"
)

// A prepared server can be called, and run.
type prepared struct {
	handler http.Handler
	run     func(context.Context) error
}

// build makes the three layers, each asking the next about what it does not
// know: aggregation, built-in kinds, custom resources.
func build(config *app.Config) (*prepared, error) {
	v3 := config.KubeAPIs.ControlPlane.Generic.OpenAPIV3Config
	completed, err := config.Complete()
	if err != nil {
		return nil, err
	}
	unknown := notfoundhandler.New(completed.KubeAPIs.ControlPlane.Generic.Serializer, filters.NoMuxAndDiscoveryIncompleteKey)
	custom, err := completed.ApiExtensions.New(server.NewEmptyDelegateWithCustomHandler(unknown))
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	kube, err := completed.KubeAPIs.New(custom.GenericAPIServer)
	if err != nil {
		return nil, fmt.Errorf("built-in kinds: %w", err)
	}
	definitions := custom.Informers.Apiextensions().V1().CustomResourceDefinitions()
	served := completed.ApiExtensions.GenericConfig.MergedResourceConfig.ResourceEnabled(
		apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	front, err := controlplaneapiserver.CreateAggregatorServer(completed.Aggregator, kube.ControlPlane.GenericAPIServer, definitions, served, priorities())
	if err != nil {
		return nil, fmt.Errorf("aggregation: %w", err)
	}
	ready, err := front.PrepareRun()
	if err != nil {
		return nil, err
	}
	program, err := thisProgram()
	if err != nil {
		return nil, err
	}
	d := &describer{
		v2:       config.KubeAPIs.ControlPlane.Generic.OpenAPIConfig,
		v3:       v3,
		services: webServices(front.GenericAPIServer, kube.ControlPlane.GenericAPIServer, custom.GenericAPIServer),
		custom:   definitions.Lister(),
		program:  program,
	}
	d.install(front.GenericAPIServer.Handler.NonGoRestfulMux)
	return &prepared{handler: front.GenericAPIServer.Handler, run: ready.Run}, nil
}

// priorities order groups and versions in discovery, and so what kubectl
// takes a short name for. Upstream keeps those of the groups below in its
// command; the numbers are the same.
func priorities() map[schema.GroupVersion]controlplaneapiserver.APIServicePriority {
	all := controlplaneapiserver.DefaultGenericAPIServicePriorities()
	maps.Copy(all, map[schema.GroupVersion]controlplaneapiserver.APIServicePriority{
		{Group: "apps", Version: "v1"}:              {Group: 17800, Version: 15},
		{Group: "autoscaling", Version: "v1"}:       {Group: 17500, Version: 15},
		{Group: "autoscaling", Version: "v2"}:       {Group: 17500, Version: 30},
		{Group: "batch", Version: "v1"}:             {Group: 17400, Version: 15},
		{Group: "networking.k8s.io", Version: "v1"}: {Group: 17200, Version: 15},
		{Group: "policy", Version: "v1"}:            {Group: 17100, Version: 15},
		{Group: "storage.k8s.io", Version: "v1"}:    {Group: 16800, Version: 15},
		{Group: "scheduling.k8s.io", Version: "v1"}: {Group: 16600, Version: 15},
		{Group: "node.k8s.io", Version: "v1"}:       {Group: 16300, Version: 15},
		{Group: "resource.k8s.io", Version: "v1"}:   {Group: 16200, Version: 21},
	})
	return all
}
