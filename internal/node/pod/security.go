// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Security is what a container's security context comes to, together with its
// pod's.
type Security struct {
	RunAsUser    *int64
	RunAsGroup   *int64
	RunAsNonRoot bool
	Groups       []int64 // supplementary, with fsGroup
	StrictGroups bool    // the image's own groups do not count

	Privileged      bool
	ReadOnlyRoot    bool
	NoNewPrivileges bool
	UnmaskedProc    bool
	Seccomp         string // default, unconfined, or localhost/FILE
	Add, Drop       []string
}

// SecurityOf merges the two contexts: the container's words win.
func SecurityOf(p *corev1.Pod, c *corev1.Container) Security {
	pod, own := p.Spec.SecurityContext, c.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	s := Security{
		RunAsUser:       or(own.RunAsUser, pod.RunAsUser),
		RunAsGroup:      or(own.RunAsGroup, pod.RunAsGroup),
		RunAsNonRoot:    isTrue(or(own.RunAsNonRoot, pod.RunAsNonRoot)),
		Groups:          slices.Clone(pod.SupplementalGroups),
		StrictGroups:    pod.SupplementalGroupsPolicy != nil && *pod.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict,
		Privileged:      isTrue(own.Privileged),
		ReadOnlyRoot:    isTrue(own.ReadOnlyRootFilesystem),
		NoNewPrivileges: own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		UnmaskedProc:    own.ProcMount != nil && *own.ProcMount == corev1.UnmaskedProcMount,
		Seccomp:         seccomp(or(own.SeccompProfile, pod.SeccompProfile)),
	}
	if pod.FSGroup != nil {
		s.Groups = append(s.Groups, *pod.FSGroup)
	}
	if s.Privileged {
		s.Seccomp = "unconfined"
	}
	if caps := own.Capabilities; caps != nil {
		s.Add, s.Drop = words(caps.Add), words(caps.Drop)
	}
	return s
}

func or[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func words(in []corev1.Capability) []string {
	var out []string
	for _, c := range in {
		out = append(out, string(c))
	}
	return out
}

// seccomp: a container that says nothing gets the default profile.
func seccomp(p *corev1.SeccompProfile) string {
	switch {
	case p == nil || p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return "default"
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil:
		return "localhost/" + *p.LocalhostProfile
	default:
		return "unconfined"
	}
}

// User is whom to look up in the container's files: what the pod says, else
// what the image says.
func (s Security) User(image string) string {
	user, group, _ := strings.Cut(image, ":")
	if s.RunAsUser != nil {
		user, group = strconv.FormatInt(*s.RunAsUser, 10), ""
	}
	if s.RunAsGroup != nil {
		group = strconv.FormatInt(*s.RunAsGroup, 10)
		if user == "" {
			user = "0"
		}
	}
	if group == "" {
		return user
	}
	return user + ":" + group
}

// CheckNonRoot refuses a container that must not run as root and would, or
// might.
func (s Security) CheckNonRoot(p *corev1.Pod, c *corev1.Container, imageUser string) error {
	where := fmt.Sprintf("(pod: %q, container: %s)", FullName(p), c.Name)
	user, _, _ := strings.Cut(imageUser, ":")
	uid, err := strconv.ParseInt(user, 10, 64)
	switch {
	case !s.RunAsNonRoot:
		return nil
	case s.RunAsUser != nil && *s.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case s.RunAsUser != nil:
		return nil
	case user != "" && err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user, where)
	case uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}

// safeSysctls are the kernel parameters that concern a pod's namespaces only
// and harm nobody else.
var safeSysctls = []string{
	"kernel.shm_rmid_forced",
	"net.ipv4.ip_local_port_range",
	"net.ipv4.ip_local_reserved_ports",
	"net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.ping_group_range",
	"net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_rmem",
	"net.ipv4.tcp_syncookies",
	"net.ipv4.tcp_wmem",
}

// Sysctls are the kernel parameters a pod wants in its own namespaces.
func Sysctls(p *corev1.Pod) map[string]string {
	if p.Spec.SecurityContext == nil || len(p.Spec.SecurityContext.Sysctls) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, s := range p.Spec.SecurityContext.Sysctls {
		out[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
	}
	return out
}

// Admit says why a pod cannot run on this machine beside the others, if it
// cannot.
func Admit(p *corev1.Pod, others []*corev1.Pod, allocatable corev1.ResourceList) *Verdict {
	rejected := func(reason, message string) *Verdict {
		return &Verdict{Reason: reason, Message: message}
	}
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		return rejected("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
	}
	for name := range Sysctls(p) {
		if !slices.Contains(safeSysctls, name) {
			return rejected("SysctlForbidden", fmt.Sprintf("forbidden sysctl: %q not allowlisted", name))
		}
	}
	if s := Fits(p, others, allocatable); s != nil {
		return rejected(s.Reason(), s.Message())
	}
	taken := map[string]bool{}
	for _, o := range others {
		for _, port := range hostPorts(o) {
			taken[port] = true
		}
	}
	for _, port := range hostPorts(p) {
		if taken[port] {
			return rejected("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
		}
	}
	return nil
}

func hostPorts(p *corev1.Pod) []string {
	var out []string
	for _, m := range Members(p) {
		for _, port := range m.Spec.Ports {
			if port.HostPort != 0 {
				out = append(out, fmt.Sprintf("%s/%s/%d", port.HostIP, port.Protocol, port.HostPort))
			}
		}
	}
	return out
}

// FSUser is the user that all containers run as, when the pod says so of all
// of them with the same number; files for the pod alone can then be its own.
func FSUser(p *corev1.Pod) *int64 {
	var user *int64
	for _, m := range Members(p) {
		if m.Kind == Ephemeral {
			continue
		}
		u := SecurityOf(p, m.Spec).RunAsUser
		if u == nil || user != nil && *u != *user {
			return nil
		}
		user = u
	}
	return user
}
