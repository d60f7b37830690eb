// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sonagi/sonagi/internal/supervise"
)

// silence is how long nothing may happen before the wait is explained.
const silence = 2 * time.Second

// progress tells a person what is starting, what it waits for and how long each took.
type progress struct {
	mu      sync.Mutex
	out     io.Writer
	began   time.Time
	pending map[string]time.Time
	quiet   *time.Timer
	over    bool
}

func newProgress(out io.Writer, began time.Time) *progress {
	p := &progress{out: out, began: began, pending: map[string]time.Time{}}
	p.quiet = time.AfterFunc(silence, p.explain)
	return p
}

func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// show takes a report into account and prints what became ready.
func (p *progress) show(e supervise.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.Task == "":
		return
	case e.Starting:
		p.pending[e.Task] = e.At
		return
	}
	delete(p.pending, e.Task)
	p.quiet.Reset(silence)
	fmt.Fprintf(p.out, "  ✓ %-34s %5.1f s\n", e.Task, time.Since(p.began).Seconds())
}

// explain says what is being waited for.
func (p *progress) explain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	if len(p.pending) > 0 {
		fmt.Fprintf(p.out, "  … %.0f s, waiting for %s\n", time.Since(p.began).Seconds(), strings.Join(slices.Sorted(maps.Keys(p.pending)), ", "))
	}
	p.quiet.Reset(silence)
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.quiet.Stop()
}
