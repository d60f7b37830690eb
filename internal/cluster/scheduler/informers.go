// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/scheduler"
)

// factory shares the informers of the process, except that its pods are only
// those that have not ended.
type factory struct {
	informers.SharedInformerFactory
	own  informers.SharedInformerFactory // upstream's, used for its pods only
	pods cache.SharedIndexInformer
}

func withoutEnded(shared informers.SharedInformerFactory, client kubernetes.Interface) factory {
	own := scheduler.NewInformerFactory(client, 0)
	return factory{SharedInformerFactory: shared, own: own, pods: own.Core().V1().Pods().Informer()}
}

// Core goes through InformerFor below, for pods as for the rest.
func (f factory) Core() core.Interface { return core.New(f, "", nil) }

func (f factory) InformerFor(object runtime.Object, make internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	if _, isPod := object.(*corev1.Pod); isPod {
		return f.pods
	}
	return f.SharedInformerFactory.InformerFor(object, make)
}

func (f factory) Start(stop <-chan struct{}) {
	f.own.Start(stop)
	f.SharedInformerFactory.Start(stop)
}

func (f factory) WaitForCacheSync(stop <-chan struct{}) map[reflect.Type]bool {
	f.own.WaitForCacheSync(stop)
	return f.SharedInformerFactory.WaitForCacheSync(stop)
}
