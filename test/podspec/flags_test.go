// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

const (
	in  = "spec.template.spec."
	box = in + "containers[0]."
)

// A flagged service is one that a flag of config-features decides on.
type flagged struct {
	flag     string // without "kubernetes."
	k        platform.Service
	disabled string // what is said of it when the flag is disabled; empty: it is taken
	allowed  string // when it is allowed; empty: it is taken
}

func field(flag, name, spec string) flagged {
	return flagged{"podspec-" + flag, platform.Service{Name: "x", Spec: spec}, "must not set the field(s): " + in + name, ""}
}

func volume(flag, kind, source string) flagged {
	text := kind + " volume support is disabled, but found " + kind + " volume v"
	return flagged{"podspec-volumes-" + flag, platform.Service{Name: "x", Spec: "volumes: [{name: v, " + source + "}]", Box: "volumeMounts: [{name: v, mountPath: /v, readOnly: true}]"}, text, text}
}

func container(flag, yaml, disabled, allowed string) flagged {
	return flagged{flag, platform.Service{Name: "x", Box: yaml}, disabled, allowed}
}

var claim = platform.Service{Name: "x", Spec: "volumes: [{name: v, persistentVolumeClaim: {claimName: data, readOnly: true}}]", Box: "volumeMounts: [{name: v, mountPath: /v, readOnly: true}]"}

// all are the flags that decide whether a service is taken.
func all() []flagged {
	side := "{name: side, image: " + p.App() + "%s}"
	two := func(more string) platform.Service {
		return platform.Service{Name: "x", Box: "ports: [{containerPort: 8080}]", More: fmt.Sprintf(side, more)}
	}
	writable := claim
	writable.Spec = strings.Replace(claim.Spec, "readOnly: true", "readOnly: false", 1)
	const claims, write = "Persistent volume claim support is disabled, but found persistent volume claim data", "Persistent volume write support is disabled, but found persistent volume claim data that is not read-only"
	return []flagged{
		field("affinity", "affinity", "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}}"),
		field("topologyspreadconstraints", "topologySpreadConstraints", "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}]"),
		field("hostaliases", "hostAliases", "hostAliases: [{ip: 192.0.2.1, hostnames: [other.example]}]"),
		field("nodeselector", "nodeSelector", "nodeSelector: {kubernetes.io/os: linux}"),
		field("tolerations", "tolerations", "tolerations: [{key: some, operator: Exists}]"),
		field("runtimeclassname", "runtimeClassName", "runtimeClassName: usual"),
		field("dnspolicy", "dnsPolicy", "dnsPolicy: Default"),
		field("dnsconfig", "dnsConfig", "dnsConfig: {searches: [own.example]}"),
		field("securitycontext", "securityContext, "+in+"securityContext.runAsUser", "securityContext: {runAsUser: 1001}"),
		field("shareprocessnamespace", "shareProcessNamespace", "shareProcessNamespace: true"),
		field("hostipc", "hostIPC", "hostIPC: true"),
		field("hostpid", "hostPID", "hostPID: true"),
		field("hostnetwork", "hostNetwork", "hostNetwork: true"),
		field("priorityclassname", "priorityClassName", "priorityClassName: high"),
		field("schedulername", "schedulerName", "schedulerName: default-scheduler"),
		volume("hostpath", "HostPath", "hostPath: {path: /etc}"),
		volume("csi", "CSI", "csi: {driver: some, readOnly: true}"),
		volume("ephemeral", "Ephemeral", "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}"),
		volume("image", "Image", "image: {reference: some}"),
		{"podspec-persistent-volume-claim", claim, claims, claims},
		{"podspec-persistent-volume-write", writable, write, write},
		container("podspec-fieldref", "env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]", "must not set the field(s): "+box+"env[0].valueFrom.fieldRef", ""),
		container("containerspec-addcapabilities", "securityContext: {capabilities: {add: [NET_ADMIN]}}", "must not set the field(s): "+box+"securityContext.capabilities.add", "must not set the field(s): "+box+"securityContext.capabilities.add"),
		{"podspec-init-containers", platform.Service{Name: "x", Spec: "initContainers: [{name: first, image: " + p.App() + "}]"}, "pod spec support for init-containers is off, but found 1 init containers", "pod spec support for init-containers is off, but found 1 init containers"},
		{"podspec-volumes-mount-propagation", platform.Service{Name: "x", Spec: "volumes: [{name: v, emptyDir: {}}]", Box: "volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]"},
			"Volume Mount Propagation support is disabled, but found volume mount v with mount propagation", "Volume Mount Propagation support is disabled, but found volume mount v with mount propagation"},
		{"-multi-container-probing", two(", livenessProbe: {tcpSocket: {port: 9001}}"), "must not set the field(s): " + in + "containers[1].livenessProbe", "must not set the field(s): " + in + "containers[1].livenessProbe"},
	}
}

func (f flagged) key() string {
	if own, ok := strings.CutPrefix(f.flag, "-"); ok {
		return own
	}
	return "kubernetes." + f.flag
}

// TestFlags has each flag disabled, allowed and enabled, and then runs what it allows.
func TestFlags(t *testing.T) {
	s := newSpace(t, "flags")
	check := func(state string, text func(flagged) string) {
		for _, f := range all() {
			out, err := try(s, f.k)
			switch text := text(f); {
			case text == "" && err != nil:
				t.Errorf("%s %s: refused: %s", f.key(), state, out)
			case text != "" && (err == nil || !strings.Contains(out, text)):
				t.Errorf("%s %s: %q is missing in: %s", f.key(), state, text, out)
			}
		}
	}
	to := func(state string) map[string]string {
		flags := map[string]string{}
		for _, f := range all() {
			flags[f.key()] = state
		}
		return flags
	}
	// What is checked as a pod, too, must exist.
	s.K("create", "priorityclass", "high", "--value=10")
	t.Cleanup(func() { s.For(t).Command("delete", "priorityclass", "high") })
	s.Make("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: usual}\nhandler: runc\n")
	s.Make("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n")
	check("disabled", func(f flagged) string { return f.disabled })
	set(t, s, to("Allowed"), all()[0].k)
	check("allowed", func(f flagged) string { return f.allowed })
	set(t, s, to("enabled"), claim)
	check("enabled", func(flagged) string { return "" })
	t.Run("run", func(t *testing.T) { run(t, s.For(t)) })
	t.Run("off", func(t *testing.T) { off(t, s.For(t)) })
}

// run has pods with all that the flags allow.
func run(t *testing.T, s *platform.Space) {
	k := platform.Service{Name: "all", Spec: `affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}}
topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}]
hostAliases: [{ip: 192.0.2.1, hostnames: [other.example]}]
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: some, operator: Exists}]
runtimeClassName: usual
dnsPolicy: None
dnsConfig: {nameservers: [192.0.2.53], searches: [own.example], options: [{name: ndots, value: '3'}]}
securityContext: {runAsUser: 1001, runAsGroup: 1002, fsGroup: 1003, supplementalGroups: [1004]}
shareProcessNamespace: true
priorityClassName: high
schedulerName: default-scheduler
initContainers: [{name: first, image: ` + p.App() + `, args: [write, /v/made, by-the-first], volumeMounts: [{name: v, mountPath: /v}]}]
volumes: [{name: v, persistentVolumeClaim: {claimName: data}}, {name: own, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}, {name: host, hostPath: {path: /proc/version}}, {name: image, image: {reference: ` + p.App() + `}}, {name: propagated, emptyDir: {}}]`,
		Box: `ports: [{containerPort: 8080}]
env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]
resources: {limits: {cpu: '2'}}
securityContext: {capabilities: {add: [NET_ADMIN]}}
volumeMounts: [{name: v, mountPath: /v}, {name: own, mountPath: /own}, {name: host, mountPath: /host, readOnly: true}, {name: image, mountPath: /image, readOnly: true}, {name: propagated, mountPath: /propagated, mountPropagation: HostToContainer}]`,
		More: "{name: side, image: " + p.App() + ", env: [{name: LISTEN, value: '9001'}, {name: READY_DELAY, value: 1s}], readinessProbe: {httpGet: {path: /health, port: 9001}}, livenessProbe: {tcpSocket: {port: 9001}}}"}
	s.Serves(k)
	w := inside(s, "all", "/etc/hosts", "/etc/resolv.conf", "/v", "/v/made", "/own", "/host", "/image/ko-app/app", "/propagated", "/proc/1/comm")
	want(t, "user, group and groups", fmt.Sprint(w.UID, w.GID, w.Groups), "1001 1002 [1003 1004]")
	for path, text := range map[string]string{
		"/etc/hosts": "192.0.2.1\tother.example", "/etc/resolv.conf": "nameserver 192.0.2.53", "/v/made": "by-the-first", "/host": "Linux version",
	} {
		if got := w.Paths[path]; !strings.Contains(got.Text, text) {
			t.Errorf("%s: %+v", path, got)
		}
	}
	if f := w.Paths["/own"]; f.Error != "" || f.Write != "" {
		t.Errorf("ephemeral volume: %+v", f)
	}
	if f := w.Paths["/image/ko-app/app"]; f.Kind != "file" {
		t.Errorf("volume of an image: %+v", f)
	}
	want(t, "limit", w.env("LIMIT"), "2")
	want(t, "address", w.env("IP"), s.K("get", "pod", "-l", "serving.knative.dev/service=all", "-o", "jsonpath={.items[0].status.podIP}"))
	if n := len(strings.Fields(s.K("exec", s.K("get", "pod", "-l", "serving.knative.dev/service=all", "-o", "jsonpath={.items[0].metadata.name}"), "-c", "side", "--", "/ko-app/app", "processes"))); n < 3 {
		t.Errorf("%d processes are seen in a container that shares them with others", n)
	}
	if w.field("CapBnd") == "" || w.field("CapBnd") == "0000000000000000" {
		t.Errorf("capabilities: %q", w.field("CapBnd"))
	}
	pod := s.K("get", "pod", "-l", "serving.knative.dev/service=all", "-o", "jsonpath={.items[0].spec.priority} {.items[0].spec.runtimeClassName} {.items[0].spec.schedulerName} {.items[0].spec.topologySpreadConstraints[0].maxSkew}")
	want(t, "the pod", pod, "10 usual default-scheduler 1")
}

// off has the flags that are on by default turned off.
func off(t *testing.T, s *platform.Space) {
	set(t, s, map[string]string{"multi-container": "disabled", "kubernetes.podspec-volumes-emptydir": "disabled"}, platform.Service{Name: "x"})
	for text, k := range map[string]platform.Service{
		"multi-container is off, but found 2 containers":                   {Name: "x", Box: "ports: [{containerPort: 8080}]", More: "{name: side, image: " + p.App() + "}"},
		"EmptyDir volume support is disabled, but found EmptyDir volume v": {Name: "x", Spec: "volumes: [{name: v, emptyDir: {}}]", Box: "volumeMounts: [{name: v, mountPath: /v}]"},
	} {
		platform.Eventually(t, limit, func() error {
			if out, err := try(s, k); err == nil || !strings.Contains(out, text) {
				return fmt.Errorf("%q is missing in: %s", text, out)
			}
			return nil
		})
	}
}

// TestSecureDefaults has containers hardened unless they say otherwise.
func TestSecureDefaults(t *testing.T) {
	s := newSpace(t, "secure")
	settle := func(state, want string) {
		t.Helper()
		set(t, s, map[string]string{"secure-pod-defaults": state}, platform.Service{Name: "x"})
		platform.Eventually(t, limit, func() error {
			cmd := s.Command("create", "--dry-run=server", "-o", "jsonpath={.spec.template.spec.containers[0].securityContext}", "-f", "-")
			cmd.Stdin = strings.NewReader(p.Manifest(platform.Service{Name: "x"}))
			out, err := cmd.Output()
			if err == nil && string(out) != want {
				err = fmt.Errorf("%s: %s, want %s", state, out, want)
			}
			return err
		})
	}
	const strict = `{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},%s"seccompProfile":{"type":"RuntimeDefault"}}`
	settle("AllowRootBounded", fmt.Sprintf(strict, ""))
	settle("Enabled", fmt.Sprintf(strict, `"runAsNonRoot":true,`))
	s.Serves(platform.Service{Name: "web", Box: "securityContext: {runAsUser: 65532}"})
	w := inside(s, "web")
	want(t, "capabilities", w.field("CapBnd"), "0000000000000000")
	want(t, "privileges", w.field("NoNewPrivs"), "1")
}
