// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// serveSummary answers /stats/summary.
func (a *Agent) serveSummary(w http.ResponseWriter, r *http.Request) {
	onlyUse := r.URL.Query().Get("only_cpu_and_memory") == "true"
	s := a.usage.take(r.Context())
	at := metav1.NewTime(s.at)
	out := statsapi.Summary{Node: statsapi.NodeStats{
		NodeName: a.o.NodeName, StartTime: metav1.NewTime(bootTime()),
		CPU:    &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &s.node.cpuNanos},
		Memory: &statsapi.MemoryStats{Time: at, WorkingSetBytes: &s.node.workingSet},
	}}
	if d, err := readDisk(a.o.DataDir); err == nil && !onlyUse {
		size, free, used := uint64(d.size), uint64(d.free), uint64(d.size-d.free)
		inodes, inodesFree := uint64(d.inodes), uint64(d.inodesFree)
		out.Node.Fs = &statsapi.FsStats{Time: at, CapacityBytes: &size, AvailableBytes: &free, UsedBytes: &used, Inodes: &inodes, InodesFree: &inodesFree}
	}
	for _, worker := range a.all() {
		if stats, ok := worker.podStats(r, s, onlyUse); ok {
			out.Pods = append(out.Pods, stats)
		}
	}
	writeJSON(w, out)
}

// podStats is what a measurement says of one pod.
func (w *worker) podStats(r *http.Request, s sample, onlyUse bool) (statsapi.PodStats, bool) {
	p := w.snapshot()
	at := metav1.NewTime(s.at)
	out := statsapi.PodStats{PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}}
	var cpu, set, rss uint64
	for _, c := range s.containers {
		if c.namespace != p.Namespace || c.pod != p.Name {
			continue
		}
		cpu, set, rss = cpu+c.CPUNanos, set+c.MemoryWorkingSet, rss+c.MemoryRSS
		started := metav1.NewTime(c.started)
		if out.StartTime.IsZero() || started.Before(&out.StartTime) {
			out.StartTime = started
		}
		out.Containers = append(out.Containers, statsapi.ContainerStats{
			Name: c.name, StartTime: started,
			CPU: &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &c.CPUNanos},
			Memory: &statsapi.MemoryStats{
				Time: at, UsageBytes: &c.MemoryUsage, WorkingSetBytes: &c.MemoryWorkingSet, RSSBytes: &c.MemoryRSS,
				PageFaults: &c.MemoryPageFaults, MajorPageFaults: &c.MemoryMajorFault,
			},
		})
	}
	if len(out.Containers) == 0 {
		return out, false
	}
	slices.SortFunc(out.Containers, func(a, b statsapi.ContainerStats) int { return strings.Compare(a.Name, b.Name) })
	out.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &cpu}
	out.Memory = &statsapi.MemoryStats{Time: at, WorkingSetBytes: &set, RSSBytes: &rss}
	if onlyUse {
		return out, true
	}
	if use, err := w.storage(r.Context()); err == nil {
		total := uint64(use.total())
		out.EphemeralStorage = &statsapi.FsStats{Time: at, UsedBytes: &total}
		for i := range use.volumes {
			bytes, inodes := uint64(use.volumes[i].Bytes), uint64(use.volumes[i].Inodes)
			out.VolumeStats = append(out.VolumeStats, statsapi.VolumeStats{
				Name: use.volumes[i].Name, FsStats: statsapi.FsStats{Time: at, UsedBytes: &bytes, InodesUsed: &inodes},
			})
		}
	}
	return out, true
}

// serveResourceMetrics answers /metrics/resource, as Prometheus reads it.
func (a *Agent) serveResourceMetrics(w http.ResponseWriter, r *http.Request) {
	s := a.usage.take(r.Context())
	ms := s.at.UnixMilli()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	family := func(name, help, kind string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	type podUse struct{ cpu, memory uint64 }
	pods := map[string]podUse{}
	ids := make([]string, 0, len(s.containers))
	for id, c := range s.containers {
		ids = append(ids, id)
		key := fmt.Sprintf("namespace=%q,pod=%q", c.namespace, c.pod)
		sum := pods[key]
		pods[key] = podUse{sum.cpu + c.CPUNanos, sum.memory + c.MemoryWorkingSet}
	}
	slices.Sort(ids)
	each := func(name string, value func(containerUse) float64) {
		for _, id := range ids {
			c := s.containers[id]
			fmt.Fprintf(w, "%s{container=%q,namespace=%q,pod=%q} %g %d\n", name, c.name, c.namespace, c.pod, value(c), ms)
		}
	}
	family("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "counter")
	each("container_cpu_usage_seconds_total", func(c containerUse) float64 { return float64(c.CPUNanos) / 1e9 })
	family("container_memory_working_set_bytes", "Current working set of the container in bytes", "gauge")
	each("container_memory_working_set_bytes", func(c containerUse) float64 { return float64(c.MemoryWorkingSet) })
	family("container_start_time_seconds", "Start time of the container since unix epoch in seconds", "gauge")
	each("container_start_time_seconds", func(c containerUse) float64 { return float64(c.started.UnixMilli()) / 1e3 })
	family("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", "counter")
	fmt.Fprintf(w, "node_cpu_usage_seconds_total %g %d\n", float64(s.node.cpuNanos)/1e9, ms)
	family("node_memory_working_set_bytes", "Current working set of the node in bytes", "gauge")
	fmt.Fprintf(w, "node_memory_working_set_bytes %d %d\n", s.node.workingSet, ms)
	family("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "counter")
	for _, key := range sortedKeys(pods) {
		fmt.Fprintf(w, "pod_cpu_usage_seconds_total{%s} %g %d\n", key, float64(pods[key].cpu)/1e9, ms)
	}
	family("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "gauge")
	for _, key := range sortedKeys(pods) {
		fmt.Fprintf(w, "pod_memory_working_set_bytes{%s} %d %d\n", key, pods[key].memory, ms)
	}
	family("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", "gauge")
	fmt.Fprintf(w, "resource_scrape_error 0\n")
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
