// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// api is a store of objects that can be away.
type api struct {
	client.WithWatch
	away     atomic.Bool
	mu       sync.Mutex
	watchers []apiwatch.Interface
}

func newAPI(t *testing.T, objects ...client.Object) *api {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, servingv1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return &api{WithWatch: fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).Build()}
}

// IsWatchListSemanticsUnSupported makes reflectors list first.
func (*api) IsWatchListSemanticsUnSupported() bool { return true }

var errAway = errors.New("connection refused")

func (a *api) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if a.away.Load() {
		return errAway
	}
	return a.WithWatch.List(ctx, list, unversioned(opts)...)
}

func (a *api) Watch(ctx context.Context, list client.ObjectList, opts ...client.ListOption) (apiwatch.Interface, error) {
	if a.away.Load() {
		return nil, errAway
	}
	w, err := a.WithWatch.Watch(ctx, list, unversioned(opts)...)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watchers = append(a.watchers, w)
	return w, err
}

// unversioned leaves out what the fake does not understand.
func unversioned(opts []client.ListOption) []client.ListOption {
	o := (&client.ListOptions{}).ApplyOptions(opts)
	o.Raw, o.Continue = nil, ""
	return []client.ListOption{o}
}

func (a *api) leave() {
	a.away.Store(true)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.watchers {
		w.Stop()
	}
	a.watchers = nil
}

func start(t *testing.T, a *api, change ...func(*Options)) *Watch {
	o := Options{Client: a, Live: &routing.Live{}, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&o)
	}
	w := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := w.Task().Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// until waits for a table in which a host's target is a revision ("" for none).
func until(t *testing.T, w *Watch, host, revision string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := w.Live.Wait(ctx, func(table *routing.Table) bool {
		if table == nil {
			return false
		}
		target, refusal := table.Match(routing.Query{Host: host, Internal: true})
		if revision == "" {
			return refusal != routing.Matched
		}
		return refusal == routing.Matched && target.Revision.Name.Name == revision
	})
	if err != nil {
		t.Fatalf("%s is not routed to %q: %v", host, revision, err)
	}
}

func newRoute(name, revision string) *servingv1.Route {
	r := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Generation: 1}}
	hundred := int64(100)
	r.Status.URL = &apis.URL{Scheme: "http", Host: name + ".example"}
	r.Status.ObservedGeneration = 1
	r.Status.Traffic = []servingv1.TrafficTarget{
		{RevisionName: revision, Percent: &hundred},
		{RevisionName: revision, Tag: "t", URL: &apis.URL{Scheme: "http", Host: "t-" + name + ".example"}},
	}
	return r
}

func newRevision(name string) *servingv1.Revision {
	r := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	r.Spec.Containers = []corev1.Container{{}}
	return r
}

func TestTablesFollowTheAPI(t *testing.T) {
	a := newAPI(t, newRoute("web", "a"), newRevision("a"))
	var gone sync.Map
	w := start(t, a, func(o *Options) { o.OnGone = func(n routing.Name) { gone.Store(n.Name, true) } })
	if err := w.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, w, "web.example", "a")

	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(a.Create(ctx, newRevision("b")))
	r := newRoute("web", "b")
	check(a.Get(ctx, client.ObjectKeyFromObject(r), r))
	r.Status.Traffic[0].RevisionName = "b"
	check(a.Update(ctx, r))
	until(t, w, "web.example", "b")
	check(a.Delete(ctx, newRevision("a")))
	check(a.Create(ctx, newRoute("other", "b")))
	until(t, w, "other.example", "b")
	check(a.Delete(ctx, r))
	until(t, w, "web.example", "")
	until(t, w, "other.example", "b")
	if _, ok := gone.Load("a"); !ok {
		t.Error("nobody was told that a revision is gone")
	}
}

func TestTableStaysWhileTheAPIIsAway(t *testing.T) {
	a := newAPI(t, newRoute("web", "a"), newRevision("a"))
	w := start(t, a)
	until(t, w, "web.example", "a")
	a.leave()
	// What happens meanwhile is seen afterwards: deletions too.
	ctx := t.Context()
	if err := errors.Join(a.Create(ctx, newRoute("new", "a")), a.Delete(ctx, newRoute("web", "a"))); err != nil {
		t.Fatal(err)
	}
	until(t, w, "web.example", "a")
	a.away.Store(false)
	until(t, w, "new.example", "a")
	until(t, w, "web.example", "")
}

func TestSettingsTakeEffect(t *testing.T) {
	a := newAPI(t, newRoute("web", "a"), newRevision("a"),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "knative-serving", Name: "config-network"}, Data: map[string]string{"tag-template": "{{.Name}}-{{.Tag}}"}})
	w := start(t, a)
	until(t, w, "web-t.ns", "a")
	cm := &corev1.ConfigMap{}
	if err := a.Get(t.Context(), client.ObjectKey{Namespace: "knative-serving", Name: "config-network"}, cm); err != nil {
		t.Fatal(err)
	}
	cm.Data["tag-template"] = "{{.Tag}}-{{.Name}}"
	if err := a.Update(t.Context(), cm); err != nil {
		t.Fatal(err)
	}
	until(t, w, "t-web.ns", "a")
	until(t, w, "web-t.ns", "")
}

func TestPods(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", Labels: map[string]string{revisionLabel: "a"}}}
	pod.Status.PodIP = "10.0.0.1"
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	a := newAPI(t, pod)
	news := make(chan routing.Endpoint, 10)
	start(t, a, func(o *Options) { o.OnPod = func(e routing.Endpoint) { news <- e } })
	if e := <-news; !e.Ready || e.Gone || e.IP.String() != "10.0.0.1" || e.Revision.Name != "a" {
		t.Errorf("%+v", e)
	}
	if err := a.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	for e := range news {
		if e.Gone && !e.Ready {
			return
		}
	}
}

func TestProgrammed(t *testing.T) {
	a := newAPI(t, newRevision("a"))
	w := start(t, a)
	server := httptest.NewServer(w.Handler())
	defer server.Close()
	asked := make(chan string, 1)
	ask := func(query string) string {
		resp, err := http.Get(server.URL + Path + query)
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		return resp.Status
	}
	go func() { asked <- ask("?namespace=ns&name=web&generation=1") }()
	if err := a.Create(t.Context(), newRoute("web", "a")); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "200 OK" {
		t.Error(got)
	}
	r := &servingv1.Route{}
	if err := a.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "web"}, r); err != nil {
		t.Fatal(err)
	}
	r.Status.Traffic[0].RevisionName = "late"
	if err := a.Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	go func() { asked <- ask("?namespace=ns&name=web&resourceVersion=" + r.ResourceVersion) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := w.Live.Wait(ctx, func(t *routing.Table) bool {
		got, ok := t.Route(routing.Name{Namespace: "ns", Name: "web"})
		return ok && fmt.Sprint(got.Version) == r.ResourceVersion
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-asked:
		t.Error("answered before the revision was known:", got)
	default:
	}
	if err := a.Create(t.Context(), newRevision("late")); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "200 OK" {
		t.Error(got)
	}
	if got := ask("?generation=x"); got != "400 Bad Request" {
		t.Error(got)
	}
}
