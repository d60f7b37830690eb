// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

const metricsGroupVersion = "metrics.k8s.io/v1beta1"

// Metrics answers metrics.k8s.io/v1beta1. It is for the API server's aggregator
// only, which has authorized the request.
func (a *Agent) Metrics() http.Handler {
	mux := http.NewServeMux()
	const root = "GET /apis/metrics.k8s.io"
	mux.HandleFunc(root, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, metricsGroup()) })
	mux.HandleFunc(root+"/v1beta1", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, metricsResources()) })
	mux.HandleFunc(root+"/v1beta1/nodes", a.serveNodeMetrics)
	mux.HandleFunc(root+"/v1beta1/nodes/{name}", a.serveNodeMetrics)
	mux.HandleFunc(root+"/v1beta1/pods", a.servePodMetrics)
	mux.HandleFunc(root+"/v1beta1/namespaces/{namespace}/pods", a.servePodMetrics)
	mux.HandleFunc(root+"/v1beta1/namespaces/{namespace}/pods/{name}", a.servePodMetrics)
	return mux
}

func metricsGroup() metav1.APIGroup {
	v := metav1.GroupVersionForDiscovery{GroupVersion: metricsGroupVersion, Version: "v1beta1"}
	return metav1.APIGroup{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"},
		Name:     "metrics.k8s.io", Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v,
	}
}

func metricsResources() metav1.APIResourceList {
	verbs := metav1.Verbs{"get", "list"}
	return metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: metricsGroupVersion,
		APIResources: []metav1.APIResource{
			{Name: "nodes", Kind: "NodeMetrics", Verbs: verbs},
			{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: verbs},
		},
	}
}

func (a *Agent) serveNodeMetrics(w http.ResponseWriter, r *http.Request) {
	before, last, err := a.usage.rates(r.Context())
	if err != nil {
		statusError(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
		return
	}
	item := metricsv1beta1.NodeMetrics{
		TypeMeta:   metav1.TypeMeta{Kind: "NodeMetrics", APIVersion: metricsGroupVersion},
		ObjectMeta: metav1.ObjectMeta{Name: a.o.NodeName, CreationTimestamp: metav1.NewTime(a.now()), Labels: (&nodeKeeper{a: a}).labels()},
		Timestamp:  metav1.NewTime(last.at), Window: window(before, last),
		Usage: usageList(rate(before.node.cpuNanos, last.node.cpuNanos, last.at.Sub(before.at)), last.node.workingSet),
	}
	name := r.PathValue("name")
	selector, err := selectorOf(r)
	switch {
	case err != nil:
		statusError(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
	case name != "" && name != item.Name:
		statusError(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("nodes.metrics.k8s.io %q not found", name))
	case name != "" && !wantsTable(r):
		writeJSON(w, item)
	default:
		list := metricsv1beta1.NodeMetricsList{TypeMeta: metav1.TypeMeta{Kind: "NodeMetricsList", APIVersion: metricsGroupVersion}, Items: []metricsv1beta1.NodeMetrics{}}
		if selector(item.ObjectMeta) {
			list.Items = append(list.Items, item)
		}
		if wantsTable(r) {
			writeJSON(w, nodeTable(list.Items))
			return
		}
		writeJSON(w, list)
	}
}

func (a *Agent) servePodMetrics(w http.ResponseWriter, r *http.Request) {
	before, last, err := a.usage.rates(r.Context())
	if err != nil {
		statusError(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, err.Error())
		return
	}
	selector, err := selectorOf(r)
	if err != nil {
		statusError(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	namespace, name := r.PathValue("namespace"), r.PathValue("name")
	list := metricsv1beta1.PodMetricsList{TypeMeta: metav1.TypeMeta{Kind: "PodMetricsList", APIVersion: metricsGroupVersion}, Items: []metricsv1beta1.PodMetrics{}}
	for _, item := range podMetrics(before, last, a.now()) {
		if (namespace == "" || item.Namespace == namespace) && (name == "" || item.Name == name) && selector(item.ObjectMeta) {
			list.Items = append(list.Items, item)
		}
	}
	switch {
	case name != "" && len(list.Items) == 0:
		statusError(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("podmetrics.metrics.k8s.io %q not found", namespace+"/"+name))
	case wantsTable(r):
		writeJSON(w, podTable(list.Items))
	case name != "":
		writeJSON(w, list.Items[0])
	default:
		writeJSON(w, list)
	}
}

// podMetrics sums up what two measurements say of pods. A container that is in
// the later one only is measured from its start.
func podMetrics(before, last sample, now time.Time) []metricsv1beta1.PodMetrics {
	pods := map[string]*metricsv1beta1.PodMetrics{}
	for id, c := range last.containers {
		from, since := uint64(0), last.at.Sub(c.started)
		if b, ok := before.containers[id]; ok {
			from, since = b.CPUNanos, last.at.Sub(before.at)
		}
		key := c.namespace + "/" + c.pod
		p := pods[key]
		if p == nil {
			p = &metricsv1beta1.PodMetrics{
				TypeMeta:   metav1.TypeMeta{Kind: "PodMetrics", APIVersion: metricsGroupVersion},
				ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: c.pod, Labels: c.labels, CreationTimestamp: metav1.NewTime(now)},
				Timestamp:  metav1.NewTime(last.at), Window: window(before, last),
			}
			pods[key] = p
		}
		p.Containers = append(p.Containers, metricsv1beta1.ContainerMetrics{Name: c.name, Usage: usageList(rate(from, c.CPUNanos, since), c.MemoryWorkingSet)})
	}
	out := make([]metricsv1beta1.PodMetrics, 0, len(pods))
	for _, p := range pods {
		slices.SortFunc(p.Containers, func(a, b metricsv1beta1.ContainerMetrics) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b metricsv1beta1.PodMetrics) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// rate is processor time per time, in billionths of a core.
func rate(from, to uint64, in time.Duration) int64 {
	if in <= 0 || to < from {
		return 0
	}
	return int64(float64(to-from) / in.Seconds())
}

func usageList(nanocores int64, bytes uint64) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(nanocores, resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(bytes), resource.BinarySI),
	}
}

func window(before, last sample) metav1.Duration {
	return metav1.Duration{Duration: last.at.Sub(before.at).Truncate(time.Millisecond)}
}

func selectorOf(r *http.Request) (func(metav1.ObjectMeta) bool, error) {
	byLabel, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		return nil, err
	}
	byField, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		return nil, err
	}
	return func(m metav1.ObjectMeta) bool {
		return byLabel.Matches(labels.Set(m.Labels)) &&
			byField.Matches(fields.Set{"metadata.name": m.Name, "metadata.namespace": m.Namespace})
	}, nil
}

func statusError(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	writeJSON(w, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: int32(code),
	})
}

// wantsTable reports whether the answer is to be printed as it comes.
func wantsTable(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "as=Table") }

func nodeTable(items []metricsv1beta1.NodeMetrics) metav1.Table {
	t := table()
	for i := range items {
		t.Rows = append(t.Rows, row(&items[i], items[i].Name, items[i].Usage, items[i].Window))
	}
	return t
}

func podTable(items []metricsv1beta1.PodMetrics) metav1.Table {
	t := table()
	for i := range items {
		sum := corev1.ResourceList{}
		for _, c := range items[i].Containers {
			for name, q := range c.Usage {
				total := sum[name]
				total.Add(q)
				sum[name] = total
			}
		}
		t.Rows = append(t.Rows, row(&items[i], items[i].Name, sum, items[i].Window))
	}
	return t
}

func table() metav1.Table {
	column := func(name, format string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: name, Type: "string", Format: format}
	}
	return metav1.Table{
		TypeMeta:          metav1.TypeMeta{Kind: "Table", APIVersion: "meta.k8s.io/v1"},
		ColumnDefinitions: []metav1.TableColumnDefinition{column("Name", "name"), column("cpu", ""), column("memory", ""), column("Window", "")},
		Rows:              []metav1.TableRow{},
	}
}

func row(o runtime.Object, name string, use corev1.ResourceList, w metav1.Duration) metav1.TableRow {
	cpu, mem := use[corev1.ResourceCPU], use[corev1.ResourceMemory]
	return metav1.TableRow{Cells: []any{name, cpu.String(), mem.String(), w.Duration.String()}, Object: runtime.RawExtension{Object: o}}
}
