// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/networking/pkg/apis/networking"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/pkg/kmeta"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
)

// A CertificateFor says what a Certificate is for.
type CertificateFor struct {
	Name   string
	Label  string // of the owner's name
	Host   string
	Domain string // that the host is in
}

// ExternalTLS reports whether an object's hosts are to be served by HTTPS with certificates
// that are made for them.
func (s *Settings) ExternalTLS(o Named) bool {
	if !s.Network.ExternalDomainTLS {
		return false
	}
	off, err := strconv.ParseBool(networking.GetDisableExternalDomainTLS(o.GetAnnotations()))
	return err != nil || !off
}

// Certificate asks for a certificate for one of the owner's hosts.
func Certificate(owner kmeta.OwnerRefableAccessor, f CertificateFor, s *Settings) *netv1alpha1.Certificate {
	annotations := without(owner.GetAnnotations(), lastApplied, networking.RolloutAnnotationKey)
	if networking.GetCertificateClass(annotations) == "" {
		annotations[networking.CertificateClassAnnotationKey] = s.Network.DefaultCertificateClass
	}
	return &netv1alpha1.Certificate{
		ObjectMeta: metav1.ObjectMeta{
			Name: f.Name, Namespace: owner.GetNamespace(), OwnerReferences: ownedBy(owner), Annotations: annotations,
			Labels: map[string]string{
				f.Label:                            owner.GetName(),
				networking.CertificateTypeLabelKey: string(networkingconfig.CertificateExternalDomain),
			},
		},
		Spec: netv1alpha1.CertificateSpec{DNSNames: []string{f.Host}, Domain: f.Domain, SecretName: f.Name},
	}
}

// CertificateSecret holds what a Certificate asks for.
func CertificateSecret(c *netv1alpha1.Certificate, cert, key, ca []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: c.Spec.SecretName, Namespace: c.Namespace, OwnerReferences: ownedBy(c),
			Labels: map[string]string{networking.CertificateUIDLabelKey: string(c.UID)},
		},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, "ca.crt": ca},
	}
}

// DomainClaim reserves the domain of a mapping for its namespace.
func DomainClaim(m *servingv1beta1.DomainMapping) *netv1alpha1.ClusterDomainClaim {
	return &netv1alpha1.ClusterDomainClaim{
		ObjectMeta: metav1.ObjectMeta{Name: m.Name},
		Spec:       netv1alpha1.ClusterDomainClaimSpec{Namespace: m.Namespace},
	}
}

// Backend is the address and port at which a Service that is neither a route's nor a
// revision's is asked: port 80, or the first if there is none. It is empty for a Service
// without an address of its own.
func Backend(s *corev1.Service) string {
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.Type == corev1.ServiceTypeExternalName || len(s.Spec.Ports) == 0 {
		return ""
	}
	port := &s.Spec.Ports[max(0, slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == 80 }))]
	at := s.Spec.ClusterIP + ":" + strconv.Itoa(int(port.Port))
	if port.AppProtocol != nil && *port.AppProtocol == h2c || port.Name == "http2" || port.Name == "h2c" {
		at += "/h2c"
	}
	return at
}

// Ours reports whether a Service leads to the gateway, which knows by its name where to go.
func Ours(s *corev1.Service) bool { return s.Labels[RoleLabel] != "" }

// DomainOf is the domain that a route's hosts are in when they are seen from outside.
func (s *Settings) DomainOf(route Named) string {
	labels := maps.Clone(route.GetLabels())
	delete(labels, visibilityLabel)
	return s.domain(labels)
}
