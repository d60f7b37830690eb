// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	writeTimeout = 10 * time.Second
	firstRetry   = 100 * time.Millisecond
	lastRetry    = 5 * time.Second
)

// crew is a queue of revisions and the workers that empty it, each revision by
// one at a time. It is guarded by Autoscaler.mu.
type crew struct {
	limit, busy int
	queue       []*revision
	// work does one write, and reports whether there is another to do. It
	// gives up the lock while it waits for the API, and only then.
	work func(context.Context, *revision) (more bool)
	in   func(*revision) *bool
}

// push has the crew work on a revision, unless it will do so anyway.
func (a *Autoscaler) push(c *crew, r *revision) {
	in := c.in(r)
	if *in || a.start == nil {
		return
	}
	*in = true
	c.queue = append(c.queue, r)
	if c.busy < c.limit {
		c.busy++
		a.start(func(ctx context.Context) { a.labour(ctx, c) })
	}
}

// labour works until the queue is empty.
func (a *Autoscaler) labour(ctx context.Context, c *crew) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(c.queue) > 0 {
		r := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		if ctx.Err() == nil && c.work(ctx, r) {
			c.queue = append(c.queue, r)
			continue
		}
		*c.in(r) = false
	}
	c.queue = nil
	c.busy--
}

// writeScale writes how many replicas a revision should have.
func (a *Autoscaler) writeScale(ctx context.Context, r *revision) (more bool) {
	want, key := r.want, r.target.key
	if !a.live(r) || !r.wanting {
		return false
	}
	a.mu.Unlock()
	v, err := a.patchScale(ctx, key, want)
	a.mu.Lock()
	now := time.Now()
	switch {
	case err == nil:
		r.wrote, r.fails = written{want, v}, 0
		if r.wanting && r.want != want {
			return true
		}
		r.wanting = false
		// Somebody else may have changed it meanwhile.
		if a.live(r) && r.replicas() != want {
			a.decide(r, now)
			return r.wanting
		}
	case apierrors.IsNotFound(err):
		r.wanting = false // and we shall be told, or have been
	default:
		r.wanting = false
		r.fails++
		if a.live(r) && ctx.Err() == nil {
			a.log.Warn("scale is not written", "revision", r.name, "replicas", want, "error", err, "failures", r.fails)
			r.again = soonest(r.again, now.Add(backoff(r.fails)))
			a.plan(r)
		}
	}
	return false
}

func (a *Autoscaler) patchScale(ctx context.Context, key types.NamespacedName, replicas int32) (version uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	// By the scale subresource: the whole Deployment need not come back. No
	// version: what was asked for before does not matter.
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
	after := &autoscalingv1.Scale{}
	if err := a.client.SubResource("scale").Patch(ctx, d, patch, client.WithSubResourceBody(after)); err != nil {
		return 0, fmt.Errorf("scaling %s to %d: %w", key, replicas, err)
	}
	return versionOf(after.ResourceVersion), nil
}

// writeStatus writes the status of a revision.
func (a *Autoscaler) writeStatus(ctx context.Context, r *revision) (more bool) {
	if !a.live(r) || r.facts == r.known {
		return false
	}
	saying := r.facts
	// All of it, and for this very object: there is nothing to merge with.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": r.pa.UID}, "status": r.status})
	a.mu.Unlock()
	if err == nil {
		err = a.patchStatus(ctx, r, patch)
	}
	a.mu.Lock()
	now := time.Now()
	switch {
	case err == nil:
		r.known, r.statusFails = saying, 0
		if r.facts == r.known || !a.live(r) {
			return false
		}
		if !r.known.initialized {
			return true
		}
		r.flush = now.Add(r.patience())
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || !a.live(r) || ctx.Err() != nil:
		return false // gone, or another one of its name
	default:
		r.statusFails++
		a.log.Warn("status is not written", "revision", r.name, "error", err, "failures", r.statusFails)
		r.flush = now.Add(backoff(r.statusFails))
	}
	a.plan(r)
	return false
}

func (a *Autoscaler) patchStatus(ctx context.Context, r *revision, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: r.name.Namespace, Name: r.name.Name}}
	if err := a.client.Status().Patch(ctx, pa, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("writing status of %s: %w", r.name, err)
	}
	return nil
}

// live reports whether the revision has not been dropped meanwhile.
func (a *Autoscaler) live(r *revision) bool { return a.revisions[r.name] == r }

func backoff(fails int) time.Duration {
	return min(lastRetry, firstRetry<<min(fails-1, 10))
}
