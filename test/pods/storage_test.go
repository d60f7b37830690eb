// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEnvironment(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "environment")
	s.K("create", "configmap", "words", "--from-literal=GREETING=hello", "--from-literal=OTHER=there")
	s.K("create", "secret", "generic", "secrets", "--from-literal=PASSWORD=hush")
	s.Make(pod("env", "env | sort; tr -d '\\n' < /etc/hostname",
		"env:",
		"- {name: PLAIN, value: $(FIRST)-x}",
		"- {name: FIRST, value: one}",
		"- {name: SECOND, value: $(FIRST)-two}",
		"- {name: LITERAL, value: $$(FIRST)}",
		"- {name: KEY, valueFrom: {configMapKeyRef: {name: words, key: OTHER}}}",
		"- {name: PASS, valueFrom: {secretKeyRef: {name: secrets, key: PASSWORD}}}",
		"- {name: MAYBE, valueFrom: {secretKeyRef: {name: nosuch, key: x, optional: true}}}",
		"- {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}",
		"- {name: LABEL, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}",
		"- {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}",
		"- {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}",
		"- {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}",
		"- {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}",
		"- {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}",
		"envFrom:",
		"- {configMapRef: {name: words}}",
		"- {prefix: S_, secretRef: {name: secrets}}",
		"resources: {limits: {memory: 48Mi}}",
	))
	out := done(s, "env")
	wantAll(t, out, "PLAIN=$(FIRST)-x\n", "SECOND=one-two\n", "LITERAL=$(FIRST)\n", "KEY=there\n", "PASS=hush\n", "POD=env\n", "LABEL=env\n", "ACCOUNT=default\n", "MEMORY=48\n",
		"GREETING=hello\n", "S_PASSWORD=hush\n", "FROM_IMAGE=yes\n", "KUBERNETES_SERVICE_HOST=", "HOSTNAME=env\n",
		"IP="+s.Field("pod/env", ".status.podIP")+"\n", "NODE="+s.Field("pod/env", ".spec.nodeName")+"\n", "HOST_IP="+s.Field("pod/env", ".status.hostIP")+"\n")

	s.Make(pod("lacking", "true", "env: [{name: A, valueFrom: {configMapKeyRef: {name: nosuch, key: a}}}]"))
	s.Becomes("pod/lacking", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError")
	want(t, "message", s.Field("pod/lacking", ".status.containerStatuses[0].state.waiting.message"), `configmap "nosuch" not found`)
	s.K("create", "configmap", "nosuch", "--from-literal=a=b")
	done(s, "lacking")
}

func TestVolumesOfObjects(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "objects")
	s.K("create", "configmap", "words", "--from-literal=a=first", "--from-literal=b=other")
	s.K("create", "secret", "generic", "secrets", "--from-literal=password=hush")
	s.Make(spec(pod("reader", "tool hold",
		"volumeMounts:",
		"- {name: words, mountPath: /words}",
		"- {name: secrets, mountPath: /secrets, readOnly: true}",
		"- {name: all, mountPath: /all}",
		"- {name: words, mountPath: /etc/one.conf, subPath: a}",
		"- {name: memory, mountPath: /memory}",
		"- {name: disk, mountPath: /disk}",
	),
		"volumes:",
		"- {name: words, configMap: {name: words}}",
		"- {name: secrets, secret: {secretName: secrets, defaultMode: 0400}}",
		"- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}",
		"- {name: disk, emptyDir: {}}",
		"- name: all",
		"  projected:",
		"    sources:",
		"    - {configMap: {name: words, items: [{key: b, path: deep/b}]}}",
		"    - {secret: {name: secrets}}",
		"    - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.memory}}]}}",
		"    - {serviceAccountToken: {path: token, audience: somebody, expirationSeconds: 600}}",
	))
	s.Ready("reader")
	in := func(command string) string { return s.K("exec", "reader", "--", "sh", "-c", command) }
	want(t, "configMap", in("cat /words/a /words/b"), "firstother")
	want(t, "secret", in("cat /secrets/password; stat -Lc %a /secrets/password"), "hush400")
	want(t, "projected", in("cat /all/deep/b /all/password"), "otherhush")
	wantAll(t, in("cat /all/labels"), `app="reader"`)
	want(t, "token", in("wc -w < /all/token"), "1")
	want(t, "subPath", in("cat /etc/one.conf"), "first")
	wantAll(t, in("mount | grep ' /memory '"), "tmpfs", "size=8192k")
	want(t, "emptyDir", in("echo x > /disk/x && cat /disk/x && stat -c %a /disk"), "x\n777")
	if out, err := s.Try("exec", "reader", "--", "sh", "-c", "echo x > /words/new"); err == nil {
		t.Errorf("a configMap was written to: %s", out)
	}

	s.K("patch", "configmap", "words", "--patch", `{"data":{"a":"second","c":"new"}}`)
	s.Says([]string{"secondnew"}, "exec", "reader", "--", "sh", "-c", "cat /words/a /words/c")
	s.K("label", "pod", "reader", "colour=blue")
	s.Says([]string{`colour="blue"`}, "exec", "reader", "--", "cat", "/all/labels")
}

func TestHostPathAndClaim(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "claims")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "from-host"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Make("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}\n")
	user := func(name, command string) {
		s.Make(spec(pod(name, command, "volumeMounts: [{name: data, mountPath: /data}, {name: host, mountPath: /host}]"),
			"volumes:", "- {name: data, persistentVolumeClaim: {claimName: data}}", "- {name: host, hostPath: {path: "+dir+", type: Directory}}"))
	}
	user("writer", "echo kept > /data/file; cat /host/from-host; echo pod > /host/from-pod")
	want(t, "hostPath", done(s, "writer"), "host")
	s.K("delete", "pod", "writer")
	user("reader", "cat /data/file")
	want(t, "the volume's content", done(s, "reader"), "kept")
	if got, _ := os.ReadFile(filepath.Join(dir, "from-pod")); string(got) != "pod\n" {
		t.Errorf("the pod wrote %q", got)
	}
	s.Make(spec(pod("wrong", "true", "volumeMounts: [{name: host, mountPath: /host}]"), "volumes: [{name: host, hostPath: {path: "+dir+"/nosuch, type: Directory}}]"))
	s.Says([]string{"FailedMount", `MountVolume.SetUp failed for volume "host" : hostPath type check failed: ` + dir + "/nosuch is not a directory"}, "get", "events", "--field-selector", "involvedObject.name=wrong")
}
