// SPDX-License-Identifier: Apache-2.0

// Package volume fills the volumes of a pod.
//
// What a pod stores lives in DIR/<uid>, on the disk. What is made for it (from
// secrets, tokens, config maps, fields, and the small files that every pod has)
// lives in one tmpfs for all pods: secrets never touch the disk, and a pod that
// starts does not wait for one. Files made from objects change all at once, by
// the swap of one symbolic link.
//
// The law of the room: every mount made here lies below the directory of its
// pod (or is that one tmpfs), so that what has to be undone can be found by
// looking, whoever made it.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sonagi/sonagi/internal/node/pod"
)

// Objects reads what volumes are made from.
type Objects interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	Token(ctx context.Context, namespace, serviceAccount string, r *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// Options say where volumes live and what they are filled from.
type Options struct {
	Dir     string // one directory for each pod
	Objects Objects
	// Sources tells the values that fields of a pod have.
	Sources func(*corev1.Pod) pod.Sources
	Log     *slog.Logger
	Now     func() time.Time
}

// A Manager fills the volumes of the pods on this machine.
type Manager struct {
	o Options

	mu   sync.Mutex
	pods map[types.UID]*Pod
}

// Open prepares the directory of pods.
func Open(o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Manager{o: o, pods: map[types.UID]*Pod{}}
	if err := os.MkdirAll(m.memory(), 0o711); err != nil {
		return nil, fmt.Errorf("preparing volumes: %w", err)
	}
	mounted, err := isMountPoint(m.memory())
	if err != nil {
		return nil, fmt.Errorf("preparing volumes: %w", err)
	}
	if !mounted {
		if err := unix.Mount("tmpfs", m.memory(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
			return nil, fmt.Errorf("mounting memory for secrets: %w", err)
		}
	}
	return m, nil
}

func (m *Manager) memory() string { return filepath.Join(m.o.Dir, ".memory") }

// Dir is the directory of what a pod stores. It need not exist.
func (m *Manager) Dir(uid types.UID) string { return filepath.Join(m.o.Dir, string(uid)) }

// Made is the directory of what is made for a pod, in memory. It need not exist.
func (m *Manager) Made(uid types.UID) string { return filepath.Join(m.memory(), string(uid)) }

// Pods lists the pods that have files here, those from before a restart too.
func (m *Manager) Pods() ([]types.UID, error) {
	var out []types.UID
	for _, dir := range []string{m.o.Dir, m.memory()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("listing pods' files: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && e.Name()[0] != '.' {
				out = append(out, types.UID(e.Name()))
			}
		}
	}
	return out, nil
}

// A Pod is the volumes of one pod.
type Pod struct {
	m   *Manager
	uid types.UID
	dir string // on disk
	mem string // in memory

	mu     sync.Mutex
	tokens map[string]*token // by volume and path
	paths  map[string]string // where volumes are that are not ours: hostPath, claims
	gone   bool
}

// Pod makes the directories of a pod's volumes and fills those that need
// nothing from the API. It can be called again.
func (m *Manager) Pod(p *corev1.Pod) (*Pod, error) {
	m.mu.Lock()
	v := m.pods[p.UID]
	if v == nil {
		v = &Pod{m: m, uid: p.UID, dir: m.Dir(p.UID), mem: filepath.Join(m.Made(p.UID), "volumes"), tokens: map[string]*token{}, paths: map[string]string{}}
		m.pods[p.UID] = v
	}
	m.mu.Unlock()
	for i := range p.Spec.Volumes {
		if err := v.prepare(p, &p.Spec.Volumes[i]); err != nil {
			return nil, &Error{Volume: p.Spec.Volumes[i].Name, Err: err}
		}
	}
	return v, nil
}

// An Error says which volume could not be had, in the words of Kubernetes.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Path is where a volume is on this machine.
func (v *Pod) Path(name string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p, ok := v.paths[name]; ok {
		return p
	}
	return filepath.Join(v.dir, "volumes", name)
}

func (v *Pod) setPath(name, path string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.paths[name] = path
}

// prepare makes what needs no API: enough to be mounted into a container.
func (v *Pod) prepare(p *corev1.Pod, vol *corev1.Volume) error {
	switch {
	case vol.EmptyDir != nil:
		return v.emptyDir(p, vol)
	case vol.ConfigMap != nil, vol.Secret != nil, vol.Projected != nil, vol.DownwardAPI != nil:
		return v.inMemory(vol.Name)
	}
	return nil
}

// inMemory makes a directory in the tmpfs, under the volume's name.
func (v *Pod) inMemory(name string) error {
	dir := filepath.Join(v.mem, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	v.setPath(name, dir)
	return nil
}

// Fill fills the volumes, all at the same time, and brings those up to date
// that are full. It returns when to call again for the sake of tokens; zero:
// no time is set.
func (v *Pod) Fill(ctx context.Context, p *corev1.Pod) (again time.Time, err error) {
	var wg sync.WaitGroup
	errs := make([]error, len(p.Spec.Volumes))
	for i := range p.Spec.Volumes {
		vol := &p.Spec.Volumes[i]
		fill := v.filler(p, vol)
		if fill == nil {
			continue
		}
		wg.Go(func() {
			if err := fill(ctx); err != nil {
				errs[i] = &Error{Volume: vol.Name, Err: err}
			}
		})
	}
	wg.Wait()
	return v.refreshAt(), errors.Join(errs...)
}

// filler is what fills that kind of volume; nil when prepare has done it all.
func (v *Pod) filler(p *corev1.Pod, vol *corev1.Volume) func(context.Context) error {
	switch {
	case vol.EmptyDir != nil, vol.Image != nil: // images are the business of others
		return nil
	case vol.HostPath != nil:
		return func(context.Context) error { return v.hostPath(vol.Name, vol.HostPath) }
	case vol.ConfigMap != nil:
		return func(ctx context.Context) error { return v.configMap(ctx, p, vol) }
	case vol.Secret != nil:
		return func(ctx context.Context) error { return v.secret(ctx, p, vol) }
	case vol.DownwardAPI != nil:
		return func(context.Context) error { return v.downwardAPI(p, vol) }
	case vol.Projected != nil:
		return func(ctx context.Context) error { return v.projected(ctx, p, vol) }
	case vol.PersistentVolumeClaim != nil:
		name, ro := vol.PersistentVolumeClaim.ClaimName, vol.PersistentVolumeClaim.ReadOnly
		return func(ctx context.Context) error { return v.claim(ctx, p, vol.Name, name, ro) }
	case vol.Ephemeral != nil:
		return func(ctx context.Context) error { return v.claim(ctx, p, vol.Name, p.Name+"-"+vol.Name, false) }
	}
	return func(context.Context) error { return errors.New("no volume plugin matched") }
}

// Remove undoes a pod's volumes: its mounts first, then its files. What is not
// there is no error.
func (m *Manager) Remove(uid types.UID) error {
	m.mu.Lock()
	v := m.pods[uid]
	delete(m.pods, uid)
	m.mu.Unlock()
	if v != nil {
		v.mu.Lock()
		v.gone = true
		v.mu.Unlock()
	}
	if uid == "" || filepath.Base(string(uid)) != string(uid) || uid[0] == '.' {
		return fmt.Errorf("not a pod's directory: %q", uid)
	}
	for _, dir := range []string{m.Dir(uid), m.Made(uid)} {
		if err := Unmount(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing volumes: %w", err)
		}
	}
	return nil
}

// Close takes the memory for secrets away if no pod has any there.
func (m *Manager) Close() error {
	entries, err := os.ReadDir(m.memory())
	if err != nil || len(entries) > 0 {
		return err
	}
	return Unmount(m.memory())
}
