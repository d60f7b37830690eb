// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/kmeta"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// A Mapping is a compiled DomainMapping: its host, and what stands behind it
// unless that is another host of the table.
type Mapping struct {
	Route    *routing.Route
	Revision *routing.Revision // of a plain Service
	Endpoint routing.Endpoint
}

// Domain compiles a DomainMapping. It reports false for one that is not, or no
// longer, to be served.
func Domain(m *servingv1beta1.DomainMapping, s Settings) (Mapping, bool) {
	target := m.Status.Annotations[routing.TargetAnnotation]
	for _, c := range []string{"DomainClaimed", "ReferenceResolved"} {
		for i := range m.Status.Conditions {
			if have := &m.Status.Conditions[i]; string(have.Type) == c && !have.IsTrue() {
				return Mapping{}, false
			}
		}
	}
	if target == "" || m.DeletionTimestamp != nil {
		return Mapping{}, false
	}
	version, _ := strconv.ParseUint(m.ResourceVersion, 10, 64)
	host := routing.Host{Host: strings.ToLower(m.Name), Alias: strings.ToLower(target), Certificate: domainCertificate(m)}
	host.Redirect = host.Certificate != routing.Name{} && s.redirects(m.Annotations)
	out := Mapping{Route: &routing.Route{
		Name:       routing.MappingOf(routing.Name{Namespace: m.Namespace, Name: m.Name}),
		Generation: m.Status.ObservedGeneration,
		Version:    version,
		Created:    m.CreationTimestamp.Time,
	}}
	if at := m.Status.Annotations[routing.BackendAnnotation]; at != "" {
		out.backend(at, s)
		host.Alias, host.Split = "", routing.NewSplit([]routing.Share{{Revision: out.Route.Name, Percent: 100}})
	}
	out.Route.Hosts = []routing.Host{host}
	return out, true
}

// domainCertificate names the Secret that proves a mapping's domain.
func domainCertificate(m *servingv1beta1.DomainMapping) (name routing.Name) {
	switch {
	case m.Spec.TLS != nil && m.Spec.TLS.SecretName != "":
		name = routing.Name{Namespace: m.Namespace, Name: m.Spec.TLS.SecretName}
	case m.Status.URL != nil && m.Status.URL.Scheme == https:
		made := m.Status.GetCondition(servingv1beta1.DomainMappingConditionCertificateProvisioned)
		if made.IsTrue() && made.GetReason() != noTLS {
			name = routing.Name{Namespace: m.Namespace, Name: kmeta.ChildName(m.Name, "")}
		}
	}
	return name
}

// backend puts a plain Service behind a mapping, as if it were a revision with
// one pod that is always there.
func (m *Mapping) backend(at string, s Settings) {
	at, h2c := strings.CutSuffix(at, "/"+routing.H2C.String())
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		return // somebody else wrote it
	}
	m.Revision = &routing.Revision{Name: m.Route.Name, Port: addr.Port(), Timeout: s.Timeout}
	if h2c {
		m.Revision.Protocol = routing.H2C
	}
	m.Endpoint = routing.Endpoint{Revision: m.Route.Name, Pod: m.Route.Name.Name, UID: m.Route.Name.String() + " " + at, IP: addr.Addr(), Ready: true}
}

// Certificate compiles a Secret that holds a certificate and its key.
func Certificate(s *corev1.Secret) (*routing.Certificate, error) {
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return &routing.Certificate{Name: routing.Name{Namespace: s.Namespace, Name: s.Name}, TLS: &pair}, nil
}
