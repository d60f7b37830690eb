// SPDX-License-Identifier: Apache-2.0

// Package registries pulls from registries that hang, refuse and lie.
package registries

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

const limit = time.Minute

func TestSetup(t *testing.T) {
	if err := p.DeployTool(t.Context(), "well"); err != nil {
		t.Fatal(err)
	}
}

// A hostile registry spoils what an honest one answers, until it is mended.
type hostile struct {
	honest http.Handler
	spoil  func(w http.ResponseWriter, r *http.Request, honest http.Handler)
	mended atomic.Bool
	asked  atomic.Int64
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.spoil == nil || h.mended.Load() {
		h.honest.ServeHTTP(w, r)
		return
	}
	h.asked.Add(1)
	h.spoil(w, r, h.honest)
}

// serve puts the tool's image into a registry that then misbehaves, and returns the image's name there.
func serve(t *testing.T, spoil func(http.ResponseWriter, *http.Request, http.Handler)) (*hostile, string) {
	t.Helper()
	h := &hostile{honest: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := httptest.NewServer(h)
	t.Cleanup(server.CloseClientConnections) // those that hang
	t.Cleanup(server.Close)
	image := strings.TrimPrefix(server.URL, "http://") + "/tool:1"
	tool, err := crane.Pull(p.Tool(), crane.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	layer, err := random.Layer(1<<20, types.OCILayer) // one that no other image has
	if err != nil {
		t.Fatal(err)
	}
	if tool, err = mutate.AppendLayers(tool, layer); err != nil {
		t.Fatal(err)
	}
	if err := crane.Push(tool, image, crane.Insecure); err != nil {
		t.Fatal(err)
	}
	h.spoil = spoil
	return h, image
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
func isManifest(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/manifests/")
}

// answer spoils requests that match with a status and the registry's own words.
func answer(match func(*http.Request) bool, status int, code, message string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		if !match(r) {
			honest.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
	}
}

// change spoils the body of what matches.
func change(match func(*http.Request) bool, with func([]byte) []byte) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		if !match(r) || r.Method != http.MethodGet {
			honest.ServeHTTP(w, r)
			return
		}
		r.Header.Del("Range") // one that cannot continue: what is missing stays missing
		seen := httptest.NewRecorder()
		honest.ServeHTTP(seen, r)
		for key, values := range seen.Header() {
			w.Header()[key] = values
		}
		if isManifest(r) { // shorter by mistake, not cut off
			w.Header().Del("Content-Length")
		}
		w.WriteHeader(seen.Code)
		_, _ = w.Write(with(seen.Body.Bytes()))
	}
}

func truncated(body []byte) []byte { return body[:len(body)/2] }

// layers spoils what is too large to be an image's configuration.
func layers(with func([]byte) []byte) func([]byte) []byte {
	return func(body []byte) []byte {
		if len(body) < 64<<10 {
			return body
		}
		return with(body)
	}
}

func flipped(body []byte) []byte {
	out := append([]byte(nil), body...)
	out[len(out)/2] ^= 0xff
	return out
}

// hang accepts and says nothing, until the client or the test goes away.
func hang(match func(*http.Request) bool) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		if !match(r) {
			honest.ServeHTTP(w, r)
			return
		}
		<-r.Context().Done()
	}
}

// Each lie ends in a waiting pod with words that say what is wrong, and in
// nothing of the image; and once the registry is honest, the pod runs by itself.
func TestLies(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(http.ResponseWriter, *http.Request, http.Handler)
		want  []string // one of them
	}{
		{"unauthorized", answer(isManifest, 401, "UNAUTHORIZED", "who are you"), []string{"who are you", "401", "nauthorized"}},
		{"denied", answer(isManifest, 403, "DENIED", "not for you"), []string{"not for you"}},
		{"missing", answer(isManifest, 404, "MANIFEST_UNKNOWN", "no such tag"), []string{"no such tag", "not found"}},
		{"broken", answer(isManifest, 500, "INTERNAL", "the disk is on fire"), []string{"the disk is on fire", "500"}},
		{"layer missing", answer(isBlob, 404, "BLOB_UNKNOWN", "no such blob"), []string{"no such blob", "not found"}},
		{"layer truncated", change(isBlob, layers(truncated)), []string{"registry sends only"}},
		{"all truncated", change(isBlob, truncated), []string{"registry sends only"}},
		{"layer with wrong digest", change(isBlob, layers(flipped)), []string{"content is not what its digest says"}},
		{"all with wrong digest", change(isBlob, flipped), []string{"content is not what its digest says"}},
		{"manifest is no manifest", change(isManifest, func([]byte) []byte { return []byte("<html>welcome to our wifi</html>") }), []string{"manifest"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, image := serve(t, tt.spoil)
			name := strings.ReplaceAll(tt.name, " ", "-")
			start(t, name, image)
			platform.Eventually(t, limit, func() error {
				reason, message := waiting(t, name)
				if reason != "ErrImagePull" && reason != "ImagePullBackOff" {
					return fmt.Errorf("the pod waits for %q %q", reason, message)
				}
				for _, want := range tt.want {
					if strings.Contains(message, want) {
						t.Logf("%s: %s", reason, message)
						return nil
					}
				}
				return fmt.Errorf("%s: %q says nothing of %q", reason, message, tt.want)
			})
			if out, err := p.Sonagi(t.Context(), "image", "list"); err != nil || strings.Contains(out, image) {
				t.Errorf("half an image is listed: %v\n%s", err, out)
			}
			wantEvent(t, name)
			h.mended.Store(true)
			running(t, name)
		})
	}
}

func start(t *testing.T, name, image string) {
	t.Helper()
	_, err := p.Apply(t.Context(), fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: tool, image: %q, args: [stubborn]}]}\n", name, image))
	if err != nil {
		t.Fatal(err)
	}
}

func waiting(t *testing.T, name string) (reason, message string) {
	t.Helper()
	out, err := p.Kubectl(t.Context(), "get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}")
	if err != nil {
		t.Fatal(err)
	}
	reason, message, _ = strings.Cut(out, " ")
	return reason, message
}

func wantEvent(t *testing.T, name string) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		out, err := p.Kubectl(t.Context(), "get", "events", "--field-selector", "involvedObject.name="+name, "-o", "jsonpath={.items[*].reason} {.items[*].message}")
		if err == nil && (!strings.Contains(out, "Failed") || !strings.Contains(out, "Failed to pull image")) {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	})
}

func running(t *testing.T, name string) {
	t.Helper()
	if _, err := p.Kubectl(t.Context(), "wait", "--for=condition=Ready", "--timeout=120s", "pod/"+name); err != nil {
		t.Error(err)
	}
}

// A registry that hangs holds up only those who wait for it.
func TestHangs(t *testing.T) {
	for name, match := range map[string]func(*http.Request) bool{"hangs-manifest": isManifest, "hangs-layer": isBlob} {
		t.Run(name, func(t *testing.T) {
			h, image := serve(t, hang(match))
			start(t, name, image)
			platform.Eventually(t, limit, func() error {
				if h.asked.Load() == 0 {
					return fmt.Errorf("the registry was not asked yet")
				}
				return nil
			})
			other := "beside-" + name
			start(t, other, p.Tool()+":latest")
			running(t, other)
			// Its pod can be deleted while the registry hangs.
			if _, err := p.Kubectl(t.Context(), "delete", "pod", name, "--wait", "--timeout=30s"); err != nil {
				t.Error(err)
			}
			if out, err := p.Sonagi(t.Context(), "image", "list"); err != nil || strings.Contains(out, image) {
				t.Errorf("half an image is listed: %v\n%s", err, out)
			}
		})
	}
}

// A Knative service says in its conditions what the registry said, and recovers.
// Of a pod that waits it tells, as with Knative, when its progress deadline is over.
func TestServiceConditions(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(http.ResponseWriter, *http.Request, http.Handler)
	}{
		{"unresolved", "404 Not Found", answer(isManifest, 404, "MANIFEST_UNKNOWN", "no such tag")},
		{"lied-to", "digest", change(isBlob, flipped)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, image := serve(t, tt.spoil)
			service := func(n int) {
				t.Helper()
				_, err := p.Apply(t.Context(), fmt.Sprintf("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: %s}\nspec: {template: {metadata: {annotations: {serving.knative.dev/progress-deadline: 10s}}, spec: {containers: [{image: %q, env: [{name: RESPONSE, value: r%d}]}]}}}\n", tt.name, image, n))
				if err != nil {
					t.Fatal(err)
				}
			}
			service(1)
			platform.Eventually(t, limit, func() error {
				out, err := p.Kubectl(t.Context(), "get", "ksvc,revision", "-l", "serving.knative.dev/service="+tt.name, "-o", `jsonpath={range .items[*].status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}`)
				more, _ := p.Kubectl(t.Context(), "get", "ksvc", tt.name, "-o", `jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\n"}{end}`)
				if err == nil && !strings.Contains(out+more, tt.want) {
					err = fmt.Errorf("no %q in:\n%s%s", tt.want, out, more)
				}
				return err
			})
			h.mended.Store(true)
			service(2) // as a user would, who has mended it
			if _, err := p.Kubectl(t.Context(), "wait", "--for=condition=Ready", "--timeout=120s", "ksvc/"+tt.name); err != nil {
				t.Fatal(err)
			}
			status, body, err := p.Get(t.Context(), p.Host(tt.name, "default"), "/")
			if err != nil || status != 200 || body != "r2\n" {
				t.Errorf("%d %q, %v", status, body, err)
			}
		})
	}
}

// Nothing of a pull that failed is kept.
func TestNothingHalf(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := p.Kubectl(ctx, "delete", "pods", "--all", "--wait"); err != nil {
		t.Error(err)
	}
	platform.Eventually(t, limit, func() error {
		left, err := filepath.Glob(filepath.Join(p.DataDir, "images", "tmp", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left of pulls: %s", left)
		}
		return err
	})
}
