// SPDX-License-Identifier: Apache-2.0

// Package autoscaling tries what Knative promises of scale and of the limits
// of a request: bounds, classes, queues and timeouts.
package autoscaling

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

// Tests mostly wait for time to pass, so more of them run at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	os.Exit(platform.Main(m, &p))
}

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

const (
	limit  = time.Minute
	prefix = "autoscaling.knative.dev/"
)

// A space is a namespace in which services are made and asked.
type space struct {
	*platform.Space
	t *testing.T
}

func newSpace(t *testing.T, name string) space {
	t.Helper()
	if err := app(); err != nil {
		t.Fatal(err)
	}
	s := space{p.Space(t, name), t}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := p.Kubectl(context.Background(), "-n", name, "get", "ksvc,revision,kpa,hpa,deploy", "-o", "yaml")
			t.Log(out[:min(len(out), 20000)])
		}
	})
	return s
}

// manifest is a service with annotations of its template, in pairs, and fields
// of its spec and container, in flow style.
func manifest(name, spec, box string, notes ...string) string {
	var b strings.Builder
	for i := 0; i < len(notes); i += 2 {
		fmt.Fprintf(&b, "%s%s: %q, ", prefix, notes[i], notes[i+1])
	}
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata: {annotations: {%s}}
    spec: {%s containers: [{image: %s%s}]}
`, name, strings.TrimSuffix(b.String(), ", "), comma(spec), p.App(), before(box))
}

func comma(s string) string {
	if s != "" {
		s += ","
	}
	return s
}

func before(s string) string {
	if s != "" {
		s = ", " + s
	}
	return s
}

// serve applies a service and waits until it is ready.
func (s space) serve(name, spec, box string, notes ...string) {
	s.t.Helper()
	s.Make(manifest(name, spec, box, notes...))
	s.K("wait", "--for=condition=Ready", "ksvc/"+name, "--timeout=90s")
}

func (s space) host(service string) string { return p.Host(service, s.Name) }

// pods waits until a service has so many pods that are not on their way out.
func (s space) pods(service string, want int, within time.Duration) {
	s.t.Helper()
	platform.Eventually(s.t, within, func() error {
		n, out, err := s.count(service)
		if err == nil && n != want {
			err = fmt.Errorf("%s has %d pods, want %d: %s", service, n, want, out)
		}
		return err
	})
}

func (s space) count(service string) (n int, out string, err error) {
	out, err = s.Try("get", "pod", "-l", "serving.knative.dev/service="+service, "-o",
		`go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}`)
	return len(strings.Fields(out)), out, err
}

// request asks a service once, on a connection of its own.
func (s space) request(service, path string) (status int, body string, err error) {
	t := &http.Transport{DisableKeepAlives: true}
	return get(&http.Client{Transport: t, Timeout: time.Minute}, s.host(service), path)
}

// get returns what was read of the answer, also with an error.
func get(c *http.Client, host, path string) (status int, body string, err error) {
	req, err := http.NewRequest(http.MethodGet, p.URL()+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// metric reads the data plane's figure for the first revision of a service.
func (s space) metric(name, service string) (value int, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(p.DataDir, "run", "node.sock"))
	}}}
	resp, err := c.Get("http://node/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		l := string(line)
		if strings.HasPrefix(l, name+"{") && strings.Contains(l, `k8s_namespace_name="`+s.Name+`"`) && strings.Contains(l, `kn_revision_name="`+service+`-00001"`) {
			_, err := fmt.Sscan(l[strings.LastIndexByte(l, ' '):], &value)
			return value, err
		}
	}
	return 0, fmt.Errorf("no %s of %s", name, service)
}

// held waits until so many requests wait for a place.
func (s space) held(service string, want int) {
	s.t.Helper()
	platform.Eventually(s.t, limit, func() error {
		n, err := s.metric("kn_revision_request_queued", service)
		if err == nil && n != want {
			err = fmt.Errorf("%d requests wait, want %d", n, want)
		}
		return err
	})
}

// set changes config-autoscaler, and takes the change back when the test ends.
// Tests that use it do not run beside others.
func set(t *testing.T, data map[string]string) {
	t.Helper()
	back := map[string]any{}
	for key := range data {
		back[key] = nil
	}
	patch(t.Context(), t, data)
	t.Cleanup(func() { patch(context.Background(), t, back) })
}

func patch(ctx context.Context, t *testing.T, data any) {
	t.Helper()
	text, _ := json.Marshal(map[string]any{"data": data})
	if out, err := p.Kubectl(ctx, "-n", "knative-serving", "patch", "configmap", "config-autoscaler", "--type=merge", "-p", string(text)); err != nil {
		t.Fatal(out)
	}
}
