// SPDX-License-Identifier: Apache-2.0

// Package lossless changes services and the platform under clients of every
// kind: not one request may be lost.
package lossless

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

// Each test loads the machine for a while and waits for as long.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "3")
	os.Exit(platform.Main(m, &p))
}

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

const limit = 90 * time.Second

type space struct {
	*platform.Space
	t *testing.T
}

func newSpace(t *testing.T, name string) space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	return space{p.Space(t, name), t}
}

func (s space) host() string { return p.Host("web", s.Name) }

const newest = "{latestRevision: true, percent: 100}"

// manifest is the service "web" that answers with a text. Notes are annotations
// of its template, spec are fields of its template's spec, in flow style.
func manifest(response, notes, spec, traffic string) string {
	if spec != "" {
		spec = ", " + spec
	}
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web}
spec:
  template:
    metadata: {annotations: {%s}}
    spec: {timeoutSeconds: 60%s, containers: [{image: %s, env: [{name: RESPONSE, value: %q}]}]}
  traffic: [%s]
`, strings.Trim("autoscaling.knative.dev/window: 6s, "+notes, ", "), spec, p.App(), response, traffic)
}

// serve applies the service and waits until its newest generation is ready.
func (s space) serve(yaml string) {
	s.t.Helper()
	s.Make(yaml)
	s.ready()
}

func (s space) ready() {
	s.t.Helper()
	platform.Eventually(s.t, limit, func() error {
		got, err := s.Try("get", "ksvc", "web", "-o", `jsonpath={.metadata.generation}={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return err
		}
		generations, status, _ := strings.Cut(got, " ")
		if is, seen, _ := strings.Cut(generations, "="); is != seen || status != "True" {
			return fmt.Errorf("service: %s", got)
		}
		return nil
	})
}

// names are the pods of a revision, or of all; leaving says of which kind.
func (s space) names(revision string, leaving bool) ([]string, error) {
	selector := "serving.knative.dev/service=web"
	if revision != "" {
		selector = "serving.knative.dev/revision=" + revision
	}
	condition := "not .metadata.deletionTimestamp"
	if leaving {
		condition = ".metadata.deletionTimestamp"
	}
	out, err := s.Try("get", "pod", "-l", selector, "-o", `go-template={{range .items}}{{if `+condition+`}}{{.metadata.name}} {{end}}{{end}}`)
	return strings.Fields(out), err
}

// pods waits until there are so many that stay.
func (s space) pods(revision string, want func(int) bool) {
	s.t.Helper()
	platform.Eventually(s.t, limit, func() error {
		names, err := s.names(revision, false)
		if err == nil && !want(len(names)) {
			err = fmt.Errorf("pods: %v", names)
		}
		return err
	})
}

func is(n int) func(int) bool { return func(have int) bool { return have == n } }

// gone waits until nothing is left of a revision's pods.
func (s space) gone(revision string) {
	s.t.Helper()
	platform.Eventually(s.t, limit, func() error {
		stay, err := s.names(revision, false)
		leave, err2 := s.names(revision, true)
		if len(stay)+len(leave) > 0 || err != nil || err2 != nil {
			return fmt.Errorf("%s has pods: %v, leaving %v, %v %v", revision, stay, leave, err, err2)
		}
		return nil
	})
}

const one = `autoscaling.knative.dev/min-scale: "1"`

// A revision follows another. Streams stay in the pods of the one before, and
// these with them; without streams they go.
func TestRollingUpdate(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "rolling")
	s.serve(manifest("0", one, "", newest))
	c := newCrowd(t, s.host())
	c.more(5)
	for i := range 2 {
		streams := []*stream{open(t, s.host()), open(t, s.host())}
		s.serve(manifest(fmt.Sprint(i+1), one, "", newest))
		c.more(3)
		for _, one := range streams {
			one.more(t, 50)
			if sent, err := one.close(); err != nil {
				t.Errorf("a stream broke after %d messages: %v", sent, err)
			}
		}
		s.gone(fmt.Sprintf("web-%05d", i+1))
		c.more(1)
	}
	c.end()
}

// Clients of every kind ask at the moment at which the last pod is told to go, and when none is left.
func TestZeroAndBack(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "zero")
	s.serve(manifest("x", "", "", newest))
	for i := range 3 {
		if i%2 == 0 {
			s.Becomes("deploy/web-00001-deployment", ".spec.replicas", "0")
		} else {
			s.gone("web-00001")
		}
		c := newCrowd(t, s.host())
		c.more(3)
		c.end()
	}
}

// The load falls while long requests and streams are in every pod.
func TestScaleDown(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "down")
	s.serve(manifest("x", `autoscaling.knative.dev/max-scale: "5"`, "containerConcurrency: 4", newest))
	flood := p.Load(s.host(), "/?wait=400ms", 16)
	s.pods("", is(5))
	var streams []*stream
	for range 5 {
		streams = append(streams, open(t, s.host()))
	}
	long := p.Load(s.host(), "/?wait=8s", 4)
	for _, one := range streams {
		one.more(t, 10)
	}
	if failed := flood.Stop().Failed(); len(failed) > 0 {
		t.Error("flood:", failed)
	}
	// A pod without a stream leaves too fast to be seen leaving, and a stream lasts
	// no longer than any request may.
	platform.Eventually(t, limit, func() error {
		replicas, err := s.Try("get", "deployment", "web-00001-deployment", "-o", "jsonpath={.spec.replicas}")
		if err == nil && replicas == "5" {
			err = errors.New("no pod is leaving")
		}
		return err
	})
	for _, one := range streams {
		one.more(t, 20)
		if sent, err := one.close(); err != nil {
			t.Errorf("a stream broke after %d messages: %v", sent, err)
		}
	}
	answers := long.Stop()
	if failed := answers.Failed(); len(failed) > 0 || len(answers) < 4 {
		t.Errorf("of %d long requests: %v", len(answers), failed)
	}
	s.gone("web-00001")
}

// Traffic moves by one percent a hundred times. Each step is in effect when the service says so.
func TestShiftByOnePercent(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "shift")
	s.serve(manifest("old", one, "", newest))
	s.serve(manifest("new", "", "", "{revisionName: web-00001, percent: 100}"))
	c := newCrowd(t, s.host())
	c.more(3)
	for percent := 1; percent <= 100; percent++ {
		patch := fmt.Sprintf(`{"spec":{"traffic":[{"revisionName":"web-00001","percent":%d},{"latestRevision":true,"percent":%d}]}}`, 100-percent, percent)
		s.K("patch", "ksvc", "web", "--type=merge", "-p", patch)
		if percent%10 == 0 {
			s.ready()
			c.more(1)
		}
	}
	c.end()
	if body, err := c.get(&http.Transport{}, "/")(t.Context()); body != "new" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
}

// The platform itself moves the traffic, step by step.
func TestGradualRollout(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "gradual")
	s.serve(manifest("old", one, "", newest))
	s.K("annotate", "ksvc", "web", "serving.knative.dev/rollout-duration=12s")
	s.ready()
	c := newCrowd(t, s.host())
	c.more(3)
	s.Make(manifest("new", one, "", newest))
	seen, reasons := map[string]bool{}, map[string]bool{}
	platform.Eventually(t, limit, func() error {
		got, err := s.Try("get", "ksvc", "web", "-o", `jsonpath={.status.conditions[?(@.type=="RoutesReady")].reason}/{range .status.traffic[*]}{.revisionName}={.percent} {end}`)
		reason, traffic, _ := strings.Cut(got, "/")
		if reasons[reason], seen[traffic] = true, true; err == nil && traffic != "web-00002=100 " {
			err = fmt.Errorf("traffic %s", got)
		}
		return err
	})
	s.ready()
	c.end()
	if !reasons["RolloutInProgress"] || !seen["web-00001=99 web-00002=1 "] || len(seen) < 5 {
		t.Errorf("traffic went by %v, for the reasons %v", seen, reasons)
	}
}

// A domain comes and goes, and comes again.
func TestDomainMapping(t *testing.T) {
	t.Parallel()
	const domain = "lossless.example.org"
	s := newSpace(t, "mapped")
	s.serve(manifest("x", one, "", newest))
	c := newCrowd(t, s.host())
	c.more(2)
	s.Make("apiVersion: networking.internal.knative.dev/v1alpha1\nkind: ClusterDomainClaim\nmetadata: {name: " + domain + "}\nspec: {namespace: mapped}\n")
	defer func() { _, _ = p.Kubectl(context.Background(), "delete", "cdc", domain, "--wait=false") }()
	for range 2 {
		s.Make("apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata: {name: " + domain + "}\nspec: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: web}}\n")
		s.K("wait", "--for=condition=Ready", "domainmapping/"+domain, "--timeout=60s")
		mapped := newCrowd(t, domain)
		stays := open(t, domain)
		mapped.more(3)
		mapped.end()
		s.K("delete", "domainmapping", domain)
		platform.Eventually(t, limit, func() error {
			if status, _, err := p.Get(t.Context(), domain, "/"); status != http.StatusNotFound || err != nil {
				return fmt.Errorf("%d, %v", status, err)
			}
			return nil
		})
		stays.more(t, 10)
		if sent, err := stays.close(); err != nil {
			t.Errorf("a stream broke after %d messages: %v", sent, err)
		}
		c.more(1)
	}
	c.end()
}

// A pod whose service is deleted keeps its streams for as long as Knative does, and then is told to go.
func TestDeletion(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "deletion")
	s.serve(manifest("x", one, "", newest))
	ws := open(t, s.host())
	ws.more(t, 5)
	long := p.Load(s.host(), "/?wait=5s", 2)
	platform.Eventually(t, limit, func() error {
		if long.Count() < 2 {
			return fmt.Errorf("no answers")
		}
		return nil
	})
	deleted := time.Now()
	s.K("delete", "ksvc", "web")
	platform.Eventually(t, limit, func() error {
		if status, _, err := p.Get(t.Context(), s.host(), "/"); status != http.StatusNotFound || err != nil {
			return fmt.Errorf("%d, %v", status, err)
		}
		return nil
	})
	for _, failed := range long.Stop().Failed() {
		if !strings.Contains(failed, "404") {
			t.Error(failed)
		}
	}
	<-ws.over
	if lived := time.Since(deleted); lived < 25*time.Second {
		t.Errorf("a stream ended %s after the deletion of its service", lived)
	}
	s.gone("web-00001")
	if lived := time.Since(deleted); lived > 60*time.Second {
		t.Errorf("a pod with a stream was there for %s", lived)
	}
}

// What follows changes what all services share, and so comes first, one by one.

func TestControlKilled(t *testing.T) {
	s := newSpace(t, "control")
	s.serve(manifest("x", one, "", newest))
	ws := open(t, s.host())
	c := newCrowd(t, s.host())
	c.more(5)
	control, err := p.Part("control")
	if err != nil {
		t.Fatal(err)
	}
	platform.Kill(control.Pid)
	c.more(10)
	platform.Eventually(t, limit, func() error {
		now, err := p.Part("control")
		if err == nil && (!now.Ready || now.Restarts <= control.Restarts) {
			err = fmt.Errorf("control is not ready: %+v", now)
		}
		return err
	})
	s.serve(manifest("y", one, "", newest))
	c.more(5)
	c.end()
	ws.more(t, 10)
	if sent, err := ws.close(); err != nil {
		t.Errorf("a stream broke after %d messages: %v", sent, err)
	}
}

func TestSettings(t *testing.T) {
	s := newSpace(t, "settings")
	s.serve(manifest("x", "", "", newest))
	c := newCrowd(t, s.host())
	ws := open(t, s.host())
	c.more(3)
	for _, change := range []struct {
		name string
		data map[string]string
	}{
		{"config-autoscaler", map[string]string{"target-burst-capacity": "0", "stable-window": "20s", "container-concurrency-target-default": "2", "max-scale": "3"}},
		{"config-defaults", map[string]string{"revision-timeout-seconds": "77", "container-concurrency": "5"}},
		{"config-deployment", map[string]string{"progress-deadline": "77s"}},
		{"config-domain", map[string]string{"other.example.com": "selector: {app: other}"}},
		{"config-features", map[string]string{"tag-header-based-routing": "enabled", "kubernetes.podspec-affinity": "enabled"}},
		{"config-gc", map[string]string{"min-non-active-revisions": "1", "max-non-active-revisions": "3"}},
		{"config-network", map[string]string{"rollout-duration": "5", "tag-template": "{{.Name}}-{{.Tag}}"}},
		{"config-observability", map[string]string{"logging.enable-request-log": "true"}},
	} {
		set := func(data any) {
			text, _ := json.Marshal(map[string]any{"data": data})
			if out, err := p.Kubectl(context.Background(), "-n", "knative-serving", "patch", "configmap", change.name, "--type=merge", "-p", string(text)); err != nil {
				t.Errorf("%s: %s", change.name, out)
			}
		}
		back := map[string]any{}
		for key := range change.data {
			back[key] = nil
		}
		set(change.data)
		c.more(2)
		set(back)
	}
	c.more(3)
	c.end()
	if sent, err := ws.close(); err != nil {
		t.Errorf("a stream broke after %d messages: %v", sent, err)
	}
}

// Old revisions are collected while the newest takes the requests.
func TestCollection(t *testing.T) {
	set := func(data string) {
		if out, err := p.Kubectl(context.Background(), "-n", "knative-serving", "patch", "configmap", "config-gc", "--type=merge", "-p", `{"data":`+data+`}`); err != nil {
			t.Fatal(out)
		}
	}
	set(`{"retain-since-create-time":"disabled","retain-since-last-active-time":"disabled","min-non-active-revisions":"0","max-non-active-revisions":"0"}`)
	defer set(`{"retain-since-create-time":null,"retain-since-last-active-time":null,"min-non-active-revisions":null,"max-non-active-revisions":null}`)
	s := newSpace(t, "collected")
	s.serve(manifest("0", "", "", newest))
	c := newCrowd(t, s.host())
	c.more(2)
	for i := range 4 {
		s.serve(manifest(fmt.Sprint(i+1), "", "", newest))
		c.more(1)
	}
	platform.Eventually(t, limit, func() error {
		out, err := s.Try("get", "revision", "-o", "name")
		if left := strings.Fields(out); err == nil && !slices.Equal(left, []string{"revision.serving.knative.dev/web-00005"}) {
			err = fmt.Errorf("revisions: %v", left)
		}
		return err
	})
	c.more(3)
	c.end()
}
