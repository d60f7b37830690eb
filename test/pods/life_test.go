// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"strings"
	"testing"
	"time"
)

func TestInitContainersAndSidecars(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "init")
	s.Make(spec(pod("ordered", "cat /work/first /work/second && wget -qO- http://127.0.0.1:8080/", "volumeMounts: [{name: work, mountPath: /work}]"),
		"volumes: [{name: work, emptyDir: {}}]",
		"initContainers:",
		"- {name: one, image: "+image+", command: [sh, -c, echo 1 > /work/first], volumeMounts: [{name: work, mountPath: /work}]}",
		"- {name: side, image: "+image+", restartPolicy: Always, command: [tool, serve, '8080'], startupProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}}",
		"- {name: two, image: "+image+", command: [sh, -c, cp /work/first /work/second], volumeMounts: [{name: work, mountPath: /work}]}"))
	want(t, "what main saw", done(s, "ordered"), "1\n1\nordered")
	s.Becomes("pod/ordered", ".status.initContainerStatuses[1].state.terminated.reason", "Completed")

	s.Make(spec(pod("stuck", "true"), "initContainers: [{name: one, image: "+image+", command: [sh, -c, exit 4]}]"))
	s.Becomes("pod/stuck", ".status.phase", "Failed")
	wantAll(t, s.K("get", "pod", "stuck"), "Init:Error")
	want(t, "exit code", s.Field("pod/stuck", ".status.initContainerStatuses[0].state.terminated.exitCode"), "4")
	s.Becomes("pod/stuck", ".status.conditions[?(@.type=='Initialized')].reason", "ContainersNotInitialized")
}

func TestProbes(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "probes")
	ready := func(name, command, probe string) {
		s.Make(pod(name, command, "readinessProbe: {periodSeconds: 1, failureThreshold: 1, "+probe+"}"))
	}
	ready("http", "exec tool serve 8080", "httpGet: {path: /healthz, port: 8080}")
	ready("tcp", "exec tool serve 8080", "tcpSocket: {port: 8080}")
	ready("grpc", "exec tool grpc 8080", "grpc: {port: 8080}")
	ready("exec", "exec tool hold", "exec: {command: [sh, -c, test ! -e /tmp/sick]}")
	s.Ready("http", "tcp", "grpc", "exec")
	for _, name := range []string{"http", "grpc", "exec"} {
		s.K("exec", name, "--", "touch", "/tmp/sick")
		s.K("wait", "--for=condition=Ready=false", "pod/"+name, "--timeout=30s")
	}
	s.Says([]string{"Warning", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500"}, "describe", "pod", "http")
	s.Says([]string{"Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")"}, "describe", "pod", "grpc")
	for _, name := range []string{"http", "grpc", "exec"} {
		s.K("exec", name, "--", "rm", "/tmp/sick")
	}
	s.Ready("http", "grpc", "exec")
}

func TestLivenessAndStartup(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "liveness")
	s.Make(strings.ReplaceAll(pod("live", "exec tool serve 8080",
		"startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 30}",
		"livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}"), "restartPolicy: Never", "restartPolicy: Always"))
	s.Ready("live")
	want(t, "started", s.Field("pod/live", ".status.containerStatuses[0].started"), "true")
	_, _ = s.Try("exec", "live", "--", "touch", "/tmp/sick") // may itself be killed with the container
	s.Becomes("pod/live", ".status.containerStatuses[0].restartCount", "1")
	s.Ready("live")
	wantAll(t, s.K("describe", "pod", "live"), "Liveness probe failed: HTTP probe failed with statuscode: 500", "Container main failed liveness probe, will be restarted")
	wantAll(t, s.K("logs", "live", "--previous"), "listening on 8080")

	s.Make(strings.ReplaceAll(pod("slow", "exec tool hold", "startupProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 2}"), "restartPolicy: Never", "restartPolicy: Always"))
	s.Says([]string{"Startup probe failed: dial tcp", "Container main failed startup probe, will be restarted"}, "describe", "pod", "slow")
}

func TestHooksAndGracePeriod(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "hooks")
	dir := t.TempDir()
	host := []string{"volumes: [{name: host, hostPath: {path: " + dir + "}}]"}
	s.Make(spec(pod("hooked", "exec tool hold",
		"volumeMounts: [{name: host, mountPath: /host}]",
		"lifecycle:",
		"  postStart: {exec: {command: [sh, -c, echo started > /host/post]}}",
		"  preStop: {exec: {command: [sh, -c, echo stopping > /host/pre]}}"), host...))
	s.Ready("hooked")
	s.K("delete", "pod", "hooked")
	wantFile(t, dir+"/post", "started\n")
	wantFile(t, dir+"/pre", "stopping\n")

	s.Make(spec(pod("polite", "trap 'echo bye > /host/bye; exit 0' TERM; echo up; while :; do sleep 0.1; done", "volumeMounts: [{name: host, mountPath: /host}]"), host...))
	s.Says([]string{"up"}, "logs", "polite")
	s.K("delete", "pod", "polite")
	wantFile(t, dir+"/bye", "bye\n")

	s.Make(pod("stubborn", "trap '' TERM; echo up; while :; do sleep 1; done"))
	s.Says([]string{"up"}, "logs", "stubborn")
	from := time.Now()
	s.K("delete", "pod", "stubborn", "--grace-period=2")
	if took := time.Since(from); took < 2*time.Second || took > 15*time.Second {
		t.Errorf("a grace period of 2 s took %s", took)
	}
	s.Make(pod("badhook", "exec tool hold", "lifecycle: {postStart: {exec: {command: [sh, -c, echo no; exit 3]}}}"))
	s.Says([]string{"FailedPostStartHook", "PostStartHook failed"}, "describe", "pod", "badhook")
}

func TestEnds(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "ends")
	s.Make(pod("code", "echo why > /dev/termination-log; exit 42"))
	s.Make(pod("tail", "echo last words; exit 1", "terminationMessagePolicy: FallbackToLogsOnError"))
	s.Make(pod("hungry", "exec tool eat 200", "resources: {limits: {memory: 32Mi}}"))
	s.Make(strings.ReplaceAll(pod("onfailure", "test -e /w/x || { touch /w/x; exit 1; }", "volumeMounts: [{name: w, mountPath: /w}]"), "restartPolicy: Never", "restartPolicy: OnFailure") + "  volumes: [{name: w, emptyDir: {}}]\n")
	s.Make(strings.ReplaceAll(pod("loop", "echo attempt; exit 5"), "restartPolicy: Never", "restartPolicy: Always"))
	s.Make(pod("nosuch", "true", "args: [x]"))
	s.Make(strings.ReplaceAll(pod("nocommand", "true"), `["sh", "-c", "true"]`, "[/nosuch]"))

	terminated := ".status.containerStatuses[0].state.terminated"
	for name, wants := range map[string][3]string{
		"code": {"42", "Error", "why\n"}, "tail": {"1", "Error", "last words\n"}, "hungry": {"137", "OOMKilled", ""},
	} {
		s.K("wait", "--for=jsonpath={.status.phase}=Failed", "pod/"+name, "--timeout=60s")
		want(t, name+" exit code", s.Field("pod/"+name, terminated+".exitCode"), wants[0])
		want(t, name+" reason", s.Field("pod/"+name, terminated+".reason"), wants[1])
		want(t, name+" message", s.Field("pod/"+name, terminated+".message"), strings.TrimSpace(wants[2]))
	}
	wantAll(t, s.K("get", "pod", "hungry"), "OOMKilled")
	s.Becomes("pod/onfailure", ".status.phase", "Succeeded")
	want(t, "restarts", s.Field("pod/onfailure", ".status.containerStatuses[0].restartCount"), "1")

	s.Becomes("pod/loop", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")
	s.Says([]string{"CrashLoopBackOff"}, "get", "pod", "loop")
	wantAll(t, s.Field("pod/loop", ".status.containerStatuses[0].state.waiting.message"), "back-off ", "restarting failed container=main pod=loop_ends(")
	want(t, "last exit code", s.Field("pod/loop", ".status.containerStatuses[0].lastState.terminated.exitCode"), "5")
	s.Says([]string{"Back-off restarting failed container main in pod loop_ends("}, "describe", "pod", "loop")

	s.Becomes("pod/nocommand", terminated+".reason", "StartError")
	wantAll(t, s.Field("pod/nocommand", terminated+".message"), "/nosuch", "no such file or directory")
	want(t, "exit code", s.Field("pod/nocommand", terminated+".exitCode"), "128")
}

func TestEventsAndDescribe(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "events")
	s.Make(pod("told", "exec tool serve 8080", "ports: [{containerPort: 8080}]", "resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}",
		"readinessProbe: {httpGet: {path: /healthz, port: 8080}}"))
	s.Ready("told")
	s.Says([]string{"Scheduled", "Successfully assigned events/told to ", "Pulled", `Container image "` + image + `" already present on machine`,
		"Created", "Container created", "Started", "Container started"}, "get", "events", "-o", "wide")
	wantAll(t, s.K("describe", "pod", "told"),
		"Name:             told", "Status:           Running", "IP:               10.", "Container ID:", "Image:         "+image, "Image ID:", "State:          Running",
		"Ready:          True", "Restart Count:  0", "Limits:", "memory:  64Mi", "PodScheduled                True", "Initialized                 True", "ContainersReady             True",
		"PodReadyToStartContainers   True", "QoS Class:                   Burstable", "Readiness:    http-get http://:8080/healthz", "kube-api-access-")
	wantAll(t, s.K("get", "pod", "told", "-o", "wide"), "1/1", "Running", s.Field("pod/told", ".status.podIP"), s.Field("pod/told", ".spec.nodeName"))
	s.K("delete", "pod", "told")
	s.Says([]string{"Killing", "Stopping container main"}, "get", "events")
}
