// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

// api is a store of objects with a history, as the API server's, that can be
// away. What is not used of the client is nil.
type api struct {
	client.WithWatch
	mu       sync.Mutex
	away     bool
	log      []apiwatch.Event // the version of an event is its place, from 1
	watchers map[*watcher]struct{}
}

type watcher struct {
	kind reflect.Type
	out  chan apiwatch.Event
	stop func()
}

func (w *watcher) ResultChan() <-chan apiwatch.Event { return w.out }
func (w *watcher) Stop()                             { w.stop() }

func newAPI(t *testing.T, objects ...client.Object) *api {
	a := &api{watchers: map[*watcher]struct{}{}}
	for _, o := range objects {
		if err := a.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// IsWatchListSemanticsUnSupported makes reflectors list first.
func (*api) IsWatchListSemanticsUnSupported() bool { return true }

var errAway = errors.New("connection refused")

// current is the newest state of each object of a kind. The caller holds the lock.
func (a *api) current(kind reflect.Type) map[client.ObjectKey]client.Object {
	all := map[client.ObjectKey]client.Object{}
	for _, e := range a.log {
		o := e.Object.(client.Object)
		if reflect.TypeOf(o) != kind {
			continue
		}
		if all[client.ObjectKeyFromObject(o)] = o; e.Type == apiwatch.Deleted {
			delete(all, client.ObjectKeyFromObject(o))
		}
	}
	return all
}

func (a *api) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return errAway
	}
	var items []runtime.Object
	for _, o := range a.current(kindOf(list)) {
		items = append(items, o.DeepCopyObject())
	}
	list.SetResourceVersion(strconv.Itoa(len(a.log)))
	return meta.SetList(list, items)
}

func kindOf(list client.ObjectList) reflect.Type {
	items := reflect.ValueOf(list).Elem().FieldByName("Items").Type().Elem()
	return reflect.PointerTo(items)
}

func (a *api) Watch(_ context.Context, list client.ObjectList, opts ...client.ListOption) (apiwatch.Interface, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		return nil, errAway
	}
	o := (&client.ListOptions{}).ApplyOptions(opts)
	from, err := strconv.Atoi(o.Raw.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &watcher{kind: kindOf(list), out: make(chan apiwatch.Event, 1000)}
	w.stop = sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, w)
		close(w.out)
	})
	for _, e := range a.log[from:] {
		w.tell(e)
	}
	a.watchers[w] = struct{}{}
	return w, nil
}

func (w *watcher) tell(e apiwatch.Event) {
	if reflect.TypeOf(e.Object) == w.kind {
		w.out <- apiwatch.Event{Type: e.Type, Object: e.Object.DeepCopyObject()}
	}
}

func (a *api) write(kind apiwatch.EventType, o client.Object) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	o.SetResourceVersion(strconv.Itoa(len(a.log) + 1))
	e := apiwatch.Event{Type: kind, Object: o.DeepCopyObject()}
	a.log = append(a.log, e)
	for w := range a.watchers {
		w.tell(e)
	}
	return nil
}

func (a *api) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	return a.write(apiwatch.Added, o)
}

func (a *api) Update(_ context.Context, o client.Object, _ ...client.UpdateOption) error {
	return a.write(apiwatch.Modified, o)
}

func (a *api) Delete(_ context.Context, o client.Object, _ ...client.DeleteOption) error {
	return a.write(apiwatch.Deleted, o)
}

func (a *api) leave() {
	a.mu.Lock()
	a.away = true
	watchers := slices.Collect(maps.Keys(a.watchers))
	a.mu.Unlock()
	for _, w := range watchers {
		w.Stop()
	}
}

func (a *api) comeBack() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = false
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
	gone := make(chan string, 10)
	w := start(t, a, func(o *Options) { o.OnGone = func(n routing.Name) { gone <- n.Name } })
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
	check(a.Update(ctx, r))
	until(t, w, "web.example", "b")
	check(a.Delete(ctx, newRevision("a")))
	check(a.Create(ctx, newRoute("other", "b")))
	until(t, w, "other.example", "b")
	check(a.Delete(ctx, r))
	until(t, w, "web.example", "")
	until(t, w, "other.example", "b")
	if got := <-gone; got != "a" {
		t.Errorf("%q is gone", got)
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
	a.comeBack()
	until(t, w, "new.example", "a")
	until(t, w, "web.example", "")
}

func TestSettingsTakeEffect(t *testing.T) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "knative-serving", Name: "config-network"}, Data: map[string]string{"tag-template": "{{.Name}}-{{.Tag}}"}}
	a := newAPI(t, newRoute("web", "a"), newRevision("a"), cm)
	w := start(t, a)
	until(t, w, "web-t.ns", "a")
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
	r := newRoute("web", "a")
	if err := a.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "200 OK" {
		t.Error(got)
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
