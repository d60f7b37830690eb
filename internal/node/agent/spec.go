// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/volume"
)

// Labels of containers: what has to be known of one to adopt it.
const (
	labelUID       = "sonagi.dev/pod.uid"
	labelPod       = "sonagi.dev/pod.name"
	labelNamespace = "sonagi.dev/pod.namespace"
	labelName      = "sonagi.dev/container.name"
	labelAttempt   = "sonagi.dev/container.attempt"
	labelImage     = "sonagi.dev/container.image"
	labelImageID   = "sonagi.dev/container.image-id"
	labelUser      = "sonagi.dev/container.user"
	labelGrace     = "sonagi.dev/pod.grace"
	labelSignal    = "sonagi.dev/container.stop-signal"
)

// build puts together what a container is to be.
func (l *launch) build(ctx context.Context, r *root, s pod.Sources, sandbox network.Sandbox, v *volume.Pod) (container.Spec, error) {
	c := l.m.Spec
	config := func(err error) (container.Spec, error) {
		return container.Spec{}, failed("CreateContainerConfigError", err)
	}
	env, err := pod.Env(c, s)
	if err != nil {
		return config(err)
	}
	sec := pod.SecurityOf(l.p, c)
	if err := sec.CheckNonRoot(l.p, c, r.img.Config.User); err != nil {
		return config(err)
	}
	user, err := resolveUser(r, sec)
	if err != nil {
		return container.Spec{}, failed("CreateContainerError", err)
	}
	l.user = apiUser(user)
	mounts, err := l.mounts(ctx, v, env)
	if err != nil {
		return config(err)
	}
	args := pod.Args(c, r.img.Config.Entrypoint, r.img.Config.Cmd, env)
	if len(args) == 0 {
		return container.Spec{}, failed("CreateContainerError", errors.New("no command specified"))
	}
	spec := container.Spec{
		ID: l.id, Labels: l.labels(r.img),
		RootFS: r.path, ReadOnlyRoot: sec.ReadOnlyRoot,
		Args: args, Env: withDefaults(env, user.Home, c.TTY, s), Cwd: c.WorkingDir,
		User:   container.User{UID: user.UID, GID: user.GID, Groups: user.Groups},
		Mounts: mounts, CgroupParent: cgroupParent(l.w.uid),
		Resources:    l.resources(),
		Capabilities: container.Capabilities{Add: sec.Add, Drop: sec.Drop},
		Privileged:   sec.Privileged, NoNewPrivileges: sec.NoNewPrivileges,
		Seccomp: l.w.a.seccomp(sec.Seccomp), UnmaskedProc: sec.UnmaskedProc,
		TTY: c.TTY, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
		LogPath: l.logPath,
	}
	if spec.Cwd == "" {
		spec.Cwd = r.img.Config.WorkingDir
	}
	score := pod.OOMScoreAdj(l.p, c, l.w.a.machine.memory)
	spec.OOMScoreAdj = &score
	return spec, l.namespaces(ctx, &spec, sandbox)
}

// namespaces says which of them the container shares, and with whom.
func (l *launch) namespaces(ctx context.Context, spec *container.Spec, s network.Sandbox) error {
	spec.NetNS, spec.IPCNS, spec.UTSNS = s.NetNS, s.IPCNS, s.UTSNS
	if l.p.Spec.HostNetwork {
		spec.NetNS, spec.UTSNS = container.HostNamespace, container.HostNamespace
	}
	if l.p.Spec.HostIPC {
		spec.IPCNS = container.HostNamespace
	}
	if l.p.Spec.HostPID {
		spec.PIDNS = container.HostNamespace
		return nil
	}
	id := ""
	if l.m.Target != "" {
		id = l.w.runningID(l.m.Target)
		if id == "" {
			return failed("CreateContainerConfigError", fmt.Errorf("target container %q is not running", l.m.Target))
		}
	} else if isTrue(l.p.Spec.ShareProcessNamespace) {
		if l.before != nil { // the first of the pod makes the namespace
			if _, err := l.before.wait(ctx); err != nil {
				return err
			}
		}
		id = l.w.oldestRunning()
	}
	if id == "" {
		return nil
	}
	st, err := l.w.a.o.Containers.Status(ctx, id)
	if err != nil || st.Pid == 0 {
		return failed("CreateContainerConfigError", fmt.Errorf("processes of container %s cannot be shared: %w", id, err))
	}
	spec.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", st.Pid)
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

func (w *worker) runningID(name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := w.containers[name]; m != nil && m.Phase == pod.Running {
		return m.ID
	}
	return ""
}

// oldestRunning is the container whose process namespace the others join, in a
// pod whose containers share one.
func (w *worker) oldestRunning() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var first *member
	for _, m := range w.containers {
		if m.Phase == pod.Running && (first == nil || m.StartedAt.Before(first.StartedAt)) {
			first = m
		}
	}
	if first == nil {
		return ""
	}
	return first.ID
}

func (l *launch) labels(img image.Image) map[string]string {
	grace := int64(30)
	if g := l.p.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = *g
	}
	user := ""
	if l.user != nil {
		user = formatUser(l.user)
	}
	return map[string]string{
		labelUID: string(l.w.uid), labelPod: l.p.Name, labelNamespace: l.p.Namespace,
		labelName: l.m.Spec.Name, labelAttempt: strconv.Itoa(l.attempt),
		labelImage: l.m.Spec.Image, labelImageID: img.Pinned(l.m.Spec.Image),
		labelUser: user, labelGrace: strconv.FormatInt(grace, 10),
		labelSignal: stopSignal(l.m.Spec, img),
	}
}

func stopSignal(c *corev1.Container, img image.Image) string {
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		return string(*c.Lifecycle.StopSignal)
	}
	return img.Config.StopSignal
}

func (l *launch) resources() container.Resources {
	g := pod.ContainerCgroup(l.m.Spec)
	return container.Resources{
		CPUShares: g.CPUShares, CPUQuota: g.CPUQuota, CPUPeriod: g.CPUPeriod,
		Memory: g.Memory, Pids: l.w.a.o.MaxPodPids,
	}
}

func resolveUser(r *root, sec pod.Security) (image.User, error) {
	u, err := image.ResolveUser(r.path, sec.User(r.img.Config.User))
	if err != nil {
		return u, err
	}
	if sec.StrictGroups {
		u.Groups = nil
	}
	for _, g := range sec.Groups {
		if !slices.Contains(u.Groups, uint32(g)) {
			u.Groups = append(u.Groups, uint32(g))
		}
	}
	return u, nil
}

func apiUser(u image.User) *corev1.LinuxContainerUser {
	out := &corev1.LinuxContainerUser{UID: int64(u.UID), GID: int64(u.GID), SupplementalGroups: []int64{int64(u.GID)}}
	for _, g := range u.Groups {
		if !slices.Contains(out.SupplementalGroups, int64(g)) {
			out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
		}
	}
	return out
}

func formatUser(u *corev1.LinuxContainerUser) string {
	words := []string{strconv.FormatInt(u.UID, 10), strconv.FormatInt(u.GID, 10)}
	for _, g := range u.SupplementalGroups {
		words = append(words, strconv.FormatInt(g, 10))
	}
	return strings.Join(words, ":")
}

func parseUser(text string) *corev1.LinuxContainerUser {
	var n []int64
	for word := range strings.SplitSeq(text, ":") {
		v, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return nil
		}
		n = append(n, v)
	}
	if len(n) < 2 {
		return nil
	}
	return &corev1.LinuxContainerUser{UID: n[0], GID: n[1], SupplementalGroups: n[2:]}
}

// term is what programs are told of their terminal; all of them know this kind.
const term = "TERM=xterm"

// withDefaults adds what every process expects to find.
func withDefaults(env []string, home string, tty bool, s pod.Sources) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	}
	if !has("PATH") {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if !has("HOSTNAME") {
		env = append(env, "HOSTNAME="+pod.Hostname(s.Pod))
	}
	if !has("HOME") && home != "" {
		env = append(env, "HOME="+home)
	}
	if tty && !has("TERM") {
		env = append(env, term)
	}
	return env
}

// mounts are the volumes that the container mounts and the files of its pod.
func (l *launch) mounts(ctx context.Context, v *volume.Pod, env []string) ([]container.Mount, error) {
	var out []container.Mount
	taken := map[string]bool{}
	for i := range l.m.Spec.VolumeMounts {
		m := &l.m.Spec.VolumeMounts[i]
		mount, err := l.mount(ctx, v, i, m, env)
		if err != nil {
			return nil, err
		}
		taken[filepath.Clean(m.MountPath)] = true
		out = append(out, mount)
	}
	dir := l.w.a.volumes.Made(l.w.uid)
	own := [][2]string{
		{filepath.Join(dir, hostsFile), "/etc/hosts"},
		{filepath.Join(dir, resolvFile), "/etc/resolv.conf"},
		{filepath.Join(dir, hostnameFile), "/etc/hostname"},
		{l.w.a.terminationFile(l.w.uid, l.m.Spec.Name, l.attempt), l.m.Spec.TerminationMessagePath},
	}
	switch {
	case l.p.Spec.HostIPC:
		own = append(own, [2]string{"/dev/shm", "/dev/shm"})
	case sharesMemory(l.p):
		own = append(own, [2]string{filepath.Join(dir, shmDir), "/dev/shm"})
	}
	for _, o := range own {
		if o[1] != "" && !taken[filepath.Clean(o[1])] {
			out = append(out, container.Mount{Source: o[0], Destination: o[1], Options: []string{"rbind", "rw"}})
		}
	}
	return out, nil
}

func (l *launch) mount(ctx context.Context, v *volume.Pod, i int, m *corev1.VolumeMount, env []string) (container.Mount, error) {
	none := container.Mount{}
	at := slices.IndexFunc(l.p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
	if at < 0 {
		return none, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, l.m.Spec.Name)
	}
	var source string
	var err error
	if src := l.p.Spec.Volumes[at].Image; src != nil {
		source, err = l.imageVolume(ctx, m, src)
	} else {
		source, err = v.Source(l.m.Spec.Name, i, m, subPath(m, env))
	}
	if err != nil {
		return none, err
	}
	out := container.Mount{Source: source, Destination: m.MountPath, Options: []string{"rbind", "rw"}}
	if !filepath.IsAbs(out.Destination) {
		out.Destination = "/" + out.Destination
	}
	if m.ReadOnly || readOnly(&l.p.Spec.Volumes[at]) {
		out.Options = []string{"rbind", "ro"}
		if r := m.RecursiveReadOnly; r != nil && *r != corev1.RecursiveReadOnlyDisabled {
			out.Options = []string{"rbind", "ro", "rro"}
		}
	}
	if p := m.MountPropagation; p != nil {
		switch *p {
		case corev1.MountPropagationHostToContainer:
			out.Propagation = "rslave"
		case corev1.MountPropagationBidirectional:
			out.Propagation = "rshared"
		}
	}
	return out, nil
}

// readOnly says that a volume is written by others than its pod: the next change
// of an object would undo what a container wrote.
func readOnly(v *corev1.Volume) bool {
	claim := v.PersistentVolumeClaim
	return v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil || v.Image != nil || claim != nil && claim.ReadOnly
}

// imageVolume mounts an image as a volume of the pod, once for each container
// that mounts it.
func (l *launch) imageVolume(ctx context.Context, m *corev1.VolumeMount, src *corev1.ImageVolumeSource) (string, error) {
	as := pod.Member{Kind: l.m.Kind, Spec: &corev1.Container{Name: l.m.Spec.Name, Image: src.Reference, ImagePullPolicy: src.PullPolicy}}
	img, err := l.w.a.ensureImage(ctx, l.p, &as)
	if err != nil {
		return "", err
	}
	path, _, err := l.w.a.o.Images.Mount(ctx, img, imageVolumeKey(l.id, m.Name))
	if err != nil || m.SubPath == "" {
		return path, err
	}
	if !filepath.IsLocal(m.SubPath) {
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", m.SubPath)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(path, m.SubPath))
	if err != nil {
		return "", err
	}
	if real != path && !strings.HasPrefix(real, path+"/") {
		return "", fmt.Errorf("unable to provision SubPath `%s`: leads out of the image", m.SubPath)
	}
	return real, nil
}

// imageVolumeKey is under which name an image volume of a container is mounted.
func imageVolumeKey(id, volume string) string { return id + "-" + volume }

func subPath(m *corev1.VolumeMount, env []string) string {
	if m.SubPathExpr == "" {
		return m.SubPath
	}
	return pod.Expand(m.SubPathExpr, func(name string) (string, bool) {
		for _, kv := range env {
			if k, v, _ := strings.Cut(kv, "="); k == name {
				return v, true
			}
		}
		return "", false
	})
}

// readsFiles reports whether the environment is read from files of a volume.
func readsFiles(c *corev1.Container) bool {
	return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.ValueFrom != nil && e.ValueFrom.FileKeyRef != nil
	})
}

// maxEnvFile bounds a file of variables.
const maxEnvFile = 1 << 20

// envFile reads one variable from a file of KEY=value lines in a volume.
func envFile(v *volume.Pod) func(volume, path, key string) (string, bool, error) {
	return func(vol, path, key string) (string, bool, error) {
		root, err := os.OpenRoot(v.Path(vol))
		if err != nil {
			return "", false, err
		}
		defer root.Close()
		f, err := root.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", false, nil
		}
		if err != nil {
			return "", false, fmt.Errorf("couldn't parse env file: %w", err)
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		s.Buffer(nil, maxEnvFile)
		for s.Scan() {
			line := strings.TrimSpace(s.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			k, value, ok := strings.Cut(line, "=")
			if ok && strings.TrimSpace(k) == key {
				return strings.Trim(strings.TrimSpace(value), `"'`), true, nil
			}
		}
		return "", false, s.Err()
	}
}

// seccomp is the profile by its path; profiles of pods are below the data
// directory.
func (a *Agent) seccomp(profile string) string {
	if name, ok := strings.CutPrefix(profile, "localhost/"); ok {
		return filepath.Join(a.o.DataDir, "seccomp", filepath.Clean("/"+name))
	}
	return profile
}
