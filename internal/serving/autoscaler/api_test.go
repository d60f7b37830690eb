// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllertest"

	"github.com/sonagi/sonagi/internal/serving/load"
)

// world is an API server, a node and a data plane in a few lines. Pods become
// ready a while after they are asked for, and go at once.
type world struct {
	t   testing.TB
	a   *Autoscaler
	end context.CancelFunc
	err chan error

	podStart time.Duration
	stuck    bool // pods never become ready
	refuse   error

	mu          sync.Mutex
	version     int
	deployments map[string]*appsv1.Deployment
	pas         map[string]*autoscalingv1alpha1.PodAutoscaler
	hpas        map[string]*autoscalingv2.HorizontalPodAutoscaler
	asked       int // writes of these
	informers   *lockedInformers
	events      []func()
	scaled      []write
	stated      []*autoscalingv1alpha1.PodAutoscaler
}

type write struct {
	name     string
	replicas int32
	at       time.Time
}

func newWorld(t testing.TB) *world {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, autoscalingv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return &world{
		t: t, podStart: 50 * time.Millisecond, informers: &lockedInformers{FakeInformers: &informertest.FakeInformers{Scheme: scheme}},
		deployments: map[string]*appsv1.Deployment{}, pas: map[string]*autoscalingv1alpha1.PodAutoscaler{},
		hpas: map[string]*autoscalingv2.HorizontalPodAutoscaler{},
	}
}

// start starts an autoscaler, another one if there was one.
func (w *world) start() {
	w.t.Helper()
	w.stop()
	w.informers.InformersByGVK = nil
	a, err := New(Options{Client: &api{w: w}, Informers: w.informers})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, end := context.WithCancel(w.t.Context())
	w.a, w.end, w.err = a, end, make(chan error, 1)
	task := a.Task()
	go func() { w.err <- task.Run(ctx) }()
	if err := task.Ready(ctx); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.deployments {
		w.informer(d).Add(d)
	}
	for _, pa := range w.pas {
		w.informer(pa).Add(pa)
	}
}

func (w *world) stop() {
	if w.end == nil {
		return
	}
	w.end()
	if err := <-w.err; err != nil {
		w.t.Error(err)
	}
	w.end = nil
}

func (w *world) informer(o client.Object) *controllertest.FakeInformer {
	i, err := w.informers.GetInformer(w.t.Context(), o)
	if err != nil {
		panic(err)
	}
	return i.(*controllertest.FakeInformer)
}

// lockedInformers may be asked by several goroutines, as a real cache may.
type lockedInformers struct {
	*informertest.FakeInformers
	mu sync.Mutex
}

func (l *lockedInformers) GetInformer(ctx context.Context, o client.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.FakeInformers.GetInformer(ctx, o, opts...)
}

// create makes a revision as its reconciler would.
func (w *world) create(name string, replicas int32, annotations map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-deployment", ResourceVersion: w.next()}}
	d.Spec.Replicas = &replicas
	pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: name, UID: types.UID(name + w.next()), Generation: 1, ResourceVersion: w.next(),
		Annotations: map[string]string{autoscaling.ClassAnnotationKey: autoscaling.KPA},
	}}
	for k, v := range annotations {
		pa.Annotations["autoscaling.knative.dev/"+k] = v
	}
	pa.Spec.ScaleTargetRef = corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: d.Name}
	w.deployments[name], w.pas[name] = d, pa
	w.informer(pa).Add(pa)
	w.informer(d).Add(d)
	w.pods(name)
}

// change changes a PodAutoscaler.
func (w *world) change(name string, change func(*autoscalingv1alpha1.PodAutoscaler)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.pas[name]
	pa := old.DeepCopy()
	change(pa)
	pa.Generation++
	pa.ResourceVersion = w.next()
	w.pas[name] = pa
	w.informer(pa).Update(old, pa)
}

// scale sets replicas as anybody may.
func (w *world) scale(name string, replicas int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setReplicas(name, replicas)
}

func (w *world) configure(name string, data map[string]string) {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "knative-serving", Name: name}, Data: data}
	w.informer(c).Add(c)
}

func (w *world) next() string {
	w.version++
	return strconv.Itoa(w.version)
}

func (w *world) setReplicas(name string, replicas int32) string {
	w.update(name, func(d *appsv1.Deployment) { d.Spec.Replicas = &replicas })
	w.pods(name)
	return w.deployments[name].ResourceVersion
}

func (w *world) update(name string, change func(*appsv1.Deployment)) {
	old := w.deployments[name]
	d := old.DeepCopy()
	change(d)
	d.ResourceVersion = w.next()
	w.deployments[name] = d
	informer := w.informer(d)
	w.tell(func() { informer.Update(old, d) })
}

// tell brings an event: in order, and not in the call that made it.
func (w *world) tell(event func()) {
	w.events = append(w.events, event)
	if len(w.events) > 1 {
		return
	}
	go func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for len(w.events) > 0 {
			next := w.events[0]
			w.mu.Unlock()
			next()
			w.mu.Lock()
			w.events = w.events[1:]
		}
	}()
}

// pods lets the pods follow.
func (w *world) pods(name string) {
	settle := func() {
		if d := w.deployments[name]; d != nil && !w.stuck && d.Status.ReadyReplicas != *d.Spec.Replicas {
			w.update(name, func(d *appsv1.Deployment) { d.Status.ReadyReplicas = *d.Spec.Replicas })
		}
	}
	if d := w.deployments[name]; *d.Spec.Replicas < d.Status.ReadyReplicas {
		settle()
		return
	}
	time.AfterFunc(w.podStart, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		settle()
	})
}

// run lets time pass while the data plane reports.
func (w *world) run(d time.Duration, samples ...load.Sample) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(time.Second)
		w.send(load.Batch{Span: time.Second, Samples: samples})
		synctest.Wait()
	}
}

func (w *world) poke(name string, inFlight int64, waited time.Duration) {
	w.send(load.Batch{Pokes: []load.Poke{{Revision: load.Revision{Namespace: "default", Name: name}, InFlight: inFlight, Waited: waited}}})
	synctest.Wait()
}

func (w *world) send(b load.Batch) {
	data, err := load.Encode(b)
	if err != nil {
		w.t.Fatal(err)
	}
	if b, err = load.Decode(data); err != nil {
		w.t.Fatal(err)
	}
	w.a.Take(b, time.Now())
}

func of(name string, concurrency float64) load.Sample {
	return load.Sample{Revision: load.Revision{Namespace: "default", Name: name}, Concurrency: concurrency, Requests: int64(concurrency * 10), InFlight: int64(concurrency), Ready: 1}
}

func (w *world) replicas(name string) int32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *w.deployments[name].Spec.Replicas
}

func (w *world) pa(name string) *autoscalingv1alpha1.PodAutoscaler {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pas[name]
}

func (w *world) lastScaled() write {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.scaled[len(w.scaled)-1]
}

// planned is how many revisions the autoscaler will look at by itself.
func (w *world) planned() int {
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	return len(w.a.agenda.items)
}

func (w *world) writes() (scales, statuses int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.scaled), len(w.stated)
}

// want checks the status: replicas, desired, actual and the Active condition.
func (w *world) want(what, name string, replicas, desired, actual int32, active string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.pas[name].Status
	c := s.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive)
	if c == nil {
		w.t.Errorf("%s: no status", what)
		return
	}
	const form = "%d replicas, %d desired, %d actual, %s"
	got := fmt.Sprintf(form, *w.deployments[name].Spec.Replicas, s.GetDesiredScale(), s.GetActualScale(), strings.TrimSpace(string(c.Status)+" "+c.Reason))
	if want := fmt.Sprintf(form, replicas, desired, actual, active); got != want {
		w.t.Errorf("%s: %s; want %s", what, got, want)
	}
}

// api is the client of the autoscaler.
type api struct {
	client.Client
	w *world
}

func (c *api) SubResource(name string) client.SubResourceClient { return sub{c, name, nil, nil} }
func (c *api) Status() client.SubResourceWriter                 { return sub{c, "status", nil, nil} }

func (c *api) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	have := c.w.hpas[key.Name]
	if have == nil {
		return apierrors.NewNotFound(autoscalingv2.Resource("horizontalpodautoscalers"), key.Name)
	}
	have.DeepCopyInto(obj.(*autoscalingv2.HorizontalPodAutoscaler))
	return nil
}

func (c *api) Create(_ context.Context, obj client.Object, _ ...client.CreateOption) error {
	c.w.putHorizontal(obj)
	return nil
}

func (c *api) Update(_ context.Context, obj client.Object, _ ...client.UpdateOption) error {
	c.w.putHorizontal(obj)
	return nil
}

// putHorizontal stores what is asked for, with what a server fills in.
func (w *world) putHorizontal(obj client.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := obj.(*autoscalingv2.HorizontalPodAutoscaler).DeepCopy()
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType}}
	}
	w.asked++
	w.hpas[h.Name] = h
	informer := w.informer(h)
	w.tell(func() { informer.Add(h) })
}

type sub struct {
	*api
	name string
	client.SubResourceReader
	client.SubResourceWriter
}

func (s sub) Create(context.Context, client.Object, client.Object, ...client.SubResourceCreateOption) error {
	return errors.New("unexpected create")
}

func (s sub) Update(context.Context, client.Object, ...client.SubResourceUpdateOption) error {
	return errors.New("unexpected update")
}

func (s sub) Get(context.Context, client.Object, client.Object, ...client.SubResourceGetOption) error {
	return errors.New("unexpected get")
}

func (s sub) Apply(context.Context, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
	return errors.New("unexpected apply")
}

func (s sub) Patch(_ context.Context, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.refuse != nil {
		return w.refuse
	}
	if s.name == "scale" {
		var o client.SubResourcePatchOptions
		o.ApplyOptions(opts)
		return w.patchScale(obj.GetName(), data, o.SubResourceBody.(*autoscalingv1.Scale))
	}
	return w.patchStatus(obj.GetName(), data)
}

func (w *world) patchScale(deployment string, data []byte, after *autoscalingv1.Scale) error {
	name := deployment[:len(deployment)-len("-deployment")]
	var body struct {
		Spec struct{ Replicas int32 }
	}
	if err := json.Unmarshal(data, &body); err != nil {
		return err
	}
	if w.deployments[name] == nil {
		return apierrors.NewNotFound(schema.GroupResource{Group: "apps", Resource: "deployments"}, deployment)
	}
	w.scaled = append(w.scaled, write{name, body.Spec.Replicas, time.Now()})
	after.ResourceVersion = w.setReplicas(name, body.Spec.Replicas)
	return nil
}

func (w *world) patchStatus(name string, data []byte) error {
	old := w.pas[name]
	if old == nil {
		return apierrors.NewNotFound(autoscalingv1alpha1.Resource("podautoscalers"), name)
	}
	pa := old.DeepCopy()
	pa.Status.Conditions = nil
	if err := json.Unmarshal(data, pa); err != nil {
		return err
	}
	if pa.UID != old.UID {
		return apierrors.NewConflict(autoscalingv1alpha1.Resource("podautoscalers"), name, errors.New("uid"))
	}
	pa.ResourceVersion = w.next()
	w.pas[name] = pa
	w.stated = append(w.stated, pa)
	informer := w.informer(pa)
	w.tell(func() { informer.Update(old, pa) })
	return nil
}
