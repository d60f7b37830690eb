// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

// many asks a host so often, from so many connections, and counts the answers.
func many(host string, requests, clients int) map[string]int {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}, Timeout: time.Minute}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	got := map[string]int{}
	var group sync.WaitGroup
	todo := make(chan struct{})
	one := func() string {
		req, err := http.NewRequest(http.MethodGet, p.URL(), nil)
		if err != nil {
			return err.Error()
		}
		req.Host = host
		resp, err := client.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Sprintf("%s %v", resp.Status, err)
		}
		return string(text)
	}
	for range clients {
		group.Go(func() {
			for range todo {
				answer := one()
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

func TestSharesOfTenThousand(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "shares")
	s.serve("web", "one", "", "", "")
	s.serve("web", "two", "", "", "")
	s.serve("web", "three", "", "", "{revisionName: web-00001, percent: 83}, {revisionName: web-00002, percent: 16}, {latestRevision: true, percent: 1}")
	got := many(p.Host("web", s.Name), 10000, 16)
	if got["one"] != 8300 || got["two"] != 1600 || got["three"] != 100 {
		t.Errorf("83, 16 and 1 of a hundred: %v", got)
	}
}

func TestBlueAndGreen(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "bluegreen")
	host := p.Host("web", s.Name)
	s.serve("web", "blue", "", "", "")
	s.serve("web", "green", "", "", "{revisionName: web-00001, percent: 100, tag: blue}, {latestRevision: true, percent: 0, tag: green}")
	load := p.Load(host, "/", 4)
	answers(t, host, 200, "blue")
	answers(t, p.Host("green-web", s.Name), 200, "green")
	for percent := 10; percent <= 100; percent += 30 {
		s.K("patch", "ksvc", "web", "--type=json", "-p", fmt.Sprintf(`[{"op":"replace","path":"/spec/traffic/0/percent","value":%d},{"op":"replace","path":"/spec/traffic/1/percent","value":%d}]`, 100-percent, percent))
		s.ready("ksvc/web")
	}
	answers(t, host, 200, "green")
	// And back at once.
	s.K("patch", "ksvc", "web", "--type=json", "-p", `[{"op":"replace","path":"/spec/traffic/0/percent","value":100},{"op":"replace","path":"/spec/traffic/1/percent","value":0}]`)
	s.ready("ksvc/web")
	if got := many(host, 50, 4); got["blue"] != 50 {
		t.Errorf("after rollback: %v", got)
	}
	if failed := load.Stop().Failed(); len(failed) > 0 {
		t.Errorf("requests were lost: %v", failed)
	}
}

func TestTagHeaders(t *testing.T) {
	s := newSpace(t, "tagged")
	s.serve("web", "one", "", "", "")
	s.serve("web", "two", "", "", "{latestRevision: true, percent: 100}, {revisionName: web-00001, percent: 0, tag: old}")
	set(t, "config-features", map[string]string{"tag-header-based-routing": "enabled"})
	ask := func(host, path, tag string) string {
		req, _ := http.NewRequest(http.MethodGet, p.URL()+path, nil)
		if req.Host = host; tag != "" {
			req.Header.Set("Knative-Serving-Tag", tag)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return string(text)
	}
	host := p.Host("web", s.Name)
	platform.Eventually(t, 10*time.Second, func() error {
		if got := ask(host, "/", "old"); got != "one" {
			return fmt.Errorf("with the tag: %q", got)
		}
		return nil
	})
	if got := ask(host, "/", "unknown"); got != "two" {
		t.Errorf("with a tag that nobody has: %q", got)
	}
	headers := func(host, tag string) http.Header {
		var about struct{ Header http.Header }
		if err := json.Unmarshal([]byte(ask(host, "/about", tag)), &about); err != nil {
			t.Fatal(err)
		}
		return about.Header
	}
	if h := headers(host, ""); h.Get("Knative-Serving-Default-Route") != "true" || h.Get("Knative-Serving-Tag") != "" {
		t.Errorf("the default route tells %v", h)
	}
	if h := headers(host, "old"); h.Get("Knative-Serving-Tag") != "old" || h.Get("Knative-Serving-Default-Route") != "" {
		t.Errorf("the tag tells %v", h)
	}
	if h := headers(p.Host("old-web", s.Name), ""); h.Get("Knative-Serving-Tag") != "old" {
		t.Errorf("the tag's host tells %v", h)
	}
}

func TestTagTemplate(t *testing.T) {
	s := newSpace(t, "template")
	set(t, "config-network", map[string]string{"tag-template": "{{.Name}}-at-{{.Tag}}"})
	s.serve("web", "one", "", "", "{latestRevision: true, percent: 100, tag: now}")
	answers(t, p.Host("web-at-now", s.Name), 200, "one")
	if got := s.Field("ksvc/web", ".status.traffic[0].url"); got != p.ServiceURL("web-at-now", s.Name) {
		t.Errorf("URL of the tag %q", got)
	}
}

func TestPrivateByDomain(t *testing.T) {
	s := newSpace(t, "secretive")
	set(t, "config-domain", map[string]string{"svc.cluster.local": "selector:\n  app: secret\n"})
	s.serve("open", "open", "", "", "")
	s.serve("secret", "secret", "app: secret", "", "")
	if got := s.Field("ksvc/secret", ".status.url"); got != "http://secret.secretive.svc.cluster.local" {
		t.Errorf("URL %q", got)
	}
	answers(t, "secret.secretive.svc.cluster.local", 404, "")
	answers(t, p.Host("secret", s.Name), 404, "")
	if _, body, err := p.Get(t.Context(), p.Host("open", s.Name), "/fetch?url=http://secret.secretive.svc.cluster.local"); err != nil || body != "secret" {
		t.Errorf("from a pod: %q, %v", body, err)
	}
}

func TestPrivateRouteAndTag(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "partly")
	s.serve("web", "one", "", "", "{latestRevision: true, percent: 100}, {latestRevision: true, percent: 0, tag: inner}")
	answers(t, p.Host("inner-web", s.Name), 200, "one")
	// One tag is kept inside by its Service's label, a route by its own.
	s.K("label", "service", "inner-web", "networking.knative.dev/visibility=cluster-local")
	answers(t, p.Host("inner-web", s.Name), 404, "")
	s.Becomes("ksvc/web", ".status.traffic[1].url", "http://inner-web.partly.svc.cluster.local")
	answers(t, p.Host("web", s.Name), 200, "one")
	s.Make(`apiVersion: serving.knative.dev/v1
kind: Route
metadata: {name: own, labels: {networking.knative.dev/visibility: cluster-local}}
spec: {traffic: [{configurationName: web, percent: 100}]}
`)
	s.ready("route/own")
	answers(t, p.Host("own", s.Name), 404, "")
	answers(t, "own.partly.svc.cluster.local", 404, "")
	for _, url := range []string{"own", "own.partly", "own.partly.svc", "own.partly.svc.cluster.local", "inner-web.partly.svc.cluster.local"} {
		if _, body, err := p.Get(t.Context(), p.Host("web", s.Name), "/fetch?url=http://"+url); err != nil || body != "one" {
			t.Errorf("from a pod, %s answers %q, %v", url, body, err)
		}
	}
	s.K("label", "route", "own", "networking.knative.dev/visibility-")
	s.Becomes("route/own", ".status.url", p.ServiceURL("own", s.Name))
	answers(t, p.Host("own", s.Name), 200, "one")
}

func TestWebSocketOverTLS(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "sockets")
	s.web()
	const domain = "sockets.example.org"
	claim(t, domain, s.Name)
	cert, key, roots := selfSigned(t, domain)
	s.K("create", "secret", "tls", "mine", "--cert", cert, "--key", key)
	s.Make(mapping(domain, "serving.knative.dev/v1", "Service", "web", "  tls: {secretName: mine}"))
	s.ready("dm/" + domain)
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.SecurePort), &tls.Config{RootCAs: roots, ServerName: domain})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nOrigin: https://%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", domain, domain)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	frame := []byte{0x81, 0x85, 0, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'} // masked with nothing
	if _, err := c.Write(frame); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 7)
	if _, err := io.ReadFull(r, back); err != nil || !strings.HasSuffix(string(back), "hello") {
		t.Errorf("%q, %v", back, err)
	}
}
