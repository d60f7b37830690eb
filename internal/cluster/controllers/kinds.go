// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// settle is how long after the last event about a kind the answer is not yet
// trusted. The API server tells of a new kind in several places one after the
// other, and only the last of them is what discovery answers from.
const settle = 10 * time.Second

// kinds is the API server's answer to which kinds there are, kept until one
// comes or goes.
type kinds struct {
	discovery.CachedDiscoveryInterface
	mutex   sync.Mutex
	changed time.Time
}

func newKinds(d discovery.DiscoveryInterface) *kinds {
	return &kinds{CachedDiscoveryInterface: memory.NewMemCacheClient(d)}
}

// watch listens for kinds that come and go.
func (k *kinds) watch(f metadatainformer.SharedInformerFactory) error {
	for _, r := range []schema.GroupVersionResource{
		{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
		{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
	} {
		_, err := f.ForResource(r).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { k.change() },
			UpdateFunc: func(any, any) { k.change() },
			DeleteFunc: func(any) { k.change() },
		})
		if err != nil {
			return fmt.Errorf("watch %s: %w", r.Resource, err)
		}
	}
	return nil
}

func (k *kinds) change() {
	k.mutex.Lock()
	k.changed = time.Now()
	k.mutex.Unlock()
	k.Invalidate()
}

// refresh throws the answer away while it may still be changing.
func (k *kinds) refresh() {
	k.mutex.Lock()
	young := time.Since(k.changed) < settle
	k.mutex.Unlock()
	if young {
		k.Invalidate()
	}
}

// The two questions the controllers ask on a timer.

func (k *kinds) ServerPreferredResources() ([]*metav1.APIResourceList, error) {
	k.refresh()
	return k.CachedDiscoveryInterface.ServerPreferredResources()
}

func (k *kinds) ServerPreferredNamespacedResources() ([]*metav1.APIResourceList, error) {
	k.refresh()
	return k.CachedDiscoveryInterface.ServerPreferredNamespacedResources()
}
