// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"
	"strings"
	"testing"
)

// template is a pod template that serves its name.
func template(app, indent string) string {
	return strings.ReplaceAll(fmt.Sprintf(`
template:
  metadata: {labels: {app: %s}}
  spec:
    terminationGracePeriodSeconds: 1
    containers:
    - name: main
      image: %s
      command: [tool, serve, "8080"]`, app, image), "\n", "\n"+indent) + "\n"
}

func TestDeploymentRollsAndGoesBack(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "deployment")
	s.Make("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}" + template("web", "  "))
	wantAll(t, s.K("rollout", "status", "deployment/web", "--timeout=60s"), "successfully rolled out")
	wantAll(t, s.K("get", "deployment", "web"), "2/2")

	first := s.Field("pod", ".items[*].metadata.name")
	s.K("rollout", "restart", "deployment/web")
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
	for _, name := range strings.Fields(first) {
		s.K("wait", "--for=delete", "pod/"+name, "--timeout=60s")
	}
	s.K("set", "env", "deployment/web", "COLOUR=blue")
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
	want(t, "COLOUR", s.K("exec", "deployment/web", "--", "sh", "-c", "echo $COLOUR"), "blue")
	s.K("rollout", "undo", "deployment/web")
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
	if out := s.Field("deployment/web", ".spec.template.spec.containers[0].env"); out != "" {
		t.Errorf("after undo: env is %s", out)
	}
	wantAll(t, s.K("rollout", "history", "deployment/web"), "REVISION", "4")
	s.K("scale", "deployment/web", "--replicas=0")
	s.K("wait", "--for=delete", "pod", "-l", "app=web", "--timeout=60s")
}

func TestStatefulSetKeepsNamesAndVolumes(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "statefulset")
	s.Make(`apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: ` + image + `, command: [tool, serve, "8080"], volumeMounts: [{name: data, mountPath: /data}]}
`)
	s.K("rollout", "status", "statefulset/db", "--timeout=90s")
	s.K("exec", "db-1", "--", "sh", "-c", "hostname > /data/me")
	uid := s.Field("pod/db-1", ".metadata.uid")
	s.K("delete", "pod", "db-1")
	s.K("wait", "--for=create", "pod/db-1", "--timeout=60s")
	s.Ready("db-1")
	if s.Field("pod/db-1", ".metadata.uid") == uid {
		t.Error("db-1 was not made anew")
	}
	want(t, "the volume's content", s.K("exec", "db-1", "--", "cat", "/data/me"), "db-1")
	s.Says([]string{"db-1"}, "exec", "db-0", "--", "wget", "-qO-", "http://db-1.db:8080/")
	wantAll(t, s.K("get", "pvc"), "data-db-0", "data-db-1", "Bound", "local-path")
}

func TestDaemonSet(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "daemonset")
	s.Make("apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: each}\nspec:\n  selector: {matchLabels: {app: each}}" + template("each", "  "))
	s.K("rollout", "status", "daemonset/each", "--timeout=60s")
	want(t, "ready", s.Field("daemonset/each", ".status.numberReady"), "1")
}

func TestJobs(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "jobs")
	job := func(name, more, command string) string {
		return fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: %s}\nspec:\n  %s\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      - {name: main, image: %s, command: [sh, -c, %q]}\n", name, more, image, command)
	}
	s.Make(job("three", "completions: 3\n  parallelism: 2", "echo worked") + "---\n" +
		job("never", "backoffLimit: 1", "exit 7") + "---\n" +
		job("brief", "ttlSecondsAfterFinished: 0", "true") + "---\n" +
		job("late", "activeDeadlineSeconds: 1", "sleep 600"))
	s.K("wait", "--for=condition=Complete", "job/three", "--timeout=60s")
	wantAll(t, s.K("get", "job", "three"), "3/3", "Complete")
	wantAll(t, s.K("logs", "job/three"), "worked")
	s.K("wait", "--for=delete", "job/brief", "--timeout=60s")
	s.K("wait", "--for=condition=Failed", "job/late", "--timeout=60s")
	wantAll(t, s.K("describe", "job", "late"), "DeadlineExceeded")
	s.K("wait", "--for=condition=Failed", "job/never", "--timeout=90s")
	wantAll(t, s.K("describe", "job", "never"), "BackoffLimitExceeded")
}

func TestCronJob(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "cronjob")
	s.K("create", "cronjob", "nightly", "--image="+image, "--schedule=0 3 * * *", "--", "echo", "of the night")
	s.K("create", "job", "now", "--from=cronjob/nightly")
	s.K("wait", "--for=condition=Complete", "job/now", "--timeout=60s")
	want(t, "log", s.K("logs", "job/now"), "of the night")
}

func TestQuotaAndLimits(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "quota")
	s.Make("apiVersion: v1\nkind: LimitRange\nmetadata: {name: limits}\nspec:\n  limits:\n  - {type: Container, default: {memory: 64Mi, cpu: 200m}, defaultRequest: {memory: 32Mi, cpu: 10m}}\n")
	s.K("create", "quota", "two", "--hard=pods=2")
	s.Becomes("quota/two", ".status.hard.pods", "2")
	s.K("run", "a", "--image="+image, "--", "tool", "hold")
	s.K("run", "b", "--image="+image, "--", "tool", "hold")
	out, err := s.Try("run", "c", "--image="+image, "--", "tool", "hold")
	if err == nil {
		t.Error("a third pod was accepted")
	}
	wantAll(t, out, `pods "c" is forbidden: exceeded quota: two, requested: pods=1, used: pods=2, limited: pods=2`)
	want(t, "default limit", s.Field("pod/a", ".spec.containers[0].resources.limits.memory"), "64Mi")
	want(t, "default request", s.Field("pod/a", ".spec.containers[0].resources.requests.cpu"), "10m")
}

func TestNamespaceTakesEverythingWithIt(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "doomed")
	s.Make("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}" + template("web", "  "))
	s.K("expose", "deployment", "web", "--port=8080")
	s.K("create", "configmap", "words", "--from-literal=a=b")
	s.Make("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n---\n" +
		spec(pod("user", "tool hold", "volumeMounts: [{name: data, mountPath: /data}]"), "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]"))
	s.Ready("user")
	volume := s.Field("pvc/data", ".spec.volumeName")
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
	s.K("delete", "namespace", "doomed", "--timeout=60s")
	if out, err := s.Try("get", "all,pvc,configmap,endpointslices"); err != nil || out != "" {
		t.Errorf("%v, left:\n%s", err, out)
	}
	s.K("wait", "--for=delete", "pv/"+volume, "--timeout=60s")
}
