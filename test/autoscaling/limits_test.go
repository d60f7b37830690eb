// SPDX-License-Identifier: Apache-2.0

package autoscaling

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

// With a burst capacity of 0 a pod guards itself: ten requests wait for each place in it, and the next is refused.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "full")
	s.serve("web", "containerConcurrency: 1", "", "target-burst-capacity", "0", "min-scale", "1", "max-scale", "1")
	s.pods("web", 1, limit)
	var mu sync.Mutex
	var all sync.WaitGroup
	got := map[string]int{}
	ask := func(n int, path string) {
		for range n {
			all.Go(func() {
				status, body, err := s.request("web", path)
				mu.Lock()
				defer mu.Unlock()
				got[fmt.Sprint(status, " ", strings.TrimSpace(body), " ", err)]++
			})
		}
	}
	ask(1, "/?wait=8s")
	platform.Eventually(t, limit, func() error {
		if n, err := s.metric("kn_revision_request_active", "web"); n != 1 {
			return fmt.Errorf("%d active, %v", n, err)
		}
		return nil
	})
	ask(10, "/")
	s.held("web", 10)
	for range 5 {
		status, body, err := s.request("web", "/")
		if status != http.StatusServiceUnavailable || body != "pending request queue full\n" || err != nil {
			t.Errorf("beyond the queue: %d %q, %v", status, body, err)
		}
	}
	all.Wait()
	if len(got) != 1 || got["200 web-00001 <nil>"] != 11 {
		t.Errorf("answers: %v", got)
	}
	if _, peak, _ := s.request("web", "/?peak"); peak != "1" {
		t.Errorf("%s requests at a time in the pod, want 1", peak)
	}
}

// Requests that wait are served in the order in which they came.
func TestQueueIsFair(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "fair")
	s.serve("web", "containerConcurrency: 1", "", "min-scale", "1", "max-scale", "1")
	var all sync.WaitGroup
	var want []string
	for i := range 12 {
		want = append(want, fmt.Sprint(i))
		path := fmt.Sprintf("/?id=%d", i)
		if i == 0 {
			path += "&wait=8s"
		}
		all.Go(func() {
			if status, body, err := s.request("web", path); status != 200 || err != nil {
				t.Errorf("request %d: %d %q, %v", i, status, body, err)
			}
		})
		if i == 0 {
			platform.Eventually(t, limit, func() error {
				if n, err := s.metric("kn_revision_request_active", "web"); n != 1 {
					return fmt.Errorf("%d active, %v", n, err)
				}
				return nil
			})
			continue
		}
		s.held("web", i)
	}
	all.Wait()
	if _, order, _ := s.request("web", "/?order"); order != strings.Join(want, " ") {
		t.Errorf("served in the order %s", order)
	}
}

// The limit holds in every pod, whatever the number of pods does meanwhile.
func TestConcurrencyIsStrictUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "strict")
	s.serve("web", "containerConcurrency: 3", "", "max-scale", "4", "window", "6s")
	l := p.Load(s.host("web"), "/?wait=150ms", 24)
	s.pods("web", 4, limit)
	if failed := l.Stop().Failed(); len(failed) > 0 {
		t.Error(failed)
	}
	for range 40 {
		if _, peak, err := s.request("web", "/?peak"); err != nil || peak > "3" || len(peak) != 1 {
			t.Fatalf("%s requests at a time in a pod, want at most 3, %v", peak, err)
		}
	}
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "timeouts")
	s.Make(manifest("total", "timeoutSeconds: 3", "", "min-scale", "1") + "---\n" +
		manifest("start", "timeoutSeconds: 20, responseStartTimeoutSeconds: 3", "", "min-scale", "1") + "---\n" +
		manifest("idle", "timeoutSeconds: 20, idleTimeoutSeconds: 3", "", "min-scale", "1"))
	s.K("wait", "--for=condition=Ready", "ksvc", "--all", "--timeout=90s")
	const late = "request timeout"
	var all sync.WaitGroup
	defer all.Wait()
	for _, tt := range []struct {
		service, path string
		status        int
		body          string
		cut           bool
	}{
		{"total", "/?wait=1s", 200, "total-00001", false},
		{"total", "/?wait=5s", 504, late, false},
		// The answer has begun: its status stands, and the words are its end.
		{"total", "/?flush=1&then=5s", 200, late, false},
		{"total", "/events?n=100&every=500ms", 200, "…" + late, false},
		{"start", "/?wait=1s", 200, "start-00001", false},
		{"start", "/?wait=5s", 504, late, false},
		{"start", "/?flush=1&then=5s", 200, "start-00001", false},
		{"idle", "/?wait=1s", 200, "idle-00001", false},
		{"idle", "/?wait=5s", 504, late, false},
		{"idle", "/?flush=1&then=5s", 200, late, false},
		{"idle", "/events?n=5&every=900ms", 200, "…data: 4\n\n", false},
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
			all.Go(func() {
				tr := &http.Transport{DisableKeepAlives: proto == "HTTP/1.1"}
				if proto == "HTTP/2" {
					tr.Protocols = new(http.Protocols)
					tr.Protocols.SetUnencryptedHTTP2(true)
				}
				defer tr.CloseIdleConnections()
				status, body, err := get(&http.Client{Transport: tr, Timeout: time.Minute}, s.host(tt.service), tt.path)
				end, whole := strings.CutPrefix(tt.body, "…")
				if status != tt.status || body != tt.body && !(whole && strings.HasSuffix(body, end)) || (err != nil) != tt.cut {
					t.Errorf("%s %s%s: %d %q, %v; want %d %q", proto, tt.service, tt.path, status, body, err, tt.status, tt.body)
				}
			})
		}
	}
}

// At zero, and with no pod to come, a request waits as long as it may.
func TestTimeoutAtZero(t *testing.T) {
	t.Parallel()
	s := newSpace(t, "never")
	s.serve("web", "timeoutSeconds: 3", "", "window", "6s")
	s.pods("web", 0, limit)
	s.Make("apiVersion: v1\nkind: ResourceQuota\nmetadata: {name: none}\nspec: {hard: {pods: \"0\"}}\n")
	asked := time.Now()
	status, body, err := s.request("web", "/")
	if status != http.StatusGatewayTimeout || !strings.Contains(body, "request timeout") || err != nil {
		t.Errorf("%d %q, %v", status, body, err)
	}
	if took := time.Since(asked); took < 3*time.Second {
		t.Errorf("after %s", took)
	}
}
