// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/desired"
)

const https = "https"

// secure has certificates made for the hosts of a route that are seen from outside, and has
// the URLs of those that have one name HTTPS. It reports whether one was asked for a moment
// ago and is about to come.
func (r routes) secure(ctx context.Context, route *servingv1.Route, h *hosts, s *desired.Settings) (coming bool, err error) {
	if !s.ExternalTLS(route) {
		route.Status.MarkTLSNotEnabled(servingv1.ExternalDomainTLSNotEnabledMessage)
		return false, nil
	}
	var wanted, waiting []*netv1alpha1.Certificate
	for _, tag := range slices.Sorted(maps.Keys(h.byTag)) {
		one := h.byTag[tag]
		if one.local {
			continue
		}
		want := desired.Certificate(route, desired.CertificateFor{
			Name: routing.CertificateOf(string(route.UID), tag), Label: serving.RouteLabelKey, Host: one.domain, Domain: s.DomainOf(route),
		}, s)
		cert, err := r.certificate(ctx, route, want)
		switch {
		case err != nil:
			return false, err
		case cert == nil:
			route.Status.MarkCertificateNotOwned(want.Name)
			return false, nil
		}
		wanted = append(wanted, cert)
		ready := cert.IsReady()
		if !ready {
			waiting = append(waiting, cert)
		}
		if ready || s.Network.HTTPProtocol != networkingconfig.HTTPEnabled {
			one.url = r.secureURL(one.domain)
			h.byTag[tag] = one
		}
		coming = coming || cert.Status.ObservedGeneration != cert.Generation && r.options.Issuer != nil
	}
	switch {
	case len(wanted) == 0:
		route.Status.MarkTLSNotEnabled(servingv1.TLSNotEnabledForClusterLocalMessage)
	case len(waiting) == 0:
		route.Status.MarkCertificateReady(wanted[0].Name)
	case s.Network.HTTPProtocol == networkingconfig.HTTPEnabled:
		route.Status.MarkHTTPDowngrade(waiting[0].Name)
	case waiting[0].IsFailed():
		route.Status.MarkCertificateProvisionFailed(waiting[0])
	default:
		route.Status.MarkCertificateNotReady(waiting[0])
	}
	return coming, r.dropCertificates(ctx, route, wanted)
}

// secureURL is where clients find a host by HTTPS.
func (c *common) secureURL(host string) *apis.URL {
	if port := c.options.SecurePort; port != 0 && port != 443 {
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	return &apis.URL{Scheme: https, Host: host}
}

// dropCertificates deletes a route's Certificates for hosts that it no longer has.
func (r routes) dropCertificates(ctx context.Context, route *servingv1.Route, wanted []*netv1alpha1.Certificate) error {
	all, err := list(ctx, r.client, &netv1alpha1.CertificateList{}, route.Namespace, byRoute, route.Name)
	if err != nil {
		return err
	}
	for i := range all.Items {
		c := &all.Items[i]
		used := slices.ContainsFunc(wanted, func(w *netv1alpha1.Certificate) bool { return w.Name == c.Name })
		if used || !metav1.IsControlledBy(c, route) {
			continue
		}
		if err := r.client.Delete(ctx, c.DeepCopy()); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("failed to delete Certificate: %w", err)
		}
	}
	return nil
}
