// SPDX-License-Identifier: Apache-2.0

package watch

import (
	corev1 "k8s.io/api/core/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/compile"
	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// domains compiles DomainMappings.
func (w *Watch) domains() sink {
	known := map[routing.Name]routing.Endpoint{} // used by the feed's goroutine only
	// behind tells of the Service that now stands behind a domain, or that none does.
	behind := func(n routing.Name, now routing.Endpoint) {
		was, had := known[n]
		if w.OnService == nil || had && was == now || !had && !now.Ready {
			return
		}
		if had {
			was.Ready, was.Gone = false, true
			w.OnService(was)
			delete(known, n)
		}
		if now.Ready {
			known[n] = now
			w.OnService(now)
		}
	}
	set := func(o client.Object) change {
		n := routing.MappingOf(name(o))
		m, ok := compile.Domain(o.(*servingv1beta1.DomainMapping), w.current())
		behind(n, m.Endpoint)
		return func(e *routing.Edit) {
			if ok {
				e.SetRoute(m.Route)
			} else {
				e.DeleteRoute(n)
			}
			have, had := e.Revision(n)
			switch {
			case m.Revision == nil && had:
				e.DeleteRevision(n)
			case m.Revision != nil && (!had || *have != *m.Revision):
				e.SetRevision(m.Revision)
			}
		}
	}
	return sink{
		set: func(o client.Object) { w.push(set(o)) },
		remove: func(o client.Object) {
			n := routing.MappingOf(name(o))
			behind(n, routing.Endpoint{})
			w.push(func(e *routing.Edit) { dropDomain(e, n) })
		},
		replace: func(all []client.Object) {
			present, changes := each(all, set)
			for n := range known {
				if !present[routing.Mapped(n)] {
					behind(n, routing.Endpoint{})
				}
			}
			w.push(func(e *routing.Edit) {
				routes, _ := e.Names()
				for _, n := range routes {
					if routing.IsMapping(n) && !present[routing.Mapped(n)] {
						dropDomain(e, n)
					}
				}
				for _, c := range changes {
					c(e)
				}
			})
		},
	}
}

func dropDomain(e *routing.Edit, n routing.Name) {
	e.DeleteRoute(n)
	if _, had := e.Revision(n); had {
		e.DeleteRevision(n)
	}
}

// certificates reads Secrets of the type for TLS.
func (w *Watch) certificates() sink {
	set := func(o client.Object) change {
		n := name(o)
		c, err := compile.Certificate(o.(*corev1.Secret))
		if err != nil {
			// Nothing is served with it; whoever wrote it has to mend it.
			w.Log.Warn("certificate cannot be used", "secret", n.String(), "error", err)
			return func(e *routing.Edit) { e.DeleteCertificate(n) }
		}
		return func(e *routing.Edit) { e.SetCertificate(c) }
	}
	return sink{
		set: func(o client.Object) { w.push(set(o)) },
		remove: func(o client.Object) {
			n := name(o)
			w.push(func(e *routing.Edit) { e.DeleteCertificate(n) })
		},
		replace: func(all []client.Object) {
			present, changes := each(all, set)
			w.push(func(e *routing.Edit) {
				for _, n := range e.Certificates() {
					if !present[n] {
						e.DeleteCertificate(n)
					}
				}
				for _, c := range changes {
					c(e)
				}
			})
		},
	}
}
