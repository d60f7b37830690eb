// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/compile"
	"github.com/sonagi/sonagi/internal/mesh/routing"
)

const revisionLabel = "serving.knative.dev/revision"

func name(o client.Object) routing.Name {
	return routing.Name{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// routes compiles Routes.
func (w *Watch) routes() sink {
	set := func(o client.Object) change {
		n := name(o)
		r, ok := compile.Route(o.(*servingv1.Route), w.current())
		return func(e *routing.Edit) {
			if ok {
				e.SetRoute(r)
			} else {
				e.DeleteRoute(n)
			}
		}
	}
	return sink{
		set: func(o client.Object) { w.push(set(o)) },
		remove: func(o client.Object) {
			n := name(o)
			w.push(func(e *routing.Edit) { e.DeleteRoute(n) })
		},
		replace: func(all []client.Object) {
			present, changes := each(all, set)
			w.push(func(e *routing.Edit) {
				routes, _ := e.Names()
				for _, n := range routes {
					if !present[n] && !routing.IsMapping(n) {
						e.DeleteRoute(n)
					}
				}
				for _, c := range changes {
					c(e)
				}
			})
		},
	}
}

// revisions compiles Revisions.
func (w *Watch) revisions() sink {
	set := func(o client.Object) change {
		r := compile.Revision(o.(*servingv1.Revision), w.current())
		return func(e *routing.Edit) {
			// Most updates are of a status. One that changes nothing here is to
			// leave the revision as it is, so that nobody looks at it anew.
			have, ok := e.Revision(r.Name)
			if ok {
				r.Counts = have.Counts
			}
			if !ok || *have != *r {
				e.SetRevision(r)
			}
		}
	}
	return sink{
		set: func(o client.Object) { w.push(set(o)) },
		remove: func(o client.Object) {
			n := name(o)
			w.push(func(e *routing.Edit) { e.DeleteRevision(n) })
		},
		replace: func(all []client.Object) {
			present, changes := each(all, set)
			w.push(func(e *routing.Edit) {
				_, revisions := e.Names()
				for _, n := range revisions {
					if !present[n] && !routing.IsMapping(n) {
						e.DeleteRevision(n)
					}
				}
				for _, c := range changes {
					c(e)
				}
			})
		},
	}
}

// each compiles all objects of a list, and says which there are.
func each(all []client.Object, set func(client.Object) change) (map[routing.Name]bool, []change) {
	present := make(map[routing.Name]bool, len(all))
	changes := make([]change, 0, len(all))
	for _, o := range all {
		present[name(o)] = true
		changes = append(changes, set(o))
	}
	return present, changes
}

// configMaps reads settings.
func (w *Watch) configMaps() sink {
	set := func(o client.Object) {
		data := o.(*corev1.ConfigMap).Data
		w.OnConfigMap(o.GetName(), data)
		w.set(func(s compile.Settings) compile.Settings { return s.With(o.GetName(), data) })
	}
	remove := func(o client.Object) {
		w.OnConfigMap(o.GetName(), nil)
		w.set(func(s compile.Settings) compile.Settings { return s.With(o.GetName(), nil) })
	}
	return sink{
		set: set, remove: remove,
		replace: func(all []client.Object) {
			for _, o := range all {
				w.OnConfigMap(o.GetName(), o.(*corev1.ConfigMap).Data)
			}
			w.set(func(s compile.Settings) compile.Settings {
				next := compile.DefaultSettings()
				next.ClusterDomain = s.ClusterDomain
				for _, o := range all {
					next = next.With(o.GetName(), o.(*corev1.ConfigMap).Data)
				}
				return next
			})
		},
	}
}

// pods tells of the pods of revisions, on a cluster.
func (w *Watch) pods() sink {
	known := map[string]routing.Endpoint{} // used by the feed's goroutine only
	set := func(o client.Object) {
		e := endpoint(o.(*corev1.Pod))
		known[e.UID] = e
		w.OnPod(e)
	}
	forget := func(e routing.Endpoint) {
		e.Ready, e.Gone = false, true
		delete(known, e.UID)
		w.OnPod(e)
	}
	return sink{
		set:    set,
		remove: func(o client.Object) { forget(endpoint(o.(*corev1.Pod))) },
		replace: func(all []client.Object) {
			var present []string
			for _, o := range all {
				set(o)
				present = append(present, string(o.GetUID()))
			}
			for uid, e := range known {
				if !slices.Contains(present, uid) {
					forget(e)
				}
			}
		},
	}
}

// endpoint is what the data plane has to know of a pod.
func endpoint(p *corev1.Pod) routing.Endpoint {
	e := routing.Endpoint{
		Revision: routing.Name{Namespace: p.Namespace, Name: p.Labels[revisionLabel]},
		Pod:      p.Name,
		UID:      string(p.UID),
		Gone:     p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded,
	}
	if ip, err := netip.ParseAddr(p.Status.PodIP); err == nil {
		e.IP = ip
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			e.Ready = c.Status == corev1.ConditionTrue
		}
	}
	return e
}
