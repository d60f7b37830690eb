// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPods runs pods side by side: each subtest is one promise.
func TestPods(t *testing.T) {
	r := newRig(t)
	for name, f := range map[string]func(*testing.T, *rig){
		"succeeds": succeeds, "fails": fails, "init containers": initContainers, "failing init": failingInit,
		"sidecar": sidecar, "sidecar of a job": sidecarOfJob, "crash loop": crashLoop, "environment": environment,
		"config errors": configErrors, "start error": startError, "image errors": imageErrors, "termination message": terminationMessage,
		"security": security, "volumes": volumes, "live update": liveUpdate, "missing config map": missingConfigMap, "sub paths": subPaths,
		"liveness": liveness, "startup": startupProbe, "readiness goes": readinessGoes, "hooks": hooks,
		"ignores SIGTERM": ignoresSIGTERM, "deadline": deadline, "out of memory": outOfMemory, "rejected": rejected,
		"ephemeral": ephemeral, "host network": hostNetwork, "shared processes": sharedProcesses, "force delete": forceDelete,
		"image change": imageChange, "bounded": boundedPod, "exec probe": execProbe, "completed is cleared": completedIsCleared,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			mine := &rig{}
			*mine = rig{t: t, dir: r.dir, client: r.client, o: r.o, agent: r.agent, images: r.images, network: r.network, runtime: r.runtime}
			f(t, mine)
		})
	}
}

func state(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, s := range list {
			if s.Name == name {
				return s
			}
		}
	}
	return corev1.ContainerStatus{}
}

func waitsFor(name, reason string) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool {
		w := state(p, name).State.Waiting
		return w != nil && w.Reason == reason
	}
}

func succeeds(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: succeeds}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "echo done"]}]
`)
	p := r.awaitPhase("succeeds", corev1.PodSucceeded)
	if e := state(p, "app").State.Terminated; e == nil || e.Reason != "Completed" || e.ExitCode != 0 || e.ContainerID == "" {
		t.Errorf("end is %+v", e)
	}
	if got := r.log(p, "app", 0); got != "done\n" {
		t.Errorf("log is %q", got)
	}
}

func fails(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: fails}
spec:
  restartPolicy: Never
  containers: [{name: app, command: [sh, -c, "exit 3"]}]
`)
	p := r.awaitPhase("fails", corev1.PodFailed)
	if e := state(p, "app").State.Terminated; e == nil || e.Reason != "Error" || e.ExitCode != 3 {
		t.Errorf("end is %+v", e)
	}
}

func initContainers(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: init}
spec:
  restartPolicy: Never
  volumes: [{name: v, emptyDir: {}}]
  initContainers:
  - {name: one, command: [sh, -c, "echo one >> /v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: two, command: [sh, -c, "echo two >> /v/f"], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: app, command: [cat, /v/f], volumeMounts: [{name: v, mountPath: /v}]}
`)
	p := r.awaitPhase("init", corev1.PodSucceeded)
	if got := r.log(p, "app", 0); got != "one\ntwo\n" {
		t.Errorf("log is %q", got)
	}
}

func failingInit(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: failinginit}
spec:
  restartPolicy: Never
  initContainers: [{name: one, command: ["false"]}]
  containers: [{name: app}]
`)
	p := r.awaitPhase("failinginit", corev1.PodFailed)
	if w := state(p, "app").State.Waiting; w == nil || w.Reason != "PodInitializing" {
		t.Errorf("app is %+v", state(p, "app").State)
	}
}

func sidecar(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: sidecar}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: side
    restartPolicy: Always
    command: [sh, -c, "trap 'exit 0' TERM; httpd -f -p 9000 & wait"]
    startupProbe: {tcpSocket: {port: 9000}}
  - {name: after, command: [wget, -q, -O-, "http://127.0.0.1:9000/etc/group"]}
  containers: [{name: app, command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}]
`)
	p := r.awaitReady("sidecar")
	if s := state(p, "side"); s.Started == nil || !*s.Started || !s.Ready {
		t.Errorf("sidecar is %+v", s)
	}
	r.delete("sidecar", 5)
	r.awaitGone("sidecar")
}

func sidecarOfJob(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: sidejob}
spec:
  restartPolicy: Never
  initContainers:
  - {name: side, restartPolicy: Always, command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]}
  containers: [{name: app, command: ["true"]}]
`)
	p := r.awaitPhase("sidejob", corev1.PodSucceeded)
	if s := state(p, "side").State.Terminated; s == nil {
		t.Errorf("sidecar is %+v", state(p, "side").State)
	}
}

func crashLoop(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: crash}
spec:
  containers: [{name: app, command: [sh, -c, "echo run; exit 1"]}]
`)
	p := r.await("crash", "in back-off", waitsFor("app", "CrashLoopBackOff"))
	s := state(p, "app")
	if s.RestartCount != 1 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 1 {
		t.Errorf("status is %+v", s)
	}
	if want := "back-off 10s restarting failed container=app pod=crash_default(" + string(p.UID) + ")"; s.State.Waiting.Message != want {
		t.Errorf("message is %q", s.State.Waiting.Message)
	}
	if p.Status.Phase != corev1.PodRunning {
		t.Errorf("phase is %s", p.Status.Phase)
	}
	if got := r.log(p, "app", 1); got != "run\n" {
		t.Errorf("log is %q", got)
	}
	r.awaitEvent("crash", "BackOff: Back-off restarting failed container app in pod crash_default")
	r.delete("crash", 0)
	r.awaitGone("crash")
}

func environment(t *testing.T, r *rig) {
	ctx := t.Context()
	_, err := r.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "env"}, Data: map[string]string{"A": "a", "B": "b"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = r.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "env"}, Data: map[string][]byte{"S": []byte("secret")}}, metav1.CreateOptions{})
	must(t, err)
	_, err = r.client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "my-db"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.43.1.2", Ports: []corev1.ServicePort{{Port: 5432}}}}, metav1.CreateOptions{})
	must(t, err)
	eventually(t, func() bool { l, _ := r.agent.services.links(ctx, "default"); return len(l) == 1 })
	r.apply(`
metadata: {name: env, labels: {app: x}}
spec:
  restartPolicy: Never
  hostAliases: [{ip: 1.2.3.4, hostnames: [alias]}]
  containers:
  - name: app
    command: [sh, -c, "env; grep alias /etc/hosts; echo '$(B)'"]
    resources: {limits: {memory: 64Mi}}
    envFrom:
    - {configMapRef: {name: env}, prefix: X_}
    - {secretRef: {name: nothere, optional: true}}
    env:
    - {name: B, value: "$(X_B)-$(C)-$$(X_A)"}
    - {name: S, valueFrom: {secretKeyRef: {name: env, key: S}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
`)
	p := r.awaitPhase("env", corev1.PodSucceeded)
	got := r.log(p, "app", 0)
	for _, want := range []string{
		"X_A=a\n", "B=b-$(C)-$(X_A)\n", "S=secret\n", "IP=" + p.Status.PodIP + "\n", "LABEL=x\n", "MEM=64\n", "FROM_IMAGE=yes\n",
		"MY_DB_SERVICE_HOST=10.43.1.2\n", "MY_DB_PORT_5432_TCP=tcp://10.43.1.2:5432\n", "HOSTNAME=env\n", "HOME=/root\n",
		"1.2.3.4\talias\n", "\nb-$(C)-$(X_A)\n",
	} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time")
		}
	}
}

func configErrors(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: noconfig}
spec:
  containers:
  - {name: app, env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}], command: [sh, -c, "echo $A; sleep 1000"]}
`)
	p := r.await("noconfig", "waiting", waitsFor("app", "CreateContainerConfigError"))
	if got := state(p, "app").State.Waiting.Message; got != `configmap "later" not found` {
		t.Errorf("message is %q", got)
	}
	r.awaitEvent("noconfig", `Failed: Error: configmap "later" not found`)
	_, err := r.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "later"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	must(t, err)
	p = r.awaitReady("noconfig")
	if s := state(p, "app"); s.RestartCount != 0 {
		t.Errorf("restart count is %d", s.RestartCount)
	}
	r.apply(`
metadata: {name: nonroot}
spec:
  securityContext: {runAsNonRoot: true}
  containers: [{name: app}]
`)
	p = r.await("nonroot", "waiting", waitsFor("app", "CreateContainerConfigError"))
	want := fmt.Sprintf("container has runAsNonRoot and image will run as root (pod: %q, container: app)", "nonroot_default("+string(p.UID)+")")
	if got := state(p, "app").State.Waiting.Message; got != want {
		t.Errorf("message is %q, want %q", got, want)
	}
}

func startError(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: nocommand}
spec:
  containers: [{name: app, command: [/no/such/thing]}]
`)
	p := r.await("nocommand", "in back-off", waitsFor("app", "CrashLoopBackOff"))
	s := state(p, "app")
	if e := s.LastTerminationState.Terminated; e == nil || e.Reason != "StartError" || e.ExitCode != 128 || !strings.Contains(e.Message, "/no/such/thing") {
		t.Errorf("last end is %+v", e)
	}
	r.awaitEvent("nocommand", "Failed: Error: ")
}

func imageErrors(t *testing.T, r *rig) {
	for name, tt := range map[string]struct{ image, policy, reason string }{
		"badname":   {"UPPERCASE:x", "IfNotPresent", "InvalidImageName"},
		"neverpull": {"registry.test/none:v1", "Never", "ErrImageNeverPull"},
		"nopull":    {"127.0.0.1:1/none:v1", "IfNotPresent", "ErrImagePull"},
	} {
		r.apply(fmt.Sprintf("metadata: {name: %s}\nspec:\n  containers: [{name: app, image: %q, imagePullPolicy: %s}]\n", name, tt.image, tt.policy))
		p := r.await(name, tt.reason, waitsFor("app", tt.reason))
		if p.Status.Phase != corev1.PodPending {
			t.Errorf("%s: phase is %s", name, p.Status.Phase)
		}
		t.Log(name, state(p, "app").State.Waiting.Message)
	}
	r.awaitEvent("nopull", `Failed: Failed to pull image "127.0.0.1:1/none:v1": `)
	r.awaitEvent("nopull", "Failed: Error: ErrImagePull")
	p := r.await("nopull", "backing off", waitsFor("app", "ImagePullBackOff"))
	if got := state(p, "app").State.Waiting.Message; !strings.HasPrefix(got, `Back-off pulling image "127.0.0.1:1/none:v1": ErrImagePull: `) {
		t.Errorf("message is %q", got)
	}
	r.awaitEvent("nopull", `BackOff: Back-off pulling image "127.0.0.1:1/none:v1"`)
}

func terminationMessage(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: words}
spec:
  restartPolicy: Never
  containers:
  - {name: file, command: [sh, -c, "echo -n why > /dev/termination-log; exit 1"]}
  - {name: logs, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo because; exit 1"]}
`)
	p := r.awaitPhase("words", corev1.PodFailed)
	for name, want := range map[string]string{"file": "why", "logs": "because\n"} {
		if got := state(p, name).State.Terminated.Message; got != want {
			t.Errorf("%s: message is %q", name, got)
		}
	}
}

func security(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: secure}
spec:
  restartPolicy: Never
  securityContext:
    runAsUser: 1000
    fsGroup: 5000
    supplementalGroups: [6000]
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}]
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: app
    command: [sh, -c, "id -u; id -g; id -G; touch /v/f && stat -c %g /v/f; touch /f 2>&1; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"]
    volumeMounts: [{name: v, mountPath: /v}]
    securityContext:
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
`)
	p := r.awaitPhase("secure", corev1.PodSucceeded)
	want := "1000\n1000\n1000 2000 5000 6000\n5000\ntouch: /f: Read-only file system\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n80\n"
	if got := r.log(p, "app", 0); got != want {
		t.Errorf("log is:\n%swant:\n%s", got, want)
	}
	if u := state(p, "app").User; u == nil || u.Linux == nil || u.Linux.UID != 1000 {
		t.Errorf("user is %+v", u)
	}
}

func volumes(t *testing.T, r *rig) {
	ctx := t.Context()
	_, err := r.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "vol"}, Data: map[string]string{"a": "A", "b": "B"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = r.client.CoreV1().Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "vol"}, Data: map[string][]byte{"s": []byte("S")}}, metav1.CreateOptions{})
	must(t, err)
	host := t.TempDir()
	local := t.TempDir()
	must(t, os.WriteFile(filepath.Join(local, "f"), []byte("claimed"), 0o644))
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "claim", UID: "claim-uid"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
	_, err = r.client.CoreV1().PersistentVolumeClaims("default").Create(ctx, pvc, metav1.CreateOptions{})
	must(t, err)
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{UID: "claim-uid"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: local}}}}
	_, err = r.client.CoreV1().PersistentVolumes().Create(ctx, pv, metav1.CreateOptions{})
	must(t, err)
	r.apply(fmt.Sprintf(`
metadata: {name: vols, annotations: {note: hi}}
spec:
  restartPolicy: Never
  volumes:
  - {name: cm, configMap: {name: vol, defaultMode: 416, items: [{key: a, path: sub/x}]}}
  - {name: sec, secret: {secretName: vol, defaultMode: 256}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: %s, type: Directory}}
  - {name: claim, persistentVolumeClaim: {claimName: claim}}
  - name: all
    projected:
      defaultMode: 420
      sources:
      - {serviceAccountToken: {path: token, expirationSeconds: 3600}}
      - {configMap: {name: vol}}
      - {downwardAPI: {items: [{path: ns, fieldRef: {fieldPath: metadata.namespace}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
  containers:
  - name: app
    command: [sh, -c, "cat /cm/sub/x; stat -L -c %%a /cm/sub/x; cat /sec/s; stat -L -c %%a /sec/s; df -m /mem | tail -1 | tr -s ' ' | grep -o '^[a-z]* 1'; echo h > /host/out; cat /claim/f; cat /all/token; cat /all/a /all/ns /all/note"]
    volumeMounts:
    - {name: cm, mountPath: /cm}
    - {name: sec, mountPath: /sec, readOnly: true}
    - {name: mem, mountPath: /mem}
    - {name: host, mountPath: /host}
    - {name: claim, mountPath: /claim}
    - {name: all, mountPath: /all}
`, host))
	p := r.awaitPhase("vols", corev1.PodSucceeded)
	got := r.log(p, "app", 0)
	if !strings.HasPrefix(got, "A640\nS400\ntmpfs 1\nclaimedtoken-") || !strings.HasSuffix(got, "Adefaulthi\n") {
		t.Errorf("log is %q", got)
	}
	if b, _ := os.ReadFile(filepath.Join(host, "out")); string(b) != "h\n" {
		t.Errorf("host has %q", b)
	}
}

func liveUpdate(t *testing.T, r *rig) {
	maps := r.client.CoreV1().ConfigMaps("default")
	_, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "live", ResourceVersion: "1"}, Data: map[string]string{"a": "1", "gone": "x"}}, metav1.CreateOptions{})
	must(t, err)
	r.apply(`
metadata: {name: live}
spec:
  volumes: [{name: cm, configMap: {name: live}}]
  containers: [{name: app, volumeMounts: [{name: cm, mountPath: /cm}]}]
`)
	p := r.awaitReady("live")
	eventually(t, func() bool {
		r.agent.objects.mu.Lock()
		defer r.agent.objects.mu.Unlock()
		w := r.agent.objects.watched[objectKey{false, "default", "live"}]
		return w != nil && w.known
	})
	<-time.After(50 * time.Millisecond) // the fake API tells watchers only what comes after
	_, err = maps.Update(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "live", ResourceVersion: "2"}, Data: map[string]string{"a": "2", "b": "new"}}, metav1.UpdateOptions{})
	must(t, err)
	eventually(t, func() bool { return r.exec(p, "app", "cat /cm/a /cm/b; ls /cm") == "2newa\nb\n" })
}

func missingConfigMap(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: nomount}
spec:
  volumes: [{name: cm, configMap: {name: absent}}]
  containers: [{name: app, volumeMounts: [{name: cm, mountPath: /cm}]}]
`)
	r.awaitEvent("nomount", `FailedMount: MountVolume.SetUp failed for volume "cm" : configmaps "absent" not found`)
	if p := r.pod("nomount"); p.Status.Phase != corev1.PodPending {
		t.Errorf("phase is %s", p.Status.Phase)
	}
	_, err := r.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "absent"}}, metav1.CreateOptions{})
	must(t, err)
	r.awaitReady("nomount")
}

func subPaths(t *testing.T, r *rig) {
	_, err := r.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "sub"}, Data: map[string]string{"a": "A"}}, metav1.CreateOptions{})
	must(t, err)
	r.apply(`
metadata: {name: sub}
spec:
  restartPolicy: Never
  volumes: [{name: cm, configMap: {name: sub}}, {name: v, emptyDir: {}}]
  containers:
  - name: app
    command: [sh, -c, "cat /etc/one; echo x > /made/f; ls /v/dir/app"]
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts:
    - {name: cm, mountPath: /etc/one, subPath: a}
    - {name: v, mountPath: /made, subPathExpr: "dir/app"}
    - {name: v, mountPath: /v}
`)
	p := r.awaitPhase("sub", corev1.PodSucceeded)
	if got := r.log(p, "app", 0); got != "Af\n" {
		t.Errorf("log is %q", got)
	}
	r.apply(`
metadata: {name: subout}
spec:
  volumes: [{name: v, emptyDir: {}}]
  initContainers: [{name: evil, command: [ln, -s, /etc, /v/link], volumeMounts: [{name: v, mountPath: /v}]}]
  containers: [{name: app, volumeMounts: [{name: v, mountPath: /x, subPath: link}]}]
`)
	p = r.await("subout", "refused", waitsFor("app", "CreateContainerConfigError"))
	if got := state(p, "app").State.Waiting.Message; !strings.HasPrefix(got, `failed to prepare subPath for volumeMount "v" of container "app"`) {
		t.Errorf("message is %q", got)
	}
}

func liveness(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: alive}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    command: [sh, -c, "sleep 1000"]
    livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}
`)
	p := r.await("alive", "restarted", func(p *corev1.Pod) bool { return state(p, "app").RestartCount > 0 })
	if e := state(p, "app").LastTerminationState.Terminated; e == nil || e.ExitCode != 137 {
		t.Errorf("last end is %+v", e)
	}
	r.awaitEvent("alive", "Unhealthy: Liveness probe failed: cat: can't open '/tmp/ok'")
	r.awaitEvent("alive", "Killing: Container app failed liveness probe, will be restarted")
	r.delete("alive", 0)
}

func startupProbe(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: slow}
spec:
  containers:
  - name: app
    command: [sh, -c, "sleep 0.5; exec httpd -f -p 8080 -h /etc"]
    startupProbe: {httpGet: {path: /group, port: 8080}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {httpGet: {path: /group, port: web}}
    livenessProbe: {httpGet: {path: /group, port: 8080}}
    ports: [{name: web, containerPort: 8080}]
`)
	p := r.awaitReady("slow")
	s := state(p, "app")
	if s.Started == nil || !*s.Started || !s.Ready {
		t.Errorf("status is %+v", s)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			if took := c.LastTransitionTime.Sub(s.State.Running.StartedAt.Time); took > 3*time.Second {
				t.Errorf("ready after %s", took)
			}
		}
	}
}

func readinessGoes(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: fickle}
spec:
  containers:
  - name: app
    command: [sh, -c, "touch /tmp/ok; sleep 1000"]
    readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}
`)
	p := r.awaitReady("fickle")
	r.exec(p, "app", "rm /tmp/ok")
	p = r.await("fickle", "not ready", func(p *corev1.Pod) bool { return !conditionTrue(&p.Status, corev1.PodReady) })
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && (c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [app]") {
			t.Errorf("condition is %+v", c)
		}
	}
	r.awaitEvent("fickle", "Unhealthy: Readiness probe failed: ")
	r.exec(p, "app", "touch /tmp/ok")
	r.awaitReady("fickle")
}

func hooks(t *testing.T, r *rig) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777))
	r.apply(fmt.Sprintf(`
metadata: {name: hooks}
spec:
  terminationGracePeriodSeconds: 10
  volumes: [{name: h, hostPath: {path: %s}}]
  containers:
  - name: app
    command: [sh, -c, "trap 'echo term >> /h/f; exit 0' TERM; sleep 1000 & wait"]
    volumeMounts: [{name: h, mountPath: /h}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo post >> /h/f"]}}
      preStop: {exec: {command: [sh, -c, "echo pre >> /h/f"]}}
  - name: sleeps
    command: [sh, -c, "trap 'exit 0' TERM; sleep 1000 & wait"]
    lifecycle: {preStop: {sleep: {seconds: 1}}}
`, dir))
	r.awaitReady("hooks")
	r.delete("hooks", 10)
	r.awaitGone("hooks")
	if b, _ := os.ReadFile(filepath.Join(dir, "f")); string(b) != "post\npre\nterm\n" {
		t.Errorf("file has %q", b)
	}
	r.apply(`
metadata: {name: badhook}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: app, lifecycle: {postStart: {exec: {command: ["false"]}}}}
`)
	r.awaitEvent("badhook", "FailedPostStartHook: PostStartHook failed")
	r.await("badhook", "restarted", func(p *corev1.Pod) bool { return state(p, "app").RestartCount > 0 })
	r.delete("badhook", 0)
}

func ignoresSIGTERM(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: stubborn}
spec:
  containers:
  - name: app
    command: [sh, -c, "trap '' TERM; touch /tmp/deaf; while true; do sleep 1; done"]
    readinessProbe: {exec: {command: [cat, /tmp/deaf]}}
`)
	r.awaitReady("stubborn")
	begun := time.Now()
	r.delete("stubborn", 3)
	r.awaitGone("stubborn")
	if took := time.Since(begun); took < 2*time.Second || took > 10*time.Second {
		t.Errorf("gone after %s", took)
	}
}

func deadline(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: late}
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 1
  containers: [{name: app}]
`)
	p := r.awaitPhase("late", corev1.PodFailed)
	if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != "Pod was active on the node longer than the specified deadline" {
		t.Errorf("status is %s: %s", p.Status.Reason, p.Status.Message)
	}
	if e := state(p, "app").State.Terminated; e == nil {
		t.Errorf("app is %+v", state(p, "app").State)
	}
}

func outOfMemory(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - {name: app, command: [sh, -c, "exec tail /dev/zero"], resources: {limits: {memory: 32Mi}}}
`)
	p := r.awaitPhase("greedy", corev1.PodFailed)
	if e := state(p, "app").State.Terminated; e == nil || e.Reason != "OOMKilled" || e.ExitCode != 137 {
		t.Errorf("end is %+v", e)
	}
}

func rejected(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: huge}
spec:
  containers: [{name: app, resources: {requests: {cpu: "1000"}}}]
`)
	p := r.awaitPhase("huge", corev1.PodFailed)
	if p.Status.Reason != "OutOfcpu" || !strings.HasPrefix(p.Status.Message, "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ") {
		t.Errorf("status is %s: %s", p.Status.Reason, p.Status.Message)
	}
	r.awaitEvent("huge", "OutOfcpu: Node didn't have enough resource")
}

func ephemeral(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: patient}
spec:
  containers: [{name: app, command: [sh, -c, "sleep 1000 & wait"]}]
`)
	p := r.awaitReady("patient").DeepCopy()
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{
		EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: testImage, Command: []string{"sh", "-c", "ps; sleep 1000"}, ImagePullPolicy: corev1.PullIfNotPresent},
		TargetContainerName:      "app",
	}}
	_, err := r.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{})
	must(t, err)
	p = r.await("patient", "debugged", func(p *corev1.Pod) bool { return state(p, "debug").State.Running != nil })
	eventually(t, func() bool { return strings.Contains(r.log(p, "debug", 0), "sleep 1000") })
	if state(p, "app").RestartCount != 0 || !conditionTrue(&p.Status, corev1.PodReady) {
		t.Errorf("pod is %+v", p.Status)
	}
}

func hostNetwork(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: onhost}
spec:
  hostNetwork: true
  restartPolicy: Never
  containers: [{name: app, command: [readlink, /proc/self/ns/net]}]
`)
	p := r.awaitPhase("onhost", corev1.PodSucceeded)
	own, _ := os.Readlink("/proc/self/ns/net")
	if got := strings.TrimSpace(r.log(p, "app", 0)); got != own {
		t.Errorf("network is %s, the machine's %s", got, own)
	}
	if p.Status.PodIP != p.Status.HostIP || p.Status.HostIP == "" {
		t.Errorf("addresses are %s and %s", p.Status.PodIP, p.Status.HostIP)
	}
}

func sharedProcesses(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: family}
spec:
  shareProcessNamespace: true
  containers:
  - {name: one, command: [sleep, "1234"]}
  - {name: two, command: [sleep, "4321"]}
`)
	p := r.awaitReady("family")
	if got := r.exec(p, "two", "ps; echo x > /dev/shm/f"); !strings.Contains(got, "sleep 1234") || !strings.Contains(got, "sleep 4321") {
		t.Errorf("processes are:\n%s", got)
	}
	if got := r.exec(p, "one", "cat /dev/shm/f"); got != "x\n" {
		t.Errorf("shared memory has %q", got)
	}
}

func forceDelete(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: forced}
spec:
  terminationGracePeriodSeconds: 100
  containers: [{name: app, command: [sh, -c, "trap '' TERM; while true; do sleep 1; done"]}]
`)
	p := r.awaitReady("forced")
	must(t, r.client.CoreV1().Pods("default").Delete(t.Context(), "forced", metav1.DeleteOptions{}))
	eventually(t, func() bool { return r.agent.worker(p.UID) == nil })
	if _, err := os.Stat(r.agent.podLogDir(p)); err == nil {
		t.Error("logs are left")
	}
}

func imageChange(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: changing}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: app}]
`)
	p := r.awaitReady("changing").DeepCopy()
	p.Spec.Containers[0].Image = "registry.test/box@" + r.images.List()[0].Digest
	if img, ok := r.images.Find(p.Spec.Containers[0].Image); !ok {
		p.Spec.Containers[0].Image = r.images.List()[0].ID
	} else {
		_ = img
	}
	_, err := r.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{})
	must(t, err)
	r.awaitEvent("changing", "Killing: Container app definition changed, will be restarted")
	r.await("changing", "restarted", func(p *corev1.Pod) bool { return state(p, "app").RestartCount == 1 })
}

func execProbe(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: asked}
spec:
  containers:
  - name: app
    readinessProbe: {exec: {command: [sh, -c, "sleep 5"]}, timeoutSeconds: 1, periodSeconds: 1}
`)
	r.awaitEvent("asked", `Unhealthy: Readiness probe failed: command timed out`)
	r.delete("asked", 0)
	r.awaitGone("asked")
}

func completedIsCleared(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: cleared}
spec:
  restartPolicy: Never
  volumes: [{name: m, emptyDir: {medium: Memory}}]
  containers: [{name: app, command: [echo, hi], volumeMounts: [{name: m, mountPath: /m}]}]
`)
	p := r.awaitPhase("cleared", corev1.PodSucceeded)
	eventually(t, func() bool {
		_, err := os.Stat(r.agent.volumes.Dir(p.UID))
		return os.IsNotExist(err)
	})
	p = r.await("cleared", "without a sandbox", func(p *corev1.Pod) bool { return !conditionTrue(&p.Status, corev1.PodReadyToStartContainers) })
	if got := r.log(p, "app", 0); got != "hi\n" {
		t.Errorf("log is %q", got)
	}
	r.delete("cleared", 30)
	r.awaitGone("cleared")
}

func boundedPod(t *testing.T, r *rig) {
	r.apply(`
metadata: {name: bounded}
spec:
  containers:
  - {name: one, resources: {requests: {cpu: 100m}, limits: {cpu: 200m, memory: 64Mi}}}
  - {name: two, resources: {requests: {cpu: 100m}, limits: {cpu: 300m, memory: 64Mi}}}
`)
	p := r.awaitReady("bounded")
	mounts, err := cgroupMounts()
	must(t, err)
	if mounts["cpu"] == "" {
		t.Skip("written for cgroup v1")
	}
	for file, want := range map[string]string{
		mounts["cpu"] + cgroupParent(p.UID) + "/cpu.shares":               "204",
		mounts["cpu"] + cgroupParent(p.UID) + "/cpu.cfs_quota_us":         "50000",
		mounts["memory"] + cgroupParent(p.UID) + "/memory.limit_in_bytes": "134217728",
	} {
		eventually(t, func() bool { return firstLine(file) == want })
	}
	if p.Status.QOSClass != corev1.PodQOSBurstable {
		t.Errorf("class is %s", p.Status.QOSClass)
	}
}
