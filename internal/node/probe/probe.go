// SPDX-License-Identifier: Apache-2.0

// Package probe asks a container whether it is well.
//
// One call is one question. When to ask, and what the answers add up to, is
// decided elsewhere.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxOutput bounds what is kept of an answer.
const maxOutput = 10 << 10

// A Target is the container that is asked.
type Target struct {
	IP        string
	Container *corev1.Container
	// Exec runs a command in the container and returns what it printed.
	Exec func(ctx context.Context, args []string) (exit int, output []byte, err error)
}

// An Answer is what a container said. Err means that it could not be asked.
type Answer struct {
	OK      bool
	Output  string
	Warning bool // it is well, but Output should be told
	Err     error
}

// An Asker asks. Its zero value does not work: use New.
type Asker struct {
	client *http.Client
	agent  string
	dialer *net.Dialer
}

// New returns an Asker that calls itself by the version of Kubernetes that it
// stands for, as "1.36".
func New(version string) *Asker {
	dialer := &net.Dialer{Control: quick}
	return &Asker{
		agent:  version,
		dialer: dialer,
		client: &http.Client{
			CheckRedirect: stayHere,
			Transport: &http.Transport{
				DialContext:            dialer.DialContext,
				TLSClientConfig:        &tls.Config{InsecureSkipVerify: true}, // a probe asks whether someone answers, not who
				DisableKeepAlives:      true,
				DisableCompression:     true,
				MaxResponseHeaderBytes: 64 << 10,
			},
		},
	}
}

// quick keeps the many short connections of probes from lingering.
func quick(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
	})
}

func stayHere(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// Ask puts the probe's question to the container.
func (a *Asker) Ask(ctx context.Context, p *corev1.Probe, t Target) Answer {
	timeout := time.Duration(max(1, p.TimeoutSeconds)) * time.Second
	switch {
	case p.Exec != nil:
		return a.exec(ctx, p.Exec, t, timeout)
	case p.HTTPGet != nil:
		return a.http(ctx, p.HTTPGet, t, timeout)
	case p.TCPSocket != nil:
		return a.tcp(ctx, p.TCPSocket, t, timeout)
	case p.GRPC != nil:
		return a.grpc(ctx, p.GRPC, t, timeout)
	}
	return Answer{Err: errors.New("missing probe handler")}
}

func (a *Asker) exec(ctx context.Context, e *corev1.ExecAction, t Target, timeout time.Duration) Answer {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, out, err := t.Exec(ctx, e.Command)
	text := string(out[:min(len(out), maxOutput)])
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Answer{Output: fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(e.Command, " "), timeout)}
	case err != nil:
		return Answer{Err: err}
	}
	return Answer{OK: code == 0, Output: text}
}

func (a *Asker) tcp(ctx context.Context, s *corev1.TCPSocketAction, t Target, timeout time.Duration) Answer {
	port, err := Port(s.Port, t.Container)
	if err != nil {
		return Answer{Err: err}
	}
	host := s.Host
	if host == "" {
		host = t.IP
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := a.dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Answer{Output: err.Error()}
	}
	conn.Close()
	return Answer{OK: true}
}

func (a *Asker) http(ctx context.Context, h *corev1.HTTPGetAction, t Target, timeout time.Duration) Answer {
	req, err := a.request(ctx, h, t, "probe")
	if err != nil {
		return Answer{Err: err}
	}
	client := *a.client
	client.Timeout = timeout
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Output: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil {
		return Answer{Output: err.Error()}
	}
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return Answer{OK: true, Warning: true, Output: fmt.Sprintf("Probe terminated redirects, Response body: %s", body)}
	case resp.StatusCode >= 200 && resp.StatusCode < 400:
		return Answer{OK: true, Output: string(body)}
	}
	return Answer{Output: fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}
}

func (a *Asker) request(ctx context.Context, h *corev1.HTTPGetAction, t Target, purpose string) (*http.Request, error) {
	port, err := Port(h.Port, t.Container)
	if err != nil {
		return nil, err
	}
	host := h.Host
	if host == "" {
		host = t.IP
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme = strings.ToLower(string(h.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, kv := range h.HTTPHeaders {
		req.Header.Add(kv.Name, kv.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+purpose+"/"+a.agent)
	}
	if v, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if v[0] == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// Get is the HTTP request of a lifecycle hook; any answer will do.
func (a *Asker) Get(ctx context.Context, h *corev1.HTTPGetAction, t Target) error {
	req, err := a.request(ctx, h, t, "lifecycle")
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil && req.URL.Scheme == "https" && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(ctx)
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		resp, err = a.client.Do(req)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, maxOutput)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

func (a *Asker) grpc(ctx context.Context, g *corev1.GRPCAction, t Target, timeout time.Duration) Answer {
	addr := net.JoinHostPort(t.IP, strconv.Itoa(int(g.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithUserAgent("kube-probe/"+a.agent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return a.dialer.DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return Answer{Err: err}
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		return Answer{Output: grpcFailure(err, addr, timeout)}
	}
	if resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Answer{Output: fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus().String())}
	}
	return Answer{OK: true, Output: "service healthy"}
}

func grpcFailure(err error, addr string, timeout time.Duration) string {
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.Unimplemented:
		return "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + s.Message()
	case codes.DeadlineExceeded:
		return fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
	case codes.Unavailable:
		return fmt.Sprintf("error: failed to connect service at %q: %s", addr, s.Message())
	}
	return fmt.Sprintf("error: health rpc probe failed: %v", err)
}

// Port is the number of a port that is given as a number or as the name of one
// of the container's ports.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		found := false
		for _, port := range c.Ports {
			if port.Name == p.StrVal {
				n, found = int(port.ContainerPort), true
			}
		}
		if !found && n == 0 {
			return 0, fmt.Errorf("couldn't find port: %v in container %s", p.StrVal, c.Name)
		}
	}
	if n <= 0 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", n)
	}
	return n, nil
}
