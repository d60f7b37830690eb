// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	networkingconfig "knative.dev/networking/pkg/config"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"knative.dev/serving/pkg/networking"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/desired"
)

// domainFinalizer has the claim of a domain end with its mapping.
const domainFinalizer = "domainmappings.serving.knative.dev"

// domains claims each DomainMapping's domain, finds what it stands for and says so in its
// status, from which the gateway serves.
type domains struct {
	*common
	gateway    *programmed
	references *references
}

func addDomains(m manager.Manager, c *common) error {
	bell := &doorbell{}
	d := domains{c, newProgrammed("DomainMapping", c.options.Programmed, bell.ring), newReferences(m)}
	every := everyOne(c, func() client.ObjectList { return &servingv1beta1.DomainMappingList{} }, func(l client.ObjectList) (keys []client.ObjectKey) {
		for i := range l.(*servingv1beta1.DomainMappingList).Items {
			keys = append(keys, key(&l.(*servingv1beta1.DomainMappingList).Items[i]))
		}
		return keys
	})
	controller, err := ctrl.NewControllerManagedBy(m).Named("domain").For(&servingv1beta1.DomainMapping{}).
		Watches(&netv1alpha1.ClusterDomainClaim{}, handler.EnqueueRequestsFromMapFunc(d.ofClaim)).
		Watches(&netv1alpha1.Certificate{}, handler.EnqueueRequestForOwner(m.GetScheme(), m.GetRESTMapper(), &servingv1beta1.DomainMapping{}, handler.OnlyControllerOwner())).
		Watches(&servingv1.Service{}, d.to("Service"), builder.WithPredicates(addressChanges())).
		Watches(&servingv1.Route{}, d.to("Route"), builder.WithPredicates(addressChanges())).
		Watches(&corev1.ConfigMap{}, every, builder.WithPredicates(settingsChanges())).
		WatchesRawSource(bell.source()).
		WithOptions(tuned()).Build(d)
	if err != nil {
		return err
	}
	d.references.watch = controller.Watch
	d.references.to = d.to
	return nil
}

func (d domains) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	m, err := known[servingv1beta1.DomainMapping](ctx, d.client, req.Namespace, req.Name)
	if err != nil {
		return reconcile.Result{}, err
	}
	if m == nil || m.DeletionTimestamp != nil {
		d.gateway.forget(req.NamespacedName)
		return reconcile.Result{}, d.release(ctx, m)
	}
	if !controllerutil.ContainsFinalizer(m, domainFinalizer) {
		next := m.DeepCopy()
		controllerutil.AddFinalizer(next, domainFinalizer)
		if err := d.patch(ctx, m, next); err != nil {
			if raced(err) || gone(err) {
				return reconcile.Result{RequeueAfter: soon}, nil
			}
			return reconcile.Result{}, fmt.Errorf("add finalizer: %w", err)
		}
	}
	return reconcileStatus(ctx, d.common, req, &servingv1beta1.DomainMapping{}, d.do)
}

func (d domains) do(ctx context.Context, before, m *servingv1beta1.DomainMapping) (verdict, error) {
	settings, err := d.settings.load(ctx)
	if err != nil {
		return verdict{}, err
	}
	if m.Generation != m.Status.ObservedGeneration {
		m.Status.MarkIngressNotConfigured()
	}
	d.show(m, d.plainURL(m.Name, settings))
	if claimed, err := d.claim(ctx, m, settings); !claimed || err != nil {
		return verdict{now: true}, err
	}
	coming, err := d.secure(ctx, m, settings)
	if coming || err != nil {
		return verdict{hold: coming}, err
	}
	if resolved, err := d.resolve(ctx, m, settings); !resolved || err != nil {
		return verdict{now: true}, err
	}
	if _, err := networking.GetHTTPOption(ctx, settings.Network, m.Annotations); err != nil {
		d.news.warn(m, "InternalError", "%v", err)
		return verdict{now: true}, nil
	}
	d.await(before, m)
	return verdict{now: true}, nil
}

// await has the mapping ready once the gateway serves it.
func (d domains) await(before, m *servingv1beta1.DomainMapping) {
	same := before.Status.ObservedGeneration == m.Generation && maps.Equal(before.Status.Annotations, m.Status.Annotations) &&
		before.Status.URL != nil && *before.Status.URL == *m.Status.URL &&
		sameCondition(before, m, servingv1beta1.DomainMappingConditionDomainClaimed) &&
		sameCondition(before, m, servingv1beta1.DomainMappingConditionReferenceResolved) &&
		sameCondition(before, m, servingv1beta1.DomainMappingConditionCertificateProvisioned)
	if same && (isTrue(before, servingv1beta1.DomainMappingConditionIngressReady) || d.gateway.serves(before)) {
		m.GetConditionSet().Manage(&m.Status).MarkTrue(servingv1beta1.DomainMappingConditionIngressReady)
	} else {
		m.Status.MarkIngressNotConfigured() // the gateway learns of it from the status
	}
}

func (d domains) show(m *servingv1beta1.DomainMapping, url *apis.URL) {
	m.Status.URL, m.Status.Address = url, &duckv1.Addressable{URL: url}
}

func (d domains) plainURL(host string, s *desired.Settings) *apis.URL {
	if port := d.options.ExternalPort; port != 0 && port != defaultPort {
		host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	return &apis.URL{Scheme: s.Network.DefaultExternalScheme, Host: host}
}

// claim sees to it that the domain is claimed by the mapping's namespace, which keeps others
// from serving the same.
func (d domains) claim(ctx context.Context, m *servingv1beta1.DomainMapping, s *desired.Settings) (bool, error) {
	have, err := known[netv1alpha1.ClusterDomainClaim](ctx, d.client, "", m.Name)
	if err != nil {
		return false, err
	}
	var refused error
	switch {
	case have == nil && !s.Network.AutocreateClusterDomainClaims:
		refused = fmt.Errorf("no ClusterDomainClaim found for domain %q (and autocreate-cluster-domain-claims property is not true)", m.Name)
	case have == nil:
		if err := d.client.Create(ctx, desired.DomainClaim(m)); err != nil {
			if !apierrors.IsAlreadyExists(err) {
				m.Status.MarkDomainClaimFailed(err.Error())
			}
			return false, fmt.Errorf("failed to create ClusterDomainClaim: %w", err)
		}
	case have.Spec.Namespace != m.Namespace:
		refused = fmt.Errorf("namespace %q does not own ClusterDomainClaim for %q", m.Namespace, m.Name)
	}
	if refused != nil {
		if !m.Status.GetCondition(servingv1beta1.DomainMappingConditionDomainClaimed).IsFalse() {
			d.news.warn(m, "InternalError", "%v", refused)
		}
		m.Status.MarkDomainClaimNotOwned()
		return false, nil
	}
	m.Status.MarkDomainClaimed()
	return true, nil
}

// release gives up the claim of a mapping that is being deleted, and lets it go.
func (d domains) release(ctx context.Context, m *servingv1beta1.DomainMapping) error {
	if m == nil || !controllerutil.ContainsFinalizer(m, domainFinalizer) {
		return nil
	}
	settings, err := d.settings.load(ctx)
	if err != nil {
		return err
	}
	if settings.Network.AutocreateClusterDomainClaims {
		have, err := known[netv1alpha1.ClusterDomainClaim](ctx, d.client, "", m.Name)
		if err != nil {
			return err
		}
		if have != nil && have.Spec.Namespace == m.Namespace {
			if err := d.client.Delete(ctx, have); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("failed to delete ClusterDomainClaim: %w", err)
			}
		}
	}
	next := m.DeepCopy()
	controllerutil.RemoveFinalizer(next, domainFinalizer)
	if err := d.patch(ctx, m, next); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove finalizer: %w", err)
	}
	return nil
}

// secure sees to the certificate of a domain, as secure of routes does.
func (d domains) secure(ctx context.Context, m *servingv1beta1.DomainMapping, s *desired.Settings) (coming bool, err error) {
	if m.Spec.TLS != nil {
		m.Status.MarkCertificateNotRequired(servingv1beta1.TLSCertificateProvidedExternally)
		d.show(m, d.secureURL(m.Name))
		return false, nil
	}
	if !s.ExternalTLS(m) {
		m.Status.MarkTLSNotEnabled(servingv1.ExternalDomainTLSNotEnabledMessage)
		return false, nil
	}
	name := kmeta.ChildName(m.Name, "")
	cert, err := d.certificate(ctx, m, desired.Certificate(m, desired.CertificateFor{
		Name: name, Label: serving.DomainMappingUIDLabelKey, Host: m.Name, Domain: m.Name,
	}, s))
	switch {
	case err != nil:
		if !raced(err) && !gone(err) {
			m.Status.MarkCertificateProvisionFailed(name)
		}
		return false, err
	case cert == nil:
		m.Status.MarkCertificateNotOwned(name)
		return false, fmt.Errorf("domain mapping: %q does not own Certificate: %q", m.Name, name)
	case cert.IsReady():
		m.Status.MarkCertificateReady(name)
	case s.Network.HTTPProtocol == networkingconfig.HTTPEnabled:
		m.Status.MarkHTTPDowngrade(name)
		return cert.Status.ObservedGeneration != cert.Generation && d.options.Issuer != nil, nil
	default:
		m.Status.MarkCertificateNotReady(name)
	}
	d.show(m, d.secureURL(m.Name))
	return false, nil
}

// resolve finds out what the mapping stands for, and notes it for the gateway.
func (d domains) resolve(ctx context.Context, m *servingv1beta1.DomainMapping, s *desired.Settings) (bool, error) {
	target, err := d.references.find(ctx, d.common, m)
	if err != nil {
		return false, err
	}
	if target.problem == "" {
		target.problem = target.unsuitable(m.Namespace, s.ClusterDomain)
	}
	if target.problem != "" {
		if m.Status.GetCondition(servingv1beta1.DomainMappingConditionReferenceResolved).GetMessage() != target.problem {
			d.news.warn(m, "InternalError", "resolving reference: %s", target.problem)
		}
		m.Status.MarkReferenceNotResolved(target.problem)
		return false, nil
	}
	m.Status.MarkReferenceResolved()
	m.Status.Annotations = map[string]string{routing.TargetAnnotation: target.url.Host}
	if target.backend != "" {
		m.Status.Annotations[routing.BackendAnnotation] = target.backend
	}
	return true, nil
}

// ofClaim are the mappings that a claim may be for.
func (d domains) ofClaim(ctx context.Context, o client.Object) []reconcile.Request {
	return d.found(ctx, "", byDomain, o.GetName())
}

// to has the mappings reconciled that lead to an object of a kind.
func (d domains) to(kind string) handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return d.found(ctx, o.GetNamespace(), byReference, kind+"/"+o.GetName())
	})
}

func (d domains) found(ctx context.Context, namespace, index, value string) []reconcile.Request {
	all, err := list(ctx, d.client, &servingv1beta1.DomainMappingList{}, namespace, index, value)
	if err != nil {
		d.log.Error("domain mappings of a changed object are not known", "index", index, "value", value, "error", err)
		return nil
	}
	var out []reconcile.Request
	for i := range all.Items {
		out = append(out, request(&all.Items[i]))
	}
	return out
}

func domainOf(o client.Object) []string { return []string{o.GetName()} }

func referenceOf(o client.Object) []string {
	m, ok := o.(*servingv1beta1.DomainMapping)
	if !ok {
		return nil
	}
	return []string{m.Spec.Ref.Kind + "/" + m.Spec.Ref.Name}
}
