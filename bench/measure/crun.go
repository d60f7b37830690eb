// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// appPort is where the apps of benchmarks listen.
const appPort = 8080

// BuildApp builds the Go program in dir to a static binary.
func BuildApp(ctx context.Context, dir, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", dir, err, text)
	}
	return nil
}

// ForkExec starts a program on a free port and returns the time to its first
// answer: what no platform can be faster than.
func ForkExec(ctx context.Context, app string) (time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, app)
	cmd.Env = []string{fmt.Sprint("PORT=", port)}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	err = FirstAnswer(ctx, fmt.Sprint("127.0.0.1:", port), "/")
	return time.Since(begin), err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Crun starts containers with crun, as the peer of the node agent.
type Crun struct {
	dir    string
	bundle string
	spawn  chan func()
	next   atomic.Int32
}

// NewCrun prepares a root file system in dir that holds just the app.
func NewCrun(dir, app string) (*Crun, error) {
	c := &Crun{dir: dir, bundle: filepath.Join(dir, "bundle"), spawn: make(chan func())}
	if err := os.MkdirAll(filepath.Join(c.bundle, "rootfs"), 0o755); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(app)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "rootfs", "app"), text, 0o755); err != nil {
		return nil, err
	}
	ready := make(chan error)
	go c.spawner(ready)
	return c, <-ready
}

// spawner starts processes from a thread with mounts of its own. There the
// unified hierarchy of a hybrid machine is not to be seen: crun refuses to
// work with both.
func (c *Crun) spawner(ready chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with us
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	}
	if _, hybrid := os.Stat("/sys/fs/cgroup/unified"); err == nil && hybrid == nil {
		err = unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
	}
	ready <- err
	for f := range c.spawn {
		f()
	}
}

// A Container is one that crun runs.
type Container struct {
	c     *Crun
	id    string
	n     int
	Addr  string // host:port of the app
	netns netns.NsHandle
	cmd   *exec.Cmd
}

// Run runs the app in a new network namespace, with an address that is
// reached from the host, and returns when crun has been started. The namespace is part of
// what is timed: a pod needs one too.
func (c *Crun) Run(ctx context.Context, env ...string) (*Container, error) {
	n := int(c.next.Add(1))
	k := &Container{c: c, n: n, id: fmt.Sprintf("sonagibench-%d-%d", os.Getpid(), n), netns: netns.None()}
	if err := k.network(); err != nil {
		return nil, errors.Join(err, k.Delete())
	}
	bundle, err := k.bundle(env)
	if err != nil {
		return nil, errors.Join(err, k.Delete())
	}
	k.cmd = exec.CommandContext(ctx, "crun", "run", "--bundle", bundle, k.id)
	started := make(chan error)
	c.spawn <- func() { started <- k.cmd.Start() }
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("crun: %w", err), k.Delete())
	}
	return k, nil
}

// network makes a namespace with a link to the host.
func (k *Container) network() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	defer home.Close()
	if k.netns, err = netns.NewNamed(k.id); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	// Whatever happens: this thread must not stay there.
	if err := netns.Set(home); err != nil {
		panic(err)
	}
	block := k.n%4000*4 + 1
	host, inside := net.IPv4(10, 232, byte(block>>8), byte(block)), net.IPv4(10, 232, byte(block>>8), byte(block+1))
	k.Addr = net.JoinHostPort(inside.String(), strconv.Itoa(appPort))
	hostMAC, insideMAC := mac(host), mac(inside)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: k.link(), HardwareAddr: hostMAC},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(k.netns), PeerHardwareAddr: insideMAC,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	there, err := netlink.NewHandleAt(k.netns)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer there.Close()
	here, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer here.Close()
	return errors.Join(
		up(there, "lo", nil, nil, nil),
		up(there, "eth0", inside, host, hostMAC),
		up(here, k.link(), host, inside, insideMAC),
	)
}

func mac(ip net.IP) net.HardwareAddr { return append(net.HardwareAddr{0x02, 0x42}, ip.To4()...) }

// up gives a link its address and makes it work. The neighbour is made known:
// a question that is asked while the other end comes up is asked again only
// after a second, and the peer shall not be charged for that.
func up(h *netlink.Handle, name string, ip, neighbour net.IP, at net.HardwareAddr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if ip != nil {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(30, 32)}}); err != nil {
			return fmt.Errorf("address of %s: %w", name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if neighbour != nil {
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: neighbour, HardwareAddr: at}
		if err := h.NeighSet(n); err != nil {
			return fmt.Errorf("neighbour of %s: %w", name, err)
		}
	}
	return nil
}

func (k *Container) link() string { return fmt.Sprintf("sbench%d", k.n) }

// bundle writes what crun needs to know.
func (k *Container) bundle(env []string) (string, error) {
	dir := filepath.Join(k.c.dir, k.id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	mount := func(at, kind, source string, options ...string) map[string]any {
		return map[string]any{"destination": at, "type": kind, "source": source, "options": options}
	}
	namespace := func(kind, path string) map[string]any {
		n := map[string]any{"type": kind}
		if path != "" {
			n["path"] = path
		}
		return n
	}
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"}
	text, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.0",
		"hostname":   k.id,
		"root":       map[string]any{"path": filepath.Join(k.c.bundle, "rootfs")},
		"process": map[string]any{
			"args": []string{"/app"}, "cwd": "/", "env": append([]string{fmt.Sprint("PORT=", appPort)}, env...),
			"user": map[string]int{"uid": 0, "gid": 0}, "noNewPrivileges": true,
			"capabilities": map[string]any{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"mounts": []any{
			mount("/proc", "proc", "proc"),
			mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
			mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
			mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
			mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		},
		"linux": map[string]any{
			"cgroupsPath": "/sonagibench/" + k.id,
			"resources":   map[string]any{"cpu": map[string]any{"shares": 256}},
			"namespaces": []any{
				namespace("pid", ""), namespace("ipc", ""), namespace("uts", ""), namespace("mount", ""),
				namespace("network", filepath.Join("/run/netns", k.id)),
			},
			"maskedPaths":   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	})
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
}

// FirstAnswer waits for the app's first answer.
func (k *Container) FirstAnswer(ctx context.Context, path string) error {
	return FirstAnswer(ctx, k.Addr, path)
}

// Delete removes the container and its namespace.
func (k *Container) Delete() error {
	var errs []error
	if k.cmd != nil && k.cmd.Process != nil {
		// When the app has ended, "crun run" cleans up and ends.
		killed := make(chan struct{})
		k.c.spawn <- func() {
			defer close(killed)
			if text, err := exec.Command("crun", "kill", k.id, "KILL").CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("crun kill: %w: %s", err, text), k.cmd.Process.Kill())
			}
		}
		<-killed
		_ = k.cmd.Wait() // it was killed: it does not end well
	}
	if link, err := netlink.LinkByName(k.link()); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	if k.netns.IsOpen() {
		errs = append(errs, k.netns.Close(), netns.DeleteNamed(k.id))
	}
	errs = append(errs, os.RemoveAll(filepath.Join(k.c.dir, k.id)))
	return errors.Join(errs...)
}

// Close removes what the containers shared.
func (c *Crun) Close() error {
	close(c.spawn)
	for _, dir := range cgroupRoots() {
		_ = os.Remove(dir) // crun may still hold it for a moment; it is empty
	}
	return os.RemoveAll(c.dir)
}

func cgroupRoots() []string {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/sonagibench")
	return append(dirs, "/sys/fs/cgroup/sonagibench")
}
