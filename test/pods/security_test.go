// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func wantFile(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, content)
	}
}

func TestSecurityContext(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "security")
	s.Make(spec(pod("user", "id; touch /data/x; stat -c %u:%g /data/x; touch /bin/x; touch /tmp/x && echo tmp ok",
		"securityContext: {runAsUser: 1000, runAsGroup: 3000, runAsNonRoot: true, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}",
		"volumeMounts: [{name: data, mountPath: /data}, {name: tmp, mountPath: /tmp}]"),
		"securityContext: {fsGroup: 4000, supplementalGroups: [5000]}",
		"volumes: [{name: data, emptyDir: {}}, {name: tmp, emptyDir: {}}]"))
	wantAll(t, done(s, "user"), "uid=1000(app) gid=3000 groups=", "4000", "5000", "1000:4000", "Read-only file system", "tmp ok")

	s.Make(pod("root", "true", "securityContext: {runAsNonRoot: true}"))
	s.Becomes("pod/root", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")
	wantAll(t, s.Field("pod/root", ".status.containerStatuses[0].state.waiting.message"), "container has runAsNonRoot and image will run as root")

	s.Make(pod("bare", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; chown 1:1 /tmp && echo chown ok; date -s 2020-01-01; hostname other", "securityContext: {}"))
	out := done2(s.K, "bare")
	wantAll(t, out, "CapEff:\t00000000a80425fb", "Seccomp:\t", "chown ok", "can't set date", "hostname: sethostname")
	s.Make(pod("dropped", "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status", "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}"))
	wantAll(t, done(s, "dropped"), "CapEff:\t0000000000000400", "NoNewPrivs:\t1")
	s.Make(pod("privileged", "grep -E 'CapEff|Seccomp:' /proc/self/status; test -e /dev/kmsg && mount -t tmpfs none /mnt 2>&1 || mount -t tmpfs none /srv && echo mounted", "securityContext: {privileged: true}"))
	wantAll(t, done(s, "privileged"), "Seccomp:\t0", "mounted")
	s.Make(spec(pod("sysctl", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '80'}]}"))
	want(t, "sysctl", done(s, "sysctl"), "80")
}

func done2(k func(...string) string, name string) string {
	k("wait", "--for=jsonpath={.status.containerStatuses[0].state.terminated}", "pod/"+name, "--timeout=60s")
	return k("logs", name)
}

func TestLimitsStandInTheCgroup(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "cgroup")
	s.Make(pod("limited", "exec tool hold", "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 250m, memory: 48Mi}}"))
	s.Ready("limited")
	out := s.K("exec", "limited", "--", "sh", "-c",
		"cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us")
	if got := strings.Join(strings.Fields(out), " "); got != "50331648 25000 100000" {
		t.Errorf("the cgroup says %q", got)
	}
	if out, err := s.Try("exec", "limited", "--", "sh", "-c", "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes || echo 1 > /sys/fs/cgroup/memory.max"); err == nil {
		t.Errorf("a container raised its own limit: %s", out)
	}
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "account")
	s.Make(pod("caller", "exec tool hold"))
	s.Ready("caller")
	ask := func(path string) string { return s.K("exec", "caller", "--", "tool", "api", path) }
	wantAll(t, ask("/version"), "200 ", `"gitVersion": "v1.36`)
	wantAll(t, ask("/api/v1/namespaces/account/pods"), "403 ", `pods is forbidden: User \"system:serviceaccount:account:default\" cannot list resource \"pods\" in API group \"\" in the namespace \"account\"`)
	s.K("create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=account:default")
	s.Says([]string{"200 ", `"name":"caller"`}, "exec", "caller", "--", "tool", "api", "/api/v1/namespaces/account/pods")
	want(t, "namespace", s.K("exec", "caller", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/namespace"), "account")

	s.Make(spec(pod("quiet", "test ! -e /var/run/secrets/kubernetes.io && echo none"), "automountServiceAccountToken: false"))
	want(t, "mount", done(s, "quiet"), "none")
}

func TestTop(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "top")
	s.Make(pod("busy", "exec tool eat 40"))
	s.Ready("busy")
	s.Says([]string{"NAME", "CPU(cores)", "MEMORY(bytes)", "busy", "Mi"}, "top", "pod")
	s.Says([]string{"CPU(cores)", "CPU(%)", "MEMORY(%)"}, "top", "node")
	s.Says([]string{"main"}, "top", "pod", "busy", "--containers")
	var summary struct {
		Pods []struct{ PodRef struct{ Name string } }
	}
	node := s.Field("pod/busy", ".spec.nodeName")
	if err := json.Unmarshal([]byte(s.K("get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")), &summary); err != nil || len(summary.Pods) == 0 {
		t.Errorf("stats/summary: %+v, %v", summary, err)
	}
}
