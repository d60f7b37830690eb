// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"strings"
	"testing"
)

// TestWrongManifests has Knative's own words for what cannot be.
func TestWrongManifests(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "wrong")
	const in = "spec.template.spec."
	const box = in + "containers[0]."
	for _, tt := range []struct {
		name string
		k    ksvc
		want string
	}{
		{"concurrency", ksvc{spec: "containerConcurrency: 1001"}, "expected 0 <= 1001 <= 1000: " + in + "containerConcurrency"},
		{"timeout", ksvc{spec: "timeoutSeconds: 601"}, "expected 0 <= 601 <= 600: " + in + "timeoutSeconds"},
		{"two ports", ksvc{box: "ports: [{containerPort: 1}, {containerPort: 2}]"}, "more than one container port is set: " + in + "containers[*].ports"},
		{"port name", ksvc{box: "ports: [{name: grpc, containerPort: 80}]"}, "Port name grpc is not allowed: " + box + "ports"},
		{"reserved port", ksvc{box: "ports: [{containerPort: 8012}]"}, "8012 is a reserved port: " + box + "ports.containerPort"},
		{"reserved env", ksvc{box: "env: [{name: PORT, value: '1'}]"}, `"PORT" is a reserved environment variable: ` + box + "env[0].name"},
		{"reserved env K_", ksvc{box: "env: [{name: K_SERVICE, value: x}]"}, `"K_SERVICE" is a reserved environment variable: ` + box + "env[0].name"},
		{"env without name", ksvc{box: "env: [{value: x}]"}, "missing field(s): " + box + "env[0].name"},
		{"image", ksvc{image: "'a b'"}, "Failed to parse image reference: " + box + "image"},
		{"lifecycle", ksvc{box: "lifecycle: {preStop: {exec: {command: [x]}}}"}, `unknown field "` + in + "containers[0].lifecycle"},
		{"stdin", ksvc{box: "stdin: true"}, "containers[0].stdin"},
		{"mount without volume", ksvc{box: "volumeMounts: [{name: x, mountPath: /x}]"}, "volumeMount has no matching volume: " + box + "volumeMounts[0].name"},
		{"reserved mount", ksvc{spec: "volumes: [{name: x, emptyDir: {}}]", box: "volumeMounts: [{name: x, mountPath: /dev}]"}, `mountPath "/dev" is a reserved path: ` + box + "volumeMounts[0].mountPath"},
		{"volume unused", ksvc{spec: "volumes: [{name: x, secret: {secretName: some}}]"}, `volume with name "x" not mounted: ` + in + "volumes[0].name"},
		{"probe twice", ksvc{box: "readinessProbe: {httpGet: {path: /}, tcpSocket: {port: 0}}"}, "expected exactly one, got both: " + box + "readinessProbe.httpGet, " + box + "readinessProbe.tcpSocket"},
		{"affinity", ksvc{spec: "affinity: {nodeAffinity: {}}"}, "must not set the field(s): " + in + "affinity"},
		{"tolerations", ksvc{spec: "tolerations: [{key: x}]"}, "must not set the field(s): " + in + "tolerations"},
		{"host network", ksvc{spec: "hostNetwork: true"}, "must not set the field(s): " + in + "hostNetwork"},
		{"init containers", ksvc{spec: "initContainers: [{name: i, image: x}]"}, "must not set the field(s): " + in + "initContainers"},
		{"min over max", ksvc{notes: "autoscaling.knative.dev/min-scale: '3', autoscaling.knative.dev/max-scale: '2'"}, "max-scale=2 is less than min-scale=3: spec.template.metadata.annotations."},
		{"min-scale", ksvc{notes: "autoscaling.knative.dev/min-scale: few"}, "invalid value: few: spec.template.metadata.annotations.autoscaling.knative.dev/min-scale"},
		{"negative", ksvc{notes: "autoscaling.knative.dev/max-scale: '-1'"}, "expected 0 <= -1 <= 2147483647: spec.template.metadata.annotations.autoscaling.knative.dev/max-scale"},
		{"window", ksvc{notes: "autoscaling.knative.dev/window: 1s"}, "expected 6s <= 1s <= 1h0m0s: spec.template.metadata.annotations.autoscaling.knative.dev/window"},
		{"target", ksvc{notes: "autoscaling.knative.dev/target: '0'"}, "target 0 should be at least 0.01: spec.template.metadata.annotations.autoscaling.knative.dev/target"},
		{"metric", ksvc{notes: "autoscaling.knative.dev/metric: joy"}, "invalid value: joy: spec.template.metadata.annotations.autoscaling.knative.dev/metric"},
		{"progress deadline", ksvc{notes: "serving.knative.dev/progress-deadline: 10ms"}, "progress-deadline=10ms is not at second precision: spec.template.metadata.annotations.serving.knative.dev/progress-deadline"},
		{"prefix of the name", ksvc{rev: "other"}, `invalid value: "other" must have prefix "web-": spec.template.metadata.name`},
		{"name", ksvc{name: "9web"}, "not a DNS 1035 label"},
		{"sum", ksvc{traffic: "{latestRevision: true, percent: 90}"}, "Traffic targets sum to 90, want 100: spec.traffic"},
		{"percent", ksvc{traffic: "{latestRevision: true, percent: 101}"}, "expected 0 <= 101 <= 100: spec.traffic[0].percent"},
		{"same tag", ksvc{traffic: "{latestRevision: true, percent: 100, tag: a}, {latestRevision: true, tag: a}"}, "Multiple definitions for \"a\": spec.traffic[0].tag, spec.traffic[1].tag"},
		{"latest and pinned", ksvc{traffic: "{latestRevision: true, revisionName: web-00001, percent: 100}"}, `may not set revisionName "web-00001" when latestRevision is true: spec.traffic[0].latestRevision`},
		{"configuration", ksvc{traffic: "{configurationName: web, percent: 100}"}, "must not set the field(s): spec.traffic[0].configurationName"},
		{"no target", ksvc{traffic: "{percent: 100, latestRevision: false}"}, "spec.traffic[0].latestRevision"},
		{"url", ksvc{traffic: "{latestRevision: true, percent: 100, url: 'http://x'}"}, "must not set the field(s): spec.traffic[0].url"},
	} {
		if tt.k.name == "" {
			tt.k.name = "web"
		}
		out, err := s.TryMake(tt.k.yaml())
		if err == nil {
			t.Errorf("%s: taken: %s", tt.name, out)
			s.K("delete", "ksvc", tt.k.name)
			continue
		}
		if !strings.Contains(out, tt.want) {
			t.Errorf("%s: %q is missing in:\n%s", tt.name, tt.want, out)
		}
	}
}
