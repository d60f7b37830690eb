// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A Service is a Knative service's manifest in pieces of YAML, in flow style.
type Service struct {
	Name        string
	Labels      string
	Annotations string
	Notes       string // annotations of the template
	Marks       string // labels of the template
	Rev         string // name of the template
	Spec        string // fields of the template's spec, one a line
	Box         string // fields of the container, one a line
	Image       string // the app's unless set
	Env         map[string]string
	More        string // further containers, as elements in flow style, one a line
	Traffic     string // elements
}

// Manifest is the service's manifest.
func (p *Platform) Manifest(k Service) string {
	if k.Image == "" {
		k.Image = p.App()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: %s\n  labels: {%s}\n  annotations: {%s}\n", k.Name, k.Labels, k.Annotations)
	fmt.Fprintf(&b, "spec:\n  template:\n    metadata:\n      annotations: {%s}\n      labels: {%s}\n", k.Notes, k.Marks)
	if k.Rev != "" {
		fmt.Fprintf(&b, "      name: %s\n", k.Rev)
	}
	b.WriteString("    spec:\n" + lines(k.Spec, "      "))
	fmt.Fprintf(&b, "      containers:\n      - image: %s\n", k.Image)
	if len(k.Env) > 0 {
		b.WriteString("        env:\n")
	}
	for _, name := range slices.Sorted(maps.Keys(k.Env)) {
		fmt.Fprintf(&b, "        - {name: %s, value: %q}\n", name, k.Env[name])
	}
	b.WriteString(lines(k.Box, "        "))
	b.WriteString(lines(k.More, "      - "))
	if k.Traffic != "" {
		fmt.Fprintf(&b, "  traffic: [%s]\n", k.Traffic)
	}
	return b.String()
}

func lines(text, indent string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(indent + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

// Deploy applies a service and does not wait.
func (s *Space) Deploy(k Service) string {
	s.t.Helper()
	return s.Make(s.Manifest(k))
}

// Serves applies a service and waits until it is ready.
func (s *Space) Serves(k Service) {
	s.t.Helper()
	s.Deploy(k)
	s.ServiceReady(k.Name)
}

// ServiceReady waits until a service is ready in its newest generation.
func (s *Space) ServiceReady(name string) {
	s.t.Helper()
	Eventually(s.t, 90*time.Second, func() error {
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

// Condition waits until a condition has this status, reason and message. A
// message that ends in "…" is only the beginning of the one that is waited for.
func (s *Space) Condition(object, kind, status, reason, message string) {
	s.t.Helper()
	path := func(field string) string { return fmt.Sprintf(`{.status.conditions[?(@.type==%q)].%s}`, kind, field) }
	want := status + "|" + reason + "|" + message
	begin, open := strings.CutSuffix(want, "…")
	Eventually(s.t, time.Minute, func() error {
		got, err := s.Try("get", object, "-o", "jsonpath="+path("status")+"|"+path("reason")+"|"+path("message"))
		if err == nil && got != want && (!open || !strings.HasPrefix(got, begin)) {
			err = fmt.Errorf("%s %s:\n got %q\nwant %q", object, kind, got, want)
		}
		return err
	})
}

// HostOf is the host name of a service in this namespace.
func (s *Space) HostOf(service string) string { return s.Host(service, s.Name) }

// Ask sends a GET with headers, given as names and values, and returns status and body.
func (s *Space) Ask(service, path string, headers ...string) (int, string, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.URL()+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = s.HostOf(service)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(body), err
}

// Answer is what a service answers, which must be with 200.
func (s *Space) Answer(service, path string, headers ...string) string {
	s.t.Helper()
	status, body, err := s.Ask(service, path, headers...)
	if err != nil || status != http.StatusOK {
		s.t.Fatalf("GET %s%s = %d %q, %v", s.HostOf(service), path, status, body, err)
	}
	return body
}

// Tells decodes a service's answer.
func (s *Space) Tells(service, path string, into any, headers ...string) {
	s.t.Helper()
	body := s.Answer(service, path, headers...)
	if err := json.Unmarshal([]byte(body), into); err != nil {
		s.t.Fatalf("%s%s: %v in %q", s.HostOf(service), path, err, body)
	}
}
