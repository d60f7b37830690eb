// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/podlog"
	"github.com/sonagi/sonagi/internal/node/volume"
)

// How often logs and disks are looked at: nothing tells of their growth.
const (
	logsEvery    = 10 * time.Second
	storageEvery = 10 * time.Second
)

// keepLogs rotates the logs that have grown too large.
func (a *Agent) keepLogs(ctx context.Context) {
	tick := time.NewTicker(logsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		a.rotateLogs(ctx)
	}
}

func (a *Agent) rotateLogs(ctx context.Context) {
	for _, w := range a.all() {
		for id, path := range w.openLogs() {
			_, err := podlog.Rotate(path, a.o.LogMaxBytes, a.o.LogMaxFiles, a.now(), func() error {
				return a.o.Containers.ReopenLog(ctx, id)
			})
			if err != nil && ctx.Err() == nil {
				a.log.Warn("log not rotated", "path", path, "err", err)
			}
		}
	}
}

// openLogs are the logs that running containers write.
func (w *worker) openLogs() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]string{}
	for _, m := range w.containers {
		if m.Phase == pod.Running && m.logPath != "" {
			out[m.ID] = m.logPath
		}
	}
	return out
}

// keepStorage evicts pods that use more of the disk than they may, and the
// greediest one when the disk is nearly full.
func (a *Agent) keepStorage(ctx context.Context) {
	tick := time.NewTicker(storageEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := a.checkStorage(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("storage not checked", "err", err)
		}
	}
}

// evictBelow is the share of the disk that must stay free. Pods are evicted for
// less than makes the machine's condition bad: scheduling stops first.
const evictBelow = 0.03

func (a *Agent) checkStorage(ctx context.Context) error {
	d, err := readDisk(a.o.DataDir)
	if err != nil {
		return err
	}
	full := float64(d.free) < evictBelow*float64(d.size)
	var worst *worker
	var worstUse storageUse
	for _, w := range a.all() {
		p := w.snapshot()
		if !full && !limitsStorage(p) || !w.claims.Load() {
			continue
		}
		use, err := w.storage(ctx)
		if err != nil {
			return err
		}
		if message := exceeds(p, use); message != "" {
			w.evict(message, "")
			continue
		}
		if full && (worst == nil || use.overRequest(p) > worstUse.overRequest(p)) {
			worst, worstUse = w, use
		}
	}
	if worst != nil {
		worst.evict(pressureMessage(worst.snapshot(), worstUse, d), "ephemeral-storage")
	}
	return nil
}

// limitsStorage reports whether a pod has a limit that has to be watched.
func limitsStorage(p *corev1.Pod) bool {
	for _, m := range pod.Members(p) {
		if _, ok := m.Spec.Resources.Limits[corev1.ResourceEphemeralStorage]; ok {
			return true
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault {
			return true
		}
	}
	return false
}

// storageUse is what a pod has on the disk.
type storageUse struct {
	containers map[string]int64 // root file system and logs
	volumes    []volume.Usage
}

func (u storageUse) total() int64 {
	sum := int64(0)
	for _, n := range u.containers {
		sum += n
	}
	for _, v := range u.volumes {
		if !v.Memory {
			sum += v.Bytes
		}
	}
	return sum
}

func (u storageUse) overRequest(p *corev1.Pod) int64 {
	req := pod.Requests(p)[corev1.ResourceEphemeralStorage]
	return u.total() - req.Value()
}

// storage measures what the pod has on the disk.
func (w *worker) storage(ctx context.Context) (storageUse, error) {
	w.mu.Lock()
	p, ids := w.pod, map[string]string{}
	for name, m := range w.containers {
		if m.Phase == pod.Running {
			ids[name] = m.ID
		}
	}
	v, placed := w.placed.now()
	w.mu.Unlock()
	use := storageUse{containers: map[string]int64{}}
	for name, id := range ids {
		if u, err := w.a.o.Images.Usage(ctx, id); err == nil {
			use.containers[name] = u.Bytes
		}
		bytes, _, err := volume.DiskUsage(ctx, w.a.podLogDir(p)+"/"+name)
		if err == nil {
			use.containers[name] += bytes
		}
	}
	if !placed {
		return use, nil
	}
	var err error
	use.volumes, err = v.Usage(ctx, p)
	return use, err
}

// exceeds says which of its limits a pod has broken, in the words of
// Kubernetes.
func exceeds(p *corev1.Pod, use storageUse) string {
	for _, v := range use.volumes {
		if v.Limit > 0 && !v.Memory && v.Bytes > v.Limit {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, resource.NewQuantity(v.Limit, resource.BinarySI).String())
		}
	}
	if limit, ok := pod.Limits(p)[corev1.ResourceEphemeralStorage]; ok && use.total() > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, m := range pod.Members(p) {
		limit, ok := m.Spec.Resources.Limits[corev1.ResourceEphemeralStorage]
		if ok && use.containers[m.Spec.Name] > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", m.Spec.Name, limit.String())
		}
	}
	return ""
}

func pressureMessage(p *corev1.Pod, use storageUse, d disk) string {
	text := fmt.Sprintf("The node was low on resource: ephemeral-storage. Threshold quantity: %s, available: %s. ",
		resource.NewQuantity(int64(evictBelow*float64(d.size)), resource.BinarySI), resource.NewQuantity(d.free, resource.BinarySI))
	for _, m := range pod.Members(p) {
		used, req := use.containers[m.Spec.Name], m.Spec.Resources.Requests[corev1.ResourceEphemeralStorage]
		if used > req.Value() {
			text += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of ephemeral-storage. ",
				m.Spec.Name, resource.NewQuantity(used, resource.BinarySI), req.String())
		}
	}
	return text
}

// evict ends the pod for good. starved names the resource that ran out on the
// machine; empty when the pod broke a limit of its own.
func (w *worker) evict(message, starved string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ending || w.verdict != nil {
		return
	}
	w.verdict = &pod.Verdict{Reason: "Evicted", Message: message}
	if starved != "" {
		w.verdict.Condition = &corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: w.pod.Generation,
			Reason: corev1.PodReasonTerminationByKubelet, Message: message, LastTransitionTime: metav1.NewTime(w.a.now()).Rfc3339Copy(),
		}
	}
	w.a.warn(w.pod, nil, "Evicted", "%s", message)
	w.poke()
}
