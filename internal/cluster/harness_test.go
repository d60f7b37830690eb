// SPDX-License-Identifier: Apache-2.0

// The control plane keeps upstream's globals and may end its process, so each
// test runs it in a child: this test binary again, told by its environment.
package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sonagi/sonagi/internal/cluster/apiserver"
	"github.com/sonagi/sonagi/internal/cluster/controllers"
	"github.com/sonagi/sonagi/internal/cluster/etcd"
	"github.com/sonagi/sonagi/internal/cluster/pki"
	"github.com/sonagi/sonagi/internal/cluster/scheduler"
	"github.com/sonagi/sonagi/internal/run"
)

const (
	childDir  = "SONAGI_TEST_CONTROL_DIR"
	childPort = "SONAGI_TEST_CONTROL_PORT"
	childProf = "SONAGI_TEST_CONTROL_PPROF"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := control(dir, os.Getenv(childPort)); err != nil {
			fmt.Fprintln(os.Stderr, "FAILED:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// control is what the child does. It says "ready" on its standard output.
func control(dir, port string) error {
	begun := time.Now()
	debug.SetGCPercent(50)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if at := os.Getenv(childProf); at != "" {
		go func() { _ = http.ListenAndServe(at, nil) }()
		if file, err := os.Create(filepath.Join(dir, "start.pprof")); err == nil {
			_ = pprof.StartCPUProfile(file)
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	files, err := pki.Ensure(filepath.Join(dir, "pki"), pki.Options{
		Addresses: []string{"127.0.0.1", "10.42.7.1", "10.43.0.1"},
		Names:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		Server:    "https://127.0.0.1:" + port,
		NodeName:  "one", NodeAddresses: []string{"127.0.0.1"},
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
	})
	if err != nil {
		return err
	}
	store := etcd.New(etcd.Options{Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "etcd.sock"), Log: log})
	api := apiserver.New(apiserver.Options{
		PKI: files, Store: store.Store, EtcdEndpoint: store.Endpoint(),
		Listen:    []string{"127.0.0.1:" + port, "10.42.7.1:" + port},
		Advertise: "10.42.7.1", ServiceCIDR: "10.43.0.0/16", Log: log,
	})
	control := controllers.New(controllers.Options{
		REST: api.RESTConfig(), Informers: api.Informers(), PKI: files,
		LocalPathDir: filepath.Join(dir, "volumes"), NodeName: "one", Log: log,
	})
	schedule := scheduler.New(scheduler.Options{REST: api.RESTConfig(), Informers: api.Informers()})
	return run.Stages(ctx, teller{begun}, []run.Task{store.Task()}, []run.Task{api.Task(), control.Task(), schedule.Task()}, []run.Task{{
		Name: "all",
		Run: func(ctx context.Context) error {
			pprof.StopCPUProfile()
			<-ctx.Done()
			return nil
		},
	}})
}

// A teller says on standard output what became ready; "all" is the last.
type teller struct{ begun time.Time }

func (teller) Starting(string) {}

func (t teller) Ready(task string, took time.Duration) {
	fmt.Printf("%s after %v, at %v\n", task, took.Round(time.Millisecond), time.Since(t.begun).Round(time.Millisecond))
}

// A plane is a control plane in a child process.
type plane struct {
	dir, port string
	command   *exec.Cmd
	errors    *strings.Builder
	took      time.Duration
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// start runs a control plane in dir until the test ends.
func start(t testing.TB, dir, port string) *plane {
	t.Helper()
	p, err := launch(dir, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	t.Logf("ready after %v", p.took.Round(time.Millisecond))
	return p
}

func launch(dir, port string) (*plane, error) {
	p := &plane{dir: dir, port: port, errors: &strings.Builder{}}
	p.command = exec.Command("/proc/self/exe")
	p.command.Env = append(os.Environ(), childDir+"="+dir, childPort+"="+port)
	p.command.Stderr = p.errors
	out, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	said := make([]byte, 0, 256)
	for !strings.Contains(string(said), "all after") {
		buffer := make([]byte, 64)
		n, err := out.Read(buffer)
		if err != nil {
			_ = p.command.Wait()
			return nil, errors.New(p.errors.String())
		}
		said = append(said, buffer[:n]...)
	}
	p.took = time.Since(begun)
	return p, nil
}

func (p *plane) kill() {
	_ = p.command.Process.Kill()
	_ = p.command.Wait()
}

// stop asks the child to end, and returns how long that took.
func (p *plane) stop(t testing.TB) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.command.Wait(); err != nil {
		t.Errorf("ended with %v: %s", err, p.errors)
	}
	return time.Since(begun)
}

// config is the administrator's.
func (p *plane) config(t testing.TB) *rest.Config {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(p.dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	c.QPS = -1
	return c
}
