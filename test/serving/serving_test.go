// SPDX-License-Identifier: Apache-2.0

// Package serving tries what Knative promises to those who write services:
// conditions, names, traffic, scale and settings.
package serving

import (
	"context"
	"fmt"
	"io"
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

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

var app = sync.OnceValue(func() error { return p.DeployApp(context.Background()) })

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
			out, _ := p.Kubectl(context.Background(), "-n", name, "get", "ksvc,configuration,revision,route,kpa,deploy", "-o", "yaml")
			t.Log(out[:min(len(out), 20000)])
		}
	})
	return s
}

// A ksvc is a service's manifest in pieces of YAML, in flow style.
type ksvc struct {
	name    string
	labels  string
	notes   string // annotations of the template
	rev     string // name of the template
	spec    string // fields of the template's spec, each line ends it
	box     string // fields of the container
	image   string
	env     map[string]string
	traffic string // elements
}

func (k ksvc) yaml() string {
	if k.image == "" {
		k.image = p.App()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: %s\n  labels: {%s}\nspec:\n  template:\n    metadata:\n      annotations: {%s}\n", k.name, k.labels, k.notes)
	if k.rev != "" {
		fmt.Fprintf(&b, "      name: %s\n", k.rev)
	}
	b.WriteString("    spec:\n")
	for line := range strings.Lines(k.spec) {
		b.WriteString("      " + line)
	}
	if k.spec != "" {
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "      containers:\n      - image: %s\n", k.image)
	if len(k.env) > 0 {
		b.WriteString("        env:\n")
	}
	for name, value := range k.env {
		fmt.Fprintf(&b, "        - {name: %s, value: %q}\n", name, value)
	}
	for line := range strings.Lines(k.box) {
		b.WriteString("        " + line)
	}
	if k.traffic != "" {
		fmt.Fprintf(&b, "\n  traffic: [%s]\n", k.traffic)
	}
	return b.String() + "\n"
}

func (s space) apply(k ksvc) string {
	s.t.Helper()
	return s.Make(k.yaml())
}

// serve applies a service and waits until it is ready.
func (s space) serve(k ksvc) {
	s.t.Helper()
	s.apply(k)
	s.ready(k.name)
}

// ready waits until a service is, in its newest generation.
func (s space) ready(name string) {
	s.t.Helper()
	platform.Eventually(s.t, 90*time.Second, func() error {
		got, err := s.Try("get", "ksvc", name, "-o", `jsonpath={.metadata.generation}={.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return err
		}
		generations, status, _ := strings.Cut(got, " ")
		if is, seen, _ := strings.Cut(generations, "="); is != seen || status != "True" {
			return fmt.Errorf("service %s: %s", name, got)
		}
		return nil
	})
}

// condition waits until a condition has this status, reason and message.
func (s space) condition(object, kind, status, reason, message string) {
	s.t.Helper()
	path := func(field string) string { return fmt.Sprintf(`{.status.conditions[?(@.type==%q)].%s}`, kind, field) }
	var got string
	platform.Eventually(s.t, time.Minute, func() (err error) {
		got, err = s.Try("get", object, "-o", "jsonpath="+path("status")+"|"+path("reason")+"|"+path("message"))
		want := status + "|" + reason + "|" + message
		if ok := got == want || strings.HasSuffix(message, "…") && strings.HasPrefix(got, strings.TrimSuffix(want, "…")); err == nil && !ok {
			err = fmt.Errorf("%s %s:\n got %q\nwant %q", object, kind, got, want)
		}
		return err
	})
}

func (s space) host(service string) string { return p.Host(service, s.Name) }

// get asks a service once and returns its answer, which must be 200.
func (s space) get(service, path string) string {
	s.t.Helper()
	status, body, err := p.Get(s.t.Context(), s.host(service), path)
	if err != nil || status != 200 {
		s.t.Fatalf("GET %s%s = %d %q, %v", s.host(service), path, status, body, err)
	}
	return body
}

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

// many sends so many requests, so many at a time, and returns how often each answer came.
func (s space) many(service, path string, requests, atOnce int) map[string]int {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atOnce}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	got := map[string]int{}
	var group sync.WaitGroup
	todo := make(chan struct{})
	for range atOnce {
		group.Go(func() {
			for range todo {
				answer := ask(client, s.host(service), path)
				mu.Lock()
				got[answer]++
				mu.Unlock()
			}
		})
	}
	for range requests {
		todo <- struct{}{}
	}
	close(todo)
	group.Wait()
	return got
}

func ask(client *http.Client, host, path string) string {
	req, err := http.NewRequest(http.MethodGet, p.URL()+path, nil)
	if err != nil {
		return err.Error()
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %s %v", resp.StatusCode, body, err)
	}
	return string(body)
}

func wantAll(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

// file holds a manifest for a client that reads one.
func file(t *testing.T, yaml string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
