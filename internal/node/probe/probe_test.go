// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// site is an HTTP server with an answer for each case.
func site() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.Header.Get("User-Agent"), " ", r.Header.Get("Accept"), " ", r.Header.Get("X-One"), " ", r.URL.RawQuery)
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.test/ok", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	return mux
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAsk(t *testing.T) {
	plain, secure := httptest.NewServer(site()), httptest.NewTLSServer(site())
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	port, tlsPort := portOf(t, plain.URL), portOf(t, secure.URL)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := portOf(t, l.Addr().String())
	l.Close()
	gl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, status := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(server, status)
	status.SetServingStatus("sick", healthpb.HealthCheckResponse_NOT_SERVING)
	go server.Serve(gl)
	t.Cleanup(server.Stop)
	grpcPort := int32(portOf(t, gl.Addr().String()))

	get := func(port int, path string, change ...func(*corev1.HTTPGetAction)) corev1.ProbeHandler {
		h := &corev1.HTTPGetAction{Port: intstr.FromInt(port), Path: path}
		for _, c := range change {
			c(h)
		}
		return corev1.ProbeHandler{HTTPGet: h}
	}
	tcp := func(p intstr.IntOrString) corev1.ProbeHandler {
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: p}}
	}
	call := func(port int32, service string) corev1.ProbeHandler {
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port, Service: &service}}
	}
	run := func(words ...string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: words}}
	}
	here := "127.0.0.1:" + strconv.Itoa(port)
	target := Target{IP: "127.0.0.1", Container: &corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}},
		Exec: func(ctx context.Context, args []string) (int, []byte, error) {
			switch args[0] {
			case "hang":
				<-ctx.Done()
				return 0, nil, ctx.Err()
			case "broken":
				return 0, nil, errors.New("no such container")
			case "fail":
				return 1, []byte("why"), nil
			}
			return 0, []byte("fine"), nil
		}}
	for _, tt := range []struct {
		name    string
		handler corev1.ProbeHandler
		ok      bool
		text    string // in the output or the error
	}{
		{"http", get(port, "/ok"), true, here + " kube-probe/1.36 */*  "},
		{"http with a query", get(port, "/ok?a=b"), true, " a=b"},
		{"http by the port's name", get(0, "/ok", func(h *corev1.HTTPGetAction) { h.Port = intstr.FromString("web") }), true, here},
		{"http with headers", get(port, "/ok", func(h *corev1.HTTPGetAction) {
			h.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "me.test"}, {Name: "X-One", Value: "1"}, {Name: "User-Agent", Value: "mine"}}
		}), true, "me.test mine */* 1 "},
		{"https", get(tlsPort, "/ok", func(h *corev1.HTTPGetAction) { h.Scheme = corev1.URISchemeHTTPS }), true, "kube-probe"},
		{"http 503", get(port, "/bad"), false, "HTTP probe failed with statuscode: 503"},
		{"http too slow", get(port, "/slow"), false, "context deadline exceeded"},
		{"http refused", get(closed, "/ok"), false, "connect: connection refused"},
		{"redirect here", get(port, "/here"), true, here},
		{"redirect away", get(port, "/away"), true, "Probe terminated redirects"},
		{"redirect for ever", get(port, "/loop"), false, "stopped after 10 redirects"},
		{"no such port", get(0, "/", func(h *corev1.HTTPGetAction) { h.Port = intstr.FromString("none") }), false, "couldn't find port: none in container c"},
		{"tcp", tcp(intstr.FromInt(port)), true, ""},
		{"tcp refused", tcp(intstr.FromInt(closed)), false, "connect: connection refused"},
		{"tcp, no port", tcp(intstr.FromInt(70000)), false, "invalid port number: 70000"},
		{"grpc", call(grpcPort, ""), true, "service healthy"},
		{"grpc, sick", call(grpcPort, "sick"), false, `service unhealthy (responded with "NOT_SERVING")`},
		{"grpc, unknown", call(grpcPort, "none"), false, "unknown service"},
		{"grpc refused", call(int32(closed), ""), false, "error: failed to connect service at"},
		{"exec", run("ok"), true, "fine"},
		{"exec fails", run("fail"), false, "why"},
		{"exec hangs", run("hang", "here"), false, `command timed out: "hang here" timed out after 1s`},
		{"exec impossible", run("broken"), false, "no such container"},
		{"nothing", corev1.ProbeHandler{}, false, "missing probe handler"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := New("1.36").Ask(t.Context(), &corev1.Probe{ProbeHandler: tt.handler, TimeoutSeconds: 1}, target)
			text := a.Output
			if a.Err != nil {
				text = a.Err.Error()
			}
			if a.OK != tt.ok || !strings.Contains(text, tt.text) || a.Err != nil && a.Output != "" {
				t.Errorf("got %+v", a)
			}
			if a.Warning != (tt.name == "redirect away") {
				t.Errorf("warning is %v", a.Warning)
			}
		})
	}
	t.Run("hooks", func(t *testing.T) {
		t.Parallel()
		asker := New("1.36")
		for path, secureScheme := range map[string]bool{"/ok": false, "/bad": false, "/ok?x": true} {
			h := get(port, path).HTTPGet
			if secureScheme {
				h.Scheme = corev1.URISchemeHTTPS // to a server that speaks HTTP only
			}
			if err := asker.Get(t.Context(), h, target); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		if err := asker.Get(t.Context(), get(closed, "/").HTTPGet, target); err == nil {
			t.Error("no error")
		}
	})
}
