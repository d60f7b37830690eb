// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

func TestNamesLabelsAndColumns(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "columns")
	s.serve(ksvc{name: "web", labels: "team: blue", notes: "example.com/note: kept"})
	for object, want := range map[string]string{
		"ksvc/web":                    `^NAME +URL +LATESTCREATED +LATESTREADY +READY +REASON\nweb +` + regexp.QuoteMeta(p.ServiceURL("web", s.Name)) + ` +web-00001 +web-00001 +True`,
		"configuration/web":           `^NAME +LATESTCREATED +LATESTREADY +READY +REASON\nweb +web-00001 +web-00001 +True`,
		"revision/web-00001":          `^NAME +CONFIG NAME +GENERATION +READY +REASON +ACTUAL REPLICAS +DESIRED REPLICAS\nweb-00001 +web +1 +True`,
		"route/web":                   `^NAME +URL +READY +REASON\nweb +http://\S+ +True`,
		"kpa/web-00001":               `^NAME +DESIREDSCALE +ACTUALSCALE +READY +REASON\nweb-00001 +[01]`,
		"service/web":                 `web +ExternalName +<none> +kourier-internal.knative-serving-ingress.svc.cluster.local`,
		"service/web-00001":           `web-00001 +ExternalName +<none> +kourier-internal.knative-serving-ingress.svc.cluster.local`,
		"deploy/web-00001-deployment": `web-00001-deployment`,
	} {
		if out := s.K("get", object); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("kubectl get %s:\n%swant %s", object, out, want)
		}
	}
	for object, want := range map[string]string{
		"revision/web-00001":          "serving.knative.dev/configuration=web serving.knative.dev/configurationGeneration=1 serving.knative.dev/configurationUID serving.knative.dev/routingState=active serving.knative.dev/service=web serving.knative.dev/serviceUID",
		"deploy/web-00001-deployment": "app=web-00001 serving.knative.dev/configuration=web serving.knative.dev/configurationGeneration=1 serving.knative.dev/revision=web-00001 serving.knative.dev/revisionUID serving.knative.dev/service=web",
		"configuration/web":           "serving.knative.dev/service=web serving.knative.dev/serviceUID team=blue",
		"route/web":                   "serving.knative.dev/service=web team=blue",
	} {
		labels := s.Field(object, ".metadata.labels")
		for _, label := range strings.Fields(want) {
			key, value, given := strings.Cut(label, "=")
			text := `"` + key + `":"`
			if given {
				text += value + `"`
			}
			if !strings.Contains(labels, text) {
				t.Errorf("%s lacks %s: %s", object, label, labels)
			}
		}
	}
	if notes := s.Field("revision/web-00001", ".metadata.annotations"); !strings.Contains(notes, `"example.com/note":"kept"`) ||
		!strings.Contains(notes, `"serving.knative.dev/creator"`) || !strings.Contains(notes, `"serving.knative.dev/routes":"web"`) {
		t.Errorf("annotations of the revision: %s", notes)
	}
	if notes := s.Field("ksvc/web", ".metadata.annotations"); !strings.Contains(notes, `"serving.knative.dev/creator":`) || !strings.Contains(notes, `"serving.knative.dev/lastModifier":`) {
		t.Errorf("annotations of the service: %s", notes)
	}
	pod := s.K("get", "pod", "-l", "serving.knative.dev/revision=web-00001", "-o", "jsonpath={.items[0].spec.containers[*].name}")
	if !strings.HasPrefix(pod, "user-container") {
		t.Errorf("containers of the pod: %q", pod)
	}
}

func TestTagBecomesDigest(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "digest")
	s.serve(ksvc{name: "web"})
	digest := s.Field("revision/web-00001", ".status.containerStatuses[0].imageDigest")
	if !regexp.MustCompile("^" + regexp.QuoteMeta(p.App()) + "@sha256:[0-9a-f]{64}$").MatchString(digest) {
		t.Errorf("digest %q", digest)
	}
	if got := s.Field("deploy/web-00001-deployment", ".spec.template.spec.containers[0].image"); got != digest {
		t.Errorf("the pod's image is %q, want %q", got, digest)
	}
	if got := s.Field("revision/web-00001", ".spec.containers[0].image"); got != p.App() {
		t.Errorf("the revision's image is %q", got)
	}
	s.serve(ksvc{name: "exact", image: digest})
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "defaults")
	s.serve(ksvc{name: "web"})
	for path, want := range map[string]string{
		".spec.template.spec.timeoutSeconds":                                "300",
		".spec.template.spec.containerConcurrency":                          "0",
		".spec.template.spec.enableServiceLinks":                            "false",
		".spec.template.spec.containers[0].name":                            "user-container",
		".spec.template.spec.containers[0].readinessProbe.successThreshold": "1",
		".spec.template.spec.containers[0].readinessProbe.tcpSocket.port":   "0",
		".spec.traffic[0].latestRevision":                                   "true",
		".spec.traffic[0].percent":                                          "100",
		".status.traffic[0].revisionName":                                   "web-00001",
		".status.address.url":                                               "http://web." + s.Name + ".svc.cluster.local",
		".status.url":                                                       p.ServiceURL("web", s.Name),
		`.status.conditions[?(@.type=="Ready")].status`:                     "True",
		`.status.conditions[?(@.type=="RoutesReady")].status`:               "True",
		`.status.conditions[?(@.type=="ConfigurationsReady")].status`:       "True",
	} {
		if got := s.Field("ksvc/web", path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

func TestRevisionIsImmutable(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "immutable")
	s.serve(ksvc{name: "web"})
	out, err := s.Try("patch", "revision", "web-00001", "--type=merge", "-p", `{"spec":{"timeoutSeconds":7}}`)
	if err == nil {
		t.Error("a revision was changed")
	}
	wantAll(t, out, "Immutable fields changed (-old +new): spec")
	out, err = s.Try("annotate", "ksvc", "web", "--overwrite", "serving.knative.dev/creator=me")
	if err == nil {
		t.Error("the creator was changed")
	}
	wantAll(t, out, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator")
}

func TestClients(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "clients")
	s.apply(ksvc{name: "web"})
	s.K("wait", "ksvc", "web", "--for=condition=Ready", "--timeout=60s")
	s.K("patch", "ksvc", "web", "--type=merge", "-p", `{"spec":{"template":{"spec":{"timeoutSeconds":17}}}}`)
	s.Becomes("ksvc/web", ".status.latestReadyRevisionName", "web-00002")
	s.K("patch", "ksvc", "web", "--type=json", "-p", `[{"op":"replace","path":"/spec/template/spec/timeoutSeconds","value":18}]`)
	s.Becomes("ksvc/web", ".status.latestReadyRevisionName", "web-00003")

	side := s.Command("apply", "--server-side", "-f", "-")
	side.Stdin = strings.NewReader(ksvc{name: "side"}.yaml())
	if out, err := side.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.ready("side")
	again := s.Command("apply", "--server-side", "-f", "-")
	again.Stdin = strings.NewReader(ksvc{name: "side"}.yaml())
	if out, err := again.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := s.Field("ksvc/side", ".metadata.generation"); got != "1" {
		t.Errorf("the same manifest applied again led to generation %s", got)
	}
	wantAll(t, s.K("explain", "ksvc.spec.template.spec.containers"), "GROUP:      serving.knative.dev", "KIND:       Service", "FIELD: containers", "image", "readinessProbe")
	wantAll(t, s.K("explain", "ksvc.spec.traffic"), "latestRevision", "percent", "revisionName", "tag")
}

func TestDeletionLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "deletion")
	s.serve(ksvc{name: "web"})
	s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": "two"}})
	s.K("delete", "ksvc", "web", "--wait=false")
	s.Says([]string{""}, "wait", "--for=delete", "ksvc/web", "--timeout=60s")
	for _, kind := range []string{"configuration", "revision", "route", "kpa", "deploy", "replicaset", "service", "endpointslice", "pod"} {
		s.empty(kind)
	}
}

func (s space) empty(kind string) {
	s.t.Helper()
	platform.Eventually(s.t, time.Minute, func() error {
		out, err := s.Try("get", kind, "-o", "name")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("still there: %s", out)
		}
		return err
	})
}
