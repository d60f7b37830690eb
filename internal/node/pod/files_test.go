// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestResolvConf(t *testing.T) {
	two := "2"
	host := ParseResolvConf("# comment\nnameserver 1.1.1.1\nnameserver 127.0.0.53\nsearch corp.example. .\noptions edns0\n\nbroken\n")
	own := &corev1.PodDNSConfig{
		Nameservers: []string{"9.9.9.9", "10.43.0.10"}, Searches: []string{"mine", "svc.cluster.local"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "rotate"}},
	}
	long := &corev1.PodDNSConfig{}
	for range 40 {
		long.Searches = append(long.Searches, strings.Repeat("x", len(long.Searches)+1))
	}
	for _, tt := range []struct {
		name   string
		policy corev1.DNSPolicy
		onHost bool
		own    *corev1.PodDNSConfig
		want   string
	}{
		{"cluster", corev1.DNSClusterFirst, false, nil, "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.43.0.10\noptions ndots:5\n"},
		{"cluster, on the host", corev1.DNSClusterFirst, true, nil, "search corp.example\nnameserver 1.1.1.1\nnameserver 127.0.0.53\noptions edns0\n"},
		{"cluster with host network", corev1.DNSClusterFirstWithHostNet, true, nil, "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.43.0.10\noptions ndots:5\n"},
		{"default, with a server on the machine's loopback", corev1.DNSDefault, false, nil, "search corp.example\nnameserver 10.43.0.10\noptions edns0\n"},
		{"none", corev1.DNSNone, false, own, "search mine svc.cluster.local\nnameserver 9.9.9.9\nnameserver 10.43.0.10\noptions ndots:2 rotate\n"},
		{"cluster and own", corev1.DNSClusterFirst, false, own, "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example mine\nnameserver 10.43.0.10\nnameserver 9.9.9.9\noptions ndots:2 rotate\n"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{DNSPolicy: tt.policy, HostNetwork: tt.onHost, DNSConfig: tt.own}}
		if got := ResolvConf(p, DNS{Cluster: []string{"10.43.0.10"}, Domain: "cluster.local", Host: host}); got != tt.want {
			t.Errorf("%s: got\n%swant\n%s", tt.name, got, tt.want)
		}
	}
	p := &corev1.Pod{Spec: corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: long}}
	if got := len(strings.Fields(strings.SplitN(ResolvConf(p, DNS{}), "\n", 2)[0])) - 1; got != 32 {
		t.Errorf("%d searches", got)
	}
}

func TestHosts(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: corev1.PodSpec{
		Hostname: "h", Subdomain: "sub", HostAliases: []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"a", "b"}}},
	}}
	got := Hosts(p, "10.0.0.1", "cluster.local")
	for _, want := range []string{"# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n", "10.0.0.1\th.sub.ns.svc.cluster.local\th\n", "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	long := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("a", 62) + "-bcd"}}
	if got := Hostname(long); got != strings.Repeat("a", 62) {
		t.Errorf("hostname is %q", got)
	}
}

func list(cpu, mem string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l["cpu"] = resource.MustParse(cpu)
	}
	if mem != "" {
		l["memory"] = resource.MustParse(mem)
	}
	return l
}

func TestResources(t *testing.T) {
	p := testPod("Always")
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list("100m", "10Mi"), Limits: list("200m", "20Mi")}
	p.Spec.Containers[1].Resources = corev1.ResourceRequirements{Requests: list("100m", "")}
	p.Spec.InitContainers[1].Resources = corev1.ResourceRequirements{Requests: list("50m", "5Mi")}
	p.Spec.InitContainers[2].Resources = corev1.ResourceRequirements{Requests: list("1", "")}
	r := Requests(p)
	if r.Cpu().MilliValue() != 1050 || r.Memory().Value() != 15<<20 {
		t.Errorf("requests are %v", r)
	}
	if l := Limits(p); len(l) != 0 {
		t.Errorf("limits are %v", l)
	}
	if q := QOS(p); q != corev1.PodQOSBurstable {
		t.Errorf("class is %s", q)
	}
	if got := ContainerCgroup(&p.Spec.Containers[0]); got != (Cgroup{CPUShares: 102, CPUQuota: 20000, CPUPeriod: 100000, Memory: 20 << 20}) {
		t.Errorf("cgroup is %+v", got)
	}
	if got := ContainerCgroup(&corev1.Container{Resources: corev1.ResourceRequirements{Limits: list("1m", "")}}); got.CPUShares != 2 || got.CPUQuota != 1000 {
		t.Errorf("least cgroup is %+v", got)
	}
	g := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")}}}}}
	if QOS(g) != corev1.PodQOSGuaranteed || QOS(&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{}}}}) != corev1.PodQOSBestEffort {
		t.Error("classes are wrong")
	}
	for _, tt := range []struct {
		p    *corev1.Pod
		want int
	}{{g, -997}, {&corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{}}}}, 1000}, {p, 991}} {
		if got := OOMScoreAdj(tt.p, &tt.p.Spec.Containers[0], 1<<30); got != tt.want {
			t.Errorf("score is %d, want %d", got, tt.want)
		}
	}
}

func TestAdmit(t *testing.T) {
	room := corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi"), "pods": resource.MustParse("2")}
	pod := func(cpu string, port int32) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Resources: corev1.ResourceRequirements{Requests: list(cpu, "")}, Ports: []corev1.ContainerPort{{HostPort: port, Protocol: "TCP"}},
		}}}}
	}
	sysctl := pod("1", 0)
	sysctl.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel/msgmax", Value: "1"}}}
	windows := pod("1", 0)
	windows.Spec.OS = &corev1.PodOS{Name: corev1.Windows}
	for name, tt := range map[string]struct {
		p      *corev1.Pod
		others []*corev1.Pod
		want   string
	}{
		"fits":      {pod("1", 80), []*corev1.Pod{pod("1", 81)}, ""},
		"cpu":       {pod("1500m", 0), []*corev1.Pod{pod("1", 0)}, "OutOfcpu: Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"},
		"pods":      {pod("", 0), []*corev1.Pod{pod("", 0), pod("", 0)}, "OutOfpods: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"},
		"host port": {pod("", 80), []*corev1.Pod{pod("", 80)}, "NodePorts: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		"sysctl":    {sysctl, nil, `SysctlForbidden: forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"windows":   {windows, nil, "PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS"},
	} {
		got := ""
		if v := Admit(tt.p, tt.others, room); v != nil {
			got = v.Reason + ": " + v.Message
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

func TestSecurity(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	yes, no := true, false
	p := testPod("Always")
	c := &corev1.Container{Name: "c", SecurityContext: &corev1.SecurityContext{}}
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsGroup: n(7), FSGroup: n(9), SupplementalGroups: []int64{8}}
	where := `(pod: "p_ns(uid)", container: c)`
	for _, tt := range []struct {
		user  *int64
		image string
		want  string
	}{
		{nil, "", "container has runAsNonRoot and image will run as root " + where},
		{nil, "0:5", "container has runAsNonRoot and image will run as root " + where},
		{nil, "app", "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root " + where},
		{nil, "1000:1000", ""},
		{n(0), "1000", "container's runAsUser breaks non-root policy " + where},
		{n(5), "", ""},
	} {
		c.SecurityContext.RunAsUser = tt.user
		got := ""
		if err := SecurityOf(p, c).CheckNonRoot(p, c, tt.image); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%v %q: got %q, want %q", tt.user, tt.image, got, tt.want)
		}
	}
	c.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: &no, AllowPrivilegeEscalation: &no, Privileged: &yes}
	s := SecurityOf(p, c)
	if s.RunAsNonRoot || !s.NoNewPrivileges || s.Seccomp != "unconfined" || len(s.Groups) != 2 || s.User("app:app") != "app:7" || s.User("") != "0:7" {
		t.Errorf("security is %+v", s)
	}
	if SecurityOf(&corev1.Pod{}, &corev1.Container{}).Seccomp != "default" {
		t.Error("no seccomp profile by default")
	}
}
