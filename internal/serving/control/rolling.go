// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"k8s.io/utils/ptr"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/sonagi/sonagi/internal/serving/desired"
	"github.com/sonagi/sonagi/internal/serving/traffic"
)

// rolloutKey is where a status keeps how far its rollouts are.
const rolloutKey = serving.GroupName + "/rollout"

// shares are the route's targets, resolved to revisions.
func (r routes) shares(ctx context.Context, route *servingv1.Route) ([]traffic.Share, *traffic.Fault, error) {
	var failed error
	look := traffic.Known{
		Configuration: func(name string) (traffic.Configuration, bool) {
			c, err := known[servingv1.Configuration](ctx, r.client, route.Namespace, name)
			if c == nil || err != nil {
				failed = errors.Join(failed, err)
				return traffic.Configuration{}, false
			}
			ready := c.Status.GetCondition(servingv1.ConfigurationConditionReady)
			return traffic.Configuration{State: state(ready), LatestReady: c.Status.LatestReadyRevisionName}, true
		},
		Revision: func(name string) (traffic.Revision, bool) {
			rev, err := known[servingv1.Revision](ctx, r.client, route.Namespace, name)
			if rev == nil || err != nil {
				failed = errors.Join(failed, err)
				return traffic.Revision{}, false
			}
			out := traffic.Revision{
				State:   state(rev.Status.GetCondition(servingv1.RevisionConditionReady)),
				Service: rev.Labels[serving.ServiceLabelKey], Configuration: rev.Labels[serving.ConfigurationLabelKey],
			}
			if out.State == traffic.Ready && !rev.IsReady() {
				out.State = traffic.Waiting
			}
			return out, true
		},
	}
	wanted := make([]traffic.Target, len(route.Spec.Traffic))
	for i, t := range route.Spec.Traffic {
		wanted[i] = traffic.Target{
			Tag: t.Tag, Revision: t.RevisionName, Configuration: t.ConfigurationName, Percent: percent(t),
			Latest: ptr.Deref(t.LatestRevision, t.RevisionName == ""),
		}
	}
	shares, fault := traffic.Assign(route.Labels[serving.ServiceLabelKey], wanted, look)
	return shares, fault, failed
}

func state(ready *apis.Condition) traffic.State {
	switch {
	case ready.IsTrue():
		return traffic.Ready
	case ready.IsFalse():
		return traffic.Failed
	}
	return traffic.Waiting
}

// roll spreads the shares over time if the route asks for it, and keeps in the status how far
// that has come.
func roll(route *servingv1.Route, shares []traffic.Share, s *desired.Settings, served bool) ([]traffic.Share, time.Duration) {
	over := route.RolloutDuration()
	if over == 0 {
		over = time.Duration(s.Network.RolloutDurationSecs) * time.Second
	}
	var before []traffic.Rollout
	if text := route.Status.Annotations[rolloutKey]; text != "" && over > 0 {
		if json.Unmarshal([]byte(text), &before) != nil {
			before = nil // somebody else wrote it; begin anew
		}
	}
	now := time.Now()
	shares, keep, wake := traffic.Roll(shares, before, over, served, now)
	delete(route.Status.Annotations, rolloutKey)
	if over > 0 && len(keep) > 0 {
		if text, err := json.Marshal(keep); err == nil {
			if route.Status.Annotations == nil {
				route.Status.Annotations = map[string]string{}
			}
			route.Status.Annotations[rolloutKey] = string(text)
		}
	}
	if len(route.Status.Annotations) == 0 {
		route.Status.Annotations = nil
	}
	if wake.IsZero() {
		return shares, 0
	}
	return shares, max(time.Millisecond, wake.Sub(now))
}

// rolling reports whether a rollout has not come to its end.
func rolling(route *servingv1.Route) bool {
	var kept []traffic.Rollout
	if json.Unmarshal([]byte(route.Status.Annotations[rolloutKey]), &kept) != nil {
		return false
	}
	for _, r := range kept {
		if len(r.Parts) > 1 {
			return true
		}
	}
	return false
}
