// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/sonagi/sonagi/internal/mesh/routing"
)

func ptr[T any](v T) *T { return &v }

func route(url string, traffic ...servingv1.TrafficTarget) *servingv1.Route {
	u, err := apis.ParseURL(url)
	if err != nil {
		panic(err)
	}
	r := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", ResourceVersion: "42"}}
	r.Status.ObservedGeneration = 3
	r.Status.URL = u
	r.Status.Traffic = traffic
	return r
}

func target(revision string, percent int64) servingv1.TrafficTarget {
	return servingv1.TrafficTarget{RevisionName: revision, Percent: ptr(percent)}
}

func tagged(t servingv1.TrafficTarget, tag, url string) servingv1.TrafficTarget {
	t.Tag = tag
	t.URL, _ = apis.ParseURL(url)
	return t
}

func TestRoute(t *testing.T) {
	r, ok := Route(route("http://web.ns.example.com",
		target("a", 90), target("b", 10),
		tagged(target("b", 0), "blue", "http://blue-web.ns.example.com"),
		tagged(servingv1.TrafficTarget{RevisionName: "c"}, "in", "http://in-web.ns.svc.cluster.local"),
	), DefaultSettings())
	if !ok || r.Generation != 3 || r.Version != 42 {
		t.Fatalf("%+v, %v", r, ok)
	}
	var got []string
	for _, h := range r.Hosts {
		got = append(got, fmt.Sprintf("%s %d %q %v", h.Host, h.Visibility, h.Tag, h.Split.Shares()))
	}
	main := `[{ns/a 90} {ns/b 10}]`
	want := []string{
		`web.ns 1 "" ` + main,
		`web.ns.svc 1 "" ` + main,
		`web.ns.svc.cluster.local 1 "" ` + main,
		`web.ns.example.com 0 "" ` + main,
		`blue-web.ns 1 "blue" [{ns/b 1}]`,
		`blue-web.ns.svc 1 "blue" [{ns/b 1}]`,
		`blue-web.ns.svc.cluster.local 1 "blue" [{ns/b 1}]`,
		`blue-web.ns.example.com 0 "blue" [{ns/b 1}]`,
		`in-web.ns 1 "in" [{ns/c 1}]`,
		`in-web.ns.svc 1 "in" [{ns/c 1}]`,
		`in-web.ns.svc.cluster.local 1 "in" [{ns/c 1}]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("hosts\n%q\nwant\n%q", got, want)
	}
}

func TestClusterLocalRoute(t *testing.T) {
	r, _ := Route(route("http://web.ns.svc.cluster.local", target("a", 100)), DefaultSettings())
	for _, h := range r.Hosts {
		if h.Visibility != routing.ClusterLocal {
			t.Errorf("%s can be reached from outside", h.Host)
		}
	}
}

func TestTagInRollout(t *testing.T) {
	r, _ := Route(route("http://web.ns.example.com",
		tagged(target("a", 25), "t", "http://t-web.ns.example.com"),
		tagged(target("b", 75), "t", "http://t-web.ns.example.com"),
	), DefaultSettings())
	if got := r.Tags["t"].Shares(); len(got) != 2 || got[0].Percent != 25 || got[1].Percent != 75 {
		t.Errorf("shares %v", got)
	}
	if len(r.Hosts) != 8 {
		t.Errorf("%d hosts, want each once", len(r.Hosts))
	}
}

func TestRouteThatIsNotServed(t *testing.T) {
	if _, ok := Route(route("http://web.ns.example.com"), DefaultSettings()); ok {
		t.Error("without traffic")
	}
	r := route("http://web.ns.example.com", target("a", 100))
	r.DeletionTimestamp = &metav1.Time{}
	if _, ok := Route(r, DefaultSettings()); ok {
		t.Error("while it is deleted")
	}
}

func TestRevision(t *testing.T) {
	base := routing.Revision{
		Name: routing.Name{Namespace: "ns", Name: "a"}, Service: "web", Configuration: "web",
		Port: 8080, Timeout: 300 * time.Second,
	}
	for name, c := range map[string]struct {
		change func(*servingv1.Revision)
		want   func(*routing.Revision)
	}{
		"defaults": {func(*servingv1.Revision) {}, func(*routing.Revision) {}},
		"port and protocol": {
			func(r *servingv1.Revision) {
				r.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "h2c", ContainerPort: 9000}}
			},
			func(r *routing.Revision) { r.Port, r.Protocol = 9000, routing.H2C },
		},
		"http1 by name": {
			func(r *servingv1.Revision) {
				r.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http1"}}
			},
			func(*routing.Revision) {},
		},
		"the container with a port serves": {
			func(r *servingv1.Revision) {
				r.Spec.Containers = append(r.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{ContainerPort: 81}}})
			},
			func(r *routing.Revision) { r.Port = 81 },
		},
		"timeouts": {
			func(r *servingv1.Revision) {
				r.Spec.TimeoutSeconds, r.Spec.ResponseStartTimeoutSeconds, r.Spec.IdleTimeoutSeconds = ptr[int64](5), ptr[int64](4), ptr[int64](3)
			},
			func(r *routing.Revision) {
				r.Timeout, r.ResponseStart, r.Idle = 5*time.Second, 4*time.Second, 3*time.Second
			},
		},
		"concurrency": {
			func(r *servingv1.Revision) { r.Spec.ContainerConcurrency = ptr[int64](7) },
			func(r *routing.Revision) { r.Concurrency = 7 },
		},
		"concurrency guarded by the pod": {
			func(r *servingv1.Revision) {
				r.Spec.ContainerConcurrency = ptr[int64](7)
				r.Annotations = map[string]string{burstAnnotation: "0"}
			},
			func(r *routing.Revision) { r.Concurrency, r.Queue = 7, 70 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: "a",
				Labels: map[string]string{serviceLabel: "web", configLabel: "web"},
			}}
			r.Spec.Containers = []corev1.Container{{}}
			c.change(r)
			want := base
			c.want(&want)
			if got := Revision(r, DefaultSettings()); *got != want {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	s := DefaultSettings()
	s = s.With(Autoscaler, map[string]string{"target-burst-capacity": "0"})
	s = s.With(Defaults, map[string]string{"revision-timeout-seconds": "60"})
	s = s.With(Features, map[string]string{"tag-header-based-routing": "Enabled"})
	s = s.With(Network, map[string]string{"tag-template": "{{.Name}}--{{.Tag}}"})
	want := Settings{ClusterDomain: "cluster.local", TagTemplate: "{{.Name}}--{{.Tag}}", Timeout: time.Minute, TagHeader: true}
	if s != want {
		t.Errorf("%+v", s)
	}
	if got := s.tagged("t", "web"); got != "web--t" {
		t.Errorf("tagged: %s", got)
	}
	s = s.With(Autoscaler, map[string]string{"target-burst-capacity": "much"}).With(Defaults, nil).With(Features, nil).With(Network, nil).With("other", nil)
	if !reflect.DeepEqual(s, DefaultSettings()) {
		t.Errorf("back to defaults: %+v", s)
	}
}
