// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// objects reads the ConfigMaps and Secrets that pods name. Those that running
// pods have as volumes are watched one by one, as a node may, and are then read
// from memory; others are asked for.
type objects struct {
	client  kubernetes.Interface
	ctx     context.Context // ends the watches
	changed func(types.UID) // a pod's object has changed

	mu      sync.Mutex
	watched map[objectKey]*watchedObject
	byPod   map[types.UID][]objectKey
}

type objectKey struct {
	secret          bool
	namespace, name string
}

type watchedObject struct {
	object runtime.Object // nil: not there, or not known yet
	known  bool
	pods   map[types.UID]bool
	cancel context.CancelFunc
	linger *time.Timer
}

// An object whose last pod is gone is watched on for a while: the next pod from
// zero likely wants it again. Many such objects are let go at once.
const (
	lingerTime = 5 * time.Minute
	maxWatched = 512
)

func newObjects(ctx context.Context, client kubernetes.Interface, changed func(types.UID)) *objects {
	return &objects{client: client, ctx: ctx, changed: changed, watched: map[objectKey]*watchedObject{}, byPod: map[types.UID][]objectKey{}}
}

// ConfigMap implements volume.Objects.
func (o *objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	if obj, known := o.cached(objectKey{false, namespace, name}); known {
		if m, ok := obj.(*corev1.ConfigMap); ok {
			return m, nil
		}
		return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
	}
	return patiently(ctx, func() (*corev1.ConfigMap, error) {
		return o.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Secret implements volume.Objects.
func (o *objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	if obj, known := o.cached(objectKey{true, namespace, name}); known {
		if s, ok := obj.(*corev1.Secret); ok {
			return s, nil
		}
		return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	return patiently(ctx, func() (*corev1.Secret, error) {
		return o.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Claim implements volume.Objects.
func (o *objects) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return patiently(ctx, func() (*corev1.PersistentVolumeClaim, error) {
		return o.client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	})
}

// Volume implements volume.Objects.
func (o *objects) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return patiently(ctx, func() (*corev1.PersistentVolume, error) {
		return o.client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
	})
}

// Token implements volume.Objects.
func (o *objects) Token(ctx context.Context, namespace, serviceAccount string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return patiently(ctx, func() (*authenticationv1.TokenRequest, error) {
		return o.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, r, metav1.CreateOptions{})
	})
}

// patiently asks again for a moment when it is forbidden: the API server's
// authorizer learns of the pod's binding by a watch, as we do, and may be the
// later one.
func patiently[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	wait := 2 * time.Millisecond
	for {
		v, err := ask()
		if !apierrors.IsForbidden(err) || wait > 300*time.Millisecond {
			return v, err
		}
		select {
		case <-time.After(wait):
			wait *= 2
		case <-ctx.Done():
			return v, err
		}
	}
}

func (o *objects) cached(k objectKey) (runtime.Object, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.watched[k]
	if w == nil || !w.known {
		return nil, false
	}
	return w.object, true
}

// keep watches the objects that a pod's volumes are made from.
func (o *objects) keep(uid types.UID, keys []objectKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.byPod[uid]; ok {
		return
	}
	o.byPod[uid] = keys
	for _, k := range keys {
		w := o.watched[k]
		if w == nil {
			ctx, cancel := context.WithCancel(o.ctx)
			w = &watchedObject{pods: map[types.UID]bool{}, cancel: cancel}
			o.watched[k] = w
			go o.follow(ctx, k, w)
		}
		if w.linger != nil {
			w.linger.Stop()
			w.linger = nil
		}
		w.pods[uid] = true
	}
}

// drop forgets a pod.
func (o *objects) drop(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range o.byPod[uid] {
		w := o.watched[k]
		if w == nil {
			continue
		}
		delete(w.pods, uid)
		switch {
		case len(w.pods) > 0:
		case len(o.watched) > maxWatched:
			o.forget(k, w)
		default:
			w.linger = time.AfterFunc(lingerTime, func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				if len(w.pods) == 0 && o.watched[k] == w {
					o.forget(k, w)
				}
			})
		}
	}
	delete(o.byPod, uid)
}

func (o *objects) forget(k objectKey, w *watchedObject) {
	w.cancel()
	delete(o.watched, k)
}

// follow keeps one object current until ctx ends.
func (o *objects) follow(ctx context.Context, k objectKey, w *watchedObject) {
	wait := time.Second
	for ctx.Err() == nil {
		err := o.followOnce(ctx, k, w)
		if err == nil {
			wait = time.Second
		}
		o.unknown(w)
		select {
		case <-time.After(wait):
			wait = min(2*wait, 30*time.Second)
		case <-ctx.Done():
		}
	}
}

func (o *objects) followOnce(ctx context.Context, k objectKey, w *watchedObject) error {
	version, err := o.read(ctx, k, w)
	if err != nil {
		return err
	}
	watcher, err := o.watch(ctx, k, version)
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for {
		select {
		case e, ok := <-watcher.ResultChan():
			if !ok {
				return nil
			}
			switch e.Type {
			case watch.Added, watch.Modified:
				o.set(w, e.Object)
			case watch.Deleted:
				o.set(w, nil)
			case watch.Error:
				return apierrors.FromObject(e.Object)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// read reads the object once and returns the version to watch from.
func (o *objects) read(ctx context.Context, k objectKey, w *watchedObject) (string, error) {
	var obj runtime.Object
	var version string
	var err error
	if k.secret {
		s, e := o.client.CoreV1().Secrets(k.namespace).Get(ctx, k.name, metav1.GetOptions{})
		obj, err = s, e
		if e == nil {
			version = s.ResourceVersion
		}
	} else {
		m, e := o.client.CoreV1().ConfigMaps(k.namespace).Get(ctx, k.name, metav1.GetOptions{})
		obj, err = m, e
		if e == nil {
			version = m.ResourceVersion
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		o.set(w, nil)
		return "", nil // the watch begins with what is there then
	case err != nil:
		return "", fmt.Errorf("reading %s/%s: %w", k.namespace, k.name, err)
	}
	o.set(w, obj)
	return version, nil
}

func (o *objects) watch(ctx context.Context, k objectKey, version string) (watch.Interface, error) {
	opts := metav1.ListOptions{
		FieldSelector:       fields.OneTermEqualSelector(metav1.ObjectNameField, k.name).String(),
		ResourceVersion:     version,
		AllowWatchBookmarks: true,
	}
	if k.secret {
		return o.client.CoreV1().Secrets(k.namespace).Watch(ctx, opts)
	}
	return o.client.CoreV1().ConfigMaps(k.namespace).Watch(ctx, opts)
}

func (o *objects) set(w *watchedObject, obj runtime.Object) {
	o.mu.Lock()
	fresh := !w.known
	same := !fresh && versionOf(w.object) == versionOf(obj)
	w.object, w.known = obj, true
	var pods []types.UID
	for uid := range w.pods {
		pods = append(pods, uid)
	}
	o.mu.Unlock()
	if same {
		return
	}
	for _, uid := range pods {
		o.changed(uid)
	}
}

func versionOf(obj runtime.Object) string {
	switch x := obj.(type) {
	case *corev1.Secret:
		return x.ResourceVersion
	case *corev1.ConfigMap:
		return x.ResourceVersion
	}
	return ""
}

// unknown makes the next reader ask: the watch is broken.
func (o *objects) unknown(w *watchedObject) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w.known = false
}

// volumeObjects are the objects that a pod's volumes are made from.
func volumeObjects(p *corev1.Pod) []objectKey {
	seen := map[objectKey]bool{}
	var out []objectKey
	add := func(secret bool, name string) {
		k := objectKey{secret, p.Namespace, name}
		if !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	for _, v := range p.Spec.Volumes {
		switch {
		case v.Secret != nil:
			add(true, v.Secret.SecretName)
		case v.ConfigMap != nil:
			add(false, v.ConfigMap.Name)
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					add(true, s.Secret.Name)
				}
				if s.ConfigMap != nil {
					add(false, s.ConfigMap.Name)
				}
			}
		}
	}
	return out
}
