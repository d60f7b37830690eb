// SPDX-License-Identifier: Apache-2.0

// Package apitest runs the watch against a real API server, which it kills. It is apart from the
// watch because it links a control plane.
package apitest

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/cluster/apiserver"
	"github.com/sonagi/sonagi/internal/cluster/etcd"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/install"
	"github.com/sonagi/sonagi/internal/kube"
	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/mesh/watch"
	"github.com/sonagi/sonagi/internal/run"
)

// The control plane is to be killed, so it runs in a child: this test binary again.
const (
	childDir  = "SONAGI_TEST_WATCH_DIR"
	childPort = "SONAGI_TEST_WATCH_PORT"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := runPlane(dir, os.Getenv(childPort)); err != nil {
			fmt.Fprintln(os.Stderr, "FAILED:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runPlane(dir, port string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.DiscardHandler)
	files, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{
		Addresses: []string{"127.0.0.1", "10.43.0.1"}, Names: []string{"localhost"},
		Server: "https://127.0.0.1:" + port, NodeName: "one", NodeAddresses: []string{"127.0.0.1"},
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
	})
	if err != nil {
		return err
	}
	store := etcd.New(etcd.Options{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "etcd.sock"), Log: log})
	api := apiserver.New(apiserver.Options{
		PKI: files, Store: store.Store, EtcdEndpoint: store.Endpoint(), Listen: []string{"127.0.0.1:" + port},
		Advertise: "10.42.7.1", ServiceCIDR: "10.43.0.0/16", Log: log,
	})
	installer := run.Task{Name: "install", Run: func(ctx context.Context) error {
		cfg, err := clientcmd.BuildConfigFromFlags("", files.AdminKubeconfig)
		if err != nil {
			return err
		}
		if _, err := install.Apply(ctx, cfg, install.Options{
			Domain: "sonagi.localhost", HostIP: netip.MustParseAddr("10.42.7.1"), ClusterDNS: netip.MustParseAddr("10.43.0.10"),
			GatewayPort: 80, InternalPort: 8081, DNSPort: 53, RegistryPort: 5000,
		}); err != nil {
			return err
		}
		fmt.Println("ready")
		<-ctx.Done()
		return nil
	}}
	return run.Stages(ctx, silent{}, []run.Task{store.Task()}, []run.Task{api.Task()}, []run.Task{installer})
}

type silent struct{}

func (silent) Starting(string)             {}
func (silent) Ready(string, time.Duration) {}

// launch starts a control plane, and returns when it serves.
func launch(t *testing.T, dir, port string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childDir+"="+dir, childPort+"="+port)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "ready" {
			return cmd
		}
	}
	t.Fatal("the control plane did not start")
	return nil
}

func kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill() // it may be gone
	_ = cmd.Wait()
}

func TestTablesOutliveTheAPI(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	dir := t.TempDir()
	plane := launch(t, dir, port)
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	api, err := kube.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		create(t, api, fmt.Sprintf("web-%d", i))
	}

	live := &routing.Live{}
	w := watch.New(watch.Options{Client: api, Live: live, SystemNamespace: kube.SystemNamespace, Log: slog.Default()})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.Task().Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if err := w.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if !served(live.Load(), fmt.Sprintf("web-%d", i)) {
			t.Errorf("web-%d is not in the first table", i)
		}
	}
	begun := time.Now()
	create(t, api, "later")
	until(t, live, "later", true)
	t.Log("a new route is served", time.Since(begun), "after it began to be written")

	kill(plane)
	if !served(live.Load(), "web-7") {
		t.Error("the table is gone with the API")
	}
	launch(t, dir, port)
	begun = time.Now()
	create(t, api, "afterwards")
	if err := api.Delete(t.Context(), &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-7"}}); err != nil {
		t.Fatal(err)
	}
	written := time.Since(begun)
	until(t, live, "afterwards", true)
	until(t, live, "web-7", false)
	t.Log("news are written", written, "after the API is back, and served", time.Since(begun)-written, "later")
	if !served(live.Load(), "web-8") {
		t.Error("web-8 is gone")
	}
}

// create makes a route with its revision, as their owners would.
func create(t *testing.T, api client.Client, name string) {
	t.Helper()
	ctx := t.Context()
	rev := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-1"}}
	rev.Spec.Containers = []corev1.Container{{Name: "user-container", Image: "none"}}
	route := &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if err := api.Create(ctx, rev); err != nil {
		t.Fatal(err)
	}
	if err := api.Create(ctx, route); err != nil {
		t.Fatal(err)
	}
	hundred := int64(100)
	route.Status.URL = &apis.URL{Scheme: "http", Host: name + ".example"}
	route.Status.Traffic = []servingv1.TrafficTarget{{RevisionName: rev.Name, Percent: &hundred}}
	if err := api.Status().Update(ctx, route); err != nil {
		t.Fatal(err)
	}
}

func served(t *routing.Table, name string) bool {
	_, refusal := t.Match(routing.Query{Host: name + ".example"})
	return refusal == routing.Matched
}

func until(t *testing.T, live *routing.Live, name string, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := live.Wait(ctx, func(table *routing.Table) bool { return served(table, name) == want }); err != nil {
		t.Fatalf("%s served: %v: %v", name, want, err)
	}
}
