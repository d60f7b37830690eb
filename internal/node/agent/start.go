// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/podlog"
	"github.com/sonagi/sonagi/internal/node/volume"
)

// A launch is one attempt to run a container.
type launch struct {
	w       *worker
	p       *corev1.Pod
	m       pod.Member
	id      string
	attempt int
	logPath string
	old     string // the attempt before, to be cleared away
	before  *future[struct{}]
	exited  chan struct{}

	img  image.Image
	user *corev1.LinuxContainerUser
}

// A failure is why a container does not run, as its status tells it.
type failure struct {
	reason  string
	message string
	err     error
	start   bool // the process could not be started: the attempt counts
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.err }

func failed(reason string, err error) *failure {
	return &failure{reason: reason, message: err.Error(), err: err}
}

// containerID is the same each time it is asked for the same attempt, so that
// an attempt that was begun twice is one.
func containerID(uid, name string, attempt int) string {
	sum := sha256.Sum256([]byte(uid + "/" + name + "/" + strconv.Itoa(attempt)))
	return hex.EncodeToString(sum[:])
}

// start begins to run a container. Its process starts only after that of the
// container before it has.
func (w *worker) start(m *member, before *future[struct{}], now time.Time) *future[struct{}] {
	attempt, old := 0, m.ID
	if m.Ever || m.ID != "" && m.Phase == pod.Exited {
		attempt = m.Attempt + 1
	}
	if m.Phase == pod.Exited {
		m.backoff = m.backoff.Restarted(m.FinishedAt)
	}
	l := &launch{
		w: w, p: w.pod, m: m.Member, attempt: attempt, old: old, before: before,
		id:      containerID(string(w.uid), m.Spec.Name, attempt),
		logPath: w.a.logPath(w.pod, m.Spec.Name, attempt),
		exited:  make(chan struct{}),
	}
	m.Busy = true
	return begin(func() (struct{}, error) {
		err := l.run(w.starts)
		w.started(l, err)
		return struct{}{}, nil
	})
}

// run does what it takes, as much as possible at the same time.
func (l *launch) run(ctx context.Context) error {
	img := begin(func() (*root, error) { return l.root(ctx) })
	files := begin(func() (struct{}, error) { return struct{}{}, l.prepareFiles() })
	env := begin(func() (pod.Sources, error) { return l.sources(ctx) })
	spec, err := l.spec(ctx, img, env)
	if err == nil {
		if _, err = files.wait(ctx); err == nil {
			err = l.create(ctx, spec)
		}
	}
	if err == nil {
		err = l.launch(ctx)
	}
	if err != nil {
		<-img.done // what they make must not come after the clearing away
		<-files.done
		l.clear()
	}
	return err
}

// root is a container's image, mounted.
type root struct {
	img  image.Image
	path string
}

func (l *launch) root(ctx context.Context) (*root, error) {
	if l.old != "" && l.old != l.id {
		l.w.a.discard(l.old)
	}
	img, err := l.w.a.ensureImage(ctx, l.p, &l.m)
	if err != nil {
		return nil, err
	}
	l.img = img
	path, _, err := l.w.a.o.Images.Mount(ctx, img, l.id)
	if err != nil {
		return nil, failed("CreateContainerError", fmt.Errorf("mounting root file system: %w", err))
	}
	return &root{img, path}, nil
}

// sources gathers what the container's environment is made from.
func (l *launch) sources(ctx context.Context) (pod.Sources, error) {
	s := l.w.a.sources(l.p)
	maps, secrets := pod.EnvObjects(l.m.Spec)
	type got struct {
		m *corev1.ConfigMap
		s *corev1.Secret
	}
	var asks []*future[got]
	for _, name := range maps {
		asks = append(asks, begin(func() (got, error) {
			m, err := l.w.a.objects.ConfigMap(ctx, l.p.Namespace, name)
			return got{m: m}, ignoreNotFound(err)
		}))
	}
	for _, name := range secrets {
		asks = append(asks, begin(func() (got, error) {
			s, err := l.w.a.objects.Secret(ctx, l.p.Namespace, name)
			return got{s: s}, ignoreNotFound(err)
		}))
	}
	s.ConfigMaps, s.Secrets = map[string]*corev1.ConfigMap{}, map[string]*corev1.Secret{}
	for _, ask := range asks {
		g, err := ask.wait(ctx)
		if err != nil {
			return s, failed("CreateContainerConfigError", err)
		}
		if g.m != nil && g.m.Name != "" {
			s.ConfigMaps[g.m.Name] = g.m
		}
		if g.s != nil && g.s.Name != "" {
			s.Secrets[g.s.Name] = g.s
		}
	}
	var err error
	s.Services, err = l.w.a.services.links(ctx, l.p.Namespace)
	return s, err
}

// spec waits for the parts and puts them together.
func (l *launch) spec(ctx context.Context, img *future[*root], env *future[pod.Sources]) (container.Spec, error) {
	none := container.Spec{}
	r, err := img.wait(ctx)
	if err != nil {
		return none, err
	}
	sources, err := env.wait(ctx)
	if err != nil {
		return none, err
	}
	sandbox, err := l.w.sandbox.wait(ctx)
	if err != nil {
		return none, err
	}
	volumes, err := l.volumes(ctx)
	if err != nil {
		return none, err
	}
	if !l.p.Spec.HostNetwork {
		sources.PodIP = sandbox.IP.String()
	}
	sources.ImageEnv = r.img.Config.Env
	sources.File = envFile(volumes)
	return l.build(ctx, r, sources, sandbox, volumes)
}

// volumes waits for places, and for content where a place is not known before.
func (l *launch) volumes(ctx context.Context) (*volume.Pod, error) {
	v, err := l.w.placed.wait(ctx)
	if err != nil {
		return nil, err
	}
	if !volume.Early(l.p, l.m.Spec) || readsFiles(l.m.Spec) {
		_, err = l.w.filled.wait(ctx)
	}
	return v, err
}

// create makes the container. Its process does not run yet.
func (l *launch) create(ctx context.Context, spec container.Spec) error {
	a := l.w.a
	l.w.creating(l)
	err := a.o.Containers.Create(ctx, spec)
	if errors.Is(err, container.ErrExists) { // begun by an earlier process that did not get further
		if err = a.o.Containers.Delete(ctx, l.id); err == nil {
			err = a.o.Containers.Create(ctx, spec)
		}
	}
	if err != nil {
		return l.wrap(err, "CreateContainerError")
	}
	a.note(l.p, &l.m, "Created", "Container created")
	l.w.limit.Do(func() { go l.w.bound(l.p) })
	return nil
}

// bound bounds what the pod as a whole may use.
func (w *worker) bound(p *corev1.Pod) {
	if err := limitPod(w.uid, pod.PodCgroup(p)); err != nil && w.starts.Err() == nil {
		w.a.log.Warn("pod not bounded", "pod", pod.FullName(p), "err", err)
	}
}

// wrap tells a process that cannot be started from surroundings that failed.
func (l *launch) wrap(err error, reason string) error {
	var se *container.StartError
	if errors.As(err, &se) {
		return &failure{reason: "RunContainerError", message: se.Error(), err: err, start: true}
	}
	return failed(reason, err)
}

// prepareFiles makes the places for what the container writes beside its own
// files.
func (l *launch) prepareFiles() error {
	path := l.w.a.terminationFile(l.w.uid, l.m.Spec.Name, l.attempt)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, nil, 0o666)
	}
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(l.logPath), 0o755)
	}
	if err == nil && l.attempt > 1 { // the attempt before this one is kept, for kubectl logs --previous
		err = podlog.Remove(l.w.a.logPath(l.p, l.m.Spec.Name, l.attempt-2))
	}
	if err != nil {
		return failed("CreateContainerError", err)
	}
	return nil
}

// launch lets the process run, once the volumes are full and the container
// before this one runs.
func (l *launch) launch(ctx context.Context) error {
	if _, err := l.w.filled.wait(ctx); err != nil {
		return err
	}
	if l.before != nil {
		if _, err := l.before.wait(ctx); err != nil {
			return err
		}
	}
	a := l.w.a
	started, err := a.o.Containers.Start(ctx, l.id)
	if err != nil {
		return l.wrap(err, "RunContainerError")
	}
	hook := l.m.Spec.Lifecycle
	if hook == nil || hook.PostStart == nil {
		l.w.runs(l, started.At, false)
		a.note(l.p, &l.m, "Started", "Container started")
		return nil
	}
	l.w.runs(l, started.At, true)
	a.note(l.p, &l.m, "Started", "Container started")
	if err := a.hook(ctx, l.p, &l.m, l.id, l.podIP(), hook.PostStart); err != nil {
		a.warn(l.p, &l.m, "FailedPostStartHook", "PostStartHook failed")
		return &failure{reason: "PostStartHookError", message: err.Error(), err: err}
	}
	l.w.runs(l, started.At, false)
	return nil
}

func (l *launch) podIP() string {
	if s, ok := l.w.sandbox.now(); ok {
		return s.IP.String()
	}
	return ""
}

// clear removes what a failed attempt has left.
func (l *launch) clear() {
	if l.w.isRunning(l.m.Spec.Name, l.id) {
		return
	}
	l.w.a.discard(l.id)
}

// discard removes a container and its root file system.
func (a *Agent) discard(id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 30*time.Second)
	defer cancel()
	if err := a.o.Containers.Delete(ctx, id); err != nil && !errors.Is(err, container.ErrNotFound) {
		a.log.Warn("container not deleted", "id", id, "err", err)
	}
	if err := a.o.Images.Unmount(ctx, id); err != nil {
		a.log.Warn("root file system not unmounted", "id", id, "err", err)
	}
}

// creating notes the ID under which the container's end will be told.
func (w *worker) creating(l *launch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.containers[l.m.Spec.Name]
	if m.Phase == pod.Exited {
		m.Last = pod.Terminated(m.Container)
	}
	sick := m.backoff
	*m = member{Member: m.Member, backoff: sick, grieved: m.grieved, exited: l.exited, logPath: l.logPath,
		Container: pod.Container{
			Phase: pod.Absent, ID: l.id, Attempt: l.attempt, Ever: m.Ever, Busy: true, Last: m.Last,
			Image: l.m.Spec.Image, ImageID: l.img.Pinned(l.m.Spec.Image), User: l.user,
			Waiting: m.Waiting,
		}}
}

// runs notes that the process runs, unless its end was faster to be told.
// Until its postStart hook has ended the container does not count as running.
func (w *worker) runs(l *launch, at time.Time, hooking bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.containers[l.m.Spec.Name]
	if m.ID != l.id {
		return
	}
	m.Ever, m.grieved, m.hooking = true, 0, hooking
	m.StartedAt = at
	if m.Phase != pod.Exited {
		m.Phase = pod.Running
	}
	if hooking {
		return
	}
	m.Waiting = nil
	if m.Phase == pod.Running {
		w.watchHealth(m, nil)
		w.announce()
	}
}

func (w *worker) isRunning(name, id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.containers[name]
	return m.ID == id && (m.Phase == pod.Running || m.Phase == pod.Exited)
}

// started notes how an attempt to run a container went.
func (w *worker) started(l *launch, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.poke()
	m := w.containers[l.m.Spec.Name]
	m.Busy, m.hooking = false, false
	if err == nil || w.starts.Err() != nil && m.Phase != pod.Running {
		return
	}
	now := w.a.now()
	var f *failure
	if !errors.As(err, &f) {
		f = failed("CreateContainerError", err)
	}
	switch {
	case f.reason == "PostStartHookError":
		if m.Phase == pod.Running {
			m.Waiting = &corev1.ContainerStateWaiting{Reason: f.reason, Message: f.message}
			w.stop(m, pod.Kill{Name: m.Spec.Name, Message: "FailedPostStartHook"})
		}
		return
	case f.start:
		w.a.warn(l.p, &l.m, "Failed", "Error: %s", f.message)
		m.Phase, m.Ever, m.ID, m.Attempt = pod.Exited, true, l.id, l.attempt
		m.ExitCode, m.Reason, m.Message = container.StartErrorExitCode, "StartError", f.message
		m.StartedAt, m.FinishedAt = time.Unix(0, 0), now
		m.backoff, m.RetryAt = m.backoff.Ended(now)
	default:
		w.a.warn(l.p, &l.m, "Failed", "Error: %s", failureEvent(f))
		if m.Phase == pod.Absent {
			m.ID = "" // nothing was made under it
			m.Attempt = max(0, l.attempt-1)
		}
		m.grieved++
		m.RetryAt = now.Add(retryDelay(f.reason, m.grieved))
	}
	m.Waiting = &corev1.ContainerStateWaiting{Reason: f.reason, Message: f.message}
	m.flipAt = time.Time{}
	if f.reason == string(image.ReasonPull) || f.reason == string(image.ReasonRegistryUnavailable) {
		m.flipAt = now.Add(min(5*time.Second, m.RetryAt.Sub(now)/2))
	}
}

// failureEvent is what the event of a failed start says: for images only the
// reason, as the failure itself was told before.
func failureEvent(f *failure) string {
	var ie *image.Error
	if errors.As(f.err, &ie) {
		return f.reason
	}
	return f.message
}

// retryDelay is how long to wait before trying again what failed n times. A
// registry is asked less often than the API server.
func retryDelay(reason string, n int) time.Duration {
	first, most := time.Second, 20*time.Second
	switch image.Reason(reason) {
	case image.ReasonPull, image.ReasonRegistryUnavailable:
		first, most = 10*time.Second, 5*time.Minute
	}
	return min(first<<min(n-1, 10), most)
}

func pullBackOff(m *member) *corev1.ContainerStateWaiting {
	before := ""
	if m.Waiting != nil {
		before = ": " + m.Waiting.Reason + ": " + m.Waiting.Message
	}
	return &corev1.ContainerStateWaiting{
		Reason:  string(image.ReasonBackOff),
		Message: fmt.Sprintf("Back-off pulling image %q%s", m.Spec.Image, before),
	}
}
