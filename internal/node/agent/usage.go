// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/pod"
)

// usage measures what containers use. Rates need two measurements: they are
// made while somebody asks, and for a while after.
type usage struct {
	a *Agent

	mu      sync.Mutex
	last    sample
	before  sample
	asked   time.Time
	running bool
	first   chan struct{} // closed when there are two measurements
}

// A sample is what everything used at one moment.
type sample struct {
	at         time.Time
	node       nodeUse
	containers map[string]containerUse // by ID
}

type nodeUse struct {
	cpuNanos   uint64
	workingSet uint64
}

type containerUse struct {
	namespace, pod, name string
	labels               map[string]string
	started              time.Time
	container.Usage
}

// Two measurements come a second apart when somebody asks out of the blue, then
// every fifteen seconds, until nobody has asked for five minutes.
const (
	sampleFirst = time.Second
	sampleEvery = 15 * time.Second
	sampleOld   = 5 * time.Second // a measurement that is older is not given to who asks
	sampleFor   = 5 * time.Minute
)

func newUsage(a *Agent) *usage { return &usage{a: a, first: make(chan struct{})} }

// take measures once.
func (u *usage) take(ctx context.Context) sample {
	s := sample{at: u.a.now(), node: readNodeUse(), containers: map[string]containerUse{}}
	for _, w := range u.a.all() {
		for _, c := range w.measured() {
			got, err := u.a.o.Containers.Stats(ctx, c.ID)
			if err != nil {
				continue // it has just ended
			}
			s.containers[c.ID] = containerUse{
				namespace: c.pod.Namespace, pod: c.pod.Name, name: c.name, labels: c.pod.Labels, started: c.StartedAt, Usage: got,
			}
		}
	}
	return s
}

type measuredContainer struct {
	pod.Container
	pod  *corev1.Pod
	name string
}

// measured are the running containers of a pod.
func (w *worker) measured() []measuredContainer {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []measuredContainer
	for name, m := range w.containers {
		if m.Phase == pod.Running {
			out = append(out, measuredContainer{m.Container, w.pod, name})
		}
	}
	return out
}

// rates returns the last two measurements. The first to ask waits for them.
func (u *usage) rates(ctx context.Context) (before, last sample, err error) {
	u.mu.Lock()
	u.asked = u.a.now()
	if !u.running {
		u.running = true
		u.first = make(chan struct{})
		go u.keep(u.a.ctx, u.first)
	}
	first := u.first
	u.mu.Unlock()
	select {
	case <-first:
	case <-ctx.Done():
		return sample{}, sample{}, ctx.Err()
	}
	if err := u.refresh(ctx); err != nil {
		return sample{}, sample{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.before, u.last, nil
}

// refresh measures anew when the last measurement is old, or knows nothing of a
// container that runs. Two measurements are never less than a second apart.
func (u *usage) refresh(ctx context.Context) error {
	u.mu.Lock()
	last := u.last
	u.mu.Unlock()
	age := u.a.now().Sub(last.at)
	if age < sampleOld && !u.missing(last) {
		return nil
	}
	if age < sampleFirst {
		select {
		case <-time.After(sampleFirst - age):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	u.push(u.take(ctx))
	return nil
}

func (u *usage) missing(s sample) bool {
	for _, w := range u.a.all() {
		for _, c := range w.measured() {
			if _, ok := s.containers[c.ID]; !ok {
				return true
			}
		}
	}
	return false
}

func (u *usage) keep(ctx context.Context, first chan struct{}) {
	u.push(u.take(ctx))
	wait := sampleFirst
	for n := 0; ; n++ {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		u.push(u.take(ctx))
		if n == 0 {
			close(first)
			wait = sampleEvery
		}
		u.mu.Lock()
		if u.a.now().Sub(u.asked) > sampleFor {
			u.running = false
			u.mu.Unlock()
			return
		}
		u.mu.Unlock()
	}
}

func (u *usage) push(s sample) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.before, u.last = u.last, s
}

// readNodeUse is what the whole machine uses.
func readNodeUse() nodeUse {
	var n nodeUse
	words := strings.Fields(firstLine("/proc/stat"))
	for i, w := range words {
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue // the name, idle, waiting for the disk, and guests, who count as users
		}
		ticks, _ := strconv.ParseUint(w, 10, 64)
		n.cpuNanos += ticks * uint64(time.Second) / userHertz
	}
	if m, err := memInfo(); err == nil {
		n.workingSet = uint64(m["MemTotal"] - m["MemAvailable"])
	}
	return n
}

// userHertz is in what part of a second the kernel counts time for users.
const userHertz = 100

// bootTime is when the machine was started.
func bootTime() time.Time {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}
