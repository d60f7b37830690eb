// SPDX-License-Identifier: Apache-2.0

package desired

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// h2c is what the gateway's Services tell of their port.
const h2c = "kubernetes.io/h2c"

// Gateway is the name of the gateway for traffic from inside.
func (s *Settings) Gateway() string {
	return "kourier-internal.knative-serving-ingress.svc." + s.ClusterDomain
}

// Placeholder is the Service that gives a route, or one of its tags, its name in the cluster.
func Placeholder(r *servingv1.Route, hostname string, s *Settings) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: hostname, Namespace: r.Namespace, OwnerReferences: ownedBy(r),
			// The label of visibility is for people to put on the Service of a tag.
			Labels: with(without(r.Labels, visibilityLabel), map[string]string{
				serving.RouteLabelKey: r.Name,
				RoleLabel:             RolePlaceholder,
			}),
			Annotations: without(r.Annotations, lastApplied),
		},
		Spec: atGateway(s),
	}
}

// PublicService gives a revision a name in the cluster.
func PublicService(r *servingv1.Revision, s *Settings) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: r.Name, Namespace: r.Namespace, OwnerReferences: ownedBy(r),
			Labels:      with(revisionLabels(r), map[string]string{RoleLabel: RolePublic}),
			Annotations: revisionAnnotations(r),
		},
		Spec: atGateway(s),
	}
}

// atGateway leads to the gateway, which knows by the host name where to go. As a mere name it
// costs neither an address nor a rule of the network.
func atGateway(s *Settings) corev1.ServiceSpec {
	return corev1.ServiceSpec{
		Type:            corev1.ServiceTypeExternalName,
		ExternalName:    s.Gateway(),
		SessionAffinity: corev1.ServiceAffinityNone,
		Ports:           []corev1.ServicePort{{Name: "http2", AppProtocol: ptr.To(h2c), Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(80)}},
	}
}

// PrivateService selects a revision's pods. It is headless: who asks for it wants each pod.
func PrivateService(r *servingv1.Revision) *corev1.Service {
	port := corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString(servingv1.UserPortName)}
	if r.GetProtocol() == "h2c" {
		port.Name, port.AppProtocol = "http2", ptr.To(h2c)
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: PrivateName(r.Name), Namespace: r.Namespace, OwnerReferences: ownedBy(r),
			Labels:      with(revisionLabels(r), map[string]string{RoleLabel: RolePrivate}),
			Annotations: revisionAnnotations(r),
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone,
			Ports:     []corev1.ServicePort{port},
			Selector:  map[string]string{serving.RevisionUID: string(r.UID)},
		},
	}
}

// UpdateService is have, changed to what want says, and whether that is a change. Labels and
// annotations that others added stay, and so does what the API server filled in.
func UpdateService(have, want *corev1.Service) (*corev1.Service, bool) {
	out := have.DeepCopy()
	out.Labels, out.Annotations = with(have.Labels, want.Labels), with(have.Annotations, want.Annotations)
	if out.Annotations != nil && len(out.Annotations) == 0 {
		out.Annotations = have.Annotations
	}
	changed := !sameMap(out.Labels, have.Labels) || !sameMap(out.Annotations, have.Annotations)
	if have.Spec.Type != want.Spec.Type && want.Spec.Type != "" || have.Spec.ExternalName != want.Spec.ExternalName {
		out.Spec = *want.Spec.DeepCopy()
		changed = true
	}
	return out, changed
}

func sameMap(a, b map[string]string) bool { return subset(a, b) && subset(b, a) }
