// SPDX-License-Identifier: Apache-2.0

package autoscaler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"

	"github.com/sonagi/sonagi/internal/serving/load"
)

// in runs a test in its own time.
func in(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		synctest.Wait()
		test(t, w)
		w.stop()
	})
}

func TestLife(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		synctest.Wait()
		w.want("created", "web", 1, -1, 0, "Unknown Queued")
		if s := w.pa("web").Status; s.ServiceName != "web" || s.MetricsServiceName != "web-private" || s.ObservedGeneration != 1 {
			t.Errorf("status: %+v", s)
		}
		time.Sleep(60 * time.Millisecond)
		synctest.Wait()
		w.want("ready", "web", 1, -1, 1, "True")
		if !w.pa("web").IsReady() {
			t.Errorf("not ready: %+v", w.pa("web").Status)
		}
		w.run(55 * time.Second)
		w.want("in the window", "web", 1, 1, 1, "True")
		w.run(8 * time.Second)
		w.want("after the window", "web", 0, 0, 0, "False NoTraffic")
		if c := w.pa("web").Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionReady); !c.IsFalse() || c.Reason != "NoTraffic" || c.Message != "The target is not receiving traffic." {
			t.Errorf("ready: %+v", c)
		}

		scales, statuses := w.writes()
		w.run(time.Hour)
		if s, st := w.writes(); s != scales || st != statuses {
			t.Errorf("at rest: %d scale and %d status writes", s-scales, st-statuses)
		}
		if w.planned() != 0 {
			t.Error("a revision at rest is on the agenda")
		}

		asked := time.Now()
		w.poke("web", 1, 0)
		if last := w.lastScaled(); last.replicas != 1 || !last.at.Equal(asked) {
			t.Errorf("poked: %+v after %v", last, last.at.Sub(asked))
		}
		w.run(2*time.Second, of("web", 1))
		w.want("back", "web", 1, 1, 1, "True")
		if _, st := w.writes(); st != statuses+1 {
			t.Errorf("%d status writes for a quick start, want 1", st-statuses)
		}
	})
}

func TestSlowStartIsShown(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(70 * time.Second)
		w.podStart = 5 * time.Second
		w.poke("web", 1, 0)
		held := of("web", 1)
		held.Held, held.Ready = 1, 0
		w.run(2*time.Second, held)
		w.want("waking", "web", 1, 1, 0, "Unknown Queued")
		w.run(6*time.Second, held)
		w.want("awake", "web", 1, 1, 1, "True")
	})
}

// TestLostPoke: the regular report wakes a revision as well.
func TestLostPoke(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(70 * time.Second)
		held := of("web", 1)
		held.Held, held.Ready = 1, 0
		w.run(time.Second, held)
		if got := w.replicas("web"); got != 1 {
			t.Errorf("%d replicas", got)
		}
	})
}

func TestBurst(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, map[string]string{"target": "10", "max-scale": "20"})
		w.run(70 * time.Second)
		w.podStart = 20 * time.Second
		w.poke("web", 200, 0)
		if got := w.replicas("web"); got != 1 {
			t.Errorf("at once: %d replicas", got)
		}
		w.poke("web", 200, 100*time.Millisecond)
		if got := w.replicas("web"); got != 4 {
			t.Errorf("after 100 ms: %d replicas", got)
		}
		w.poke("web", 200, 700*time.Millisecond)
		if got := w.replicas("web"); got != 20 {
			t.Errorf("after 700 ms: %d replicas", got)
		}
		// One pod that is busy is no reason to believe each request that waits.
		w.create("busy", 1, map[string]string{"target": "1"})
		w.run(30 * time.Second)
		w.poke("busy", 1, 0)
		w.poke("busy", 50, 10*time.Second)
		if got := w.replicas("busy"); got != 1 {
			t.Errorf("busy: %d replicas", got)
		}
	})
}

func TestLoadIsActedOnAtOnce(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(20*time.Second, of("web", 10))
		time.Sleep(300 * time.Millisecond)
		before := time.Now()
		w.send(load.Batch{Span: time.Second, Samples: []load.Sample{of("web", 2000)}})
		synctest.Wait()
		if last := w.lastScaled(); last.replicas < 2 || !last.at.Equal(before) {
			t.Errorf("%+v, %v later", last, last.at.Sub(before))
		}
	})
}

func TestRestart(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("idle", 1, nil)
		w.create("busy", 1, nil)
		w.run(100*time.Second, of("busy", 400))
		w.want("idle", "idle", 0, 0, 0, "False NoTraffic")
		w.want("busy", "busy", 6, 6, 6, "True")
		scales, statuses := w.writes()

		w.start()
		synctest.Wait()
		time.Sleep(30 * time.Second) // the data plane does not report yet
		w.run(50 * time.Second)      // and then loses half a minute
		w.want("idle", "idle", 0, 0, 0, "False NoTraffic")
		w.want("busy", "busy", 6, 6, 6, "True")
		if s, st := w.writes(); s != scales || st != statuses {
			t.Errorf("a restart alone: %d scale and %d status writes: %+v", s-scales, st-statuses, w.stated[statuses:])
		}
		w.run(60*time.Second, of("busy", 100))
		w.want("busy after a window", "busy", 2, 2, 2, "True")
		w.poke("idle", 1, 0)
		w.run(2*time.Second, of("idle", 1), of("busy", 100))
		w.want("idle", "idle", 1, 1, 1, "True")
	})
}

func TestDataPlaneIsSilent(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(30*time.Second, of("web", 10))
		time.Sleep(time.Hour)
		synctest.Wait()
		w.want("after an hour of silence", "web", 1, 1, 1, "True")
	})
}

func TestNeverReady(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.stuck = true
		w.configure("config-deployment", map[string]string{"progress-deadline": "120s"})
		w.create("web", 1, nil)
		w.run(140 * time.Second)
		w.want("before the deadline", "web", 1, -1, 0, "Unknown Queued")
		w.run(20 * time.Second)
		w.want("after the deadline", "web", 0, 0, 0, "False TimedOut")
		if s := w.pa("web").Status; s.IsScaleTargetInitialized() {
			t.Error("initialized")
		}
	})
}

func TestSettings(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.create("short", 1, map[string]string{"window": "6s"})
		w.run(3 * time.Second)
		w.configure("config-autoscaler", map[string]string{"min-scale": "3"})
		w.run(2 * time.Second)
		w.want("min scale", "web", 3, 3, 3, "True")
		w.configure("config-autoscaler", map[string]string{"stable-window": "not a duration"})
		w.run(2 * time.Second)
		w.want("nonsense", "web", 3, 3, 3, "True")
		w.configure("config-autoscaler", map[string]string{"enable-scale-to-zero": "false"})
		w.run(3 * time.Minute)
		w.want("no scale to zero", "web", 1, 1, 1, "True")
		w.configure("config-autoscaler", nil)
		w.run(10 * time.Second)
		w.want("default", "web", 0, 0, 0, "False NoTraffic")
		w.want("default", "short", 0, 0, 0, "False NoTraffic")
	})
}

func TestChangedRevision(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(3 * time.Second)
		w.change("web", func(pa *autoscalingv1alpha1.PodAutoscaler) {
			pa.Annotations[autoscaling.MinScaleAnnotationKey] = "2"
		})
		w.run(3 * time.Second)
		w.want("min scale", "web", 2, 2, 2, "True")
		if got := w.pa("web").Status.ObservedGeneration; got != 2 {
			t.Errorf("observed generation %d", got)
		}
		w.scale("web", 7)
		w.run(3 * time.Second)
		if got := w.replicas("web"); got > 3 {
			t.Errorf("somebody's scale stays: %d replicas", got)
		}
		w.change("web", func(pa *autoscalingv1alpha1.PodAutoscaler) {
			pa.Spec.Reachability = autoscalingv1alpha1.ReachabilityUnreachable
		})
		w.run(2 * time.Minute)
		w.want("unreachable", "web", 0, 0, 0, "False NoTraffic")
		// A class of somebody else.
		w.change("web", func(pa *autoscalingv1alpha1.PodAutoscaler) {
			pa.Annotations[autoscaling.ClassAnnotationKey] = "other.example.com"
		})
		synctest.Wait()
		if len(w.a.revisions) != 0 {
			t.Error("a revision of another class is scaled")
		}
	})
}

func TestHorizontal(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, map[string]string{"class": autoscaling.HPA, "min-scale": "2"})
		synctest.Wait()
		if s := w.pa("web").Status; !s.IsActive() || s.IsScaleTargetInitialized() || s.ObservedGeneration != 1 {
			t.Errorf("before its pods are there: %+v", s)
		}
		w.scale("web", 2) // as the controller does
		w.run(time.Second)
		if s := w.pa("web").Status; !w.pa("web").IsReady() || !s.IsScaleTargetInitialized() || s.ServiceName != "web" {
			t.Errorf("with its pods: %+v", s)
		}
		if w.asked != 1 {
			t.Errorf("asked for %d times", w.asked)
		}
		_, before := w.writes()
		w.run(5 * time.Minute)
		if _, after := w.writes(); after != before || w.asked != 1 {
			t.Errorf("at rest: %d status writes, asked for %d times", after-before, w.asked)
		}
		if w.replicas("web") != 2 {
			t.Error("scaled by two")
		}
		h := w.hpas["web"].DeepCopy()
		h.Status.CurrentReplicas, h.Status.DesiredReplicas = 2, 5
		w.putHorizontal(h)
		w.configure("config-autoscaler", map[string]string{"max-scale": "6"})
		synctest.Wait()
		if s := w.pa("web").Status; s.GetDesiredScale() != 5 || s.GetActualScale() != 2 {
			t.Errorf("status: %+v", s)
		}
		if got := w.hpas["web"].Spec.MaxReplicas; got != 6 {
			t.Errorf("at most %d", got)
		}
		h = w.hpas["web"].DeepCopy()
		h.OwnerReferences = nil
		w.putHorizontal(h)
		w.change("web", func(pa *autoscalingv1alpha1.PodAutoscaler) { pa.Annotations[autoscaling.MinScaleAnnotationKey] = "3" })
		synctest.Wait()
		if c := w.pa("web").Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive); !c.IsFalse() || c.Reason != "NotOwned" {
			t.Errorf("somebody else's: %+v", c)
		}
	})
}

func TestRefusedWrites(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.create("web", 1, nil)
		w.run(70 * time.Second)
		w.mu.Lock()
		w.refuse = errors.New("no space left on device")
		w.mu.Unlock()
		w.poke("web", 1, 0)
		time.Sleep(time.Second)
		w.mu.Lock()
		w.refuse = nil
		w.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.replicas("web"); got != 1 {
			t.Errorf("%d replicas after the API came back", got)
		}
		w.run(10*time.Second, of("web", 1))
		w.want("after all", "web", 1, 1, 1, "True")
	})
}

func TestDeletedAndMadeAgain(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		for range 3 {
			w.create("web", 1, nil)
			w.run(3 * time.Second)
			w.want("made", "web", 1, 1, 1, "True")
			w.mu.Lock()
			d, pa := w.deployments["web"], w.pas["web"]
			delete(w.deployments, "web")
			delete(w.pas, "web")
			w.informer(d).Delete(d)
			w.informer(pa).Delete(pa)
			w.mu.Unlock()
			synctest.Wait()
			if len(w.a.revisions)+len(w.a.targets)+len(w.a.agenda.items) != 0 {
				t.Fatalf("%d revisions, %d targets, %d on the agenda are left", len(w.a.revisions), len(w.a.targets), len(w.a.agenda.items))
			}
			w.poke("web", 1, 0)
		}
	})
}

func TestInitialScale(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.configure("config-autoscaler", map[string]string{"allow-zero-initial-scale": "true"})
		w.create("zero", 0, map[string]string{"initial-scale": "0"})
		w.create("three", 3, map[string]string{"initial-scale": "3"})
		synctest.Wait()
		w.want("zero", "zero", 0, -1, 0, "False NoTraffic")
		if !w.pa("zero").Status.IsScaleTargetInitialized() {
			t.Error("initial scale zero is not attained")
		}
		w.poke("zero", 1, 0)
		w.run(5*time.Second, of("zero", 1))
		w.want("zero", "zero", 1, 1, 1, "True")
		w.want("three", "three", 1, 1, 1, "True")
	})
}

// TestIdleCost: a thousand idle revisions.
func TestIdleCost(t *testing.T) {
	const many = 1000
	in(t, func(t *testing.T, w *world) {
		for i := range many {
			w.create(fmt.Sprintf("web-%d", i), 1, nil)
		}
		w.run(2 * time.Minute)
		if got := w.planned(); got != 0 {
			t.Errorf("%d idle revisions are on the agenda", got)
		}
		var before, after runtime.MemStats
		w.stop()
		w.stated, w.scaled, w.informers.InformersByGVK = nil, nil, nil
		runtime.GC()
		runtime.ReadMemStats(&before)
		w.a.revisions, w.a.targets, w.a.agenda.items = nil, nil, nil
		runtime.GC()
		runtime.ReadMemStats(&after)
		if each := int(before.HeapAlloc-after.HeapAlloc) / many; each > 4<<10 {
			t.Errorf("%d bytes for an idle revision", each)
		}
	})
}

func TestReceive(t *testing.T) {
	w := newWorld(t)
	a, err := New(Options{Client: &api{w: w}, Informers: w.informers})
	if err != nil {
		t.Fatal(err)
	}
	batch, _ := load.Encode(load.Batch{Span: time.Second})
	for _, tt := range []struct {
		name, method, body string
		want               int
	}{
		{"batch", http.MethodPost, string(batch), http.StatusNoContent},
		{"method", http.MethodGet, "", http.StatusMethodNotAllowed},
		{"nonsense", http.MethodPost, "{", http.StatusBadRequest},
		{"future", http.MethodPost, `{"v":9}`, http.StatusBadRequest},
		{"too much", http.MethodPost, strings.Repeat(" ", load.MaxBytes+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			a.ServeHTTP(rec, httptest.NewRequest(tt.method, load.Path, strings.NewReader(tt.body)))
			if rec.Code != tt.want {
				t.Errorf("%d %s, want %d", rec.Code, rec.Body, tt.want)
			}
		})
	}
}

// TestRace has everybody talk at once, over a real socket.
func TestRace(t *testing.T) {
	w := newWorld(t)
	w.podStart = time.Millisecond
	w.start()
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: w.a, ReadHeaderTimeout: time.Second}
	go srv.Serve(l)
	defer srv.Close()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	defer c.CloseIdleConnections()
	const revisions = 8
	for i := range revisions {
		w.create(fmt.Sprint("web-", i), 1, map[string]string{"window": "6s", "max-scale": "9"})
	}
	var talk sync.WaitGroup
	for i := range revisions {
		name := fmt.Sprint("web-", i)
		talk.Go(func() {
			for n := range 50 {
				b := load.Batch{Pokes: []load.Poke{{Revision: load.Revision{Namespace: "default", Name: name}, InFlight: int64(n)}}}
				if n%3 == 0 {
					b.Span, b.Samples = time.Second, []load.Sample{of(name, float64(n*n))}
				}
				data, err := load.Encode(b)
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := c.Post("http://control"+load.Path, load.ContentType, bytes.NewReader(data))
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
			}
		})
		talk.Go(func() {
			for n := range 20 {
				w.change(name, func(pa *autoscalingv1alpha1.PodAutoscaler) {
					metav1.SetMetaDataAnnotation(&pa.ObjectMeta, autoscaling.MinScaleAnnotationKey, fmt.Sprint(n%4))
				})
				w.scale(name, int32(n%5))
				w.configure("config-autoscaler", map[string]string{"max-scale": fmt.Sprint(n)})
			}
		})
	}
	talk.Wait()
	w.stop()
}
