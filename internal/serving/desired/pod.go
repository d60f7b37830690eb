// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/serving/pkg/apis/config"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// podSpec is a revision's pod. There is no container for the queue: requests are counted and
// limited on their way through the node.
func podSpec(r *servingv1.Revision, s *Settings) corev1.PodSpec {
	spec := *r.Spec.PodSpec.DeepCopy()
	spec.TerminationGracePeriodSeconds = r.Spec.TimeoutSeconds
	if spec.EnableServiceLinks == nil {
		spec.EnableServiceLinks = s.Defaults.EnableServiceLinks
	}
	if spec.RuntimeClassName == nil {
		spec.RuntimeClassName = s.runtimeClass(r.Labels)
	}
	if spec.Affinity == nil && s.SpreadOverNodes {
		spec.Affinity = &corev1.Affinity{PodAntiAffinity: spread(r.Name)}
	}
	port := userPort(r)
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if len(spec.Containers) == 1 || len(c.Ports) != 0 {
			serve(c, port, s.Features.MultiContainerProbing == config.Enabled)
		}
		identify(c, r)
		if i < len(r.Status.ContainerStatuses) && r.Status.ContainerStatuses[i].ImageDigest != "" {
			c.Image = r.Status.ContainerStatuses[i].ImageDigest
		}
	}
	if s.VarLog {
		keepVarLog(&spec)
	}
	for i := range spec.InitContainers {
		if i < len(r.Status.InitContainerStatuses) && r.Status.InitContainerStatuses[i].ImageDigest != "" {
			spec.InitContainers[i].Image = r.Status.InitContainerStatuses[i].ImageDigest
		}
	}
	return spec
}

func userPort(r *servingv1.Revision) int32 {
	if ports := r.Spec.GetContainer().Ports; len(ports) > 0 && ports[0].ContainerPort != 0 {
		return ports[0].ContainerPort
	}
	return servingv1.DefaultUserPort
}

// serve makes a container the one that takes requests.
func serve(c *corev1.Container, port int32, ownPorts bool) {
	c.Ports = []corev1.ContainerPort{{Name: servingv1.UserPortName, ContainerPort: port}}
	c.Env = append(c.Env, corev1.EnvVar{Name: "PORT", Value: strconv.Itoa(int(port))})
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.StartupProbe} {
		aim(p, port, ownPorts)
	}
	aim(c.ReadinessProbe, port, true)
	if p := c.ReadinessProbe; p != nil && p.PeriodSeconds == 0 {
		// No period means as often as makes sense.
		p.PeriodSeconds, p.TimeoutSeconds = 1, max(p.TimeoutSeconds, 1)
	}
}

// aim points a probe at the port that takes requests, unless it may name another and does.
// A name can only be that of the port that takes requests: there is no other.
func aim(p *corev1.Probe, port int32, ownPort bool) {
	if p == nil {
		return
	}
	set := func(to *intstr.IntOrString) {
		if !ownPort || to.IntValue() == 0 {
			*to = intstr.FromInt32(port)
		}
	}
	switch {
	case p.HTTPGet != nil:
		set(&p.HTTPGet.Port)
	case p.TCPSocket != nil:
		set(&p.TCPSocket.Port)
	case p.GRPC != nil && p.GRPC.Port == 0:
		p.GRPC.Port = port
	}
}

// identify tells a container whose it is.
func identify(c *corev1.Container, r *servingv1.Revision) {
	c.Env = append(c.Env,
		corev1.EnvVar{Name: "K_REVISION", Value: r.Name},
		corev1.EnvVar{Name: "K_CONFIGURATION", Value: r.Labels[serving.ConfigurationLabelKey]},
		corev1.EnvVar{Name: "K_SERVICE", Value: r.Labels[serving.ServiceLabelKey]})
	c.Stdin, c.TTY = false, false
	if c.TerminationMessagePolicy == "" {
		c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	}
}

// varLog is the volume that keeps what containers write below /var/log, each in a directory
// that is named after namespace, pod and container, for an agent on the node to collect.
const varLog = "knative-var-log"

func keepVarLog(spec *corev1.PodSpec) {
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: varLog, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.Env = append(c.Env,
			corev1.EnvVar{Name: "K_INTERNAL_POD_NAME", ValueFrom: field("metadata.name")},
			corev1.EnvVar{Name: "K_INTERNAL_POD_NAMESPACE", ValueFrom: field("metadata.namespace")})
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{
			Name: varLog, MountPath: "/var/log", SubPathExpr: "$(K_INTERNAL_POD_NAMESPACE)_$(K_INTERNAL_POD_NAME)_" + c.Name,
		})
	}
}

func podAnnotations(r *servingv1.Revision) map[string]string {
	annotations := revisionAnnotations(r)
	if name := r.Spec.GetContainer().Name; name != "" {
		annotations["kubectl.kubernetes.io/default-container"] = name
	}
	return annotations
}

func spread(revision string) *corev1.PodAntiAffinity {
	return &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
		Weight: 100,
		PodAffinityTerm: corev1.PodAffinityTerm{
			TopologyKey:   corev1.LabelHostname,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{serving.RevisionLabelKey: revision}},
		},
	}}}
}

// merged is what Knative says, and what others added under names that are not Knative's.
func merged(want, have map[string]string) map[string]string {
	out := without(want)
	for key, v := range have {
		if _, ok := out[key]; !ok && key != appLabel && !strings.Contains(key, "knative.dev/") {
			out[key] = v
		}
	}
	return out
}
