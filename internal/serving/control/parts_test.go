// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	testregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/serving/desired"
)

func revisionOf(images ...string) *servingv1.Revision {
	r := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "web-00001", UID: "uid"}}
	for i, image := range images {
		r.Spec.Containers = append(r.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", i), Image: image})
	}
	return r
}

// A registry that hangs is told of after a while, ends with the time-out, and is asked again
// later and later; another revision does not wait for it.
func TestDigestsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rings atomic.Int32
		d := newDigests(func(ctx context.Context, image Image) (string, error) {
			if strings.HasPrefix(image.Reference, "good") {
				return image.Reference + "@sha256:1", nil
			}
			<-ctx.Done()
			return "", ctx.Err()
		}, func(client.ObjectKey) { rings.Add(1) })
		s := &desired.Settings{DigestTimeout: 10 * time.Second}
		bad := revisionOf("hangs")
		if a := d.ask(bad, s); !a.pending || !a.fresh {
			t.Fatalf("at first: %+v", a)
		}
		good := revisionOf("good", "good", "good-too")
		good.Name, good.UID = "other", "other"
		d.ask(good, s)
		synctest.Wait()
		if a := d.ask(good, s); a.pending || len(a.containers) != 3 || a.containers[2].ImageDigest != "good-too@sha256:1" {
			t.Errorf("the other: %+v", a)
		}
		time.Sleep(patience)
		synctest.Wait()
		if a := d.ask(bad, s); !a.pending || a.fresh || rings.Load() != 2 {
			t.Errorf("after a while: %+v, %d rings", a, rings.Load())
		}
		time.Sleep(s.DigestTimeout)
		synctest.Wait()
		a := d.ask(bad, s)
		if !errors.Is(a.err, context.DeadlineExceeded) || !strings.HasPrefix(a.err.Error(), `Unable to fetch image "hangs": failed to resolve image to digest: `) {
			t.Fatalf("after the time-out: %+v", a)
		}
		for i, want := 0, time.Second; i < 3; i, want = i+1, 2*want {
			if a = d.ask(bad, s); a.err == nil || a.again > want || a.again < want-time.Second {
				t.Errorf("attempt %d is to be repeated after %v, want %v", i, a.again, want)
			}
			time.Sleep(a.again)
			if a := d.ask(bad, s); !a.pending {
				t.Errorf("attempt %d was not repeated: %+v", i, a)
			}
			time.Sleep(s.DigestTimeout)
			synctest.Wait()
		}
		d.forget(key(bad))
		d.forget(key(good))
		if len(d.open) != 0 {
			t.Error("not all is forgotten")
		}
	})
}

func TestTagsThatStay(t *testing.T) {
	d := newDigests(func(context.Context, Image) (string, error) { return "", errors.New("asked") }, func(client.ObjectKey) {})
	a := d.find(t.Context(), "team", &revisionOf("ko.local/hello").Spec, map[string]bool{"ko.local": true})
	if a.err != nil || a.containers[0].ImageDigest != "" {
		t.Errorf("got %+v", a)
	}
}

func TestRegistry(t *testing.T) {
	server := httptest.NewServer(testregistry.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	image, err := random.Image(16, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/hello:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(fake.NewClientset(), map[string]string{"registry.test": host})
	for reference, want := range map[string]string{
		host + "/hello:v1":                        host + "/hello@" + digest.String(),
		"registry.test/hello:v1":                  "registry.test/hello@" + digest.String(),
		host + "/hello@" + digest.String():        host + "/hello@" + digest.String(),
		"elsewhere.test/x@sha256:" + zeros:        "elsewhere.test/x@sha256:" + zeros,
		host + "/none:v1":                         "404",
		"hello world":                             `failed to parse image name "hello world" into a tag`,
		"registry.test/hello:v1@sha256:" + "0000": "failed to parse image name",
	} {
		have, err := r.resolve(t.Context(), Image{Reference: reference, Namespace: "team"})
		if err != nil {
			have = err.Error()
		}
		if have != want && (err == nil || !strings.Contains(have, want)) {
			t.Errorf("%s is %s, want %s", reference, have, want)
		}
	}
}

var zeros = strings.Repeat("0", 64)

// A private registry is asked with the secrets that the revision names.
func TestPullSecrets(t *testing.T) {
	hello := testregistry.New()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		hello.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	k := fake.NewClientset(
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "default"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "pull"}, Type: corev1.SecretTypeDockerConfigJson,
			Data: map[string][]byte{corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{%q:{"username":"me","password":"secret"}}}`, host)}})
	r := newRegistry(k, nil)
	if _, err := r.resolve(t.Context(), Image{Reference: host + "/hello", Namespace: "team"}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a secret: %v", err)
	}
	_, err := r.resolve(t.Context(), Image{Reference: host + "/hello", Namespace: "team", PullSecrets: []string{"pull"}})
	if err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("with a secret: %v", err)
	}
}

func TestProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		served := make(chan error)
		var rung []client.ObjectKey
		p := newProgrammed("", func(ctx context.Context, what Programming) error {
			select {
			case err := <-served:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}, func(k client.ObjectKey) { rung = append(rung, k) })
		route := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "web", ResourceVersion: "5"}}
		for range 2 {
			if p.serves(route) {
				t.Error("served before the gateway said so")
			}
		}
		route.ResourceVersion = "6" // the first question is of no interest any more
		if p.serves(route) {
			t.Error("served at another version")
		}
		synctest.Wait()
		served <- errors.New("gateway is away")
		synctest.Wait()
		if len(rung) != 1 || p.serves(route) {
			t.Errorf("after a failure: %v", rung)
		}
		served <- nil
		synctest.Wait()
		if len(rung) != 2 || !p.serves(route) {
			t.Errorf("after success: %v", rung)
		}
		p.forget(key(route))
	})
}

func TestOutliving(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	cfg := &servingv1.Configuration{}
	cfg.Status.LatestReadyRevisionName = "r9"
	revision := func(name, state string, age time.Duration) servingv1.Revision {
		r := servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-age)),
			Labels: map[string]string{serving.RoutingStateLabelKey: state}}}
		return r
	}
	all := []servingv1.Revision{
		revision("r1", "reserve", 10*time.Hour), revision("r2", "active", 9*time.Hour), revision("r3", "reserve", 8*time.Hour),
		revision("r4", "reserve", time.Hour), revision("r5", "reserve", 7*time.Hour), revision("r9", "reserve", 11*time.Hour),
	}
	all[4].Annotations = map[string]string{serving.RevisionPreservedAnnotationKey: "true"}
	const never = -1
	for name, tt := range map[string]struct {
		keep desired.Retention
		want string
		next time.Duration
	}{
		"by age":        {desired.Retention{SinceCreate: 2 * time.Hour, SinceActive: time.Hour, Min: 0, Max: never}, "r1 r3", time.Hour},
		"by age, least": {desired.Retention{SinceCreate: 2 * time.Hour, SinceActive: time.Hour, Min: 2, Max: never}, "r1", 0},
		"by number":     {desired.Retention{SinceCreate: never, SinceActive: never, Min: 0, Max: 1}, "r1 r3", 0},
		"by both":       {desired.Retention{SinceCreate: 9 * time.Hour, SinceActive: never, Min: 0, Max: 1}, "r1 r3", time.Hour},
		"never":         {desired.Retention{SinceCreate: never, SinceActive: never, Min: 0, Max: never}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			gone, next := outliving(cfg, all, tt.keep, now)
			var names []string
			for _, r := range gone {
				names = append(names, r.Name)
			}
			if have := strings.Join(names, " "); have != tt.want || next != tt.next {
				t.Errorf("got %q and %v, want %q and %v", have, next, tt.want, tt.next)
			}
		})
	}
	// Of the same second, the older ones go.
	var same []servingv1.Revision
	for _, generation := range []string{"3", "1", "2"} {
		r := revision("r"+generation, "reserve", time.Hour)
		r.Labels[serving.ConfigurationGenerationLabelKey] = generation
		same = append(same, r)
	}
	latest := revision("r9", "active", time.Hour)
	latest.Labels[serving.ConfigurationGenerationLabelKey] = "9"
	gone, _ := outliving(cfg, append(same, latest), desired.Retention{SinceCreate: never, SinceActive: never, Max: 1}, now)
	if len(gone) != 2 || gone[0].Name != "r1" || gone[1].Name != "r2" {
		t.Errorf("of the same second: %v", gone)
	}
}

// What was written is read even if the cache does not have it yet, but not for ever.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "web", ResourceVersion: "7"}}
		if err := m.note(svc, nil); err != nil {
			t.Fatal(err)
		}
		stale := &corev1.Service{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "5"}}
		if err := m.newer(key(svc), stale, nil); err != nil || stale.ResourceVersion != "7" {
			t.Errorf("older in the cache: %v, %s", err, stale.ResourceVersion)
		}
		if err := m.newer(key(svc), &corev1.ConfigMap{}, nil); err != nil {
			t.Errorf("another kind: %v", err)
		}
		newer := &corev1.Service{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "12"}}
		if err := m.newer(key(svc), newer, nil); err != nil || newer.ResourceVersion != "12" || len(m.wrote) != 0 {
			t.Errorf("newer in the cache: %v, %s", err, newer.ResourceVersion)
		}
		if err := m.note(svc, nil); err != nil {
			t.Fatal(err)
		}
		gone := apierrors.NewNotFound(corev1.Resource("services"), "web")
		if err := m.newer(key(svc), &corev1.Service{}, gone); err != nil {
			t.Errorf("not yet in the cache: %v", err)
		}
		m.caughtUp(svc)
		if err := m.newer(key(svc), &corev1.Service{}, gone); err == nil {
			t.Error("deleted after the cache had it, and still taken for there")
		}
		if err := m.note(svc, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(catchUp + time.Second)
		if m.newer(key(svc), stale, nil) != nil || len(m.wrote) != 0 {
			t.Error("remembered for too long")
		}
	})
}

// What apps and registries say is no format.
func TestWords(t *testing.T) {
	cfg := &servingv1.Configuration{}
	cfg.Status.InitializeConditions()
	cfg.Status.MarkLatestCreatedFailed("web-00001", "100%d of it")
	svc := &servingv1.Service{}
	svc.Status.InitializeConditions()
	status := cfg.Status
	status.Status = verbatim(status.Status)
	svc.Status.PropagateConfigurationStatus(&status)
	const want = `Revision "web-00001" failed with message: 100%d of it.`
	for _, got := range []string{svc.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady).Message, cfg.Status.GetCondition(servingv1.ConfigurationConditionReady).Message} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	rev := &servingv1.Revision{}
	rev.Status.InitializeConditions()
	rev.Status.PropagateDeploymentStatus(literally(&appsv1.DeploymentStatus{Conditions: []appsv1.DeploymentCondition{
		{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "50% of"},
	}}))
	if got := rev.Status.GetCondition(servingv1.RevisionConditionResourcesAvailable).Message; got != "50% of" {
		t.Errorf("of the Deployment: %q", got)
	}
}
