// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"syscall"

	"github.com/sonagi/sonagi/internal/node/pod"
	"github.com/sonagi/sonagi/internal/node/podlog"
)

// listen opens the addresses of the API and returns what serves them.
func (a *Agent) listen() (func(context.Context) error, error) {
	var listeners []net.Listener
	for _, address := range a.o.API.Listen {
		l, err := (&net.ListenConfig{Control: freeBind}).Listen(a.ctx, "tcp", address)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, fmt.Errorf("opening the node's API: %w", err)
		}
		listeners = append(listeners, l)
	}
	return func(ctx context.Context) error { return a.serve(ctx, listeners) }, nil
}

// freeBind allows an address that the machine does not have yet.
func freeBind(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

func (a *Agent) serve(ctx context.Context, listeners []net.Listener) error {
	if len(listeners) == 0 {
		<-ctx.Done()
		return nil
	}
	s := &http.Server{
		Handler: a.Handler(),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			ClientAuth: tls.RequestClientCert, // who it is is looked at for each path
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return a.o.API.Certificate()
			},
			NextProtos: []string{"h2", "http/1.1"},
		},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- s.ServeTLS(l, "", "") }()
	}
	if err := <-failed; ctx.Err() == nil {
		return fmt.Errorf("serving the node's API: %w", err)
	}
	return nil
}

// Handler answers the node's API. It has to be served over TLS that asks for
// client certificates.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.serveLogs)
	for _, method := range []string{"GET", "POST"} {
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", a.serveExec)
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{uid}/{container}", a.serveExec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", a.serveAttach)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{uid}/{container}", a.serveAttach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", a.servePortForward)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}/{uid}", a.servePortForward)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", a.serveRun)
	mux.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", a.serveRun)
	mux.HandleFunc("GET /pods", a.servePods)
	mux.HandleFunc("GET /runningpods/", a.servePods)
	mux.HandleFunc("GET /stats/summary", a.serveSummary)
	mux.HandleFunc("GET /metrics/resource", a.serveResourceMetrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	all := http.NewServeMux()
	all.Handle("/", a.forAPIServer(mux))
	for _, path := range []string{"/apis", "/apis/", "/openapi/"} {
		all.Handle(path, a.forFrontProxy(a.Metrics()))
	}
	return all
}

// forAPIServer lets those in whose certificates are signed by the clients' CA
// and whose names are on the list.
func (a *Agent) forAPIServer(next http.Handler) http.Handler {
	return a.authenticated(next, a.o.API.ClientCAs, a.o.API.ClientNames)
}

// forFrontProxy lets the API server's aggregator in. It has authorized the
// request already.
func (a *Agent) forFrontProxy(next http.Handler) http.Handler {
	return a.authenticated(next, a.o.API.FrontProxyCAs, a.o.API.FrontProxyNames)
}

func (a *Agent) authenticated(next http.Handler, cas *x509.CertPool, names []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, err := signedName(r.TLS, cas)
		if err != nil {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		if len(names) > 0 && !slices.Contains(names, name) {
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes)", name, strings.ToLower(r.Method)), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

var errNoCertificate = errors.New("no valid client certificate")

func signedName(state *tls.ConnectionState, cas *x509.CertPool) (string, error) {
	if state == nil || len(state.PeerCertificates) == 0 || cas == nil {
		return "", errNoCertificate
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	leaf := state.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: cas, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return "", errors.Join(errNoCertificate, err)
	}
	return leaf.Subject.CommonName, nil
}

// podOf finds the worker that a path names.
func (a *Agent) podOf(r *http.Request) (*worker, error) {
	namespace, name, uid := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid")
	var found *worker
	for _, w := range a.all() {
		if w.first.Namespace == namespace && w.first.Name == name && (uid == "" || string(w.uid) == uid) {
			if found == nil || w.claims.Load() {
				found = w
			}
		}
	}
	if found == nil {
		return nil, fmt.Errorf("pod %q does not exist", name)
	}
	return found, nil
}

func (a *Agent) servePods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	for _, p := range a.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data)
}

// serveLogs answers kubectl logs.
func (a *Agent) serveLogs(rw http.ResponseWriter, r *http.Request) {
	w, err := a.podOf(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	name, q := r.PathValue("container"), r.URL.Query()
	if _, ok := pod.Find(w.snapshot(), name); !ok {
		http.Error(rw, fmt.Sprintf("container %q not found in pod %q", name, w.first.Name), http.StatusNotFound)
		return
	}
	opts, err := logOptions(q.Get, a.now())
	if err != nil {
		http.Error(rw, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	path, done, err := w.logOf(name, q.Get("previous") == "true")
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	opts.Done = done
	rw.Header().Set("Content-Type", "text/plain")
	out := &flushWriter{w: rw}
	var stdout, stderr io.Writer = out, out
	switch q.Get("stream") {
	case corev1.LogStreamStdout:
		stderr = nil
	case corev1.LogStreamStderr:
		stdout = nil
	}
	if opts.Follow {
		out.Flush() // the headers: whoever follows wants to know that it works
	}
	if err := podlog.Read(r.Context(), path, opts, stdout, stderr); err != nil && !out.wrote {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	}
}

// flushWriter sends what is written when it is told to.
type flushWriter struct {
	w     http.ResponseWriter
	wrote bool
}

// Write implements io.Writer.
func (f *flushWriter) Write(p []byte) (int, error) {
	f.wrote = f.wrote || len(p) > 0
	return f.w.Write(p)
}

// Flush sends what was written.
func (f *flushWriter) Flush() {
	if w, ok := f.w.(http.Flusher); ok {
		f.wrote = true
		w.Flush()
	}
}

// logOptions reads the query of a request for logs.
func logOptions(get func(string) string, now time.Time) (podlog.Options, error) {
	o := podlog.Options{Follow: get("follow") == "true", Timestamps: get("timestamps") == "true", Tail: -1}
	bad := func(name string) (podlog.Options, error) {
		return o, fmt.Errorf("invalid value %q of %s", get(name), name)
	}
	var err error
	if v := get("tailLines"); v != "" {
		if o.Tail, err = strconv.ParseInt(v, 10, 64); err != nil || o.Tail < 0 {
			return bad("tailLines")
		}
	}
	if v := get("limitBytes"); v != "" {
		if o.LimitBytes, err = strconv.ParseInt(v, 10, 64); err != nil || o.LimitBytes < 1 {
			return bad("limitBytes")
		}
	}
	if v := get("sinceSeconds"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return bad("sinceSeconds")
		}
		o.Since = now.Add(-time.Duration(n) * time.Second)
	}
	if v := get("sinceTime"); v != "" {
		if o.Since, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return bad("sinceTime")
		}
	}
	return o, nil
}

// logOf finds the log of a container's newest attempt, or of the one before.
// done is closed when nothing more is written to it.
func (w *worker) logOf(name string, previous bool) (path string, done <-chan struct{}, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, podName := w.containers[name], w.pod.Name
	closed := make(chan struct{})
	close(closed)
	if m == nil {
		return "", nil, fmt.Errorf("container %q in pod %q is not available", name, podName)
	}
	switch {
	case previous:
		if m.Last == nil && !(m.Phase == pod.Exited && m.Waiting != nil) {
			return "", nil, fmt.Errorf("previous terminated container %q in pod %q not found", name, podName)
		}
		attempt := m.Attempt - 1
		if m.Phase == pod.Exited && m.Waiting != nil || m.Phase == pod.Absent && !m.Busy {
			attempt = m.Attempt // it waits to be started again: the last run is the previous one
		}
		return w.a.logPath(w.pod, name, attempt), closed, nil
	case m.Phase == pod.Running:
		return w.a.logPath(w.pod, name, m.Attempt), m.exited, nil
	case m.Phase == pod.Exited:
		return w.a.logPath(w.pod, name, m.Attempt), closed, nil
	case m.Ever:
		return w.a.logPath(w.pod, name, max(0, m.Attempt-1)), closed, nil
	}
	reason := "ContainerCreating"
	if len(w.pod.Spec.InitContainers) > 0 {
		reason = "PodInitializing"
	}
	if m.Waiting != nil {
		reason = m.Waiting.Reason
	}
	switch reason {
	case "ErrImagePull":
		reason = "image can't be pulled"
	case "ImagePullBackOff":
		reason = "trying and failing to pull image"
	}
	return "", nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, podName, reason)
}
