// SPDX-License-Identifier: Apache-2.0

package autoscaling

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	hpa = "hpa.autoscaling.knative.dev"
	// Kubernetes' autoscaler looks every 15 s, at usage that is as old.
	horizontalLimit = 2 * time.Minute
)

func TestHorizontalByProcessor(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "cpu")
	s.serve("web", "", "resources: {requests: {cpu: 50m}, limits: {cpu: 150m}}",
		"class", hpa, "metric", "cpu", "target", "60", "max-scale", "2", "window", "6s")
	for path, want := range map[string]string{
		".spec.scaleTargetRef.name": "web-00001-deployment", ".spec.minReplicas": "1", ".spec.maxReplicas": "2",
		".spec.metrics[0].resource.name": "cpu", ".spec.metrics[0].resource.target.averageUtilization": "60",
		".spec.behavior.scaleDown.stabilizationWindowSeconds": "6",
		".metadata.ownerReferences[0].kind":                   "PodAutoscaler",
	} {
		if got := s.Field("hpa/web-00001", path); got != want {
			t.Errorf("HPA%s is %q, want %q", path, got, want)
		}
	}
	s.Becomes("revision/web-00001", `.status.conditions[?(@.type=="Active")].status`, "True")
	l := p.Load(s.host("web"), "/?burn=20ms", 3)
	s.pods("web", 2, horizontalLimit)
	s.Becomes("podautoscaler/web-00001", ".status.actualScale", "2")
	if failed := l.Stop().Failed(); len(failed) > 0 {
		t.Error(failed)
	}
	s.pods("web", 1, horizontalLimit)
	// Its bounds follow the annotations; it goes with its revision.
	s.K("annotate", "revision", "web-00001", "--overwrite", prefix+"max-scale=3", prefix+"min-scale=3")
	s.Becomes("hpa/web-00001", ".spec.minReplicas", "3")
	s.Becomes("hpa/web-00001", ".spec.maxReplicas", "3")
	s.K("delete", "ksvc", "web")
	s.K("wait", "--for=delete", "hpa/web-00001", "--timeout=60s")
}

func TestHorizontalByMemory(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "memory")
	s.serve("web", "", "", "class", hpa, "metric", "memory", "target", "40", "max-scale", "2", "window", "6s")
	if got := s.Field("hpa/web-00001", ".spec.metrics[0].resource.target.averageValue"); got != "40Mi" {
		t.Errorf("target %s", got)
	}
	if status, body, err := s.request("web", "/?hold=70"); status != 200 {
		t.Fatal(status, body, err)
	}
	s.pods("web", 2, horizontalLimit)
	if out := s.K("get", "hpa", "web-00001"); !strings.Contains(out, "/40Mi") {
		t.Error(out)
	}
	fmt.Fprintln(t.Output(), s.K("get", "hpa"))
}
