// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

const uuid = `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`

// TestHeaders sends headers and looks at what the app gets of them. A pattern
// that is empty means that the app must not get that one.
func TestHeaders(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "headers")
	s.Serves(platform.Service{Name: "web"})
	for name, tt := range map[string]struct {
		sent []string
		want map[string]string
	}{
		"none": {nil, map[string]string{
			"X-Forwarded-For": `^127\.0\.0\.1$`, "X-Forwarded-Proto": `^http$`, "Forwarded": `^for=127\.0\.0\.1;proto=http$`, "X-Request-Id": uuid,
			"Knative-Serving-Revision": "", "Knative-Serving-Namespace": "", "K-Proxy-Request": "",
		}},
		"own": {[]string{"This-Was-Set", "a value", "Accept-Encoding", "br"}, map[string]string{"This-Was-Set": "^a value$", "Accept-Encoding": "^br$"}},
		"behind a proxy": {[]string{"X-Forwarded-For", "192.0.2.9, 192.0.2.1", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "outside.example"}, map[string]string{
			"X-Forwarded-For": `^192\.0\.2\.9, 192\.0\.2\.1, 127\.0\.0\.1$`, "X-Forwarded-Proto": "^https$",
			"X-Forwarded-Host": `^outside\.example$`, "Forwarded": `^for=192\.0\.2\.9;host=outside\.example;proto=https, for=192\.0\.2\.1, for=127\.0\.0\.1$`,
		}},
		"Forwarded": {[]string{"Forwarded", "for=192.0.2.7;proto=https"}, map[string]string{"Forwarded": `^for=192\.0\.2\.7;proto=https$`}},
		"request":   {[]string{"X-Request-Id", "of-the-client"}, map[string]string{"X-Request-Id": "^of-the-client$"}},
		"trace": {[]string{"Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate", "a=b"}, map[string]string{
			"Traceparent": "^00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01$", "Tracestate": "a=b",
		}},
		"of Knative's own": {[]string{"Knative-Serving-Revision", "other", "Knative-Serving-Namespace", "other", "K-Proxy-Request", "activator", "K-Original-Host", "other"}, map[string]string{
			"Knative-Serving-Revision": "", "Knative-Serving-Namespace": "", "K-Proxy-Request": "", "K-Original-Host": "",
		}},
		"hop by hop": {[]string{"Connection", "X-Only-Here", "X-Only-Here", "1", "Keep-Alive", "5", "Proxy-Connection", "close"}, map[string]string{"X-Only-Here": "", "Keep-Alive": "", "Proxy-Connection": ""}},
	} {
		var seen struct {
			Host, Proto string
			Header      http.Header
		}
		s.Tells("web", "/about", &seen, tt.sent...)
		if seen.Host != s.HostOf("web") {
			t.Errorf("%s: the app is asked for host %q", name, seen.Host)
		}
		for header, want := range tt.want {
			got := strings.Join(seen.Header.Values(header), "|")
			if want == "" {
				if _, there := seen.Header[header]; there {
					t.Errorf("%s: the app gets %s: %s", name, header, got)
				}
				continue
			}
			matches(t, name+": "+header, got, want)
		}
	}
}

func TestProtocolByPortName(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "protocol")
	ports := map[string]string{"plain": "ports: [{containerPort: 8080}]", "http1": "ports: [{name: http1, containerPort: 8080}]", "h2c": "ports: [{name: h2c, containerPort: 8080}]"}
	for name, port := range ports {
		s.Deploy(platform.Service{Name: name, Box: port})
	}
	for name := range ports {
		s.ServiceReady(name)
		var seen struct{ Proto string }
		s.Tells(name, "/about", &seen)
		if want := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[name == "h2c"]; seen.Proto != want {
			t.Errorf("port name %s: the app is spoken to with %s, want %s", name, seen.Proto, want)
		}
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "logs")
	s.Serves(platform.Service{Name: "web"})
	pod := s.Answer("web", "/?pod")
	s.Answer("web", "/say?out=to-standard-output&err=to-standard-error")
	s.Says([]string{"to-standard-output\n", "to-standard-error\n"}, "logs", pod, "-c", "user-container")
	s.Says([]string{"to-standard-output\n"}, "logs", "-l", "serving.knative.dev/service=web", "--tail=50")
}

// TestEnd has pods deleted: requests that were taken are answered first, then
// the app is told, and one that does not end is killed after its timeout.
func TestEnd(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "end")
	s.Deploy(platform.Service{Name: "web", Notes: "autoscaling.knative.dev/min-scale: '1'"})
	s.Deploy(platform.Service{Name: "stays", Spec: "timeoutSeconds: 2", Env: map[string]string{"ON_TERM": "stay"}, Notes: "autoscaling.knative.dev/min-scale: '1'"})
	s.ServiceReady("web")
	s.ServiceReady("stays")

	pod := s.Answer("web", "/?pod")
	log := s.Command("logs", "-f", pod)
	said := make(chan string, 1)
	go func() {
		out, _ := log.CombinedOutput()
		said <- string(out)
	}()
	answer := make(chan string, 1)
	go func() {
		status, body, err := s.Ask("web", "/?pod&wait=3s")
		if err != nil || status != http.StatusOK {
			body = fmt.Sprint(status, body, err)
		}
		answer <- body
	}()
	platform.Eventually(t, time.Minute, func() error {
		if s.Answer("web", "/?busy") == "2" { // the other one and this
			return nil
		}
		return errNotYet
	})
	s.K("delete", "pod", pod, "--wait=false")
	if got := <-answer; got != pod {
		t.Errorf("the request that was under way: %q", got)
	}
	if out := <-said; !strings.Contains(out, "told to end") {
		t.Errorf("the app was not told to end: %s", out)
	}

	pod = s.Answer("stays", "/?pod")
	begun := time.Now()
	s.K("delete", "pod", pod, "--timeout=30s")
	if took := time.Since(begun); took < 1500*time.Millisecond || took > 15*time.Second {
		t.Errorf("an app that does not end was gone after %s, with 2 s to end", took)
	}
}
