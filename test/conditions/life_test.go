// SPDX-License-Identifier: Apache-2.0

package conditions

import (
	"bufio"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

const platformLimit = time.Minute

var errorf = fmt.Errorf

// TestGenerations counts: a generation for each change of the spec, none for
// labels and annotations, and a revision only for a change of the template.
func TestGenerations(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "generations")
	s.Serves(platform.Service{Name: "web"})
	check := func(what, generations, revision string) {
		t.Helper()
		s.ServiceReady("web")
		var got []string
		for _, kind := range []string{"ksvc", "configuration", "route"} {
			s.Becomes(kind+"/web", ".status.observedGeneration", s.Field(kind+"/web", ".metadata.generation"))
			got = append(got, s.Field(kind+"/web", ".metadata.generation"))
		}
		want(t, what+": generations of service, configuration and route", strings.Join(got, " "), generations)
		want(t, what+": latest created", s.Field("ksvc/web", ".status.latestCreatedRevisionName"), revision)
	}
	check("new", "1 1 1", "web-00001")
	s.K("label", "ksvc", "web", "team=blue")
	s.K("annotate", "ksvc", "web", "example.com/x=y")
	s.Becomes("configuration/web", ".metadata.labels.team", "blue")
	s.Becomes("route/web", `.metadata.annotations.example\.com/x`, "y")
	check("labelled", "1 1 1", "web-00001")
	s.K("patch", "ksvc", "web", "--type=merge", "-p", `{"spec":{"traffic":[{"latestRevision":true,"percent":100,"tag":"now"}]}}`)
	check("tagged", "2 1 2", "web-00001")
	s.K("patch", "ksvc", "web", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"client.knative.dev/updateTimestamp":"2026-01-01T00:00:00Z"}}}}}`)
	check("restarted", "3 2 2", "web-00002")
	s.K("patch", "ksvc", "web", "--type=json", "-p", `[{"op":"add","path":"/spec/template/spec/containers/0/env","value":[{"name":"RESPONSE","value":"patched"}]}]`)
	check("changed", "4 3 2", "web-00003")
	want(t, "answer", s.Answer("now-web", "/"), "patched")
	out, err := s.Try("patch", "ksvc", "web", "--type=strategic", "-p", `{"spec":{"template":{"spec":{"timeoutSeconds":9}}}}`)
	if err == nil || !strings.Contains(out, "application/strategic-merge-patch+json is not supported") {
		t.Errorf("a strategic merge patch, which custom resources have not: %s", out)
	}
}

// TestPropagation follows labels and annotations from where a user puts them.
func TestPropagation(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "propagation")
	s.Serves(platform.Service{
		Name: "web", Labels: "of-service: s", Annotations: "example.com/of-service: s, serving.knative.dev/rollout-duration: 2s",
		Marks: "of-template: t", Notes: "example.com/of-template: t, autoscaling.knative.dev/window: 20s",
	})
	const label, note = ".metadata.labels.", `.metadata.annotations.`
	s.Answer("web", "/")
	for _, tt := range []struct{ object, path, want string }{
		{"configuration/web", label + "of-service", "s"},
		{"configuration/web", label + `serving\.knative\.dev/service`, "web"},
		{"configuration/web", note + `example\.com/of-service`, "s"},
		{"configuration/web", note + `serving\.knative\.dev/rollout-duration`, ""},
		{"configuration/web", note + `serving\.knative\.dev/creator`, "sonagi:admin"},
		{"route/web", label + "of-service", "s"},
		{"route/web", label + `serving\.knative\.dev/service`, "web"},
		{"route/web", note + `example\.com/of-service`, "s"},
		{"route/web", note + `serving\.knative\.dev/rollout-duration`, "2s"},
		{"route/web", note + `kubectl\.kubernetes\.io/last-applied-configuration`, ""},
		{"revision/web-00001", label + "of-service", ""},
		{"revision/web-00001", label + "of-template", "t"},
		{"revision/web-00001", label + `serving\.knative\.dev/configurationGeneration`, "1"},
		{"revision/web-00001", note + `example\.com/of-template`, "t"},
		{"revision/web-00001", note + `serving\.knative\.dev/creator`, "sonagi:admin"},
		{"revision/web-00001", note + `serving\.knative\.dev/routes`, "web"},
		{"revision/web-00001", label + `serving\.knative\.dev/routingState`, "active"},
		{"kpa/web-00001", label + "of-template", "t"},
		{"kpa/web-00001", note + `autoscaling\.knative\.dev/window`, "20s"},
		{"deployment/web-00001-deployment", label + "of-template", "t"},
		{"deployment/web-00001-deployment", label + "app", "web-00001"},
		{"deployment/web-00001-deployment", note + `example\.com/of-template`, "t"},
		{"deployment/web-00001-deployment", ".spec.template" + label + "of-template", "t"},
		{"deployment/web-00001-deployment", ".spec.template" + note + `example\.com/of-template`, "t"},
		{"deployment/web-00001-deployment", ".spec.template" + label + `serving\.knative\.dev/revision`, "web-00001"},
		{"service/web", label + `serving\.knative\.dev/route`, "web"},
		{"service/web", label + "of-service", "s"},
		{"ksvc/web", note + `serving\.knative\.dev/creator`, "sonagi:admin"},
		{"ksvc/web", note + `serving\.knative\.dev/lastModifier`, "sonagi:admin"},
	} {
		s.Becomes(tt.object, tt.path, tt.want)
	}
	s.K("label", "ksvc", "web", "of-service-")
	s.Becomes("configuration/web", label+"of-service", "")
	s.Becomes("route/web", label+"of-service", "")
	s.ServiceReady("web")
	want(t, "latest created", s.Field("ksvc/web", ".status.latestCreatedRevisionName"), "web-00001")
}

// TestWhatIsOwnedComesBack deletes and spoils objects that a service owns.
func TestWhatIsOwnedComesBack(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "owned")
	s.Serves(platform.Service{Name: "web", Notes: "autoscaling.knative.dev/min-scale: '1'"})
	for _, object := range []string{"service/web", "kpa/web-00001", "deployment/web-00001-deployment", "service/web-00001", "route/web", "revision/web-00001", "configuration/web"} {
		uid := s.Field(object, ".metadata.uid")
		s.K("delete", object, "--timeout=60s")
		platform.Eventually(t, platformLimit, func() error {
			got, err := s.Try("get", object, "-o", "jsonpath={.metadata.uid}")
			if err == nil && got == uid {
				err = errorf("%s is still the old one", object)
			}
			return err
		})
		s.ServiceReady("web")
		platform.Eventually(t, platformLimit, func() error {
			if status, body, err := s.Ask("web", "/"); err != nil || status != 200 || body != "web-00001" {
				return errorf("without %s: %d %q %v", object, status, body, err)
			}
			return nil
		})
	}
	s.K("patch", "configuration", "web", "--type=merge", "-p", `{"spec":{"template":{"spec":{"timeoutSeconds":11}}}}`)
	s.Becomes("configuration/web", ".spec.template.spec.timeoutSeconds", "300")
	s.K("patch", "route", "web", "--type=merge", "-p", `{"metadata":{"labels":{"mine":"x"}},"spec":{"traffic":[{"configurationName":"web","percent":100,"tag":"mine"}]}}`)
	s.Becomes("route/web", ".spec.traffic[0].tag", "")
	s.Becomes("route/web", ".metadata.labels.mine", "")
	s.ServiceReady("web")
}

// TestForeignNames has objects of others bear the names that a service needs.
func TestForeignNames(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "foreign")
	const apart = "apiVersion: serving.knative.dev/v1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n"
	template := "{template: {spec: {containers: [{image: " + p.App() + "}]}}}"
	s.Make(fmt.Sprintf(apart, "Configuration", "config", template))
	s.Make(fmt.Sprintf(apart, "Route", "route", "{traffic: [{configurationName: config, percent: 100}]}"))
	s.K("wait", "route/route", "--for=condition=Ready", "--timeout=60s")
	s.Deploy(platform.Service{Name: "config"})
	s.Condition("ksvc/config", "ConfigurationsReady", "False", "NotOwned", `There is an existing Configuration "config" that we do not own.`)
	s.Condition("ksvc/config", "Ready", "False", "NotOwned", `There is an existing Configuration "config" that we do not own.`)
	s.Deploy(platform.Service{Name: "route"})
	s.Condition("ksvc/route", "RoutesReady", "False", "NotOwned", `There is an existing Route "route" that we do not own.`)
	s.Condition("ksvc/route", "Ready", "False", "NotOwned", `There is an existing Route "route" that we do not own.`)
	// A Service of another's under the name of a route.
	s.K("create", "service", "externalname", "taken", "--external-name=example.com")
	s.Deploy(platform.Service{Name: "taken"})
	s.Condition("route/taken", "IngressReady", "False", "NotOwned", `There is an existing placeholder Service "taken" that we do not own.`)
	s.Condition("ksvc/taken", "Ready", "False", "NotOwned", `There is an existing placeholder Service "taken" that we do not own.`)
	s.K("create", "deployment", "dep-00001-deployment", "--image="+p.App())
	s.Deploy(platform.Service{Name: "dep"})
	s.Condition("revision/dep-00001", "ResourcesAvailable", "False", "NotOwned", `There is an existing Deployment "dep-00001-deployment" that we do not own.`)
	// All is well when the other goes.
	s.K("delete", "configuration/config", "service/taken", "deployment/dep-00001-deployment")
	s.K("delete", "route/route")
	for _, name := range []string{"config", "route", "taken", "dep"} {
		s.ServiceReady(name)
		want(t, "answer", s.Answer(name, "/"), name+"-00001")
	}
}

// TestNames has names as long as they may be, and generated ones.
func TestNames(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "names")
	long := strings.Repeat("long-", 12) + "end" // 63
	s.Serves(platform.Service{Name: long})
	s.Serves(platform.Service{Name: long, Env: map[string]string{"RESPONSE": "two"}})
	want(t, "answer", s.Answer(long, "/"), "two")
	out, err := s.TryMake(s.Manifest(platform.Service{Name: long + "x"}))
	if err == nil {
		t.Errorf("a name of 64 letters was taken: %s", out)
	}
	wantAll(t, out, "not a DNS 1035 label: [must be no more than 63 characters]: metadata.name")
	generated := s.Command("create", "-o", "jsonpath={.metadata.name}", "-f", "-")
	generated.Stdin = strings.NewReader(strings.Replace(s.Manifest(platform.Service{Name: "x"}), "name: x\n", "generateName: made-\n", 1))
	name, err := generated.Output()
	if err != nil || !strings.HasPrefix(string(name), "made-") {
		t.Fatalf("%q %v", name, err)
	}
	s.ServiceReady(string(name))
	want(t, "answer", s.Answer(string(name), "/"), string(name)+"-00001")
}

// TestChangedWhileRolling changes a service again before it is ready.
func TestChangedWhileRolling(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "rolling")
	s.Serves(platform.Service{Name: "web", Env: map[string]string{"RESPONSE": "0"}})
	for i := 1; i <= 4; i++ {
		s.Deploy(platform.Service{Name: "web", Env: map[string]string{"RESPONSE": fmt.Sprint(i), "START_DELAY": "300ms"}})
		if status, body, err := s.Ask("web", "/"); err != nil || status != 200 {
			t.Errorf("%d %q %v", status, body, err)
		}
	}
	s.ServiceReady("web")
	want(t, "answer", s.Answer("web", "/"), "4")
	want(t, "latest", s.Field("ksvc/web", ".status.latestCreatedRevisionName")+" "+s.Field("ksvc/web", ".status.latestReadyRevisionName"), "web-00005 web-00005")
	// Back to what it was before: a new revision, as always.
	s.Serves(platform.Service{Name: "web", Env: map[string]string{"RESPONSE": "0"}})
	want(t, "latest", s.Field("ksvc/web", ".status.latestReadyRevisionName"), "web-00006")
	want(t, "answer", s.Answer("web", "/"), "0")
}

// TestOwnRevisionNames rolls back and forth between revisions that the user has named.
func TestOwnRevisionNames(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "ownnames")
	a := platform.Service{Name: "web", Rev: "web-a", Env: map[string]string{"RESPONSE": "a"}}
	b := platform.Service{Name: "web", Rev: "web-b", Env: map[string]string{"RESPONSE": "b"}}
	for _, k := range []platform.Service{a, b, a, b} {
		s.Serves(k)
		platform.Eventually(t, platformLimit, func() error {
			if status, body, err := s.Ask("web", "/"); err != nil || status != 200 || body != k.Env["RESPONSE"] {
				return errorf("%s: %d %q %v", k.Rev, status, body, err)
			}
			return nil
		})
		want(t, "latest ready", s.Field("ksvc/web", ".status.latestReadyRevisionName"), k.Rev)
	}
	if n := strings.Fields(s.K("get", "revision", "-o", "name")); len(n) != 2 {
		t.Errorf("revisions: %v", n)
	}
	a.Env = map[string]string{"RESPONSE": "other"}
	s.Deploy(a) // from b: the name differs, so admission takes it
	s.Condition("configuration/web", "Ready", "False", "RevisionFailed", `Revision creation failed with message: revisions.serving.knative.dev "web-a" already exists.`)
	s.Condition("ksvc/web", "RoutesReady", "False", "RevisionNameTaken", `The revision name "web-a" is taken by a conflicting Revision, so traffic will not be migrated`)
	s.Condition("ksvc/web", "Ready", "False", "RevisionNameTaken", `The revision name "web-a" is taken by a conflicting Revision, so traffic will not be migrated`)
	want(t, "answer", s.Answer("web", "/"), "b")
	s.Serves(b)
}

// TestImmutable has Knative's words for what cannot be changed.
func TestImmutable(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "immutable")
	s.Serves(platform.Service{Name: "web"})
	for _, tt := range []struct{ object, patch, want string }{
		{"revision/web-00001", `{"spec":{"timeoutSeconds":7}}`, "Immutable fields changed (-old +new): spec"},
		{"revision/web-00001", `{"spec":{"containers":[{"image":"other"}]}}`, "Immutable fields changed (-old +new): spec"},
		{"ksvc/web", `{"metadata":{"annotations":{"serving.knative.dev/creator":"me"}}}`, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator"},
		{"ksvc/web", `{"metadata":{"annotations":{"serving.knative.dev/rollout-duration":"soon"}}}`, "invalid value: soon: metadata.annotations.serving.knative.dev/rollout-duration"},
		{"ksvc/web", `{"metadata":{"annotations":{"serving.knative.dev/rollout-duration":"15us"}}}`, "rollout-duration=15us is not at second precision: metadata.annotations.serving.knative.dev/rollout-duration"},
		{"ksvc/web", `{"metadata":{"annotations":{"autoscaling.knative.dev/min-scale":"1"}}}`, "invalid key name \"autoscaling.knative.dev/min-scale\": metadata.annotations\nautoscaling annotations must be put under \"spec.template.metadata.annotations\" to work"},
	} {
		out, err := s.Try("patch", tt.object, "--type=merge", "-p", tt.patch)
		if err == nil {
			t.Errorf("%s: %s was taken", tt.object, tt.patch)
		}
		wantAll(t, out, tt.want)
	}
	// Others may put labels and annotations on a revision.
	s.K("label", "revision", "web-00001", "mine=yes")
	s.K("annotate", "revision", "web-00001", "example.com/mine=yes")
	// A status is the controllers'.
	s.K("patch", "ksvc", "web", "--type=merge", "-p", `{"status":{"url":"http://elsewhere"}}`)
	want(t, "URL", s.Field("ksvc/web", ".status.url"), p.ServiceURL("web", s.Name))
}

// TestTwoManagers has two clients own fields by server-side apply.
func TestTwoManagers(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "managers")
	apply := func(manager, yaml string, more ...string) (string, error) {
		cmd := s.Command(append([]string{"apply", "--server-side", "--field-manager=" + manager, "-f", "-"}, more...)...)
		cmd.Stdin = strings.NewReader(yaml)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	const head = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\nspec: {template: {spec: "
	image := "containers: [{name: user-container, image: " + p.App() + ", env: [{name: RESPONSE, value: %s}]}]"
	if out, err := apply("one", head+"{"+fmt.Sprintf(image, "one")+"}}}"); err != nil {
		t.Fatal(out)
	}
	// Its default belongs to whoever made the service.
	if out, err := apply("two", head+"{timeoutSeconds: 33}}}", "--force-conflicts"); err != nil {
		t.Fatal(out)
	}
	s.ServiceReady("web")
	want(t, "fields of both", s.Field("ksvc/web", ".spec.template.spec.timeoutSeconds")+s.Field("ksvc/web", ".spec.template.spec.containers[0].env[0].value"), "33one")
	out, err := apply("two", head+"{"+fmt.Sprintf(image, "two")+"}}}")
	if err == nil || !strings.Contains(out, `conflict with "one"`) {
		t.Errorf("a field of another's: %s", out)
	}
	if out, err := apply("two", head+"{"+fmt.Sprintf(image, "two")+"}}}", "--force-conflicts"); err != nil {
		t.Fatal(out)
	}
	s.ServiceReady("web")
	want(t, "answer", s.Answer("web", "/"), "two")
	generation := s.Field("ksvc/web", ".metadata.generation")
	if out, err := apply("two", head+"{"+fmt.Sprintf(image, "two")+"}}}"); err != nil {
		t.Fatal(out)
	}
	want(t, "generation after the same again", s.Field("ksvc/web", ".metadata.generation"), generation)
}

// TestWatch has kubectl print a service's rows while it comes.
func TestWatch(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "watch")
	s.Serves(platform.Service{Name: "first"})
	cmd := s.Command("get", "ksvc", "-w")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	rows := make(chan string, 64)
	go func() {
		defer close(rows)
		for in := bufio.NewScanner(pipe); in.Scan(); {
			rows <- strings.Join(strings.Fields(in.Text()), " ")
		}
	}()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	next := func(prefix, suffix string) {
		t.Helper()
		limit := time.After(platformLimit)
		for {
			select {
			case row, ok := <-rows:
				if !ok {
					t.Fatalf("the watch ended before %q … %q", prefix, suffix)
				}
				if strings.HasPrefix(row, prefix) && strings.HasSuffix(row, suffix) {
					return
				}
			case <-limit:
				t.Fatalf("no row %q … %q", prefix, suffix)
			}
		}
	}
	next("NAME URL LATESTCREATED LATESTREADY READY REASON", "")
	next("first http://first.watch.", " first-00001 first-00001 True")
	s.Deploy(platform.Service{Name: "second"})
	next("second", "")
	next("second http://second.watch.", " second-00001 second-00001 True")
	s.Deploy(platform.Service{Name: "second", Env: map[string]string{"EXIT": "4"}})
	next("second http://second.watch.", " second-00002 second-00001 False RevisionFailed")
}

// TestDeletion deletes services. What a service owned cannot be orphaned, as with
// Knative: it bears labels that must not be there without an owner.
func TestDeletion(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "deletion")
	for _, way := range []string{"background", "foreground"} {
		s.Serves(platform.Service{Name: way})
	}
	left := func(name string) string {
		out, _ := s.Try("get", "configuration,revision,route,kpa,deploy,rs,pod,service", "-o", "name")
		var mine []string
		for line := range strings.Lines(out) {
			if strings.Contains(line, "/"+name) {
				mine = append(mine, strings.TrimSpace(line))
			}
		}
		return strings.Join(mine, " ")
	}
	for _, way := range []string{"background", "foreground"} {
		s.K("delete", "ksvc", way, "--cascade="+way, "--timeout=60s")
		if now := left(way); way == "foreground" && strings.Contains(now, "configuration.") {
			t.Errorf("deleted in the foreground, and there is still %s", now)
		}
		platform.Eventually(t, platformLimit, func() error {
			if now := left(way); now != "" {
				return errorf("left of %s: %s", way, now)
			}
			if status, _, err := s.Ask(way, "/"); status != 404 || err != nil {
				return errorf("%s answers %d, %v", way, status, err)
			}
			return nil
		})
	}
}

// TestEvents looks for the events that Knative's controllers tell. It runs by
// itself: good news are told only as far as somebody can be reading them.
func TestEvents(t *testing.T) {
	s := newSpace(t, "events")
	s.Serves(platform.Service{Name: "web"})
	s.Says([]string{
		`Created Configuration "web"`, `Created Route "web"`, `Created Revision "web-00001"`, "Configuration becomes ready",
		`LatestReadyRevisionName updated to "web-00001"`, "Revision becomes ready upon all resources being ready", `Created placeholder service "web"`,
	}, "get", "event")
}
