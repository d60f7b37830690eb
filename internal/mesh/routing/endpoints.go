// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Endpoint is a pod of a revision.
type Endpoint struct {
	Revision Name
	Pod      string // its name
	UID      string
	IP       netip.Addr
	Ready    bool
	// Gone is told of a pod that is terminating or no more: it gets no new
	// request, and what is in it may finish.
	Gone bool
}

// Endpoints holds the ready pods of all revisions. Its zero value is empty.
type Endpoints struct {
	mu   sync.RWMutex
	pods map[Name][]Endpoint
}

// Apply takes in news of one pod and returns its revision's ready pods, in the
// order of their UIDs, and whether that has changed anything.
func (e *Endpoints) Apply(pod Endpoint) (ready []Endpoint, changed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pods == nil {
		e.pods = map[Name][]Endpoint{}
	}
	old := e.pods[pod.Revision]
	i, found := slices.BinarySearchFunc(old, pod.UID, func(p Endpoint, uid string) int { return strings.Compare(p.UID, uid) })
	serves := pod.Ready && !pod.Gone && pod.IP.IsValid()
	switch {
	case serves && found && old[i] == pod, !serves && !found:
		return old, false
	case serves && found:
		ready = slices.Clone(old)
		ready[i] = pod
	case serves:
		ready = slices.Insert(slices.Clone(old), i, pod)
	default:
		ready = slices.Delete(slices.Clone(old), i, i+1)
	}
	if len(ready) == 0 {
		delete(e.pods, pod.Revision)
	} else {
		e.pods[pod.Revision] = ready
	}
	return ready, true
}

// Ready returns the ready pods of a revision. The slice is not to be changed.
func (e *Endpoints) Ready(revision Name) []Endpoint {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.pods[revision]
}
