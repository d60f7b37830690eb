// SPDX-License-Identifier: Apache-2.0

// Package platform starts the platform as a user would, for scenarios and benchmarks.
//
// Law: everything goes through the real binary and the real clients; a state is
// waited for by watching for it, with a limit, never by sleeping.
package platform

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit is far beyond the promised start, for a machine that is busy with other tests.
const startLimit = 2 * time.Minute

// A Platform is one running "sonagi up".
type Platform struct {
	Root        string // of the repository
	DataDir     string
	Domain      string
	GatewayPort int
	SecurePort  int
	APIPort     int
	Registry    string // localhost:PORT
	flags       []string

	mu    sync.Mutex
	out   bytes.Buffer
	grown chan struct{} // closed and replaced when out grows
	cmd   *exec.Cmd
	done  chan struct{}
	seen  map[string]bool // uids of pods
}

// New chooses ports and address ranges that are free, so that a platform for
// tests stands beside one that is in use. Nothing runs yet.
func New(dataDir string) (*Platform, error) {
	p := &Platform{Root: root(), DataDir: dataDir, Domain: "sonagi.localhost"}
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	p.GatewayPort, p.APIPort, p.SecurePort, p.Registry = ports[0], ports[1], ports[5], "localhost:"+strconv.Itoa(ports[2])
	n, err := place()
	if err != nil {
		return nil, err
	}
	p.flags = []string{
		"--data-dir", dataDir, "--port", strconv.Itoa(ports[0]), "--api-port", strconv.Itoa(ports[1]),
		"--registry-port", strconv.Itoa(ports[2]), "--kubelet-port", strconv.Itoa(ports[3]), "--internal-port", strconv.Itoa(ports[4]),
		"--https-port", strconv.Itoa(ports[5]),
		"--bridge", fmt.Sprintf("sonagit%d", n), "--pod-cidr", fmt.Sprintf("10.%d.0.0/18", 45+n), "--service-cidr", fmt.Sprintf("10.%d.64.0/18", 45+n),
	}
	return p, nil
}

// places is how many platforms for tests fit onto a machine.
const places = 200

// place is a number that no other process which tests has. The kernel frees it
// when this process ends, however it does.
func place() (int, error) {
	for i := range places {
		n := (os.Getpid() + i) % places
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, os.NewSyscallError("socket", err)
		}
		if unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@sonagi-test-%d", n)}) == nil {
			return n, nil // and fd stays open
		}
		_ = unix.Close(fd)
	}
	return 0, fmt.Errorf("%d platforms for tests are there already", places)
}

// Bin is the binary under test.
func (p *Platform) Bin() string { return filepath.Join(p.Root, "bin", "sonagi") }

// Up starts the platform and returns when it says that it is ready.
func (p *Platform) Up(ctx context.Context, extra ...string) error {
	if err := p.Start(extra...); err != nil {
		return err
	}
	return p.Printed(ctx, "Ctrl-C stops")
}

// Start starts the platform and does not wait.
func (p *Platform) Start(extra ...string) error {
	cmd := exec.Command(p.Bin(), append(append([]string{"up"}, p.flags...), extra...)...)
	cmd.Dir = p.Root
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("sonagi up (is it built? make build): %w", err)
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.out.Reset()
	p.grown, p.cmd, p.done = make(chan struct{}), cmd, done
	p.mu.Unlock()
	read := make(chan struct{})
	go func() { defer close(read); p.read(r) }()
	go func() { _ = cmd.Wait(); w.Close(); <-read; close(done) }()
	return nil
}

// read keeps the output and tells of it.
func (p *Platform) read(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		p.mu.Lock()
		p.out.Write(buf[:n])
		close(p.grown)
		p.grown = make(chan struct{})
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Printed returns when "sonagi up" has printed text.
func (p *Platform) Printed(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		p.mu.Lock()
		found, grown := strings.Contains(p.out.String(), text), p.grown
		p.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-grown:
		case <-p.done:
			if strings.Contains(p.Output(), text) {
				return nil
			}
			return fmt.Errorf("sonagi up ended before it printed %q:\n%s", text, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("sonagi up did not print %q in time:\n%s", text, p.Output())
		}
	}
}

// Output is what "sonagi up" has printed.
func (p *Platform) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Interrupt is Ctrl-C; it returns when the platform has ended.
func (p *Platform) Interrupt(ctx context.Context) error {
	if err := p.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sonagi up did not end: %w", ctx.Err())
	}
}

// Signal sends a signal to the supervisor; that it has ended is no error.
func (p *Platform) Signal(sig os.Signal) error {
	p.remember()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Code is the exit code of a supervisor that has ended; -1 for one that was killed.
func (p *Platform) Code() int { return p.cmd.ProcessState.ExitCode() }

// Flags are those of "sonagi up" for this platform.
func (p *Platform) Flags() []string { return slices.Clone(p.flags) }

// Ended is closed when the supervisor has ended.
func (p *Platform) Ended() <-chan struct{} { return p.done }

// Pid is the supervisor's.
func (p *Platform) Pid() int { return p.cmd.Process.Pid }

// Purge stops what runs and removes everything.
func (p *Platform) Purge(ctx context.Context) error {
	p.remember()
	out, err := p.command(ctx, p.Bin(), "down", "--purge", "--data-dir", p.DataDir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sonagi down: %w\n%s", err, out)
	}
	return nil
}

// Sonagi runs a verb of the binary against this platform.
func (p *Platform) Sonagi(ctx context.Context, args ...string) (string, error) {
	return p.Run(ctx, p.Bin(), append([]string{"--data-dir", p.DataDir}, args...)...)
}

// Kubectl runs kubectl, the one on the PATH.
func (p *Platform) Kubectl(ctx context.Context, args ...string) (string, error) {
	return p.Run(ctx, "kubectl", args...)
}

// Kn runs upstream's kn.
func (p *Platform) Kn(ctx context.Context, args ...string) (string, error) {
	return p.Run(ctx, filepath.Join(p.Root, "bin", "kn"), args...)
}

// Apply applies a manifest with kubectl.
func (p *Platform) Apply(ctx context.Context, yaml string) (string, error) {
	cmd := p.command(ctx, "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	return finish(cmd)
}

// Run runs a program with $KUBECONFIG set, and returns both outputs together.
func (p *Platform) Run(ctx context.Context, name string, args ...string) (string, error) {
	return finish(p.command(ctx, name, args...))
}

func (p *Platform) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.Kubeconfig(), "HOME="+filepath.Dir(p.DataDir))
	cmd.WaitDelay = time.Second
	return cmd
}

func finish(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out), err
}

// Kubeconfig is the administrator's.
func (p *Platform) Kubeconfig() string { return filepath.Join(p.DataDir, "kubeconfig") }

// URL is where the gateway takes requests, whatever the host.
func (p *Platform) URL() string { return fmt.Sprintf("http://127.0.0.1:%d", p.GatewayPort) }

// Host is the host name of a service.
func (p *Platform) Host(service, namespace string) string {
	return service + "." + namespace + "." + p.Domain
}

// ServiceURL is the URL of a service, as its status says.
func (p *Platform) ServiceURL(service, namespace string) string {
	return fmt.Sprintf("http://%s:%d", p.Host(service, namespace), p.GatewayPort)
}

// Get asks a service through the gateway and returns status and body.
func (p *Platform) Get(ctx context.Context, host, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL()+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(body), err
}

// root is the repository: this file is in test/platform.
func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
