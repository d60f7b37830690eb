// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sonagi/sonagi/internal/install"
	"github.com/sonagi/sonagi/internal/run"
	servingcontrol "github.com/sonagi/sonagi/internal/serving/control"
)

// The two processes of one machine meet at two sockets: load goes from node to
// control, and control asks node whether a route is in its tables.
func (s Settings) controlSocket() string { return s.Path("run", "control.sock") }
func (s Settings) nodeSocket() string    { return s.Path("run", "node.sock") }

// listenUnix serves HTTP on a unix socket that only root can open.
func listenUnix(name, path string, h http.Handler) run.Task {
	ready := make(chan struct{})
	return run.Task{
		Name: name,
		Run: func(ctx context.Context) error {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			l, err := net.Listen("unix", path)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := os.Chmod(path, 0o600); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			close(ready)
			return serve(ctx, &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}, l)
		},
		Ready: func(ctx context.Context) error { return wait(ctx, ready) },
	}
}

// serve runs an HTTP server until ctx ends.
func serve(ctx context.Context, server *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// programmed asks node, and waits there, until the gateway serves a route as its
// status says. Node may be starting again: then it is asked once more.
func (s Settings) programmed(ctx context.Context, p servingcontrol.Programming) error {
	q := url.Values{"kind": {p.Kind}, "namespace": {p.Namespace}, "name": {p.Name}, "generation": {strconv.FormatInt(p.Generation, 10)}, "resourceVersion": {p.ResourceVersion}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/programmed?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := overUnix(s.nodeSocket()).Do(req)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("gateway: route %s/%s: %s", p.Namespace, p.Name, resp.Status)
	}
	return nil
}

// overUnix is a client of whoever listens on the socket.
func overUnix(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}

// registryAliases are the names of the built-in registry, and where it is asked.
func (s Settings) registryAliases() map[string]string {
	at := fmt.Sprintf("127.0.0.1:%d", s.RegistryPort)
	port := strconv.Itoa(int(s.RegistryPort))
	aliases := map[string]string{net.JoinHostPort(s.BridgeIP().String(), port): at}
	for _, host := range []string{"registry.sonagi-system.svc." + s.ClusterDomain, "registry.sonagi-system.svc", "registry.sonagi-system"} {
		aliases[net.JoinHostPort(host, port)] = at
		aliases[net.JoinHostPort(host, strconv.Itoa(install.RegistryPort))] = at // where pods push to
	}
	return aliases
}

// runtimePid is the pid of the runtime, which no supervisor started: the kernel
// knows who listens on its socket.
func runtimePid(s Settings) (pid int) {
	conn, err := net.Dial("unix", s.runtimeOptions().Socket)
	if err != nil {
		return 0
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(peer.Pid)
		}
	})
	return pid
}
