// SPDX-License-Identifier: Apache-2.0

// Package apitest runs the serving reconcilers against a real control plane. It is apart from
// them because it links all of it.
package apitest

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	sonagiadmission "github.com/sonagi/sonagi/internal/admission"
	"github.com/sonagi/sonagi/internal/cluster/apiserver"
	"github.com/sonagi/sonagi/internal/cluster/controllers"
	"github.com/sonagi/sonagi/internal/cluster/etcd"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/install"
	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/run"
	"github.com/sonagi/sonagi/internal/serving/autoscaler"
	servingcontrol "github.com/sonagi/sonagi/internal/serving/control"
)

const settingsNamespace = "knative-serving"

// The control plane may end its process, so it runs in a child: this test binary again.
const (
	childDir  = "SONAGI_TEST_SERVING_DIR"
	childPort = "SONAGI_TEST_SERVING_PORT"
	// An address here has the child serve its profiles.
	childProfile = "SONAGI_TEST_SERVING_PPROF"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := runPlane(dir, os.Getenv(childPort)); err != nil {
			fmt.Fprintln(os.Stderr, "FAILED:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if shared.plane != nil {
		shared.plane.stop()
	}
	os.Exit(code)
}

// runPlane is the child: store, API server, upstream's controllers, the autoscaler, and the
// reconcilers under test. There is no node; the tests play it.
func runPlane(dir, port string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if at := os.Getenv(childProfile); at != "" {
		go func() { _ = http.ListenAndServe(at, nil) }()
	}
	files, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{
		Addresses: []string{"127.0.0.1", "10.43.0.1"}, Names: []string{"localhost", "kubernetes.default.svc.cluster.local"},
		Server: "https://127.0.0.1:" + port, NodeName: "one", NodeAddresses: []string{"127.0.0.1"},
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
	})
	if err != nil {
		return err
	}
	var settings settingsCache
	store := etcd.New(etcd.Options{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "etcd.sock"), Log: log})
	api := apiserver.New(apiserver.Options{
		PKI: files, Store: store.Store, EtcdEndpoint: store.Endpoint(), Listen: []string{"127.0.0.1:" + port},
		Advertise: "10.42.7.1", ServiceCIDR: "10.43.0.0/16", Log: log,
		Admission: map[string]admission.Interface{"KnativeServing": sonagiadmission.Plugin(sonagiadmission.Options{ConfigMap: settings.get})},
	})
	upstream := controllers.New(controllers.Options{
		REST: api.RESTConfig(), Informers: api.Informers(), PKI: files, LocalPathDir: filepath.Join(dir, "volumes"), NodeName: "one", Log: log,
	})
	installed := make(chan struct{})
	// The garbage collector must know the kinds when it begins.
	installer := run.Task{Name: "install", Run: func(ctx context.Context) error {
		if err := runInstall(ctx, files); err != nil {
			return err
		}
		close(installed)
		<-ctx.Done()
		return nil
	}, Ready: func(ctx context.Context) error {
		select {
		case <-installed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	serving := run.Task{Name: "serving", Run: func(ctx context.Context) error { return runServing(ctx, files, log, &settings) }}
	return run.Stages(ctx, silent{}, []run.Task{store.Task()}, []run.Task{api.Task()}, []run.Task{installer}, []run.Task{upstream.Task(), serving})
}

func runInstall(ctx context.Context, files *pki.Files) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", files.AdminKubeconfig)
	if err != nil {
		return err
	}
	begun := time.Now()
	if _, err := install.Apply(ctx, cfg, install.Options{
		Domain: "sonagi.localhost", HostIP: netip.MustParseAddr("10.42.7.1"), ClusterDNS: netip.MustParseAddr("10.43.0.10"),
		GatewayPort: 80, InternalPort: 8081, DNSPort: 53, RegistryPort: 5000,
	}); err != nil {
		return err
	}
	installed := time.Since(begun)
	begun = time.Now()
	if again, err := install.Apply(ctx, cfg, install.Options{
		Domain: "sonagi.localhost", HostIP: netip.MustParseAddr("10.42.7.1"), ClusterDNS: netip.MustParseAddr("10.43.0.10"),
		GatewayPort: 80, InternalPort: 8081, DNSPort: 53, RegistryPort: 5000,
	}); err != nil || again {
		return fmt.Errorf("second installation: %v, %w", again, err)
	}
	fmt.Printf("installed in %v, checked in %v\n", installed.Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	return nil
}

func runServing(ctx context.Context, files *pki.Files, log *slog.Logger, settings *settingsCache) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", files.AdminKubeconfig)
	if err != nil {
		return err
	}
	cfg.QPS = -1
	m, err := kube.NewManager(cfg, log)
	if err != nil {
		return err
	}
	settings.set(m.GetCache())
	if err := servingcontrol.Setup(m, servingcontrol.Options{Log: log, ResolveDigest: fakeRegistry}); err != nil {
		return err
	}
	writer, err := client.New(cfg, client.Options{Scheme: m.GetScheme(), Mapper: m.GetRESTMapper(), Cache: &client.CacheOptions{Reader: m.GetCache()}})
	if err != nil {
		return err
	}
	scaler, err := autoscaler.New(autoscaler.Options{Client: writer, Informers: m.GetCache(), Log: log})
	if err != nil {
		return err
	}
	go func() {
		if m.GetCache().WaitForCacheSync(ctx) {
			fmt.Println("all")
		}
	}()
	go func() { _ = scaler.Task().Run(ctx) }()
	return m.Start(ctx)
}

// fakeRegistry knows all images but those called missing.
func fakeRegistry(_ context.Context, image servingcontrol.Image) (string, error) {
	if strings.Contains(image.Reference, "missing") {
		return "", fmt.Errorf("HEAD https://registry.test/v2/%s: unexpected status code 404 Not Found", image.Reference)
	}
	return image.Reference + "@sha256:" + strings.Repeat("0", 64), nil
}

type settingsCache struct {
	mu sync.Mutex
	r  client.Reader
}

func (s *settingsCache) set(r client.Reader) { s.mu.Lock(); defer s.mu.Unlock(); s.r = r }

func (s *settingsCache) get(name string) *corev1.ConfigMap {
	s.mu.Lock()
	r := s.r
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	cm := &corev1.ConfigMap{}
	if r.Get(ctx, client.ObjectKey{Namespace: settingsNamespace, Name: name}, cm) != nil {
		return nil
	}
	return cm
}

type silent struct{}

func (silent) Starting(string)             {}
func (silent) Ready(string, time.Duration) {}

// A plane is a control plane in a child process.
type plane struct {
	command *exec.Cmd
	dir     string
	config  *rest.Config
	api     client.WithWatch
}

var shared struct {
	once  sync.Once
	plane *plane
	err   error
}

// control returns the plane that all tests share.
func control(t testing.TB) *plane {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	shared.once.Do(func() { shared.plane, shared.err = launchPlane(t) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.plane
}

func launchPlane(t testing.TB) (*plane, error) {
	dir, err := os.MkdirTemp("", "serving")
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	p := &plane{dir: dir, command: exec.Command("/proc/self/exe")}
	p.command.Env = append(os.Environ(), childDir+"="+dir, childPort+"="+port)
	errorLog, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	p.command.Stderr = errorLog
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = lines.Text() == "all"
		if !ready {
			t.Log(lines.Text())
		}
	}
	if !ready {
		p.stop()
		text, _ := os.ReadFile(filepath.Join(dir, "log"))
		return nil, fmt.Errorf("control plane did not start:\n%s", text)
	}
	t.Logf("control plane after %v, log in %s", time.Since(begun).Round(time.Millisecond), filepath.Join(dir, "log"))
	if p.config, err = clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig")); err != nil {
		return nil, err
	}
	p.config.QPS = -1
	p.api, err = kube.NewClient(p.config)
	return p, err
}

func (p *plane) stop() {
	_ = p.command.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = p.command.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = p.command.Process.Kill()
		<-done
	}
	if os.Getenv("SONAGI_TEST_KEEP") == "" {
		_ = os.RemoveAll(p.dir)
	}
}
