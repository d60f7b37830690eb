// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"fmt"
	"strings"
	"testing"
)

// noneReady is what a service says while its revisions fail: its route was looked at last.
const noneReady = `Configuration "web" does not have any ready Revision.`

func TestImageIsMissing(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "missing")
	image := p.Registry + "/nosuch"
	s.apply(ksvc{name: "web", image: image})
	why := fmt.Sprintf("Unable to fetch image %q: failed to resolve image to digest: ", image)
	s.condition("revision/web-00001", "ContainerHealthy", "False", "ContainerMissing", why+"…")
	s.condition("revision/web-00001", "Ready", "False", "ContainerMissing", why+"…")
	s.condition("configuration/web", "Ready", "False", "RevisionFailed", `Revision "web-00001" failed with message: `+why+"…")
	s.condition("ksvc/web", "ConfigurationsReady", "False", "RevisionFailed", `Revision "web-00001" failed with message: `+why+"…")
	s.condition("ksvc/web", "RoutesReady", "False", "RevisionMissing", noneReady)
	s.condition("ksvc/web", "Ready", "False", "RevisionMissing", noneReady)
}

func TestCrashAtStartThenFixed(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "crash")
	s.apply(ksvc{name: "web", env: map[string]string{"EXIT": "7"}})
	why := "Container failed with: leaving with 7\n"
	s.condition("revision/web-00001", "ContainerHealthy", "False", "ExitCode7", why)
	s.condition("revision/web-00001", "Ready", "False", "ExitCode7", why)
	s.condition("configuration/web", "Ready", "False", "RevisionFailed", `Revision "web-00001" failed with message: `+why+".")
	s.condition("ksvc/web", "Ready", "False", "RevisionMissing", noneReady)
	s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": "well"}})
	if got := s.get("web", "/"); got != "well" {
		t.Errorf("answer %q", got)
	}
	if got := s.Field("ksvc/web", ".status.latestReadyRevisionName"); got != "web-00002" {
		t.Errorf("latest ready is %q", got)
	}
}

func TestFailedUpdateKeepsServing(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "failedupdate")
	s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": "one"}})
	s.apply(ksvc{name: "web", env: map[string]string{"EXIT": "3"}})
	s.condition("ksvc/web", "ConfigurationsReady", "False", "RevisionFailed", "Revision \"web-00002\" failed with message: Container failed with: leaving with 3\n.")
	if got := s.Field("ksvc/web", ".status.latestCreatedRevisionName") + " " + s.Field("ksvc/web", ".status.latestReadyRevisionName"); got != "web-00002 web-00001" {
		t.Errorf("latest created and ready are %q", got)
	}
	if got := s.get("web", "/"); got != "one" {
		t.Errorf("answer %q", got)
	}
	s.serve(ksvc{name: "web", env: map[string]string{"RESPONSE": "three"}})
	if got := s.get("web", "/"); got != "three" {
		t.Errorf("answer %q", got)
	}
}

func TestWrongPortExceedsProgressDeadline(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "deadline")
	s.apply(ksvc{name: "web", notes: "serving.knative.dev/progress-deadline: 5s", env: map[string]string{"LISTEN": "9999"}})
	s.Becomes("deployment/web-00001-deployment", ".spec.progressDeadlineSeconds", "5")
	s.Becomes("revision/web-00001", `.status.conditions[?(@.type=="Ready")].reason`, "ProgressDeadlineExceeded")
	got := s.Field("revision/web-00001", `.status.conditions[?(@.type=="ResourcesAvailable")].message`)
	if !strings.HasPrefix(got, `ReplicaSet "web-00001-deployment-`) || !strings.HasSuffix(got, `" has timed out progressing.`) {
		t.Errorf("message %q", got)
	}
	s.condition("ksvc/web", "Ready", "False", "RevisionMissing", noneReady)
}

func TestUnschedulable(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "unschedulable")
	s.apply(ksvc{name: "web", box: `resources: {requests: {cpu: "999"}}`})
	s.condition("revision/web-00001", "ResourcesAvailable", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu…")
	s.condition("revision/web-00001", "Ready", "False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu…")
	s.condition("ksvc/web", "Ready", "False", "RevisionMissing", noneReady)
}

func TestRouteToMissingRevision(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "norevision")
	s.serve(ksvc{name: "web"})
	s.apply(ksvc{name: "web", traffic: "{revisionName: nosuch, percent: 100}"})
	for _, object := range []string{"route/web AllTrafficAssigned", "route/web Ready", "ksvc/web RoutesReady", "ksvc/web Ready"} {
		name, kind, _ := strings.Cut(object, " ")
		s.condition(name, kind, "False", "RevisionMissing", `Revision "nosuch" referenced in traffic not found.`)
	}
	if got := s.get("web", "/"); got != "web-00001" {
		t.Errorf("answer %q", got)
	}
	s.serve(ksvc{name: "web", traffic: "{revisionName: web-00001, percent: 100}"})
}

func TestRevisionNames(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "names")
	s.serve(ksvc{name: "web", rev: "web-first", env: map[string]string{"RESPONSE": "one"}})
	if got := s.Field("ksvc/web", ".status.latestReadyRevisionName"); got != "web-first" {
		t.Errorf("latest ready is %q", got)
	}
	out, err := s.TryMake(ksvc{name: "web", rev: "web-first", env: map[string]string{"RESPONSE": "two"}}.yaml())
	if err == nil {
		t.Errorf("a changed template under the same name was taken: %s", out)
	}
	wantAll(t, out, "Saw the following changes without a name change (-old +new): spec.template.metadata.name")
	s.serve(ksvc{name: "web", rev: "web-second", env: map[string]string{"RESPONSE": "two"}})
	// A name that another service's revision has.
	s.apply(ksvc{name: "we", rev: "we-b"})
	s.ready("we")
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Configuration\nmetadata: {name: w}\nspec: {template: {metadata: {name: w-taken}, spec: {containers: [{image: " + p.App() + "}]}}}\n")
	s.Becomes("configuration/w", ".status.latestReadyRevisionName", "w-taken")
	s.Make("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: w}\nspec: {template: {spec: {containers: [{image: " + p.App() + "}]}}}\n")
	s.condition("ksvc/w", "Ready", "False", "NotOwned", `There is an existing Configuration "w" that we do not own.`)
	s.apply(ksvc{name: "web", rev: "web-second-b", env: map[string]string{"RESPONSE": "three"}})
	s.ready("web")
	s.apply(ksvc{name: "web-second", rev: "web-second-b"})
	s.condition("ksvc/web-second", "ConfigurationsReady", "False", "RevisionFailed", `Revision creation failed with message: revisions.serving.knative.dev "web-second-b" already exists.`)
	s.condition("ksvc/web-second", "RoutesReady", "False", "RevisionNameTaken", `The revision name "web-second-b" is taken by a conflicting Revision, so traffic will not be migrated`)
}
