// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/volume"
)

// insist tries until it succeeds or ctx ends, and tells of each failure.
func insist[T any](ctx context.Context, try func() (T, error), failed func(error)) (T, error) {
	wait := 100 * time.Millisecond
	for {
		v, err := try()
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return v, context.Cause(ctx)
		}
		failed(err)
		select {
		case <-time.After(wait):
			wait = min(2*wait, 30*time.Second)
		case <-ctx.Done():
			return v, context.Cause(ctx)
		}
	}
}

// acquire gets the pod its namespaces and its address, and writes the files
// that tell of them.
func (w *worker) acquire(ctx context.Context, p *corev1.Pod) (network.Sandbox, error) {
	defer w.poke()
	return insist(ctx, func() (network.Sandbox, error) {
		if p.Spec.HostNetwork {
			return network.Sandbox{IP: w.a.o.NodeIP}, w.writeFiles(p, "")
		}
		s, err := w.a.o.Network.Acquire(ctx, string(p.UID), pod.NodeName(p, w.a.o.ClusterDomain))
		if err != nil {
			return s, err
		}
		if ports := hostPorts(p); len(ports) > 0 {
			if err := w.a.o.Network.SetHostPorts(ctx, string(p.UID), ports); err != nil {
				return s, err
			}
		}
		if values := pod.Sysctls(p); len(values) > 0 {
			if err := w.a.o.Network.SetSysctls(ctx, string(p.UID), values); err != nil {
				return s, err
			}
		}
		return s, w.writeFiles(p, s.IP.String())
	}, func(err error) {
		w.a.warn(p, nil, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
	})
}

func hostPorts(p *corev1.Pod) []network.HostPort {
	var out []network.HostPort
	for _, m := range pod.Members(p) {
		for _, port := range m.Spec.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := network.HostPort{HostPort: uint16(port.HostPort), PodPort: uint16(port.ContainerPort), Proto: network.TCP}
			if port.Protocol == corev1.ProtocolUDP {
				h.Proto = network.UDP
			}
			if ip, err := netip.ParseAddr(port.HostIP); err == nil && !ip.IsUnspecified() {
				h.HostIP = ip
			}
			out = append(out, h)
		}
	}
	return out
}

// The files of a pod that every container sees.
const (
	hostsFile    = "etc-hosts"
	resolvFile   = "resolv.conf"
	hostnameFile = "hostname"
	shmDir       = "shm"
)

func (w *worker) writeFiles(p *corev1.Pod, ip string) error {
	dir := w.a.volumes.Made(p.UID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	hosts := pod.Hosts(p, ip, w.a.o.ClusterDomain)
	name := pod.NodeName(p, w.a.o.ClusterDomain)
	if p.Spec.HostNetwork {
		machine, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		hosts = pod.HostNetworkHosts(p, string(machine))
		name = w.a.machine.hostname
	}
	for file, text := range map[string]string{
		hostsFile: hosts, resolvFile: pod.ResolvConf(p, w.a.dns()), hostnameFile: name + "\n",
	} {
		if err := writeInPlace(filepath.Join(dir, file), text); err != nil {
			return err
		}
	}
	return w.sharedMemory(p, dir)
}

// writeInPlace keeps the file that containers may have mounted.
func writeInPlace(path, text string) error {
	if have, err := os.ReadFile(path); err == nil && string(have) == text {
		return nil
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

// sharedMemory gives the containers of a pod one /dev/shm, if there are several
// to share it.
func (w *worker) sharedMemory(p *corev1.Pod, dir string) error {
	if !sharesMemory(p) {
		return nil
	}
	shm := filepath.Join(dir, shmDir)
	if err := os.Mkdir(shm, 0o777); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=67108864"); err != nil {
		return errors.Join(fmt.Errorf("mounting shared memory: %w", err), os.Remove(shm))
	}
	return nil
}

func sharesMemory(p *corev1.Pod) bool {
	return !p.Spec.HostIPC && len(p.Spec.Containers)+len(p.Spec.InitContainers) > 1
}

// place gives the volumes their places.
func (w *worker) place(ctx context.Context, p *corev1.Pod) (*volume.Pod, error) {
	return insist(ctx, func() (*volume.Pod, error) { return w.a.volumes.Pod(p) }, w.mountFailed(p))
}

// fill fills the volumes.
func (w *worker) fill(ctx context.Context, p *corev1.Pod, v *volume.Pod) (time.Time, error) {
	defer w.poke()
	return insist(ctx, func() (time.Time, error) { return v.Fill(ctx, p) }, w.mountFailed(p))
}

func (w *worker) mountFailed(p *corev1.Pod) func(error) {
	return func(err error) { w.a.warn(p, nil, "FailedMount", "%v", err) }
}

// refillVolumes brings volumes up to date whose objects or tokens have
// changed, and begins to watch those objects once the pod is up.
func (w *worker) refillVolumes(now time.Time) {
	at, filled := w.filled.now()
	if !filled {
		return
	}
	if w.refresh.IsZero() {
		w.refresh = at
	}
	if !w.kept {
		w.kept = true
		keys := volumeObjects(w.pod)
		if len(keys) > 0 {
			time.AfterFunc(time.Second, func() {
				if w.starts.Err() == nil {
					w.a.objects.keep(w.uid, keys)
				}
			})
		}
	}
	due := !w.refresh.IsZero() && !now.Before(w.refresh)
	if !due && !w.refill {
		return
	}
	w.refill = false
	w.refresh = now.Add(time.Minute) // unless filling says otherwise
	p, v := w.pod, w.placed.value
	go func() {
		again, err := v.Fill(w.starts, p)
		if err != nil && w.starts.Err() == nil {
			w.mountFailed(p)(err)
		}
		w.mu.Lock()
		if err == nil {
			w.refresh = again
		}
		w.mu.Unlock()
		w.poke()
	}()
}

// volumesChanged notes that an object of the pod's volumes has changed.
func (w *worker) volumesChanged() {
	w.mu.Lock()
	w.refill = true
	w.mu.Unlock()
	w.poke()
}
