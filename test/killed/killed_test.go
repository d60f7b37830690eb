// SPDX-License-Identifier: Apache-2.0

// Package killed kills every part of the platform without warning.
package killed

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sonagi/sonagi/test/platform"
)

var p *platform.Platform

func TestMain(m *testing.M) { os.Exit(platform.Main(m, &p)) }

const (
	clients = 8
	// limit is for states that take as long as the machine needs.
	limit = time.Minute
)

// The tests share one platform and run in order, each on what the one before it left.
func TestSetup(t *testing.T) {
	if err := p.DeployTool(t.Context(), "cold"); err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(t.Context(), "warm", 2); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, "warm")
}

func wantAnswer(t *testing.T, service string) {
	t.Helper()
	status, body, err := p.Get(t.Context(), p.Host(service, "default"), "/")
	if err != nil || status != 200 || body != service+"\n" {
		t.Errorf("GET %s = %d %q, %v; want 200", service, status, body, err)
	}
}

// loaded runs do under load on the warm service, goes on until so many more
// requests were answered, and fails if one of all was not.
func loaded(t *testing.T, do func()) platform.Answers {
	t.Helper()
	load := p.Load(p.Host("warm", "default"), "/", clients)
	reach := func(n int) {
		platform.Eventually(t, limit, func() error {
			if have := load.Count(); have < n {
				return fmt.Errorf("%d of %d requests answered", have, n)
			}
			return nil
		})
	}
	reach(300)
	do()
	reach(load.Count() + 300)
	all := load.Stop()
	for _, failed := range all.Failed() {
		t.Errorf("of %d requests failed %s", len(all), failed)
	}
	t.Logf("%d requests: p50 %s, p99 %s, longest %s", len(all), all.Percentile(50), all.Percentile(99), all.Percentile(100))
	return all
}

// kill kills control or node, and waits until its next run is ready.
func kill(t *testing.T, name string) (at time.Time) {
	t.Helper()
	before, err := p.Part(name)
	if err != nil {
		t.Fatal(err)
	}
	at = time.Now()
	platform.Kill(before.Pid)
	ready(t, name, before.Restarts+1)
	t.Logf("%s is ready again after %s", name, time.Since(at).Round(time.Millisecond))
	return at
}

func ready(t *testing.T, name string, restarts int) {
	t.Helper()
	platform.Eventually(t, limit, func() error {
		now, err := p.Part(name)
		if err == nil && (!now.Ready || now.Restarts < restarts) {
			err = fmt.Errorf("%s is not ready: %+v", name, now)
		}
		return err
	})
}

// sameContainers runs do and checks that the processes of the warm service's pods are the same before and after.
func sameContainers(t *testing.T, do func()) {
	t.Helper()
	before := warmPods(t)
	do()
	if after := warmPods(t); !slices.Equal(before, after) {
		t.Errorf("containers before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// warmPods are the warm service's pods with their containers, restarts and the pids of their processes.
func warmPods(t *testing.T) (pods []string) {
	t.Helper()
	out, err := p.Kubectl(t.Context(), "get", "pods", "-l", "serving.knative.dev/service=warm", "--sort-by=.metadata.name",
		"-o", `jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} restarts={.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	if err != nil {
		t.Fatal(err)
	}
	pods = strings.Split(strings.TrimSpace(out), "\n")
	for i, pod := range pods {
		id := strings.Fields(pod)[1]
		pods[i] += fmt.Sprint(" pids=", p.In(id[strings.LastIndex(id, "/")+1:]))
	}
	return pods
}

func TestControlUnderLoad(t *testing.T) {
	sameContainers(t, func() {
		loaded(t, func() { kill(t, "control") })
	})
	if err := p.Serve(t.Context(), "later", 0); err != nil {
		t.Errorf("a service after control's death: %v", err)
	}
	wantAnswer(t, "later")
}

// A service at zero needs control to come back; its request waits for that.
func TestColdRequestWaitsForControl(t *testing.T) {
	scaledToZero(t, "cold")
	control, err := p.Part("control")
	if err != nil {
		t.Fatal(err)
	}
	platform.Kill(control.Pid)
	began := time.Now()
	wantAnswer(t, "cold")
	t.Logf("the first answer came %s after the kill", time.Since(began).Round(time.Millisecond))
	ready(t, "control", control.Restarts+1)
}

func scaledToZero(t *testing.T, service string) {
	t.Helper()
	platform.Eventually(t, 3*time.Minute, func() error {
		out, err := p.Kubectl(t.Context(), "get", "pods", "-o", "name", "-l", "serving.knative.dev/service="+service)
		if err == nil && out != "" {
			err = fmt.Errorf("%s has pods: %s", service, out)
		}
		return err
	})
}

// Requests wait in the gateway's sockets, which the supervisor holds. What a busy
// machine adds is not the platform's: of some kills, the best is held to the promise.
func TestNodeUnderLoad(t *testing.T) {
	const promise, kills = time.Second, 3
	best := time.Hour
	sameContainers(t, func() {
		for range kills {
			var at time.Time
			all := loaded(t, func() { at = kill(t, "node") })
			resumed := all.Resumed(at)
			t.Logf("traffic resumed after %s", resumed.Round(time.Millisecond))
			best = min(best, resumed)
		}
	})
	if best > promise {
		t.Errorf("traffic resumed after %s at best; want %s", best, promise)
	}
	exec(t)
}

func TestRuntimeUnderLoad(t *testing.T) {
	sameContainers(t, func() {
		loaded(t, func() {
			pid := p.Runtime()
			platform.Kill(pid)
			platform.Eventually(t, limit, func() error {
				if now := p.Runtime(); now == 0 || now == pid {
					return fmt.Errorf("no new runtime")
				}
				return nil
			})
		})
	})
	exec(t)
	// The next runtime is no parent of the containers, and has to see their end all the same.
	pod := strings.Fields(warmPods(t)[0])[0]
	platform.Kill(p.In(containerOf(t, pod))...)
	platform.Eventually(t, limit, func() error {
		out, err := p.Kubectl(t.Context(), "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
		if err == nil && out != "1 true" {
			err = fmt.Errorf("restarts and ready: %s", out)
		}
		return err
	})
}

func containerOf(t *testing.T, pod string) string {
	t.Helper()
	out, err := p.Kubectl(t.Context(), "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		t.Fatal(err)
	}
	return out[strings.LastIndex(out, "/")+1:]
}

// exec checks that an adopted container can be worked with.
func exec(t *testing.T) {
	t.Helper()
	pod := strings.Fields(warmPods(t)[0])[0]
	platform.Eventually(t, limit, func() error {
		_, err := p.Kubectl(t.Context(), "exec", pod, "--", "/ko-app/tool", "exit", "0")
		return err
	})
	if _, err := p.Kubectl(t.Context(), "logs", pod); err != nil {
		t.Error(err)
	}
}

func up(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := p.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("up again after %s", time.Since(began).Round(time.Millisecond))
}

func TestSupervisor(t *testing.T) {
	control, _ := p.Part("control")
	node, _ := p.Part("node")
	sameContainers(t, func() {
		platform.Kill(p.Pid())
		for _, child := range []platform.Part{control, node} {
			platform.Eventually(t, limit, func() error {
				if platform.Alive(child.Pid) {
					return fmt.Errorf("child %d outlives its supervisor", child.Pid)
				}
				return nil
			})
		}
		up(t)
	})
	wantAnswer(t, "warm")
}

// objects are the names of all objects a user made.
func objects(t *testing.T) string {
	t.Helper()
	out, err := p.Kubectl(t.Context(), "get", "ksvc,configuration,revision,route,deployment,configmap,secret,serviceaccount", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// An object that the API has acknowledged is there after the next start.
func acknowledged(t *testing.T, name string) {
	t.Helper()
	if _, err := p.Kubectl(t.Context(), "create", "configmap", name, "--from-literal=a=b"); err != nil {
		t.Fatal(err)
	}
}

func TestAllProcesses(t *testing.T) {
	acknowledged(t, "last-words")
	before := objects(t)
	sameContainers(t, func() {
		platform.Kill(p.Own()...)
		up(t)
		wantAnswer(t, "warm")
	})
	if after := objects(t); after != before {
		t.Errorf("objects before:\n%s\nafter:\n%s", before, after)
	}
	wantAnswer(t, "cold")
	wantAnswer(t, "later")
}

// What a power cut does to processes: all of them end at once, those in pods too.
func TestMachineCrash(t *testing.T) {
	acknowledged(t, "very-last-words")
	before := objects(t)
	p.Crash()
	up(t)
	began := time.Now()
	for _, service := range []string{"warm", "cold", "later"} {
		wantAnswer(t, service)
	}
	t.Logf("all services answered %s after that", time.Since(began).Round(time.Millisecond))
	if after := objects(t); after != before {
		t.Errorf("objects before:\n%s\nafter:\n%s", before, after)
	}
	platform.Eventually(t, limit, func() error {
		_, err := p.Kubectl(t.Context(), "wait", "--for=condition=Ready", "--timeout=1s", "pods", "-l", "serving.knative.dev/service=warm")
		return err
	})
}

func TestDownAfterKill(t *testing.T) {
	for _, tt := range []struct {
		name string
		kill func()
	}{
		{"all processes", func() { platform.Kill(p.Own()...) }},
		{"supervisor", func() { platform.Kill(p.Pid()) }},
		{"machine", p.Crash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if len(p.Own()) == 0 {
				up(t)
				began := time.Now()
				wantAnswer(t, "warm")
				t.Logf("the first answer came %s after that", time.Since(began).Round(time.Millisecond))
			}
			tt.kill()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			if out, err := p.Sonagi(ctx, "down"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("down took %s", time.Since(began).Round(time.Millisecond))
			if left := p.Leftovers(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}
