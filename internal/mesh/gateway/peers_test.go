// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/internal/mesh/routing"
	"github.com/sonagi/sonagi/internal/serving/activator"
	"github.com/sonagi/sonagi/internal/serving/load"
)

// roleVar makes the test binary play one part of BenchmarkPeers, so that its
// CPU time can be told from that of the others.
const roleVar = "SONAGI_BENCH_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		play(role, os.Getenv("SONAGI_BENCH_APP"))
		return
	}
	os.Exit(m.Run())
}

// play serves on a free port, says which, and ends with its standard input.
func play(role, app string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	switch role {
	case "app":
		big := make([]byte, 1<<20)
		go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/big" {
				_, _ = w.Write(big)
				return
			}
			_, _ = io.WriteString(w, "Hello Openshift!\n")
		}))
	case "reverseproxy":
		u, _ := url.Parse("http://" + app)
		proxy := httputil.NewSingleHostReverseProxy(u)
		proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 1000}
		go http.Serve(l, proxy)
	case "gateway":
		go playGateway(l, app)
	}
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func playGateway(l net.Listener, app string) {
	addr, _ := net.ResolveTCPAddr("tcp", app)
	var (
		tables routing.Live
		pods   = activator.New(func(load.Poke) {})
		table  = tables.Load().Edit()
	)
	table.SetRevision(&routing.Revision{Name: rev("hello"), Port: uint16(addr.Port), Timeout: 300 * time.Second})
	split := routing.NewSplit([]routing.Share{{Revision: rev("hello"), Percent: 100}})
	table.SetRoute(&routing.Route{Name: rev("hello"), Hosts: []routing.Host{{Host: "127.0.0.1", Split: split}}})
	tables.Swap(table.Table())
	pods.SetEndpoint(routing.Endpoint{Revision: rev("hello"), UID: "a", IP: addr.AddrPort().Addr().Unmap(), Ready: true})
	g := New(Options{Tables: &tables, Pods: pods})
	g.Add(l, false)
	_ = g.Task().Run(context.Background())
}

type part struct {
	name string
	addr string
	pids []int
}

// BenchmarkPeers measures the CPU time per request of proxies before the same
// app, and prints the ratio to nginx. It needs nginx and wrk.
func BenchmarkPeers(b *testing.B) {
	for _, tool := range []string{"nginx", "wrk"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skip(tool, "is not installed")
		}
	}
	app := start(b, "app", "")
	parts := []part{app, startNginx(b, app.addr), start(b, "gateway", app.addr), start(b, "reverseproxy", app.addr)}
	for _, load := range []struct {
		name    string
		clients string
		args    []string
		path    string
	}{
		{"4 clients", "4", nil, "/"},
		{"32 clients", "32", nil, "/"},
		{"128 clients", "128", nil, "/"},
		{"a connection each", "32", []string{"-H", "Connection: close"}, "/"},
		{"1 MB answers", "8", nil, "/big"},
	} {
		b.Run(load.name, func(b *testing.B) {
			nginx := 0.0
			for _, p := range parts {
				args := append([]string{"-c" + load.clients}, load.args...)
				wrk(b, "1s", p.addr+load.path, args)
				before := cpu(b, p.pids)
				rate, latency := wrk(b, "4s", p.addr+load.path, args)
				micros := (cpu(b, p.pids) - before).Seconds() * 1e6 / (rate * 4)
				if p.name == "nginx" {
					nginx = micros
				}
				ratio := ""
				if nginx > 0 {
					ratio = fmt.Sprintf("%.2f × nginx", micros/nginx)
				}
				fmt.Printf("%-18s %-12s %7.1f µs/request  %6.0f requests/s  %s  %s\n", load.name, p.name, micros, rate, latency, ratio)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func start(b *testing.B, role, app string) part {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, "SONAGI_BENCH_APP="+app)
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(role, err)
	}
	return part{role, strings.TrimSpace(line), []int{cmd.Process.Pid}}
}

func startNginx(b *testing.B, app string) part {
	l := listen(b)
	addr := l.Addr().String()
	l.Close()
	dir := b.TempDir()
	config := fmt.Sprintf(`
worker_processes auto; daemon off; pid %[1]s/pid; error_log /dev/null;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; proxy_max_temp_file_size 0;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  upstream app { server %[2]s; keepalive 512; keepalive_requests 1000000000; }
  server { listen %[3]s; location / {
    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id; } }
}`, dir, app, addr)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "conf"))
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	for try := 0; ; try++ {
		// Its workers are there once one has answered.
		resp, err := http.Get("http://" + addr + "/")
		if err == nil {
			resp.Body.Close()
			break
		}
		if try > 1000 {
			b.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	p := part{"nginx", addr, []int{cmd.Process.Pid}}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	for _, pid := range strings.Fields(string(children)) {
		n, _ := strconv.Atoi(pid)
		p.pids = append(p.pids, n)
	}
	return p
}

// wrk keeps a number of connections busy and returns requests per second and
// the latencies it has seen.
func wrk(b *testing.B, d, url string, args []string) (float64, string) {
	out, err := exec.Command("wrk", append(args, "-t1", "-d"+d, "--latency", "http://"+url)...).CombinedOutput()
	if err != nil {
		b.Fatalf("wrk: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "Non-2xx") || strings.Contains(string(out), "Socket errors") {
		b.Errorf("wrk:\n%s", out)
	}
	rate, latency := 0.0, ""
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Requests/sec:":
			rate, _ = strconv.ParseFloat(f[1], 64)
		case len(f) == 2 && (f[0] == "50%" || f[0] == "99%"):
			latency += " p" + strings.TrimSuffix(f[0], "%") + " " + f[1]
		}
	}
	return rate, latency
}

// cpu is the CPU time of processes.
func cpu(b *testing.B, pids []int) (sum time.Duration) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		sum += time.Duration(user+system) * 10 * time.Millisecond
	}
	return sum
}
