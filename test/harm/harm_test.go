// SPDX-License-Identifier: Apache-2.0

// Package harm runs pods that behave as badly as they can beside a service that must not notice.
package harm

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

const (
	limit = 90 * time.Second
	// sane is what the neighbour's median answer may take, on a machine with two
	// busy processors. One that is harmed takes seconds, or fails.
	sane = 250 * time.Millisecond
)

func TestSetup(t *testing.T) {
	if err := p.DeployTool(t.Context(), "neighbour"); err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(t.Context(), "neighbour", 1); err != nil {
		t.Fatal(err)
	}
}

// harmless runs do while the neighbour is asked, and for so many answers more.
func harmless(t *testing.T, do func()) {
	t.Helper()
	load := p.Load(p.Host("neighbour", "default"), "/", 4)
	do()
	more := load.Count() + 200
	platform.Eventually(t, limit, func() error {
		if n := load.Count(); n < more {
			return fmt.Errorf("%d of %d requests answered", n, more)
		}
		return nil
	})
	all := load.Stop()
	for _, failed := range all.Failed() {
		t.Errorf("of %d requests to the neighbour failed %s", len(all), failed)
	}
	t.Logf("neighbour: %d requests, p50 %s, p99 %s, longest %s", len(all), all.Percentile(50), all.Percentile(99), all.Percentile(100))
	if all.Percentile(50) > sane {
		t.Errorf("the neighbour's median answer took %s", all.Percentile(50))
	}
}

// pod starts a pod that behaves so, and removes it at the end, which must work
// whatever it does: within its grace period, and leaving no process.
func pod(t *testing.T, name, behaves, container, spec string) {
	t.Helper()
	if err := p.Pod(t.Context(), name, behaves, container, spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if field(t, name, "{.metadata.name}") != "" {
			remove(t, name)
		}
	})
}

func remove(t *testing.T, name string) {
	t.Helper()
	id := strings.TrimSpace(field(t, name, "{.status.containerStatuses[0].containerID}"))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	if _, err := p.Kubectl(ctx, "delete", "pod", name, "--wait"); err != nil {
		t.Error(err)
	}
	t.Logf("%s was gone %s after kubectl delete began", name, time.Since(began).Round(time.Millisecond))
	if _, id, ok := strings.Cut(id, "://"); ok {
		if left := p.In(id); len(left) > 0 {
			t.Errorf("%d processes of %s are left", len(left), name)
			for ; len(left) > 0; left = p.In(id) { // not for the tests that follow
				platform.Kill(left...)
			}
		}
	}
}

func field(t *testing.T, name, path string) string {
	t.Helper()
	out, err := p.Kubectl(context.Background(), "get", "pod", name, "--ignore-not-found", "-o", "jsonpath="+path)
	if err != nil {
		t.Error(err)
	}
	return out
}

// until waits until a field of the pod contains want.
func until(t *testing.T, name, path, want string) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		if have := field(t, name, path); !strings.Contains(have, want) {
			return fmt.Errorf("%s: %s is %q; want %q", name, path, have, want)
		}
		return nil
	})
}

const terminated = "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"

func printed(t *testing.T, name, want string) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		out, err := p.Kubectl(t.Context(), "logs", name, "--tail=20")
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%s has not printed %q: %s", name, want, out)
		}
		return err
	})
}

func TestForks(t *testing.T) {
	harmless(t, func() {
		pod(t, "forks", "fork", "", "")
		printed(t, "forks", "forking")
		id := strings.TrimPrefix(field(t, "forks", "{.status.containerStatuses[0].containerID}"), "containerd://")
		id = id[strings.LastIndex(id, "/")+1:]
		most := 0
		platform.Eventually(t, limit, func() error { // it goes on until it meets its bound
			n := len(p.In(id))
			most = max(most, n)
			if n < 4000 && field(t, "forks", "{.status.phase}") == "Running" {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		t.Logf("%d processes", most)
		if most > 4096 {
			t.Errorf("%d processes in one container", most)
		}
		// Others can be started meanwhile.
		pod(t, "meanwhile", "exit 0", "", "")
		until(t, "meanwhile", "{.status.phase}", "Succeeded")
		remove(t, "forks")
	})
}

func TestEatsMemory(t *testing.T) {
	harmless(t, func() {
		pod(t, "eats", "eat", "resources: {limits: {memory: 64Mi}}", "")
		until(t, "eats", terminated, "OOMKilled 137")
		until(t, "eats", "{.status.phase}", "Failed")
	})
}

func TestFillsItsDisk(t *testing.T) {
	for _, tt := range []struct{ name, behaves, container, spec, message string }{
		{"fills-volume", "fill /data 64", "volumeMounts: [{name: data, mountPath: /data}]", "volumes: [{name: data, emptyDir: {sizeLimit: 16Mi}}]",
			`Usage of EmptyDir volume "data" exceeds the limit "16Mi".`},
		{"fills-root", "fill / 64", "resources: {limits: {ephemeral-storage: 16Mi}}\nsecurityContext: {runAsUser: 0}", "",
			"Pod ephemeral local storage usage exceeds the total limit of containers 16Mi."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			harmless(t, func() {
				pod(t, tt.name, tt.behaves, tt.container, tt.spec)
				until(t, tt.name, "{.status.phase} {.status.reason} {.status.message}", "Failed Evicted "+tt.message)
			})
		})
	}
	t.Run("fills-memory", func(t *testing.T) { // a volume in memory is full when it is full
		pod(t, "fills-memory", "fill /data -1", "volumeMounts: [{name: data, mountPath: /data}]", "volumes: [{name: data, emptyDir: {medium: Memory, sizeLimit: 16Mi}}]")
		printed(t, "fills-memory", "no space left on device")
		until(t, "fills-memory", "{.status.phase}", "Running")
	})
}

func TestIgnoresSIGTERM(t *testing.T) {
	harmless(t, func() {
		pod(t, "ignores", "stubborn", "", "")
		printed(t, "ignores", "ignoring SIGTERM")
		began := time.Now()
		remove(t, "ignores")
		if took := time.Since(began); took < time.Second {
			t.Errorf("killed after %s, before its grace period was over", took)
		}
	})
}

func TestFloodsLogs(t *testing.T) {
	harmless(t, func() {
		pod(t, "floods", "flood", "", "")
		printed(t, "floods", "flood")
		logs := filepath.Join(p.DataDir, "logs", "pods", "default_floods_"+field(t, "floods", "{.metadata.uid}"))
		platform.Eventually(t, limit, func() error { // rotated
			files, err := filepath.Glob(filepath.Join(logs, "tool", "*"))
			if err == nil && len(files) < 2 {
				err = fmt.Errorf("%d log files", len(files))
			}
			return err
		})
		t.Logf("%d MiB of logs", size(logs)>>20)
		// Another's log can be read meanwhile.
		pod(t, "quiet", "stubborn", "", "")
		printed(t, "quiet", "ignoring SIGTERM")
	})
}

func size(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

// Thousands of connections that ask half a question: to the gateway, and to the neighbour's pod itself.
func TestOpensConnections(t *testing.T) {
	const connections = 3000
	out, err := p.Kubectl(t.Context(), "get", "pods", "-l", "serving.knative.dev/service=neighbour", "-o", "jsonpath={.items[0].status.podIP}")
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := p.Kubectl(t.Context(), "get", "service", "-n", "knative-serving-ingress", "kourier-internal", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		t.Fatal(err)
	}
	for name, addr := range map[string]string{"connects-gateway": net.JoinHostPort(gateway, "80"), "connects-pod": net.JoinHostPort(out, "8080")} {
		t.Run(name, func(t *testing.T) {
			harmless(t, func() {
				pod(t, name, "connect "+addr+" "+strconv.Itoa(connections), "", "")
				printed(t, name, "opened "+strconv.Itoa(connections))
			})
		})
	}
}

// After all of that the platform is as it was.
func TestNothingHappened(t *testing.T) {
	for _, part := range []string{"control", "node"} {
		if state, err := p.Part(part); err != nil || state.Restarts > 0 || !state.Ready {
			t.Errorf("%s: %+v, %v", part, state, err)
		}
	}
	restarts, err := p.Kubectl(t.Context(), "get", "pods", "-l", "serving.knative.dev/service=neighbour", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
	if err != nil || restarts != "0" {
		t.Errorf("the neighbour's restarts: %s, %v", restarts, err)
	}
}
