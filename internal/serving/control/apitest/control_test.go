// SPDX-License-Identifier: Apache-2.0

package apitest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

var spaces atomic.Int32

// space makes a namespace for a test.
func (p *plane) space(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", spaces.Add(1))
	if err := p.api.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		t.Fatal(err)
	}
	return name
}

func newService(namespace, name, image string) *servingv1.Service {
	return &servingv1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: servingv1.ServiceSpec{ConfigurationSpec: servingv1.ConfigurationSpec{Template: servingv1.RevisionTemplateSpec{
			Spec: servingv1.RevisionSpec{PodSpec: corev1.PodSpec{Containers: []corev1.Container{{Image: image}}}},
		}}},
	}
}

// await watches an object until ok, and fails with its last state.
func await[T client.Object](t testing.TB, p *plane, obj T, list client.ObjectList, what string, ok func(T) bool) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w, err := p.api.Watch(ctx, list, client.InNamespace(obj.GetNamespace()), client.MatchingFields{"metadata.name": obj.GetName()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last T
	for e := range w.ResultChan() {
		o, is := e.Object.(T)
		if !is || e.Type == watch.Deleted {
			continue
		}
		if last = o; ok(o) {
			return o
		}
	}
	t.Fatalf("%s %s: never %s; last %+v", obj.GetNamespace(), obj.GetName(), what, last)
	return last
}

func ready(s *servingv1.Service) bool { return s.IsReady() }

func awaitService(t testing.TB, p *plane, svc *servingv1.Service, what string, ok func(*servingv1.Service) bool) *servingv1.Service {
	t.Helper()
	return await(t, p, svc, &servingv1.ServiceList{}, what, ok)
}

func get[T any, P interface {
	*T
	client.Object
}](t testing.TB, p *plane, namespace, name string) P {
	t.Helper()
	o := P(new(T))
	if err := p.api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		t.Fatal(err)
	}
	return o
}

// An object is a kind with conditions.
type object interface {
	duckv1.KRShaped
	client.Object
}

func conditions(o object) string {
	var out []string
	for _, c := range o.GetStatus().Conditions {
		out = append(out, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason))
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

func failure(want, reason, message string) func(apis.Condition) bool {
	return func(c apis.Condition) bool {
		return string(c.Type) == want && c.IsFalse() && c.Reason == reason && strings.Contains(c.Message, message)
	}
}

func TestServiceBecomesReady(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	svc := newService(ns, "web", "hello")
	svc.Labels = map[string]string{"team": "blue"}
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = awaitService(t, p, svc, "ready", ready)
	for _, check := range []struct{ what, have, want string }{
		{"url", svc.Status.URL.String(), "http://web." + ns + ".sonagi.localhost"},
		{"address", svc.Status.Address.URL.String(), "http://web." + ns + ".svc.cluster.local"},
		{"created", svc.Status.LatestCreatedRevisionName, "web-00001"},
		{"ready", svc.Status.LatestReadyRevisionName, "web-00001"},
		{"conditions", conditions(svc), "ConfigurationsReady=True , Ready=True , RoutesReady=True "},
	} {
		if check.have != check.want {
			t.Errorf("%s is %q, want %q", check.what, check.have, check.want)
		}
	}
	rev := get[servingv1.Revision](t, p, ns, "web-00001")
	if c := conditions(rev); c != "Active=True , ContainerHealthy=True , Ready=True , ResourcesAvailable=True " {
		t.Errorf("revision: %s", c)
	}
	if d := rev.Status.ContainerStatuses[0].ImageDigest; !strings.HasPrefix(d, "hello@sha256:") {
		t.Errorf("image is %q", d)
	}
	if ptr.Deref(rev.Status.ActualReplicas, -1) != 1 {
		t.Errorf("ready replicas are %v", rev.Status.ActualReplicas)
	}
	if rev.Labels["serving.knative.dev/routingState"] != "active" || rev.Annotations["serving.knative.dev/routes"] != "web" {
		t.Errorf("routing of the revision: %v, %v", rev.Labels, rev.Annotations)
	}
	route := get[servingv1.Route](t, p, ns, "web")
	if c := conditions(route); c != "AllTrafficAssigned=True , CertificateProvisioned=True TLSNotEnabled, IngressReady=True , Ready=True " {
		t.Errorf("route: %s", c)
	}
	placeholder := get[corev1.Service](t, p, ns, "web")
	if placeholder.Spec.ExternalName != "kourier-internal.knative-serving-ingress.svc.cluster.local" || placeholder.Labels["team"] != "blue" {
		t.Errorf("placeholder is %+v, %v", placeholder.Spec, placeholder.Labels)
	}
	get[appsv1.Deployment](t, p, ns, "web-00001-deployment")
	get[autoscalingv1alpha1.PodAutoscaler](t, p, ns, "web-00001")
}

func TestNewRevisionTakesOver(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	svc := newService(ns, "web", "one")
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = awaitService(t, p, svc, "ready", ready)
	svc.Spec.Template.Spec.Containers[0].Image = "two"
	svc.Spec.Traffic = []servingv1.TrafficTarget{
		{LatestRevision: ptr.To(true), Percent: ptr.To[int64](90), Tag: "next"},
		{RevisionName: "web-00001", LatestRevision: ptr.To(false), Percent: ptr.To[int64](10), Tag: "old"},
	}
	if err := p.api.Update(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = awaitService(t, p, svc, "ready again", ready)
	want := fmt.Sprintf("next web-00002 90 true http://next-web.%s.sonagi.localhost; old web-00001 10 false http://old-web.%s.sonagi.localhost; ", ns, ns)
	have := ""
	for _, tt := range svc.Status.Traffic {
		have += fmt.Sprintf("%s %s %d %t %s; ", tt.Tag, tt.RevisionName, *tt.Percent, *tt.LatestRevision, tt.URL)
	}
	if have != want {
		t.Errorf("traffic is %s\nwant %s", have, want)
	}
	get[corev1.Service](t, p, ns, "next-web")
	// Without tags their names go, and the old revision is no longer routed to.
	svc.Spec.Traffic = []servingv1.TrafficTarget{{LatestRevision: ptr.To(true), Percent: ptr.To[int64](100)}}
	if err := p.api.Update(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	awaitService(t, p, svc, "without tags", func(s *servingv1.Service) bool { return s.IsReady() && len(s.Status.Traffic) == 1 })
	await(t, p, get[servingv1.Revision](t, p, ns, "web-00001"), &servingv1.RevisionList{}, "in reserve", func(r *servingv1.Revision) bool {
		return r.GetRoutingState() == servingv1.RoutingStateReserve && r.Annotations["serving.knative.dev/routes"] == ""
	})
	if err := p.api.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "next-web"}, &corev1.Service{}); !apierrors.IsNotFound(err) {
		t.Errorf("the tag's Service is still there: %v", err)
	}
	await(t, p, get[autoscalingv1alpha1.PodAutoscaler](t, p, ns, "web-00001"), &autoscalingv1alpha1.PodAutoscalerList{}, "unreachable",
		func(pa *autoscalingv1alpha1.PodAutoscaler) bool {
			return pa.Spec.Reachability == autoscalingv1alpha1.ReachabilityUnreachable
		})
}

func TestFailures(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	for name, tt := range map[string]struct {
		image            string
		revision, config func(apis.Condition) bool
		service          string
	}{
		"missing": {"missing", failure("ContainerHealthy", "ContainerMissing", `Unable to fetch image "missing": failed to resolve image to digest: HEAD https://registry.test`),
			failure("Ready", "RevisionFailed", `Revision "missing-00001" failed with message: Unable to fetch image "missing"`), "RevisionMissing"},
		"crash": {"crash", failure("ContainerHealthy", "ExitCode3", "Container failed with: no such table: users"),
			failure("Ready", "RevisionFailed", `Revision "crash-00001" failed with message: Container failed with: no such table: users.`), "RevisionMissing"},
		"unschedulable": {"unschedulable", failure("ResourcesAvailable", "Unschedulable", "0/1 nodes are available"),
			failure("Ready", "RevisionFailed", "0/1 nodes are available"), "RevisionMissing"},
	} {
		t.Run(name, func(t *testing.T) {
			svc := newService(ns, name, tt.image)
			if err := p.api.Create(t.Context(), svc); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			svc = awaitService(t, p, svc, "failed", func(s *servingv1.Service) bool {
				return s.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady).IsFalse() &&
					s.Status.GetCondition(servingv1.ServiceConditionRoutesReady).IsFalse()
			})
			t.Logf("told after %v", time.Since(begun).Round(time.Millisecond))
			if c := svc.Status.GetCondition(servingv1.ServiceConditionReady); c.Reason != tt.service {
				t.Errorf("service: %s: %s", c.Reason, c.Message)
			}
			if c := svc.Status.GetCondition(servingv1.ServiceConditionRoutesReady); c.Reason != "RevisionMissing" ||
				c.Message != fmt.Sprintf("Configuration %q does not have any ready Revision.", name) {
				t.Errorf("route: %s: %s", c.Reason, c.Message)
			}
			has := func(o object, ok func(apis.Condition) bool) {
				t.Helper()
				for _, c := range o.GetStatus().Conditions {
					if ok(c) {
						return
					}
				}
				t.Errorf("%s: %+v", o.GetName(), o.GetStatus().Conditions)
			}
			has(get[servingv1.Revision](t, p, ns, name+"-00001"), tt.revision)
			has(get[servingv1.Configuration](t, p, ns, name), tt.config)
			// A good image repairs it.
			svc.Spec.Template.Spec.Containers[0].Image = "good"
			if err := p.api.Update(t.Context(), svc); err != nil {
				t.Fatal(err)
			}
			awaitService(t, p, svc, "repaired", ready)
		})
	}
}

func TestRouteFaults(t *testing.T) {
	p := control(t)
	ns := p.space(t)
	route := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "lost"}, Spec: servingv1.RouteSpec{
		Traffic: []servingv1.TrafficTarget{{RevisionName: "none", Percent: ptr.To[int64](100)}}}}
	if err := p.api.Create(t.Context(), route); err != nil {
		t.Fatal(err)
	}
	route = await(t, p, route, &servingv1.RouteList{}, "failed", func(r *servingv1.Route) bool { return r.IsFailed() })
	c := route.Status.GetCondition(servingv1.RouteConditionAllTrafficAssigned)
	if c.Reason != "RevisionMissing" || c.Message != `Revision "none" referenced in traffic not found.` {
		t.Errorf("%s: %s", c.Reason, c.Message)
	}
	if route.Status.URL.String() != "http://lost."+ns+".sonagi.localhost" {
		t.Errorf("url is %s", route.Status.URL)
	}
}

func TestOwnRevisionName(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	svc := newService(ns, "web", "one")
	svc.Spec.Template.Name = "web-first"
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = awaitService(t, p, svc, "ready", ready)
	if svc.Status.LatestReadyRevisionName != "web-first" {
		t.Errorf("revision is %s", svc.Status.LatestReadyRevisionName)
	}
	taken := newService(ns, "web-f", "two")
	taken.Spec.Template.Name = "web-f-x"
	if err := p.api.Create(t.Context(), &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web-f-x"}, Spec: svc.Spec.Template.Spec}); err != nil {
		t.Fatal(err)
	}
	if err := p.api.Create(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	taken = awaitService(t, p, taken, "told of the name", func(s *servingv1.Service) bool {
		return s.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady).IsFalse() &&
			s.Status.GetCondition(servingv1.ServiceConditionRoutesReady).IsFalse()
	})
	if c := taken.Status.GetCondition(servingv1.ServiceConditionRoutesReady); c.Reason != "RevisionNameTaken" {
		t.Errorf("%s: %s", c.Reason, c.Message)
	}
	if c := taken.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady); c.Reason != "RevisionFailed" ||
		!strings.HasPrefix(c.Message, "Revision creation failed with message: ") {
		t.Errorf("%s: %s", c.Reason, c.Message)
	}
}

// Settings take effect without a restart, and admission refuses bad ones.
func TestSettings(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	svc := newService(ns, "web", "hello")
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	awaitService(t, p, svc, "ready", ready)
	change := func(name, key, value string) error {
		cm := &corev1.ConfigMap{}
		if err := p.api.Get(context.Background(), client.ObjectKey{Namespace: settingsNamespace, Name: name}, cm); err != nil {
			return err
		}
		before := cm.DeepCopy()
		if cm.Data[key] = value; value == "" {
			delete(cm.Data, key)
		}
		return p.api.Patch(context.Background(), cm, client.MergeFrom(before))
	}
	if err := change("config-network", "domain-template", "{{.Nome}}"); err == nil || !strings.Contains(err.Error(), `admission webhook "config.webhook.serving.knative.dev" denied the request: validation failed`) {
		t.Errorf("a bad template: %v", err)
	}
	if err := change("config-network", "domain-template", "{{.Name}}-{{.Namespace}}.{{.Domain}}"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = change("config-network", "domain-template", "") })
	awaitService(t, p, svc, "renamed", func(s *servingv1.Service) bool {
		return s.IsReady() && s.Status.URL.Host == "web-"+ns+".sonagi.localhost"
	})
	if err := change("config-deployment", "progress-deadline", "77s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = change("config-deployment", "progress-deadline", "") })
	await(t, p, get[appsv1.Deployment](t, p, ns, "web-00001-deployment"), &appsv1.DeploymentList{}, "given the deadline", func(d *appsv1.Deployment) bool {
		return *d.Spec.ProgressDeadlineSeconds == 77
	})
	if err := p.api.Create(t.Context(), newService(ns, "bad", "")); err == nil ||
		!strings.Contains(err.Error(), `admission webhook "validation.webhook.serving.knative.dev" denied the request: validation failed: missing field(s): spec.template.spec.containers[0].image`) {
		t.Errorf("a service without an image: %v", err)
	}
}

func TestServiceIsDeleted(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	svc := newService(ns, "web", "hello")
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	svc = awaitService(t, p, svc, "ready", ready)
	w, err := p.api.Watch(t.Context(), &servingv1.ServiceList{}, client.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if err := p.api.Delete(t.Context(), svc, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		t.Fatal(err)
	}
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-w.ResultChan():
			if e.Type == watch.Deleted {
				return
			}
		case <-timeout:
			t.Fatal("still there")
		}
	}
}

func TestCollect(t *testing.T) {
	p := control(t)
	playNode(t, p)
	cm := get[corev1.ConfigMap](t, p, settingsNamespace, "config-gc")
	before := cm.DeepCopy()
	cm.Data["min-non-active-revisions"], cm.Data["max-non-active-revisions"] = "0", "1"
	if err := p.api.Patch(t.Context(), cm, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.api.Patch(context.Background(), before, client.MergeFrom(cm)) })
	ns := p.space(t)
	svc := newService(ns, "web", "image-1")
	if err := p.api.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	for i := 2; i <= 4; i++ {
		svc = awaitService(t, p, svc, "ready", ready)
		svc.Spec.Template.Spec.Containers[0].Image = "image-" + strconv.Itoa(i)
		if err := p.api.Update(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
	}
	awaitService(t, p, svc, "ready", ready)
	deadline := time.Now().Add(10 * time.Second)
	for {
		revs := &servingv1.RevisionList{}
		if err := p.api.List(t.Context(), revs, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		if len(revs.Items) == 2 && revs.Items[1].Name == "web-00004" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d revisions are left", len(revs.Items))
		}
		time.Sleep(50 * time.Millisecond) // a deletion has no event on what stays
	}
}

// TestWrites prints what a service costs: the writes of all kinds, from its creation until it
// is ready and quiet.
func TestWrites(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	before := p.requests(t)
	const n = 10
	for i := range n {
		svc := newService(ns, fmt.Sprintf("web-%d", i), "hello")
		if err := p.api.Create(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		awaitService(t, p, svc, "ready", ready)
	}
	time.Sleep(2 * time.Second) // nothing says that nothing follows
	after := p.requests(t)
	var names []string
	total := 0
	for name := range after {
		if after[name] > before[name] {
			names = append(names, name)
			total += after[name] - before[name]
		}
	}
	sort.Strings(names)
	for _, name := range names {
		t.Logf("%5.1f %s", float64(after[name]-before[name])/n, name)
	}
	t.Logf("%5.1f writes for each service", float64(total)/n)
}

var requestLine = regexp.MustCompile(`^apiserver_request_total\{code="(\d+)".*resource="([^"]*)".*subresource="([^"]*)".*verb="(POST|PUT|PATCH|DELETE|APPLY)".*\} (\d+)`)

// requests counts the writes that the API server has taken, by kind.
func (p *plane) requests(t testing.TB) map[string]int {
	t.Helper()
	k, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		t.Fatal(err)
	}
	text, err := k.RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for line := range bytes.Lines(text) {
		if m := requestLine.FindSubmatch(line); m != nil {
			name := fmt.Sprintf("%s %s", m[4], m[2])
			if len(m[3]) > 0 {
				name += "/" + string(m[3])
			}
			if m[1][0] != '2' {
				name += " " + string(m[1])
			}
			n, _ := strconv.Atoi(string(m[5]))
			out[name] += n
		}
	}
	return out
}

// TestManyServices creates 200 services in a loop, and prints how long the last one takes. The
// figure is for a quiet machine; here it must only come to an end.
func TestManyServices(t *testing.T) {
	p := control(t)
	playNode(t, p)
	ns := p.space(t)
	const n = 200
	w, err := p.api.Watch(t.Context(), &servingv1.ServiceList{}, client.InNamespace(ns))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	begun, used := time.Now(), p.processor(t)
	for i := range n {
		if err := p.api.Create(t.Context(), newService(ns, fmt.Sprintf("web-%d", i), "hello")); err != nil {
			t.Fatal(err)
		}
	}
	created := time.Now()
	left := map[string]bool{}
	for i := range n {
		left[fmt.Sprintf("web-%d", i)] = true
	}
	timeout := time.After(3 * time.Minute)
	for len(left) > 0 {
		select {
		case e := <-w.ResultChan():
			if s, ok := e.Object.(*servingv1.Service); ok && s.IsReady() {
				delete(left, s.Name)
			}
		case <-timeout:
			t.Fatalf("%d services are not ready", len(left))
		}
	}
	t.Logf("created in %v, all ready %v after the last, %v of processor time for each",
		created.Sub(begun).Round(time.Millisecond), time.Since(created).Round(time.Millisecond), (p.processor(t)-used)/n)
}

// processor is the time that the control plane has computed for.
func (p *plane) processor(t testing.TB) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, _ := strconv.Atoi(words[11])
	system, _ := strconv.Atoi(words[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}
