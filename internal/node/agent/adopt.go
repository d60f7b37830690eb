// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/podlog"
)

// legacy is what an earlier process has left, by pod.
type legacy struct {
	containers map[types.UID][]container.Status
	sandboxes  map[types.UID]network.Sandbox
}

// of returns what was left of a pod.
func (l *legacy) of(uid types.UID) ([]container.Status, *network.Sandbox) {
	if l == nil {
		return nil, nil
	}
	if s, ok := l.sandboxes[uid]; ok {
		return l.containers[uid], &s
	}
	return l.containers[uid], nil
}

// ended notes the end of a container whose pod is not known yet.
func (l *legacy) ended(e container.Event) {
	if l == nil {
		return
	}
	all := l.containers[types.UID(e.Labels[labelUID])]
	for i := range all {
		if all[i].ID == e.ID {
			all[i].State, all[i].FinishedAt, all[i].Exit = container.Exited, e.FinishedAt, e.Exit
		}
	}
}

// survey finds what an earlier process has left, and removes what cannot be
// used: root file systems without a container, containers never started.
func (a *Agent) survey(ctx context.Context) (*legacy, error) {
	found := &legacy{containers: map[types.UID][]container.Status{}, sandboxes: map[types.UID]network.Sandbox{}}
	all, err := a.o.Containers.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	known := map[string]bool{}
	for _, c := range all {
		uid := types.UID(c.Labels[labelUID])
		if uid == "" {
			continue // not one of a pod
		}
		if c.State == container.Created {
			a.discard(c.ID)
			continue
		}
		known[c.ID] = true
		found.containers[uid] = append(found.containers[uid], c)
	}
	for _, m := range a.o.Images.Mounts() {
		id, _, _ := strings.Cut(m.Key, "-")
		if !known[id] {
			if err := a.o.Images.Unmount(ctx, m.Key); err != nil {
				a.log.Warn("left-over root file system not unmounted", "key", m.Key, "err", err)
			}
		}
	}
	for _, s := range a.o.Network.Sandboxes() {
		found.sandboxes[types.UID(s.PodUID)] = s
	}
	return found, nil
}

// adopt gives a worker what an earlier process has left of its pod, and what
// the API tells of containers that are no more.
// The worker is locked.
func (w *worker) adopt(found []container.Status, sandbox *network.Sandbox) {
	w.members()
	switch {
	case len(found) == 0:
	case w.pod.Spec.HostNetwork:
		w.sandbox = made(network.Sandbox{IP: w.a.o.NodeIP})
	case sandbox != nil:
		w.sandbox = made(*sandbox)
	}
	told := map[string]*corev1.ContainerStatus{}
	s := &w.pod.Status
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			told[list[i].Name] = &list[i]
		}
	}
	slices.SortFunc(found, func(x, y container.Status) int { return attemptOf(x) - attemptOf(y) })
	newest := map[string]container.Status{}
	for _, c := range found {
		name := c.Labels[labelName]
		if old, ok := newest[name]; ok {
			go w.a.discard(old.ID)
		}
		newest[name] = c
	}
	for name, m := range w.containers {
		c, lives := newest[name]
		was := told[name]
		if was != nil {
			m.recall(w.pod, was, lives && was.ContainerID == pod.Scheme+c.ID)
		}
		if lives {
			w.take(m, c, was)
		}
	}
	w.admitted = w.admitted || len(found) > 0
	if t := s.StartTime; t != nil {
		w.startTime = t.Time
	}
}

func attemptOf(c container.Status) int {
	n, _ := strconv.Atoi(c.Labels[labelAttempt])
	return n
}

// recall takes from the API what was told of a container. same means that the
// runtime still has the very container that was told of.
func (m *member) recall(p *corev1.Pod, was *corev1.ContainerStatus, same bool) {
	m.Attempt = int(was.RestartCount)
	m.Last = was.LastTerminationState.Terminated
	m.Image, m.ImageID = "", was.ImageID
	if was.User != nil {
		m.User = was.User.Linux
	}
	id := strings.TrimPrefix(was.ContainerID, pod.Scheme)
	switch {
	case same:
	case was.State.Terminated != nil:
		t := was.State.Terminated
		m.Phase, m.Ever, m.ID = pod.Exited, true, id
		m.ExitCode, m.Reason, m.Message = t.ExitCode, t.Reason, t.Message
		m.StartedAt, m.FinishedAt = t.StartedAt.Time, t.FinishedAt.Time
	case was.State.Running != nil:
		// It ran when it was last told of, and nobody knows its end.
		t := pod.Lost()
		m.Phase, m.Ever, m.ID = pod.Exited, true, id
		m.ExitCode, m.Reason, m.Message = t.ExitCode, t.Reason, t.Message
		m.StartedAt, m.FinishedAt = was.State.Running.StartedAt.Time, time.Now()
		m.backoff = pod.RestoredBackoff(m.Attempt, m.FinishedAt)
		return // it is no fault of the container: it starts again at once
	case was.LastTerminationState.Terminated != nil:
		m.Ever = true
	}
	if m.Phase == pod.Exited {
		m.backoff, m.RetryAt = pod.RestoredBackoff(m.Attempt, m.FinishedAt).Ended(m.FinishedAt)
	}
}

// take makes a container of an earlier process ours.
func (w *worker) take(m *member, c container.Status, was *corev1.ContainerStatus) {
	if attempt := attemptOf(c); attempt > m.Attempt && was != nil && was.State.Terminated != nil {
		m.Last = was.State.Terminated
	}
	m.ID, m.Attempt, m.Ever = c.ID, attemptOf(c), true
	m.Image, m.ImageID = c.Labels[labelImage], c.Labels[labelImageID]
	m.User = parseUser(c.Labels[labelUser])
	m.logPath, m.StartedAt = c.LogPath, c.StartedAt
	m.exited = make(chan struct{})
	if c.State == container.Exited {
		m.Phase = pod.Running // for a moment: it is told of as if it ended now
		w.ended(m, container.Event{ID: c.ID, FinishedAt: c.FinishedAt, Exit: c.Exit})
		m.backoff, m.RetryAt = pod.RestoredBackoff(m.Attempt, c.FinishedAt).Ended(c.FinishedAt)
		if c.Exit.Unknown { // it went down with its runtime
			m.RetryAt = time.Time{}
		}
		return
	}
	m.Phase, m.ExitCode, m.Reason, m.Message = pod.Running, 0, "", ""
	if was != nil && was.ContainerID != pod.Scheme+c.ID {
		was = nil
	}
	w.watchHealth(m, was)
}

// clearOrphans removes what belongs to pods that are no more. keep tells those
// that are.
func (a *Agent) clearOrphans(found *legacy, keep func(types.UID) bool) {
	orphans := map[types.UID]bool{}
	for uid := range found.containers {
		orphans[uid] = true
	}
	for uid := range found.sandboxes {
		orphans[uid] = true
	}
	dirs, err := a.volumes.Pods()
	if err != nil {
		a.log.Warn("left-over volumes not found", "err", err)
	}
	for _, uid := range dirs {
		orphans[uid] = true
	}
	for uid := range orphans {
		if !keep(uid) {
			go a.clearOrphan(uid, found.containers[uid])
		}
	}
	a.clearOrphanLogs(keep)
}

func (a *Agent) clearOrphan(uid types.UID, containers []container.Status) {
	for _, c := range containers {
		if c.State == container.Running {
			a.endOrphan(c)
		}
		a.discard(c.ID)
	}
	ctx, cancel := context.WithTimeout(a.ctx, time.Minute)
	defer cancel()
	err := errors.Join(a.o.Network.Release(ctx, string(uid)), a.volumes.Remove(uid), removeCgroup(uid))
	if err != nil {
		a.log.Warn("left-over pod not cleared away", "uid", uid, "err", err)
	}
}

// endOrphan gives a container of a pod that is gone the time to end that its
// pod would have given it.
func (a *Agent) endOrphan(c container.Status) {
	grace, err := strconv.Atoi(c.Labels[labelGrace])
	if err != nil {
		grace = 30
	}
	exited := a.exitOf(c.ID)
	if a.o.Containers.Signal(a.ctx, c.ID, parseSignal(c.Labels[labelSignal])) != nil {
		return
	}
	select {
	case <-exited:
	case <-time.After(max(leastGrace, time.Duration(grace)*time.Second)):
	case <-a.ctx.Done():
	}
}

// clearOrphanLogs removes the logs of pods that are no more.
func (a *Agent) clearOrphanLogs(keep func(types.UID) bool) {
	entries, err := os.ReadDir(a.o.LogDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		at := strings.LastIndexByte(e.Name(), '_')
		if at < 0 || keep(types.UID(e.Name()[at+1:])) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(a.o.LogDir, e.Name())); err != nil {
			a.log.Warn("left-over logs not removed", "err", err)
		}
	}
}

// podLogDir is where the logs of a pod are.
func (a *Agent) podLogDir(p *corev1.Pod) string {
	return filepath.Join(a.o.LogDir, p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

// logPath is where the log of one attempt of a container is.
func (a *Agent) logPath(p *corev1.Pod, name string, attempt int) string {
	return filepath.Join(a.podLogDir(p), name, strconv.Itoa(attempt)+".log")
}

// terminationFile is where a container may say why it ended.
func (a *Agent) terminationFile(uid types.UID, name string, attempt int) string {
	return filepath.Join(a.volumes.Made(uid), "containers", name, strconv.Itoa(attempt))
}

// Bounds of termination messages.
const (
	maxTerminationMessage    = 4096
	maxTerminationLogLines   = 80
	maxTerminationLogMessage = 2048
)

// terminationMessage is what a container said of its end, in its file or, if it
// wants so and failed, in its last words.
func (a *Agent) terminationMessage(uid types.UID, m *member) string {
	if m.Spec.TerminationMessagePath != "" {
		if f, err := os.Open(a.terminationFile(uid, m.Spec.Name, m.Attempt)); err == nil {
			defer f.Close()
			buf := make([]byte, maxTerminationMessage)
			n, _ := f.Read(buf)
			if n > 0 {
				return strings.ToValidUTF8(string(buf[:n]), "\uFFFD")
			}
		}
	}
	if m.ExitCode == 0 || m.Spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || m.logPath == "" {
		return ""
	}
	text, err := podlog.LastLines(m.logPath, maxTerminationLogLines, maxTerminationLogMessage)
	if err != nil {
		return fmt.Sprintf("Error reading termination message from logs: %v", err)
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
