// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

func domain(change func(*servingv1beta1.DomainMapping)) *servingv1beta1.DomainMapping {
	m := &servingv1beta1.DomainMapping{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "own.example.org", ResourceVersion: "7"}}
	m.Status.InitializeConditions()
	m.Status.MarkDomainClaimed()
	m.Status.MarkReferenceResolved()
	m.Status.URL = apis.HTTP("own.example.org")
	m.Status.Annotations = map[string]string{routing.TargetAnnotation: "web.ns.svc.cluster.local"}
	change(m)
	return m
}

func TestDomain(t *testing.T) {
	for name, tt := range map[string]struct {
		change  func(*servingv1beta1.DomainMapping)
		want    routing.Host
		nothing bool
	}{
		"plain": {func(*servingv1beta1.DomainMapping) {}, routing.Host{Host: "own.example.org", Alias: "web.ns.svc.cluster.local"}, false},
		"own secret": {func(m *servingv1beta1.DomainMapping) {
			m.Spec.TLS = &servingv1beta1.SecretTLS{SecretName: "mine"}
			m.Annotations = map[string]string{"networking.knative.dev/http-protocol": "Redirected"}
		}, routing.Host{Host: "own.example.org", Alias: "web.ns.svc.cluster.local", Certificate: routing.Name{Namespace: "ns", Name: "mine"}, Redirect: true}, false},
		"made for it": {func(m *servingv1beta1.DomainMapping) {
			m.Status.URL = apis.HTTPS("own.example.org")
			m.Status.MarkCertificateReady("x")
		}, routing.Host{Host: "own.example.org", Alias: "web.ns.svc.cluster.local", Certificate: routing.Name{Namespace: "ns", Name: "own.example.org"}}, false},
		"HTTPS that others serve": {func(m *servingv1beta1.DomainMapping) {
			m.Status.URL = apis.HTTPS("own.example.org")
			m.Status.MarkTLSNotEnabled("")
			m.Annotations = map[string]string{"networking.knative.dev/http-protocol": "Redirected"}
		}, routing.Host{Host: "own.example.org", Alias: "web.ns.svc.cluster.local"}, false},
		"claimed by another": {func(m *servingv1beta1.DomainMapping) { m.Status.MarkDomainClaimNotOwned() }, routing.Host{}, true},
		"to nowhere":         {func(m *servingv1beta1.DomainMapping) { m.Status.MarkReferenceNotResolved("") }, routing.Host{}, true},
		"going":              {func(m *servingv1beta1.DomainMapping) { m.DeletionTimestamp = &metav1.Time{} }, routing.Host{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := Domain(domain(tt.change), DefaultSettings())
			if ok == tt.nothing {
				t.Fatalf("served: %v", ok)
			}
			if ok && (len(got.Route.Hosts) != 1 || got.Route.Hosts[0] != tt.want || got.Revision != nil || got.Route.Version != 7) {
				t.Errorf("%+v\nwant %+v", got.Route, tt.want)
			}
		})
	}
}

func TestDomainOfAPlainService(t *testing.T) {
	m, ok := Domain(domain(func(m *servingv1beta1.DomainMapping) {
		m.Status.Annotations[routing.BackendAnnotation] = "10.43.0.7:81/h2c"
	}), DefaultSettings())
	if !ok || m.Revision == nil || m.Revision.Port != 81 || m.Revision.Protocol != routing.H2C || m.Endpoint.IP.String() != "10.43.0.7" || !m.Endpoint.Ready {
		t.Fatalf("%+v", m)
	}
	h := m.Route.Hosts[0]
	if got, _ := h.Split.Next(); h.Alias != "" || got != m.Revision.Name || m.Endpoint.Revision != got {
		t.Errorf("%+v", h)
	}
}

func TestRouteIsRedirectedOnlyWithACertificate(t *testing.T) {
	hundred := int64(100)
	r := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"}}
	r.Status.InitializeConditions()
	r.Status.URL = apis.HTTPS("web.example")
	r.Status.Traffic = []servingv1.TrafficTarget{{RevisionName: "a", Percent: &hundred}, {RevisionName: "a", Tag: "t", URL: apis.HTTP("t-web.example")}}
	s := DefaultSettings().With(Network, map[string]string{"http-protocol": "Redirected"})
	hosts := func() map[string]routing.Host {
		out, _ := Route(r, s)
		found := map[string]routing.Host{}
		for _, h := range out.Hosts {
			found[h.Host] = h
		}
		return found
	}
	r.Status.MarkTLSNotEnabled("")
	if h := hosts()["web.example"]; h.Redirect || h.Certificate != (routing.Name{}) {
		t.Errorf("HTTPS that others serve: %+v", h)
	}
	r.Status.MarkCertificateReady("x")
	if h := hosts()["web.example"]; !h.Redirect || h.Certificate.Name != "route-u" {
		t.Errorf("%+v", h)
	}
	if h := hosts()["t-web.example"]; h.Redirect {
		t.Errorf("a tag without certificate: %+v", h)
	}
	if h := hosts()["web.ns.svc.cluster.local"]; h.Redirect || h.Certificate != (routing.Name{}) {
		t.Errorf("inside: %+v", h)
	}
	r.Annotations = map[string]string{"networking.knative.dev/http-protocol": "Enabled"}
	if h := hosts()["web.example"]; h.Redirect {
		t.Errorf("against its annotation: %+v", h)
	}
}
