// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// An Image is a reference, and who may pull it.
type Image struct {
	Reference      string
	Namespace      string
	ServiceAccount string
	PullSecrets    []string
}

const (
	// lookups is how many revisions' images are resolved at a time: registries are slow, not busy.
	lookups = 32
	// patience is how long a resolution may take before the status tells of it.
	patience = 500 * time.Millisecond
	// A failed resolution is tried again after a second, then after twice as long each time.
	firstRetry, lastRetry = time.Second, 5 * time.Minute
)

// digests resolves the images of revisions beside the reconciler, which comes back when they
// are resolved. A revision keeps what was found in its status, so that nothing is kept here.
type digests struct {
	resolve func(context.Context, Image) (string, error)
	ring    func(client.ObjectKey)
	slots   chan struct{}

	mu   sync.Mutex
	open map[client.ObjectKey]*lookup
}

// A lookup is one attempt for a revision.
type lookup struct {
	uid     types.UID
	began   time.Time
	done    bool
	answer  answer
	retryAt time.Time
	fails   int
	cancel  context.CancelFunc
}

// An answer is what is known of a revision's images.
type answer struct {
	pending, fresh             bool // not yet; and asked for only just now
	err                        error
	again                      time.Duration // when to ask again after err
	containers, initContainers []servingv1.ContainerStatus
}

func newDigests(resolve func(context.Context, Image) (string, error), ring func(client.ObjectKey)) *digests {
	return &digests{resolve: resolve, ring: ring, slots: make(chan struct{}, lookups), open: map[client.ObjectKey]*lookup{}}
}

// ask returns what is known, and begins to find out what is not.
func (d *digests) ask(rev *servingv1.Revision, s *desired.Settings) answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := key(rev)
	l := d.open[k]
	if l != nil && l.uid != rev.UID {
		l.cancel()
		l = nil
	}
	now := time.Now()
	if l != nil && l.done {
		if l.answer.err == nil || now.Before(l.retryAt) {
			a := l.answer
			a.again = max(0, l.retryAt.Sub(now))
			return a
		}
	}
	if l == nil || l.done {
		l = d.begin(k, rev, s, l)
	}
	return answer{pending: true, fresh: now.Sub(l.began) < patience}
}

// begin starts a lookup, another one if last has failed.
func (d *digests) begin(k client.ObjectKey, rev *servingv1.Revision, s *desired.Settings, last *lookup) *lookup {
	ctx, cancel := context.WithTimeout(context.Background(), s.DigestTimeout)
	l := &lookup{uid: rev.UID, began: time.Now(), cancel: cancel}
	if last != nil {
		l.fails = last.fails
	}
	d.open[k] = l
	slow := time.AfterFunc(patience, func() { d.ring(k) })
	spec, skip := rev.Spec.DeepCopy(), s.SkipTags
	go func() {
		defer cancel()
		a := d.find(ctx, rev.Namespace, spec, skip)
		slow.Stop()
		d.mu.Lock()
		l.done, l.answer = true, a
		if a.err != nil {
			l.retryAt = time.Now().Add(min(firstRetry<<min(l.fails, 20), lastRetry))
			l.fails++
		}
		d.mu.Unlock()
		d.ring(k)
	}()
	return l
}

// find resolves all images of a revision; one that fails is the answer.
func (d *digests) find(ctx context.Context, namespace string, spec *servingv1.RevisionSpec, skip map[string]bool) (a answer) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-ctx.Done():
		return answer{err: ctx.Err()}
	}
	image := Image{Namespace: namespace, ServiceAccount: spec.ServiceAccountName}
	for _, secret := range spec.ImagePullSecrets {
		image.PullSecrets = append(image.PullSecrets, secret.Name)
	}
	found := map[string]string{}
	status := func(name, reference string) servingv1.ContainerStatus {
		digest, ok := found[reference]
		if !ok && a.err == nil && !skip[registryOf(reference)] {
			image.Reference = reference
			resolved, err := d.resolve(ctx, image)
			if err != nil {
				a.err = fmt.Errorf("%s: %w", servingv1.RevisionContainerMissingMessage(reference, "failed to resolve image to digest"), err)
			}
			digest, found[reference] = resolved, resolved
		}
		return servingv1.ContainerStatus{Name: name, ImageDigest: digest}
	}
	for _, c := range spec.InitContainers {
		a.initContainers = append(a.initContainers, status(c.Name, c.Image))
	}
	for _, c := range spec.Containers {
		a.containers = append(a.containers, status(c.Name, c.Image))
	}
	return a
}

// forget drops a revision, and ends a lookup for it that is under way.
func (d *digests) forget(k client.ObjectKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.open[k]; l != nil {
		l.cancel()
		delete(d.open, k)
	}
}
