// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata/metadatainformer"
)

func withoutManagedFields(object any) (any, error) {
	if accessor, err := meta.Accessor(object); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}

// selected is a factory of informers that see only what a field selector picks.
func selected(client kubernetes.Interface, fields string) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTransform(withoutManagedFields),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = fields }))
}

// whole lists the kinds some part of the process keeps whole. The garbage
// collector and the quota watch every kind there is, but need the metadata
// only: they are given the whole object where it is there already.
var whole = map[schema.GroupVersionResource]bool{
	{Version: "v1", Resource: "pods"}:                                                     true,
	{Version: "v1", Resource: "nodes"}:                                                    true,
	{Version: "v1", Resource: "services"}:                                                 true,
	{Version: "v1", Resource: "namespaces"}:                                               true,
	{Version: "v1", Resource: "serviceaccounts"}:                                          true,
	{Version: "v1", Resource: "persistentvolumes"}:                                        true,
	{Version: "v1", Resource: "persistentvolumeclaims"}:                                   true,
	{Version: "v1", Resource: "replicationcontrollers"}:                                   true,
	{Version: "v1", Resource: "resourcequotas"}:                                           true,
	{Version: "v1", Resource: "limitranges"}:                                              true,
	{Version: "v1", Resource: "endpoints"}:                                                true,
	{Group: "apps", Version: "v1", Resource: "deployments"}:                               true,
	{Group: "apps", Version: "v1", Resource: "replicasets"}:                               true,
	{Group: "apps", Version: "v1", Resource: "statefulsets"}:                              true,
	{Group: "apps", Version: "v1", Resource: "daemonsets"}:                                true,
	{Group: "apps", Version: "v1", Resource: "controllerrevisions"}:                       true,
	{Group: "batch", Version: "v1", Resource: "jobs"}:                                     true,
	{Group: "batch", Version: "v1", Resource: "cronjobs"}:                                 true,
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}:                    true,
	{Group: "autoscaling", Version: "v2", Resource: "horizontalpodautoscalers"}:           true,
	{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}:                true,
	{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}:                     true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}:                true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}:         true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}:         true,
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}:  true,
	{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}:                  true,
	{Group: "storage.k8s.io", Version: "v1", Resource: "csinodes"}:                        true,
	{Group: "storage.k8s.io", Version: "v1", Resource: "csidrivers"}:                      true,
	{Group: "storage.k8s.io", Version: "v1", Resource: "csistoragecapacities"}:            true,
	{Group: "storage.k8s.io", Version: "v1", Resource: "volumeattachments"}:               true,
	{Group: "certificates.k8s.io", Version: "v1", Resource: "certificatesigningrequests"}: true,
	{Group: "resource.k8s.io", Version: "v1", Resource: "resourceclaims"}:                 true,
	{Group: "resource.k8s.io", Version: "v1", Resource: "resourceslices"}:                 true,
	{Group: "resource.k8s.io", Version: "v1", Resource: "deviceclasses"}:                  true,
	{Group: "networking.k8s.io", Version: "v1", Resource: "servicecidrs"}:                 true,
	{Group: "networking.k8s.io", Version: "v1", Resource: "ipaddresses"}:                  true,
	{Group: "networking.k8s.io", Version: "v1", Resource: "ingressclasses"}:               true,
	{Group: "node.k8s.io", Version: "v1", Resource: "runtimeclasses"}:                     true,
	{Group: "scheduling.k8s.io", Version: "v1", Resource: "priorityclasses"}:              true,
}

// wholeOrNames gives the garbage collector and the quota their informers.
type wholeOrNames struct {
	whole informers.SharedInformerFactory
	names metadatainformer.SharedInformerFactory
}

func (f wholeOrNames) ForResource(r schema.GroupVersionResource) (informers.GenericInformer, error) {
	if whole[r] {
		return f.whole.ForResource(r)
	}
	return f.names.ForResource(r), nil
}

func (f wholeOrNames) Start(stop <-chan struct{}) {
	f.whole.Start(stop)
	f.names.Start(stop)
}
