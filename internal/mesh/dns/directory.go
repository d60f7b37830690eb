// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// Names of the indexes, different from those of others who share the informers.
const (
	serviceByAddr      = "dns-address"
	serviceByNamespace = "dns-namespace"
	sliceByService     = "dns-service"
	sliceByAddr        = "dns-endpoint"
)

// A directory finds services and their endpoints in the informers' caches.
type directory struct {
	services cache.Indexer
	slices   cache.Indexer
}

func serviceIndexers() cache.Indexers {
	return cache.Indexers{
		serviceByAddr: func(obj any) ([]string, error) {
			svc, ok := obj.(*corev1.Service)
			if !ok || svc.Spec.ClusterIP == "" || headless(svc) {
				return nil, nil
			}
			return []string{svc.Spec.ClusterIP}, nil
		},
		serviceByNamespace: cache.MetaNamespaceIndexFunc,
	}
}

func sliceIndexers() cache.Indexers {
	return cache.Indexers{
		sliceByService: func(obj any) ([]string, error) {
			part, ok := obj.(*discoveryv1.EndpointSlice)
			if !ok || part.Labels[discoveryv1.LabelServiceName] == "" {
				return nil, nil
			}
			return []string{part.Namespace + "/" + part.Labels[discoveryv1.LabelServiceName]}, nil
		},
		sliceByAddr: func(obj any) ([]string, error) {
			part, ok := obj.(*discoveryv1.EndpointSlice)
			if !ok {
				return nil, nil
			}
			var addrs []string
			for _, e := range part.Endpoints {
				if len(e.Addresses) > 0 {
					addrs = append(addrs, e.Addresses[0])
				}
			}
			return addrs, nil
		},
	}
}

func (d directory) service(namespace, name string) *corev1.Service {
	obj, _, _ := d.services.GetByKey(namespace + "/" + name)
	svc, _ := obj.(*corev1.Service)
	return svc
}

// namespace reports whether a namespace has a service, which is as far as
// names go.
func (d directory) namespace(name string) bool {
	keys, _ := d.services.IndexKeys(serviceByNamespace, name)
	return len(keys) > 0
}

func (d directory) parts(namespace, service string) []*discoveryv1.EndpointSlice {
	return find[discoveryv1.EndpointSlice](d.slices, sliceByService, namespace+"/"+service)
}

func (d directory) partsAt(addr netip.Addr) []*discoveryv1.EndpointSlice {
	return find[discoveryv1.EndpointSlice](d.slices, sliceByAddr, addr.String())
}

func (d directory) servicesAt(addr netip.Addr) []*corev1.Service {
	return find[corev1.Service](d.services, serviceByAddr, addr.String())
}

func find[T any](in cache.Indexer, index, value string) []*T {
	objs, _ := in.ByIndex(index, value)
	found := make([]*T, 0, len(objs))
	for _, obj := range objs {
		if one, ok := obj.(*T); ok {
			found = append(found, one)
		}
	}
	return found
}
