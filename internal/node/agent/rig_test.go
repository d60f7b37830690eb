// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/sonagi/sonagi/internal/node/container"
	_ "github.com/sonagi/sonagi/internal/node/container/reexec"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/network"
)

const insideEnv = "SONAGI_TEST_HOST"

// TestMain runs the tests on a machine of their own: a network and a mount
// namespace in which nobody else's links and mounts are.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		if lo, err := netlink.LinkByName("lo"); err == nil {
			netlink.LinkSetUp(lo)
		}
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(1, exit.ExitCode()))
	}
	fmt.Fprintln(os.Stderr, "making the test's machine:", err)
	os.Exit(1)
}

// A rig runs pods given as YAML: a real agent with real containers, images and
// sandboxes, and an API that is only remembered.
type rig struct {
	t      testing.TB
	dir    string
	client *fake.Clientset
	o      Options

	images  *image.Store
	network *network.Manager
	runtime *container.Client

	agent *Agent
	stop  func()

	mu        sync.Mutex
	endpoints []PodEndpoint
	news      chan struct{}
}

const testImage = "registry.test/box:v1"

func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		t.Skip("containers need root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("containers need busybox-static")
	}
	r := &rig{t: t, dir: t.TempDir(), client: fake.NewClientset(), news: make(chan struct{})}
	must(t, os.Chmod(r.dir, 0o755))
	r.tokens()
	r.open()
	_, err := r.images.LoadReader(t.Context(), boxImage(t))
	must(t, err)
	r.o = Options{
		Client: r.client, NodeName: "node-1", NodeIP: r.network.Gateway(), Version: "test",
		Containers: r.runtime, Images: r.images, Network: r.network,
		Dir: filepath.Join(r.dir, "pods"), LogDir: filepath.Join(r.dir, "logs"), DataDir: r.dir,
		ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")},
		OnEndpoint: r.endpoint,
		Log:        slog.New(slog.NewTextHandler(logTo{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	for _, c := range change {
		c(&r.o)
	}
	r.start()
	t.Cleanup(r.close)
	return r
}

type logTo struct{ t testing.TB }

func (l logTo) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the rooms below the agent.
func (r *rig) open() {
	var err error
	r.network, err = network.Open(network.Options{
		Dir:     filepath.Join(r.dir, "sandboxes"),
		PodCIDR: netip.MustParsePrefix("10.142.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.143.0.0/16"),
	})
	must(r.t, err)
	r.images, err = image.Open(image.Options{Dir: filepath.Join(r.dir, "images"), ReserveBytes: 1})
	must(r.t, err)
	r.runtime, err = container.Launch(context.Background(), container.Options{
		Dir: filepath.Join(r.dir, "containers"), Socket: filepath.Join(r.dir, "run", "runtime.sock"),
	})
	must(r.t, err)
}

// tokens makes the API hand out tokens of service accounts.
func (r *rig) tokens() {
	n := 0
	r.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		n++
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("token-%d", n), ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour)),
		}}, nil
	})
}

// start begins an agent, as a new process would.
func (r *rig) start() {
	r.t.Helper()
	var err error
	r.agent, err = New(r.o)
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	task := r.agent.Task()
	go func() { ended <- task.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("agent: %v", err)
		}
	})
	wait, done := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer done()
	must(r.t, task.Ready(wait))
}

func (r *rig) close() {
	r.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(r.dir, "containers", "runtime.log"))
		r.t.Logf("runtime log:\n%s", log)
	}
	grace, stopGrace := context.WithTimeout(ctx, time.Second)
	defer stopGrace()
	if err := r.agent.StopPods(grace); err != nil {
		r.t.Errorf("stopping pods: %v", err)
	}
	if err := r.runtime.Shutdown(ctx); err != nil {
		r.t.Errorf("shutdown: %v", err)
	}
	r.images.Close()
	r.network.Close()
	network.Purge(network.Options{Dir: filepath.Join(r.dir, "sandboxes"), PodCIDR: netip.MustParsePrefix("10.142.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.143.0.0/16")})
	r.nothingLeft()
}

// nothingLeft checks that no mount of a pod or container is left.
func (r *rig) nothingLeft() {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		words := strings.Fields(line)
		if strings.HasPrefix(words[4], r.dir) && !strings.Contains(words[4], "/images/") {
			r.t.Errorf("mount left: %s", words[4])
		}
	}
	for _, root := range []string{"memory", "unified", "."} {
		left, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", root, cgroupRoot, "*"))
		for _, dir := range left {
			if slices.ContainsFunc(r.agent.Pods(), func(p *corev1.Pod) bool { return strings.Contains(dir, string(p.UID)) }) {
				r.t.Errorf("cgroup left: %s", dir)
			}
		}
	}
}

func (r *rig) endpoint(e PodEndpoint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoints = append(r.endpoints, e)
	close(r.news)
	r.news = make(chan struct{})
}

// awaitEndpoint waits for what the data plane is told of a pod.
func (r *rig) awaitEndpoint(name string, what string, ok func(PodEndpoint) bool) PodEndpoint {
	r.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		for _, e := range r.endpoints {
			if e.Name == name && ok(e) {
				r.mu.Unlock()
				return e
			}
		}
		news := r.news
		r.mu.Unlock()
		select {
		case <-news:
		case <-limit:
			r.t.Fatalf("the data plane was not told that %s is %s; it was told %+v", name, what, r.endpoints)
		}
	}
}

// apply creates the pod in YAML, with the defaults of the API server.
func (r *rig) apply(text string) *corev1.Pod {
	r.t.Helper()
	p := parsePod(r.t, text)
	p, err := r.client.CoreV1().Pods(p.Namespace).Create(r.t.Context(), p, metav1.CreateOptions{})
	must(r.t, err)
	return p
}

func parsePod(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{}
	must(t, yaml.UnmarshalStrict([]byte(text), p))
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	p.UID = uuid.NewUUID()
	p.CreationTimestamp = metav1.Now()
	p.Generation = 1
	s := &p.Spec
	s.NodeName = "node-1"
	if s.RestartPolicy == "" {
		s.RestartPolicy = corev1.RestartPolicyAlways
	}
	if s.DNSPolicy == "" {
		s.DNSPolicy = corev1.DNSClusterFirst
	}
	if s.TerminationGracePeriodSeconds == nil {
		s.TerminationGracePeriodSeconds = new(int64)
		*s.TerminationGracePeriodSeconds = 30
	}
	if s.ServiceAccountName == "" {
		s.ServiceAccountName = "default"
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			defaults(&list[i])
		}
	}
	p.Status.Phase = corev1.PodPending
	return p
}

func defaults(c *corev1.Container) {
	if c.Image == "" {
		c.Image = testImage
	}
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
	}
	if c.TerminationMessagePath == "" {
		c.TerminationMessagePath = "/dev/termination-log"
	}
	if c.TerminationMessagePolicy == "" {
		c.TerminationMessagePolicy = corev1.TerminationMessageReadFile
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		p.PeriodSeconds = max(p.PeriodSeconds, 1)
		p.TimeoutSeconds = max(p.TimeoutSeconds, 1)
		p.SuccessThreshold = max(p.SuccessThreshold, 1)
		if p.FailureThreshold == 0 {
			p.FailureThreshold = 3
		}
	}
}

// delete asks for the pod's end as kubectl delete does.
func (r *rig) delete(name string, grace int64) {
	r.t.Helper()
	pods := r.client.CoreV1().Pods("default")
	p, err := pods.Get(r.t.Context(), name, metav1.GetOptions{})
	must(r.t, err)
	at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
	_, err = pods.Update(r.t.Context(), p, metav1.UpdateOptions{})
	must(r.t, err)
}

// pod reads the pod from the API; nil when it is gone.
func (r *rig) pod(name string) *corev1.Pod {
	p, err := r.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

// await waits until the API's pod is as wanted.
func (r *rig) await(name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	r.t.Helper()
	return r.awaitFor(20*time.Second, name, what, ok)
}

func (r *rig) awaitFor(limit time.Duration, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	r.t.Helper()
	end := time.Now().Add(limit)
	for {
		p := r.pod(name)
		if ok(p) {
			return p
		}
		if time.Now().After(end) {
			text, _ := yaml.Marshal(p)
			if p != nil {
				text, _ = yaml.Marshal(p.Status)
			}
			r.t.Fatalf("pod %s is not %s:\n%s\nevents:\n%s", name, what, text, strings.Join(r.events(name), "\n"))
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (r *rig) awaitGone(name string) {
	r.t.Helper()
	r.await(name, "gone", func(p *corev1.Pod) bool { return p == nil })
}

func (r *rig) awaitPhase(name string, phase corev1.PodPhase) *corev1.Pod {
	r.t.Helper()
	return r.await(name, string(phase), func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == phase })
}

func (r *rig) awaitReady(name string) *corev1.Pod {
	r.t.Helper()
	return r.await(name, "ready", func(p *corev1.Pod) bool {
		return p != nil && conditionTrue(&p.Status, corev1.PodReady)
	})
}

// events are the reasons and messages told of a pod.
func (r *rig) events(name string) []string {
	list, err := r.client.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range list.Items {
		if e.InvolvedObject.Name == name {
			out = append(out, e.Reason+": "+e.Message)
		}
	}
	return out
}

// awaitEvent waits for an event that contains the text.
func (r *rig) awaitEvent(name, text string) {
	r.t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		all := r.events(name)
		if slices.ContainsFunc(all, func(e string) bool { return strings.Contains(e, text) }) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("no event %q of %s, but:\n%s", text, name, strings.Join(all, "\n"))
		}
		<-time.After(5 * time.Millisecond)
	}
}

// log is what a container has written, by the attempt's number.
func (r *rig) log(p *corev1.Pod, name string, attempt int) string {
	text, err := os.ReadFile(filepath.Join(r.o.LogDir, "default_"+p.Name+"_"+string(p.UID), name, fmt.Sprint(attempt)+".log"))
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if parts := strings.SplitN(line, " ", 4); len(parts) == 4 {
			b.WriteString(parts[3])
		}
	}
	return b.String()
}

// exec runs a shell command in a container and returns what it prints.
func (r *rig) exec(p *corev1.Pod, name, script string) string {
	r.t.Helper()
	id := ""
	for _, c := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if c.Name == name {
			id = strings.TrimPrefix(c.ContainerID, "sonagi://")
		}
	}
	_, out, err := r.agent.execIn(id)(r.t.Context(), []string{"/bin/sh", "-c", script})
	must(r.t, err)
	return string(out)
}

// boxImage is an image with busybox in it, as an archive.
func boxImage(t testing.TB) *bytes.Buffer {
	t.Helper()
	shell, err := os.ReadFile("/bin/busybox")
	must(t, err)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	dir := func(name string, mode int64) {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}))
	}
	file := func(name string, mode int64, data []byte) {
		must(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}))
		_, err := w.Write(data)
		must(t, err)
	}
	for _, d := range []string{"bin/", "etc/", "proc/", "sys/", "dev/", "data/", "var/", "home/"} {
		dir(d, 0o755)
	}
	dir("tmp/", 0o1777)
	file("bin/busybox", 0o755, shell)
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"))
	file("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"))
	for _, name := range strings.Fields("sh cat echo ls sleep id env stat mount ps kill hostname head dd yes true false touch tty tr pwd wc grep mkdir chmod httpd nc wget trap seq tail nslookup readlink tar rm ln df") {
		must(t, w.WriteHeader(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	must(t, w.Close())
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin:/sbin", "FROM_IMAGE=yes"}, "Cmd": []string{"/bin/sh", "-c", "sleep 3600 & wait"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum(layer.Bytes())}},
	})
	must(t, err)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{testImage}, "Layers": []string{"layer.tar"}}})
	must(t, err)
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	file("config.json", 0o644, config)
	file("layer.tar", 0o644, layer.Bytes())
	file("manifest.json", 0o644, manifest)
	must(t, w.Close())
	return &out
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
