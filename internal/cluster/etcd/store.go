// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
)

// Store opens the storage of one resource. Upstream dials etcd once per
// resource and once per custom resource, a hundred connections with their
// buffers and goroutines; here all share one client that has none.
// It waits for the store to be up.
func (s *Server) Store(config *storagebackend.ConfigForResource, newFunc, newListFunc func() runtime.Object, resourcePrefix string) (storage.Interface, factory.DestroyFunc, error) {
	select {
	case <-s.ready:
	case <-s.failed:
		return nil, nil, errors.New("the store did not start")
	}
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	store, err := etcd3.New(s.client, s.compact, config.Codec, newFunc, newListFunc, config.Prefix, resourcePrefix,
		config.GroupResource, transformer, config.LeaseManagerConfig, etcd3.NewDefaultDecoder(config.Codec, versioner), versioner)
	if err != nil {
		return nil, nil, err
	}
	return prompt{store}, store.Close, nil
}

// A prompt store tells the watch cache at once that it is up to date.
//
// A consistent list asks for the current revision and then waits until the
// cache has seen it. A cache whose resource did not change learns that only
// from a progress notice, which upstream requests on a timer, up to a tenth of a
// second later. Requesting one together with the revision makes the wait as
// short as the store is fast.
type prompt struct{ storage.Interface }

func (p prompt) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	revision, err := p.Interface.GetCurrentResourceVersion(ctx)
	if err == nil {
		// Without a notice the timer is still there.
		_ = p.RequestWatchProgress(ctx)
	}
	return revision, err
}
