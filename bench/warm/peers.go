// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sonagi/sonagi/bench/measure"
)

// Both proxies keep connections to the app, as any who tunes them would do.
const nginxConf = `
worker_processes auto;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	keepalive_requests 1000000;
	upstream app { server %[2]s; keepalive 256; keepalive_requests 1000000; }
	server {
		listen 127.0.0.1:%[3]d reuseport;
		location / {
			proxy_pass http://app;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
		}
	}
}
`

const haproxyConf = `
global
	maxconn 4096
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	option forwardfor
	http-reuse always
frontend in
	bind 127.0.0.1:%[3]d
	default_backend app
backend app
	server app %[2]s
`

// peers starts the proxies before the app at addr. The first path leads to it
// directly.
func peers(ctx context.Context, dir, addr string) (paths []*path, stop func(), err error) {
	paths = []*path{{name: "direct", url: "http://" + addr + "/"}}
	var started []*exec.Cmd
	stop = func() {
		for _, cmd := range started {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
			_ = cmd.Wait() // it was told to
		}
	}
	for _, peer := range []struct {
		name, conf string
		args       func(conf string) []string
	}{
		{"nginx", nginxConf, func(conf string) []string { return []string{"-c", conf, "-g", "daemon off;"} }},
		{"haproxy", haproxyConf, func(conf string) []string { return []string{"-f", conf} }},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, stop, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		conf := filepath.Join(dir, peer.name+".conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, strings.TrimLeft(peer.conf, "\n"), dir, addr, port), 0o600); err != nil {
			return nil, stop, err
		}
		cmd := exec.Command(peer.name, peer.args(conf)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			return nil, stop, fmt.Errorf("%w; bench/setup installs it", err)
		}
		started = append(started, cmd)
		at := fmt.Sprint("127.0.0.1:", port)
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = measure.FirstAnswer(wait, at, "/")
		cancel()
		if err != nil {
			return nil, stop, fmt.Errorf("%s: %w", peer.name, err)
		}
		paths = append(paths, &path{name: peer.name, url: "http://" + at + "/", procs: func() measure.Procs { return measure.Family(cmd.Process.Pid) }})
	}
	return paths, stop, nil
}
