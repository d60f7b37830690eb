// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/kmeta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

// An Issuer makes certificates. Names and what it returns are as in X.509 and PEM.
type Issuer interface {
	Issue(names []string, now time.Time) (cert, key []byte, err error)
	// Until says when a certificate ends and when to renew it; false if it is not what this
	// issuer would make for the names.
	Until(cert []byte, names []string) (end, renew time.Time, ok bool)
	// Authority is what clients are to trust.
	Authority() []byte
}

// certificates keeps a Secret for each Certificate.
type certificates struct{ *common }

func addCertificates(m manager.Manager, c *common) error {
	if c.options.Issuer == nil {
		return nil // somebody else's task
	}
	ofSecret := handler.TypedEnqueueRequestForOwner[*corev1.Secret](m.GetScheme(), m.GetRESTMapper(), &netv1alpha1.Certificate{}, handler.OnlyControllerOwner())
	return ctrl.NewControllerManagedBy(m).Named("certificate").For(&netv1alpha1.Certificate{}).
		WatchesRawSource(source.Kind(c.lean, &corev1.Secret{}, ofSecret)).
		WithOptions(tuned()).Complete(certificates{c})
}

func (c certificates) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	return reconcileStatus(ctx, c.common, req, &netv1alpha1.Certificate{}, c.do)
}

func (c certificates) do(ctx context.Context, _, cert *netv1alpha1.Certificate) (verdict, error) {
	have, err := known[corev1.Secret](ctx, c.services, cert.Namespace, cert.Spec.SecretName)
	if err != nil {
		return verdict{}, err
	}
	now := time.Now()
	if have != nil && metav1.IsControlledBy(have, cert) {
		if end, renew, ok := c.options.Issuer.Until(have.Data[corev1.TLSCertKey], cert.Spec.DNSNames); ok && now.Before(renew) {
			return proven(cert, end, renew.Sub(now)), nil
		}
	}
	text, private, err := c.options.Issuer.Issue(cert.Spec.DNSNames, now)
	if err != nil {
		cert.Status.MarkFailed("CertificateFailed", err.Error())
		return verdict{now: true}, err
	}
	owned, err := c.keep(ctx, cert, have, desired.CertificateSecret(cert, text, private, c.options.Issuer.Authority()))
	if err != nil {
		return verdict{}, err
	}
	if !owned {
		cert.Status.MarkResourceNotOwned("Secret", cert.Spec.SecretName)
		return verdict{}, nil
	}
	end, renew, _ := c.options.Issuer.Until(text, cert.Spec.DNSNames)
	return proven(cert, end, renew.Sub(now)), nil
}

func proven(cert *netv1alpha1.Certificate, end time.Time, renewIn time.Duration) verdict {
	cert.Status.NotAfter = &metav1.Time{Time: end}
	cert.Status.MarkReady()
	return verdict{now: true, after: max(time.Second, renewIn)}
}

// keep writes a Certificate's Secret, unless one of that name is somebody else's.
func (c certificates) keep(ctx context.Context, cert *netv1alpha1.Certificate, have, want *corev1.Secret) (owned bool, err error) {
	if have == nil {
		err := c.client.Create(ctx, want)
		if err == nil {
			return true, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return false, fmt.Errorf("failed to create Secret: %w", err)
		}
		// Either the cache is behind, or it does not have it because it is not ours.
		if have, err = known[corev1.Secret](ctx, c.direct, want.Namespace, want.Name); have == nil || err != nil {
			return false, err
		}
	}
	if !metav1.IsControlledBy(have, cert) {
		return false, nil
	}
	next := have.DeepCopy()
	next.Data, next.Labels = want.Data, want.Labels
	if err := c.patch(ctx, have, next); err != nil {
		return false, fmt.Errorf("failed to update Secret: %w", err)
	}
	return true, nil
}

// certificate brings a Certificate about that an object asks for. It is nil if one of that
// name is somebody else's.
func (c *common) certificate(ctx context.Context, owner kmeta.OwnerRefableAccessor, want *netv1alpha1.Certificate) (*netv1alpha1.Certificate, error) {
	have, err := known[netv1alpha1.Certificate](ctx, c.client, want.Namespace, want.Name)
	if err != nil {
		return nil, err
	}
	if have == nil {
		if err := c.client.Create(ctx, want); err != nil {
			return nil, fmt.Errorf("failed to create Certificate: %w", err)
		}
		return want, nil
	}
	if !metav1.IsControlledBy(have, owner) {
		return nil, nil
	}
	if reflect.DeepEqual(have.Spec, want.Spec) && reflect.DeepEqual(have.Annotations, want.Annotations) && reflect.DeepEqual(have.Labels, want.Labels) {
		return have, nil
	}
	next := have.DeepCopy()
	next.Spec, next.Annotations, next.Labels = want.Spec, want.Annotations, want.Labels
	if err := c.patch(ctx, have, next); err != nil {
		return nil, fmt.Errorf("failed to update Certificate: %w", err)
	}
	return next, nil
}
