// SPDX-License-Identifier: Apache-2.0

// Package domains tries what Knative promises about the names of services: domains of one's
// own, who may have them, TLS, and what is seen from where.
package domains

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

// A space is a namespace with a service "web", that answers with the namespace's name.
type space struct {
	*platform.Space
	t *testing.T
}

func newSpace(t *testing.T, name string) space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	s := space{p.Space(t, name), t}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.Kubectl(context.Background(), "-n", name, "get", "ksvc,route,dm,kcert,secret", "-o", "yaml")
			t.Log(out[:min(len(out), 20000)])
		}
	})
	return s
}

// serve makes a service and waits until it is ready. Labels, annotations and traffic are
// elements in YAML's flow style.
func (s space) serve(name, answer, labels, annotations, traffic string) {
	s.t.Helper()
	if traffic == "" {
		traffic = "{latestRevision: true, percent: 100}"
	}
	s.Make(fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s, labels: {%s}, annotations: {%s}}
spec:
  template:
    spec:
      containers: [{image: %s, env: [{name: RESPONSE, value: %s}]}]
  traffic: [%s]
`, name, labels, annotations, p.App(), answer, traffic))
	s.ready("ksvc/" + name)
}

func (s space) web() { s.t.Helper(); s.serve("web", s.Name, "", "", "") }

// ready waits until an object is, in its newest generation.
func (s space) ready(object string) {
	s.t.Helper()
	platform.Eventually(s.t, 90*time.Second, func() error {
		got, err := s.Try("get", object, "-o", `jsonpath={.metadata.generation}={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return err
		}
		generations, status, _ := strings.Cut(got, " ")
		if is, seen, _ := strings.Cut(generations, "="); is != seen || status != "True" {
			return fmt.Errorf("%s: %s", object, got)
		}
		return nil
	})
}

// condition waits until a condition has this status, reason and message.
func (s space) condition(object, kind, status, reason, message string) {
	s.t.Helper()
	path := func(field string) string { return fmt.Sprintf(`{.status.conditions[?(@.type==%q)].%s}`, kind, field) }
	platform.Eventually(s.t, 30*time.Second, func() error {
		got, err := s.Try("get", object, "-o", "jsonpath="+path("status")+"|"+path("reason")+"|"+path("message"))
		if want := status + "|" + reason + "|" + message; err == nil && got != want {
			err = fmt.Errorf("%s %s:\n got %q\nwant %q", object, kind, got, want)
		}
		return err
	})
}

// mapping is a manifest that maps a domain to an object.
func mapping(domain, apiVersion, kind, name, more string) string {
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {name: %q}
spec:
  ref: {apiVersion: %s, kind: %s, name: %s}
%s
`, domain, apiVersion, kind, name, more)
}

func toService(domain string) string {
	return mapping(domain, "serving.knative.dev/v1", "Service", "web", "")
}

// claim gives a domain to a namespace, as an administrator does.
func claim(t *testing.T, domain, namespace string) {
	t.Helper()
	out, err := p.Apply(t.Context(), fmt.Sprintf("apiVersion: networking.internal.knative.dev/v1alpha1\nkind: ClusterDomainClaim\nmetadata: {name: %s}\nspec: {namespace: %s}\n", domain, namespace))
	if err != nil {
		t.Fatal(out)
	}
	t.Cleanup(func() {
		_, _ = p.Kubectl(context.Background(), "delete", "cdc", domain, "--ignore-not-found", "--wait=false")
	})
}

// answers waits until a host answers so from outside.
func answers(t *testing.T, host string, status int, body string) {
	t.Helper()
	platform.Eventually(t, 20*time.Second, func() error {
		got, text, err := p.Get(t.Context(), host, "/")
		if err == nil && (got != status || body != "" && text != body) {
			err = fmt.Errorf("%s answers %d %q, want %d %q", host, got, text, status, body)
		}
		return err
	})
}

// set changes settings, and at the end of the test takes the change back. Tests that use it
// do not run beside others.
func set(t *testing.T, name string, data map[string]string) {
	t.Helper()
	back := map[string]any{}
	for key := range data {
		back[key] = nil
	}
	patch := func(ctx context.Context, data any) {
		text, _ := json.Marshal(map[string]any{"data": data})
		if out, err := p.Kubectl(ctx, "-n", "knative-serving", "patch", "configmap", name, "--type=merge", "-p", string(text)); err != nil {
			t.Error(out)
		}
	}
	patch(t.Context(), data)
	t.Cleanup(func() { patch(context.Background(), back) })
}

func wantAll(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

const notClaimed = "The domain name is already in use by another DomainMapping"

func TestClaimIsTheAdministrators(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "claimed")
	s.web()
	const domain = "claimed.example.org"
	s.Make(toService(domain))
	s.condition("dm/"+domain, "DomainClaimed", "False", "DomainAlreadyClaimed", notClaimed)
	s.condition("dm/"+domain, "Ready", "False", "DomainAlreadyClaimed", notClaimed)
	answers(t, domain, 404, "")
	claim(t, domain, s.Name)
	s.ready("dm/" + domain)
	answers(t, domain, 200, s.Name)
	for kind, reason := range map[string]string{"DomainClaimed": "", "ReferenceResolved": "", "IngressReady": ""} {
		s.condition("dm/"+domain, kind, "True", reason, "")
	}
	s.condition("dm/"+domain, "CertificateProvisioned", "True", "TLSNotEnabled", "external-domain-tls is not enabled")
	url := fmt.Sprintf("http://%s:%d", domain, p.GatewayPort)
	if got := s.Field("dm/"+domain, ".status.url") + " " + s.Field("dm/"+domain, ".status.address.url"); got != url+" "+url {
		t.Errorf("URL and address %q", got)
	}
	wantAll(t, s.K("get", "dm"), "NAME", "URL", "READY", "REASON", domain, url, "True")
	wantAll(t, s.K("get", "domainmapping", domain, "-o", "name"), "domainmapping.serving.knative.dev/"+domain)
	// The app is asked under the domain, as in Knative.
	if _, body, err := p.Get(t.Context(), domain, "/about"); err != nil || !strings.Contains(body, `"host":"`+domain+`"`) {
		t.Errorf("the app sees %v %v", body, err)
	}
	// An administrator's claim outlives its use.
	s.K("delete", "dm", domain)
	answers(t, domain, 404, "")
	if out, err := p.Kubectl(t.Context(), "get", "cdc", domain); err != nil {
		t.Error(out)
	}
}

func TestClaimThatIsTakenAway(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "unclaimed")
	s.web()
	const domain = "unclaimed.example.org"
	claim(t, domain, s.Name)
	s.Make(toService(domain))
	s.ready("dm/" + domain)
	answers(t, domain, 200, s.Name)
	if out, err := p.Kubectl(t.Context(), "delete", "cdc", domain); err != nil {
		t.Fatal(out)
	}
	s.condition("dm/"+domain, "Ready", "False", "DomainAlreadyClaimed", notClaimed)
	answers(t, domain, 404, "")
}

func TestReferences(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "refs")
	try := func(domain, manifest string) {
		t.Helper()
		claim(t, domain, s.Name)
		s.Make(manifest)
	}
	const late, private = "late.example.org", "private.example.org"
	try(late, toService(late))
	s.condition("dm/"+late, "ReferenceResolved", "False", "ResolveFailed", `failed to get object refs/web: services.serving.knative.dev "web" not found`)
	s.web()
	s.ready("dm/" + late)
	answers(t, late, 200, s.Name)
	t.Run("route", func(t *testing.T) {
		try("route.example.org", mapping("route.example.org", "serving.knative.dev/v1", "Route", "web", ""))
		s.ready("dm/route.example.org")
		answers(t, "route.example.org", 200, s.Name)
	})
	t.Run("private service", func(t *testing.T) {
		// Who maps a domain to it means to publish it.
		s.serve("hidden", "hidden", "networking.knative.dev/visibility: cluster-local", "", "")
		try(private, mapping(private, "serving.knative.dev/v1", "Service", "hidden", ""))
		s.ready("dm/" + private)
		answers(t, private, 200, "hidden")
		answers(t, "hidden.refs.svc.cluster.local", 404, "")
		answers(t, p.Host("hidden", s.Name), 404, "")
	})
	t.Run("service of a revision", func(t *testing.T) {
		try("revision.example.org", mapping("revision.example.org", "v1", "Service", "web-00001", ""))
		s.ready("dm/revision.example.org")
		answers(t, "revision.example.org", 200, s.Name)
	})
	t.Run("plain service", func(t *testing.T) {
		s.Make(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: plain, labels: {app: plain}}
spec:
  containers: [{name: app, image: %s, env: [{name: RESPONSE, value: plain}, {name: PORT, value: "8080"}]}]
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {selector: {app: plain}, ports: [{port: 80, targetPort: 8080}]}
`, p.App()))
		s.Ready("plain")
		try("plain.example.org", mapping("plain.example.org", "v1", "Service", "plain", ""))
		s.ready("dm/plain.example.org")
		answers(t, "plain.example.org", 200, "plain")
		s.K("delete", "service", "plain")
		s.condition("dm/plain.example.org", "ReferenceResolved", "False", "ResolveFailed", `failed to get object refs/plain: services "plain" not found`)
		answers(t, "plain.example.org", 404, "")
	})
	t.Run("any addressable", func(t *testing.T) {
		if out, err := p.Apply(t.Context(), pointers); err != nil {
			t.Fatal(out)
		}
		if out, err := p.Kubectl(t.Context(), "wait", "--for=condition=Established", "crd/pointers.scenario.example.org", "--timeout=30s"); err != nil {
			t.Fatal(out)
		}
		point := func(url string) {
			t.Helper()
			platform.Eventually(t, 20*time.Second, func() error {
				_, err := s.TryMake("apiVersion: scenario.example.org/v1\nkind: Pointer\nmetadata: {name: there}\nstatus: {address: {url: " + url + "}}\n")
				return err
			})
		}
		const domain = "any.example.org"
		point("http://web.refs.svc.cluster.local/path")
		try(domain, mapping(domain, "scenario.example.org/v1", "Pointer", "there", ""))
		s.condition("dm/"+domain, "ReferenceResolved", "False", "ResolveFailed", `resolved URI "http://web.refs.svc.cluster.local/path" contains a path`)
		point("http://web.example.com")
		s.condition("dm/"+domain, "ReferenceResolved", "False", "ResolveFailed", `resolved URI "http://web.example.com" must be of the form {name}.{namespace}.svc.cluster.local`)
		point("http://web.default.svc.cluster.local")
		s.condition("dm/"+domain, "ReferenceResolved", "False", "ResolveFailed", `resolved URI "http://web.default.svc.cluster.local" must be in same namespace as DomainMapping`)
		point("http://web.refs.svc.cluster.local")
		s.ready("dm/" + domain)
		answers(t, domain, 200, s.Name)
	})
	t.Run("another one", func(t *testing.T) {
		s.serve("other", "other", "", "", "")
		s.K("patch", "dm", late, "--type=merge", "-p", `{"spec":{"ref":{"name":"other"}}}`)
		s.ready("dm/" + late)
		answers(t, late, 200, "other")
		s.K("delete", "ksvc", "other")
		s.condition("dm/"+late, "ReferenceResolved", "False", "ResolveFailed", `failed to get object refs/other: services.serving.knative.dev "other" not found`)
	})
}

// pointers is a kind of somebody else's whose objects have an address.
const pointers = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pointers.scenario.example.org}
spec:
  group: scenario.example.org
  scope: Namespaced
  names: {kind: Pointer, plural: pointers, singular: pointer}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

func TestMappingsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "refused")
	const denied = `admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed: `
	for name, tt := range map[string]struct{ manifest, want string }{
		"no domain":       {toService("nodots"), denied + `invalid name "nodots": name: Invalid value: "nodots": should be a domain with at least two segments separated by dots: metadata.name`},
		"inside":          {toService("web.default.svc.cluster.local"), denied + `invalid name "web.default.svc.cluster.local": must not be a subdomain of cluster local domain "cluster.local": metadata.name`},
		"other namespace": {strings.Replace(toService("x.example.org"), "name: web}", "name: web, namespace: default}", 1), denied + "mismatched namespaces: spec.ref.namespace"},
		"no kind":         {strings.Replace(toService("x.example.org"), "kind: Service,", "kind: \"\",", 1), denied + "missing field(s): spec.ref.kind"},
		"no name":         {strings.Replace(toService("x.example.org"), "name: web}", "name: \"\"}", 1), denied + "missing field(s): spec.ref.name"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := s.TryMake(tt.manifest)
			if err == nil {
				t.Error("taken")
			}
			wantAll(t, out, tt.want)
		})
	}
	s.Make(toService("mine.example.org"))
	if got := s.Field("dm/mine.example.org", ".spec.ref.namespace"); got != s.Name {
		t.Errorf("the reference's namespace is %q", got)
	}
	wantAll(t, s.K("get", "dm", "mine.example.org", "-o", "yaml"), "serving.knative.dev/creator:", "serving.knative.dev/lastModifier:")
	out, err := s.Try("annotate", "dm", "mine.example.org", "--overwrite", "serving.knative.dev/creator=eve")
	if err == nil {
		t.Error("the creator was changed")
	}
	wantAll(t, out, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator")
}

func TestClaimsOfTwoNamespaces(t *testing.T) {
	a, b := newSpace(t, "first"), newSpace(t, "second")
	set(t, "config-network", map[string]string{"autocreate-cluster-domain-claims": "true"})
	const domain = "shared.example.org"
	a.web()
	b.web()
	a.Make(toService(domain))
	a.ready("dm/" + domain)
	b.Make(toService(domain))
	b.condition("dm/"+domain, "Ready", "False", "DomainAlreadyClaimed", notClaimed)
	answers(t, domain, 200, "first")
	if got, err := p.Kubectl(t.Context(), "get", "cdc", domain, "-o", "jsonpath={.spec.namespace}"); got != "first" || err != nil {
		t.Errorf("claimed by %q, %v", got, err)
	}
	// The loser does not take the claim with it.
	b.K("delete", "dm", domain)
	answers(t, domain, 200, "first")
	b.Make(toService(domain))
	b.condition("dm/"+domain, "DomainClaimed", "False", "DomainAlreadyClaimed", notClaimed)
	a.K("delete", "dm", domain)
	b.ready("dm/" + domain)
	answers(t, domain, 200, "second")
	b.K("delete", "dm", domain)
	answers(t, domain, 404, "")
	platform.Eventually(t, 10*time.Second, func() error {
		if out, err := p.Kubectl(t.Context(), "get", "cdc", domain); err == nil {
			return fmt.Errorf("the claim is still there: %s", out)
		}
		return nil
	})
}

func TestMappingUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "loaded")
	s.serve("web", s.Name, "", "", "")
	load := p.Load(p.Host("web", s.Name), "/", 4)
	for i := range 5 {
		domain := fmt.Sprintf("d%d.example.org", i)
		claim(t, domain, s.Name)
		s.Make(toService(domain))
		s.ready("dm/" + domain)
		answers(t, domain, 200, s.Name)
		s.K("delete", "dm", domain)
	}
	if failed := load.Stop().Failed(); len(failed) > 0 {
		t.Errorf("requests were lost: %v", failed)
	}
}
