// SPDX-License-Identifier: Apache-2.0

// Package burst has many requests come at once, and changes services while
// requests come: not one may be lost.
package burst

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

var deploy = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

const limit = 90 * time.Second

// space is a namespace for services of the app.
func space(t *testing.T, name string) *platform.Space {
	t.Helper()
	if err := deploy(); err != nil {
		t.Fatal(err)
	}
	return p.Space(t, name)
}

// manifest is a service that answers with a text; notes are annotations of its
// template, more is YAML of its spec, in flow style.
func manifest(name, response, notes, template, traffic string) string {
	return fmt.Sprintf(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: %s}
spec:
  template:
    metadata: {annotations: {%s}}
    spec: {%s, containers: [{image: %s, env: [{name: RESPONSE, value: "%s"}]}]}
  traffic: [%s]
---
`, name, strings.Trim("autoscaling.knative.dev/window: 6s, "+notes, ", "), template, p.App(), response, traffic)
}

const (
	least   = `autoscaling.knative.dev/min-scale: "%d"`
	newest  = "{latestRevision: true, percent: 100}"
	timeout = "timeoutSeconds: 60"
)

// ready waits until all services of a space are, in their newest generation.
func ready(t *testing.T, s *platform.Space) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		out, err := s.Try("get", "ksvc", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.generation}={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if is, seen, _ := strings.Cut(words[1], "="); len(words) != 3 || is != seen || words[2] != "True" {
				return fmt.Errorf("not ready: %s", line)
			}
		}
		return nil
	})
}

// pods waits until a space has so many that stay.
func pods(t *testing.T, s *platform.Space, want func(n int) bool) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		out, err := s.Try("get", "pod", "-o", `go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}`)
		if n := len(strings.Fields(out)); err == nil && !want(n) {
			err = fmt.Errorf("%d pods: %s", n, out)
		}
		return err
	})
}

func none(n int) bool { return n == 0 }

// ask returns the answer, or an error if it is not 200.
func ask(c *http.Client, host, path string) (string, error) {
	req, err := http.NewRequest(http.MethodGet, p.URL()+path, nil)
	if err != nil {
		return "", err
	}
	req.Host = host
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s", resp.Status, body)
	}
	return string(body), err
}

func TestManyFromZero(t *testing.T) {
	const services = 32
	s := space(t, "herd")
	var all strings.Builder
	for i := range services {
		all.WriteString(manifest(fmt.Sprintf("web-%d", i), fmt.Sprint(i), "", timeout, newest))
	}
	s.Make(all.String())
	ready(t, s)
	for range 2 {
		pods(t, s, none)
		c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
		start := time.Now()
		var group sync.WaitGroup
		for i := range services {
			group.Go(func() {
				if got, err := ask(c, p.Host(fmt.Sprintf("web-%d", i), s.Name), "/"); err != nil || got != fmt.Sprint(i) {
					t.Errorf("service %d: %q, %v", i, got, err)
				}
			})
		}
		group.Wait()
		t.Logf("%d services from zero: the last answer after %s", services, time.Since(start))
		c.CloseIdleConnections()
	}
}

func TestManyPodsFromZero(t *testing.T) {
	s := space(t, "crowd")
	s.Make(manifest("web", "", `autoscaling.knative.dev/max-scale: "20"`, timeout+", containerConcurrency: 10", newest))
	ready(t, s)
	pods(t, s, none)
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: time.Minute}
	defer c.CloseIdleConnections()
	start, host := time.Now(), p.Host("web", s.Name)
	var mu sync.Mutex
	var group sync.WaitGroup
	seen := map[string]int{}
	for range 200 {
		group.Go(func() {
			for time.Since(start) < 10*time.Second {
				got, err := ask(c, host, "/?pod&wait=500ms")
				mu.Lock()
				if err != nil {
					got = err.Error()
					t.Errorf("lost: %v", err)
				}
				seen[got]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if len(seen) != 20 {
		t.Errorf("%d pods answered, want 20: %v", len(seen), seen)
	}
	pods(t, s, none)
}

// A change is made to a service while it is asked, and must lose no request.
type change struct {
	name string
	pods int // at least
	do   func(t *testing.T, s *platform.Space)
}

var changes = []change{
	{"rollout", 1, func(t *testing.T, s *platform.Space) {
		for i := range 4 {
			s.Make(manifest("web", fmt.Sprint("new ", i), fmt.Sprintf(least, 1), timeout, newest))
			ready(t, s)
		}
	}},
	{"shift", 1, func(t *testing.T, s *platform.Space) {
		s.Make(manifest("web", "new", fmt.Sprintf(least, 1), timeout, "{revisionName: web-00001, percent: 100}"))
		ready(t, s)
		for percent := 10; percent <= 100; percent += 15 {
			s.Make(manifest("web", "new", fmt.Sprintf(least, 1), timeout, fmt.Sprintf("{revisionName: web-00001, percent: %d}, {latestRevision: true, percent: %d}", 100-percent, percent)))
			ready(t, s)
		}
	}},
	{"scaledown", 4, func(t *testing.T, s *platform.Space) {
		pods(t, s, func(n int) bool { return n >= 4 })
		s.Make(manifest("web", "small", fmt.Sprintf(least, 1), timeout, newest))
		ready(t, s)
		pods(t, s, func(n int) bool { return n <= 2 })
	}},
	{"settings", 1, func(t *testing.T, s *platform.Space) {
		for name, patch := range map[string]string{
			"config-autoscaler": `{"data":{"stable-window":"%s"}}`, "config-defaults": `{"data":{"revision-timeout-seconds":"%s"}}`,
			"config-domain": `{"data":{"other.example.com":%s}}`, "config-network": `{"data":{"rollout-duration":"%s"}}`,
		} {
			values := map[string][2]string{"config-autoscaler": {"30s", "60s"}, "config-defaults": {"200", "300"}, "config-domain": {`"selector: {app: other}"`, "null"}, "config-network": {"1", "0"}}[name]
			for _, value := range values {
				if out, err := p.Kubectl(t.Context(), "-n", "knative-serving", "patch", "configmap", name, "--type=merge", "-p", fmt.Sprintf(patch, value)); err != nil {
					t.Error(out)
				}
			}
		}
		s.Make(manifest("web", "after", fmt.Sprintf(least, 1), timeout, newest))
		ready(t, s)
	}},
	{"podgone", 3, func(t *testing.T, s *platform.Space) {
		pods(t, s, func(n int) bool { return n >= 3 })
		for name := range strings.Lines(s.K("get", "pod", "-o", "name")) {
			s.K("delete", strings.TrimSpace(name), "--wait=false")
			pods(t, s, func(n int) bool { return n >= 3 })
			platform.Eventually(t, limit, func() error {
				out, err := s.Try("get", "deploy", "-o", "jsonpath={.items[0].status.readyReplicas}")
				if err == nil && out != "3" {
					err = fmt.Errorf("%s pods are ready", out)
				}
				return err
			})
		}
	}},
}

// streams asks with HTTP/2, many at a time on one connection, until stop; stop
// returns what failed.
func streams(host string, clients int) (stop func() []error) {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	c := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: time.Minute}
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var failed []error
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for ctx.Err() == nil {
				if _, err := ask(c, host, "/?wait=50ms"); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	return func() []error {
		cancel()
		group.Wait()
		c.CloseIdleConnections()
		return failed
	}
}

func TestChangesUnderLoad(t *testing.T) {
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			s := space(t, "under-"+c.name)
			s.Make(manifest("web", "old", fmt.Sprintf(least, c.pods), timeout, newest))
			ready(t, s)
			// Short requests, and long ones that a pod on its way out has to finish.
			short := p.Load(p.Host("web", s.Name), "/", 4)
			long := p.Load(p.Host("web", s.Name), "/?wait=1500ms", 4)
			stop := streams(p.Host("web", s.Name), 4)
			c.do(t, s)
			for _, err := range stop() {
				t.Errorf("HTTP/2: %v", err)
			}
			for _, l := range []*platform.Load{short, long} {
				answers := l.Stop()
				if failed := answers.Failed(); len(failed) > 0 {
					t.Errorf("of %d requests: %s", len(answers), failed)
				}
			}
		})
	}
}

// TestScaleDownUnderLoad has the load of many fall to that of one.
func TestScaleDownUnderLoad(t *testing.T) {
	s := space(t, "ebb")
	s.Make(manifest("web", "", `autoscaling.knative.dev/max-scale: "6"`, timeout+", containerConcurrency: 2", newest))
	ready(t, s)
	stays := p.Load(p.Host("web", s.Name), "/?wait=700ms", 1)
	flood := p.Load(p.Host("web", s.Name), "/?wait=300ms", 10)
	pods(t, s, func(n int) bool { return n == 6 })
	if failed := flood.Stop().Failed(); len(failed) > 0 {
		t.Error(failed)
	}
	pods(t, s, func(n int) bool { return n == 1 })
	if failed := stays.Stop().Failed(); len(failed) > 0 {
		t.Error(failed)
	}
	pods(t, s, none)
}

// TestZeroUnderSlowLoad asks just when a service goes to zero, again and again.
func TestZeroUnderSlowLoad(t *testing.T) {
	s := space(t, "edge")
	s.Make(manifest("web", "x", "", timeout, newest))
	ready(t, s)
	c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
	defer c.CloseIdleConnections()
	for i := range 4 {
		// The moment at which the pod is told to go.
		platform.Eventually(t, limit, func() error {
			out, err := s.Try("get", "deploy", "web-00001-deployment", "-o", "jsonpath={.spec.replicas}")
			if err == nil && out != "0" {
				err = fmt.Errorf("replicas %s", out)
			}
			return err
		})
		for range 3 {
			if got, err := ask(c, p.Host("web", s.Name), "/?wait=300ms"); err != nil || got != "x" {
				t.Errorf("round %d: %q, %v", i, got, err)
			}
		}
	}
}

// TestDeletionUnderLoad: requests that are under way are answered; later ones get 404.
func TestDeletionUnderLoad(t *testing.T) {
	s := space(t, "deletion")
	s.Make(manifest("web", "x", fmt.Sprintf(least, 1), timeout, newest) + manifest("other", "y", fmt.Sprintf(least, 1), timeout, newest))
	ready(t, s)
	other := p.Load(p.Host("other", s.Name), "/", 4)
	l := p.Load(p.Host("web", s.Name), "/?wait=1s", 8)
	platform.Eventually(t, limit, func() error {
		if l.Count() < 8 {
			return fmt.Errorf("%d answers", l.Count())
		}
		return nil
	})
	s.K("delete", "ksvc", "web")
	platform.Eventually(t, limit, func() error {
		if status, _, err := p.Get(t.Context(), p.Host("web", s.Name), "/"); status != http.StatusNotFound || err != nil {
			return fmt.Errorf("%d, %v", status, err)
		}
		return nil
	})
	for _, failed := range l.Stop().Failed() {
		if !strings.Contains(failed, "404") {
			t.Error(failed)
		}
	}
	if failed := other.Stop().Failed(); len(failed) > 0 {
		t.Errorf("the other service: %s", failed)
	}
}
