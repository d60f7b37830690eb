// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A world is one control plane that the tests below share.
type world struct {
	plane   *plane
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
}

func TestServes(t *testing.T) {
	p := start(t, t.TempDir(), freePort(t))
	config := p.config(t)
	w := &world{p, config, kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)}
	readyNode(t, w.client, "one")
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"discovery", w.discovery},
		{"openapi", w.openapi},
		{"table", w.table},
		{"custom resource", w.customResource},
		{"apply", w.apply},
		{"rbac", w.rbac},
		{"token", w.token},
		{"garbage", w.garbage},
		{"namespace", w.namespace},
		{"job", w.job},
		{"service", w.service},
		{"volume", w.volume},
		{"quota", w.quota},
		{"aggregation", w.aggregation},
	} {
		t.Run(test.name, test.run)
	}
	if took := p.stop(t); took.Seconds() > 5 {
		t.Errorf("stopping took %v", took)
	}
}

func (w *world) raw(t *testing.T, path, accept string) string {
	t.Helper()
	body, err := w.client.Discovery().RESTClient().Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return string(body)
}

func (w *world) discovery(t *testing.T) {
	_, lists, err := w.client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, list := range lists {
		for _, r := range list.APIResources {
			served[list.GroupVersion+" "+r.Name] = true
		}
	}
	for _, want := range []string{"v1 pods", "v1 pods/exec", "apps/v1 deployments/scale", "batch/v1 cronjobs", "policy/v1 poddisruptionbudgets",
		"autoscaling/v2 horizontalpodautoscalers", "storage.k8s.io/v1 storageclasses", "apiextensions.k8s.io/v1 customresourcedefinitions",
		"apiregistration.k8s.io/v1 apiservices", "admissionregistration.k8s.io/v1 validatingadmissionpolicies", "events.k8s.io/v1 events"} {
		if !served[want] {
			t.Errorf("%s is not served", want)
		}
	}
}

func (w *world) openapi(t *testing.T) {
	var index struct {
		Paths map[string]struct {
			ServerRelativeURL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal([]byte(w.raw(t, "/openapi/v3", "application/json")), &index); err != nil {
		t.Fatal(err)
	}
	// The URL carries its hash as a query.
	path, query, _ := strings.Cut(index.Paths["apis/apps/v1"].ServerRelativeURL, "?")
	if !strings.HasPrefix(query, "hash=") {
		t.Errorf("apps/v1 is at %q", index.Paths["apis/apps/v1"].ServerRelativeURL)
	}
	apps := w.raw(t, path, "application/json")
	for _, want := range []string{"io.k8s.api.apps.v1.Deployment", `"fieldValidation"`, `"x-kubernetes-group-version-kind"`} {
		if !strings.Contains(apps, want) {
			t.Errorf("%s lacks %s", path, want)
		}
	}
	if w.raw(t, path, "application/com.github.proto-openapi.spec.v3.v1.0+protobuf") == "" {
		t.Error("no protobuf")
	}
	whole := w.raw(t, "/openapi/v2", "application/json")
	for _, want := range []string{"io.k8s.api.core.v1.Pod", "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService", "/apis/apps/v1/namespaces/{namespace}/deployments"} {
		if !strings.Contains(whole, want) {
			t.Errorf("/openapi/v2 lacks %s", want)
		}
	}
}

func (w *world) table(t *testing.T) {
	table := w.raw(t, "/api/v1/nodes", "application/json;as=Table;v=v1;g=meta.k8s.io")
	for _, want := range []string{`"kind":"Table"`, `"Ready"`, `"one"`} {
		if !strings.Contains(table, want) {
			t.Errorf("table lacks %s: %.300s", want, table)
		}
	}
}

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

func (w *world) customResource(t *testing.T) {
	const definition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"things.example.test"},
		"spec":{"group":"example.test","scope":"Namespaced","names":{"plural":"things","singular":"thing","kind":"Thing","shortNames":["th"]},
		"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},
		"additionalPrinterColumns":[{"name":"Size","type":"integer","jsonPath":".spec.size"}],
		"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","description":"what the thing should be","properties":{"size":{"type":"integer","maximum":9}}}}}}}]}}`
	w.create(t, crds, "", definition)
	things := schema.GroupVersionResource{Group: "example.test", Version: "v1", Resource: "things"}
	eventually(t, "the kind is served", func(ctx context.Context) (bool, error) {
		_, err := w.dynamic.Resource(things).Namespace("default").List(ctx, metav1.ListOptions{})
		return err == nil, err
	})
	w.create(t, things, "default", `{"apiVersion":"example.test/v1","kind":"Thing","metadata":{"name":"one"},"spec":{"size":3}}`)
	if _, err := w.dynamic.Resource(things).Namespace("default").Create(t.Context(),
		object(t, `{"apiVersion":"example.test/v1","kind":"Thing","metadata":{"name":"big"},"spec":{"size":10}}`), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("size 10 gives %v", err)
	}
	if _, err := w.dynamic.Resource(things).Namespace("default").Create(t.Context(),
		object(t, `{"apiVersion":"example.test/v1","kind":"Thing","metadata":{"name":"odd"},"spec":{"colour":"red"}}`),
		metav1.CreateOptions{FieldValidation: "Strict"}); err == nil || !strings.Contains(err.Error(), `unknown field "spec.colour"`) {
		t.Errorf("an unknown field gives %v", err)
	}
	eventually(t, "the kind is described", func(ctx context.Context) (bool, error) {
		body, err := w.client.Discovery().RESTClient().Get().AbsPath("/openapi/v3/apis/example.test/v1").DoRaw(ctx)
		return strings.Contains(string(body), "what the thing should be"), err
	})
	if !strings.Contains(w.raw(t, "/openapi/v2", "application/json"), "test.example.v1.Thing") {
		t.Error("/openapi/v2 does not know the kind")
	}
	table := w.raw(t, "/apis/example.test/v1/namespaces/default/things", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if !strings.Contains(table, `"Size"`) {
		t.Errorf("table lacks the column: %.300s", table)
	}
}

func (w *world) apply(t *testing.T) {
	patch := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"},"data":{"a":"1"}}`
	apply := func(who, text string) error {
		_, err := w.client.CoreV1().ConfigMaps("default").Patch(t.Context(), "applied", types.ApplyPatchType, []byte(text), metav1.PatchOptions{FieldManager: who})
		return err
	}
	if err := apply("one", patch); err != nil {
		t.Fatal(err)
	}
	if err := apply("two", strings.Replace(patch, `"1"`, `"2"`, 1)); !apierrors.IsConflict(err) {
		t.Errorf("another manager's change gives %v", err)
	}
}

// rbac: the data plane's identity exists and may nothing yet; the node's may see its pods.
func (w *world) rbac(t *testing.T) {
	as := func(file string) kubernetes.Interface {
		config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(w.plane.dir, "pki", file))
		if err != nil {
			t.Fatal(err)
		}
		return kubernetes.NewForConfigOrDie(config)
	}
	if _, err := as("data-plane.kubeconfig").CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the data plane reads secrets: %v", err)
	}
	node := as("node.kubeconfig")
	if _, err := node.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=one"}); err != nil {
		t.Errorf("the node cannot list its pods: %v", err)
	}
	if _, err := node.CoreV1().Secrets("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the node reads all secrets: %v", err)
	}
}

func (w *world) token(t *testing.T) {
	request, err := w.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(w.config)
	config.BearerToken = request.Status.Token
	review, err := kubernetes.NewForConfigOrDie(config).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := review.Status.UserInfo.Username; got != "system:serviceaccount:default:default" {
		t.Errorf("the token is of %s", got)
	}
	w.create(t, schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, "default",
		`{"apiVersion":"v1","kind":"Secret","type":"kubernetes.io/service-account-token","metadata":{"name":"legacy","annotations":{"kubernetes.io/service-account.name":"default"}}}`)
	eventually(t, "the token secret is filled", func(ctx context.Context) (bool, error) {
		s, err := w.client.CoreV1().Secrets("default").Get(ctx, "legacy", metav1.GetOptions{})
		return err == nil && len(s.Data["token"]) > 0 && len(s.Data["ca.crt"]) > 0, err
	})
}

// garbage: what a deleted owner owned goes, also for kinds that came later.
func (w *world) garbage(t *testing.T) {
	maps := w.client.CoreV1().ConfigMaps("default")
	owner, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	owned := metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.UID}}}
	if _, err := w.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: owned}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := maps.Delete(t.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owned secret is gone", func(ctx context.Context) (bool, error) {
		_, err := w.client.CoreV1().Secrets("default").Get(ctx, "owned", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

func (w *world) namespace(t *testing.T) {
	spaces := w.client.CoreV1().Namespaces()
	if _, err := spaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "brief"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace has account and CA", func(ctx context.Context) (bool, error) {
		_, account := w.client.CoreV1().ServiceAccounts("brief").Get(ctx, "default", metav1.GetOptions{})
		_, root := w.client.CoreV1().ConfigMaps("brief").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return account == nil && root == nil, nil
	})
	if err := spaces.Delete(t.Context(), "brief", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace is gone", func(ctx context.Context) (bool, error) {
		_, err := spaces.Get(ctx, "brief", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

func (w *world) job(t *testing.T) {
	template := corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "example.test/none"}},
	}}
	ttl := int32(0)
	jobs := w.client.BatchV1().Jobs("default")
	_, err := jobs.Create(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "once"},
		Spec: batchv1.JobSpec{Template: template, TTLSecondsAfterFinished: &ttl}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the job's pod is bound, and ends", func(ctx context.Context) (bool, error) {
		pods, err := w.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=once"})
		if err != nil || len(pods.Items) == 0 || pods.Items[0].Spec.NodeName != "one" {
			return false, err
		}
		pod := &pods.Items[0]
		pod.Status.Phase = corev1.PodSucceeded
		_, err = w.client.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		return err == nil, err
	})
	eventually(t, "the finished job is removed", func(ctx context.Context) (bool, error) {
		_, err := jobs.Get(ctx, "once", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}

func (w *world) service(t *testing.T) {
	s, err := w.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "np"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "np"}, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Spec.ClusterIP, "10.43.") || s.Spec.Ports[0].NodePort < 30000 {
		t.Errorf("ClusterIP %s, NodePort %d", s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
	}
	eventually(t, "it has an endpoint slice", func(ctx context.Context) (bool, error) {
		l, err := w.client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=np"})
		return err == nil && len(l.Items) == 1, err
	})
	kubernetes, err := w.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || kubernetes.Spec.ClusterIP != "10.43.0.1" {
		t.Errorf("service kubernetes: %v %v", kubernetes.Spec.ClusterIP, err)
	}
}

// volume: a claim waits for its consumer, is provisioned and bound, and takes its directory with it.
func (w *world) volume(t *testing.T) {
	claims := w.client.CoreV1().PersistentVolumeClaims("default")
	_, err := claims.Create(t.Context(), &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := w.client.CoreV1().Pods("default")
	_, err = pods.Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "user"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "example.test/none"}},
		Volumes:    []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var path string
	eventually(t, "the pod is bound and its claim too", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "user", metav1.GetOptions{})
		if err != nil || pod.Spec.NodeName == "" {
			return false, err
		}
		claim, err := claims.Get(ctx, "data", metav1.GetOptions{})
		if err != nil || claim.Status.Phase != corev1.ClaimBound {
			return false, err
		}
		volume, err := w.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
		if err == nil {
			path = volume.Spec.HostPath.Path
		}
		return err == nil, err
	})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("%s: %v %v", path, info, err)
	}
	now := int64(0)
	if err := pods.Delete(t.Context(), "user", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	if err := claims.Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "volume and directory are gone", func(ctx context.Context) (bool, error) {
		l, err := w.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		_, gone := os.Stat(path)
		return err == nil && len(l.Items) == 0 && os.IsNotExist(gone), err
	})
}

func (w *world) quota(t *testing.T) {
	quotas := w.client.CoreV1().ResourceQuotas("kube-public")
	_, err := quotas.Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "few"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/secrets": resource.MustParse("1")}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the quota is counted", func(ctx context.Context) (bool, error) {
		q, err := quotas.Get(ctx, "few", metav1.GetOptions{})
		return err == nil && len(q.Status.Hard) > 0, err
	})
	secrets := w.client.CoreV1().Secrets("kube-public")
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "first"}}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "second"}}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("one too many gives %v", err)
	}
}

// aggregation: an APIService that points to a Service without endpoints is
// registered and unavailable, and does no harm to the rest.
func (w *world) aggregation(t *testing.T) {
	services := schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}
	w.create(t, services, "", `{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1beta1.metrics.k8s.io"},
		"spec":{"group":"metrics.k8s.io","version":"v1beta1","groupPriorityMinimum":100,"versionPriority":100,"insecureSkipTLSVerify":true,
		"service":{"namespace":"kube-system","name":"metrics-server"}}}`)
	eventually(t, "it is said to be unavailable", func(ctx context.Context) (bool, error) {
		o, err := w.dynamic.Resource(services).Get(ctx, "v1beta1.metrics.k8s.io", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		text, _ := o.MarshalJSON()
		return strings.Contains(string(text), "ServiceNotFound"), nil
	})
	defer func() { // while it is there, no namespace can be emptied for sure
		_ = w.dynamic.Resource(services).Delete(context.WithoutCancel(t.Context()), "v1beta1.metrics.k8s.io", metav1.DeleteOptions{})
	}()
	_, err := w.client.Discovery().RESTClient().Get().AbsPath("/apis/metrics.k8s.io/v1beta1/nodes").DoRaw(t.Context())
	if status := (*apierrors.StatusError)(nil); !asStatus(err, &status) || status.Status().Code != http.StatusServiceUnavailable {
		t.Errorf("its kinds give %v", err)
	}
}

func asStatus(err error, status **apierrors.StatusError) bool {
	s, ok := err.(*apierrors.StatusError)
	*status = s
	return ok
}

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := o.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return o
}

func (w *world) create(t *testing.T, kind schema.GroupVersionResource, namespace, text string) {
	t.Helper()
	if _, err := w.dynamic.Resource(kind).Namespace(namespace).Create(t.Context(), object(t, text), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
