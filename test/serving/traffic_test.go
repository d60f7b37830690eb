// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

// says is a service of a space that answers with a text.
func says(text, traffic string) ksvc {
	return ksvc{name: "web", env: map[string]string{"RESPONSE": text}, traffic: traffic}
}

func TestTrafficSplitIsExact(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "split")
	s.serve(says("one", ""))
	s.serve(says("two", ""))
	s.serve(says("three", "{revisionName: web-00001, percent: 70}, {revisionName: web-00002, percent: 25}, {latestRevision: true, percent: 5}"))
	got := s.many("web", "/", 1000, 8)
	if got["one"] != 700 || got["two"] != 250 || got["three"] != 50 {
		t.Errorf("70, 25 and 5 of 100: %v", got)
	}
	s.serve(says("three", "{revisionName: web-00001, percent: 100}, {latestRevision: true, percent: 0}"))
	if got := s.many("web", "/", 200, 8); got["one"] != 200 {
		t.Errorf("all to the first: %v", got)
	}
}

func TestTagsAndRollback(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "tags")
	s.serve(says("one", ""))
	s.serve(says("two", "{latestRevision: true, percent: 100}, {revisionName: web-00001, percent: 0, tag: old}, {latestRevision: true, percent: 0, tag: new}"))
	for host, want := range map[string]string{"web": "two", "old-web": "one", "new-web": "two"} {
		if got := s.get(host, "/"); got != want {
			t.Errorf("%s answers %q, want %q", host, got, want)
		}
	}
	urls := s.Field("ksvc/web", ".status.traffic[*].url")
	if want := p.ServiceURL("old-web", s.Name) + " " + p.ServiceURL("new-web", s.Name); urls != want {
		t.Errorf("URLs of tags are %q, want %q", urls, want)
	}
	if got := s.Field("ksvc/web", ".status.traffic[1].revisionName"); got != "web-00001" {
		t.Errorf("the tag old leads to %q", got)
	}
	if out := s.K("get", "service", "-o", "name"); !strings.Contains(out, "service/old-web\n") || !strings.Contains(out, "service/new-web\n") {
		t.Errorf("no Services of tags: %s", out)
	}
	// A pinned service stays where it is when it is changed.
	s.serve(says("two", "{revisionName: web-00001, percent: 100}"))
	s.serve(says("three", "{revisionName: web-00001, percent: 100}"))
	if got := s.many("web", "/", 50, 4); got["one"] != 50 {
		t.Errorf("after rollback: %v", got)
	}
	if status, _, err := p.Get(t.Context(), s.host("old-web"), "/"); status != 404 || err != nil {
		t.Errorf("the tag that was taken away answers %d, %v", status, err)
	}
	s.serve(says("three", "{latestRevision: true, percent: 100}"))
	if got := s.get("web", "/"); got != "three" {
		t.Errorf("after going on: %q", got)
	}
}

func TestKnTraffic(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "kntraffic")
	kn := func(args ...string) string {
		t.Helper()
		out, err := p.Kn(t.Context(), append(args, "-n", s.Name)...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	kn("service", "create", "web", "--image", p.App(), "--env", "RESPONSE=one", "--revision-name", "web-a")
	kn("service", "update", "web", "--env", "RESPONSE=two", "--revision-name", "web-b", "--traffic", "web-a=50,@latest=50", "--tag", "web-a=blue,@latest=green")
	if got := s.many("web", "/", 100, 4); got["one"] != 50 || got["two"] != 50 {
		t.Errorf("half and half: %v", got)
	}
	wantAll(t, kn("service", "describe", "web"), "50%  web-a #blue", "50%  @latest (web-b) #green")
	wantAll(t, kn("revision", "list"), "web-a", "web-b", "blue", "green", "50%")
	wantAll(t, kn("revision", "describe", "web-a"), "web-a", "++ Ready", "++ ContainerHealthy", "++ ResourcesAvailable")
	wantAll(t, kn("route", "describe", "web"), "++ AllTrafficAssigned", "++ IngressReady", "++ CertificateProvisioned")
	kn("service", "update", "web", "--untag", "blue", "--traffic", "web-b=100")
	if got := s.many("web", "/", 20, 4); got["two"] != 20 {
		t.Errorf("all to b: %v", got)
	}
	kn("revision", "delete", "web-a", "--wait")
	out := kn("service", "export", "web", "-o", "yaml")
	wantAll(t, out, "kind: Service", "name: web-b")
	kn("service", "delete", "web", "--wait")
}

func TestTagByHeader(t *testing.T) {
	s := newSpace(t, "tagheader")
	set(t, "config-features", map[string]string{"tag-header-based-routing": "enabled"})
	s.serve(says("one", ""))
	s.serve(says("two", "{latestRevision: true, percent: 100}, {revisionName: web-00001, percent: 0, tag: old}"))
	platform.Eventually(t, platformLimit, func() error {
		req, _ := http.NewRequest(http.MethodGet, p.URL(), nil)
		req.Host = s.host("web")
		req.Header.Set("Knative-Serving-Tag", "old")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		buf := make([]byte, 3)
		if _, err := resp.Body.Read(buf); string(buf) != "one" {
			return fmt.Errorf("%q, %v", buf, err)
		}
		return nil
	})
	if got := s.get("web", "/"); got != "two" {
		t.Errorf("without the header: %q", got)
	}
}

func TestClusterLocal(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "private")
	s.serve(ksvc{name: "web", labels: "networking.knative.dev/visibility: cluster-local"})
	s.serve(ksvc{name: "front"})
	inside := "http://web." + s.Name + ".svc.cluster.local"
	if got := s.Field("ksvc/web", ".status.url"); got != inside {
		t.Errorf("URL %q, want %q", got, inside)
	}
	if status, _, err := p.Get(t.Context(), s.host("web"), "/"); status != 404 || err != nil {
		t.Errorf("from outside: %d, %v", status, err)
	}
	if status, _, err := p.Get(t.Context(), "web."+s.Name+".svc.cluster.local", "/"); status != 404 || err != nil {
		t.Errorf("from outside under its inner name: %d, %v", status, err)
	}
	for _, host := range []string{"web", "web." + s.Name, "web." + s.Name + ".svc", "web." + s.Name + ".svc.cluster.local"} {
		if got := s.get("front", "/fetch?url=http://"+host+"/"); got != "web-00001" {
			t.Errorf("from a pod, %s answers %q", host, got)
		}
	}
	// Outside again, when the label is gone.
	s.K("label", "ksvc", "web", "networking.knative.dev/visibility-")
	s.Becomes("ksvc/web", ".status.url", p.ServiceURL("web", s.Name))
	s.ready("web")
	if got := s.get("web", "/"); got != "web-00001" {
		t.Errorf("answer %q", got)
	}
}

func TestNamesFromPods(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "inside")
	s.serve(ksvc{name: "web", notes: "autoscaling.knative.dev/min-scale: '1'"})
	s.serve(ksvc{name: "front"})
	for _, url := range []string{
		"http://web." + s.Name + ".svc.cluster.local", "http://web." + s.Name, "http://web",
		p.ServiceURL("web", s.Name),
		"http://web-00001", "http://web-00001." + s.Name + ".svc.cluster.local",
	} {
		if got := s.get("front", "/fetch?url="+url); got != "web-00001" {
			t.Errorf("from a pod, %s answers %q", url, got)
		}
	}
}

func TestRevisionServiceWakesIt(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "wakes")
	s.serve(ksvc{name: "front", notes: "autoscaling.knative.dev/min-scale: '1'"})
	s.serve(ksvc{name: "web", notes: "autoscaling.knative.dev/window: 6s"})
	s.pods("web", 0, platformLimit)
	if got := s.get("front", "/fetch?url=http://web-00001"); got != "web-00001" {
		t.Errorf("a revision at zero, under its own name, answers %q", got)
	}
}

func TestLoadBalancer(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "balancer")
	s.serve(ksvc{name: "web"})
	out, err := p.Kubectl(t.Context(), "-n", "knative-serving-ingress", "get", "service", "kourier", "-o", "jsonpath={.spec.type} {.spec.ports[0].port} {.status.loadBalancer.ingress[0].ip}")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Fields(out)
	if len(parts) != 3 || parts[0] != "LoadBalancer" || parts[1] != "80" {
		t.Fatalf("Service kourier: %q", out)
	}
	req, _ := http.NewRequest(http.MethodGet, "http://"+parts[2], nil)
	req.Host = s.host("web")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("from the host, %s: %v, %v", parts[2], resp, err)
	}
	resp.Body.Close()
	if got := s.get("web", "/fetch?url=http://"+parts[2]+"&host="+s.host("web")); got != "web-00001" {
		t.Errorf("from a pod: %q", got)
	}
}
