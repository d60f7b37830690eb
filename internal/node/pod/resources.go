// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOS is the pod's quality of service class.
func QOS(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass // the API server has decided at creation
	}
	any, guaranteed := false, true
	check := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, lim := r.Requests[name], r.Limits[name]
			any = any || !req.IsZero() || !lim.IsZero()
			if lim.IsZero() || !req.IsZero() && req.Cmp(lim) != 0 {
				guaranteed = false
			}
		}
	}
	if p.Spec.Resources != nil {
		check(*p.Spec.Resources)
	} else {
		for _, m := range Members(p) {
			if m.Kind != Ephemeral {
				check(m.Spec.Resources)
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// Requests is what a pod asks for of each resource: what its app containers and
// sidecars ask for together, or an init container at its turn if that is more.
func Requests(p *corev1.Pod) corev1.ResourceList {
	r := total(p, func(r corev1.ResourceRequirements) corev1.ResourceList { return r.Requests })
	if p.Spec.Resources != nil {
		maps.Copy(r, p.Spec.Resources.Requests)
	}
	return add(r, p.Spec.Overhead)
}

// Limits is the most a pod may use of each resource that all its containers
// limit. Resources that one of them does not limit are absent.
func Limits(p *corev1.Pod) corev1.ResourceList {
	r := total(p, func(r corev1.ResourceRequirements) corev1.ResourceList { return r.Limits })
	for name := range r {
		for _, m := range Members(p) {
			if _, ok := m.Spec.Resources.Limits[name]; !ok && m.Kind != Ephemeral {
				delete(r, name)
				break
			}
		}
	}
	if p.Spec.Resources != nil {
		maps.Copy(r, p.Spec.Resources.Limits)
	}
	return r
}

func total(p *corev1.Pod, of func(corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	apps, sidecars, inits := corev1.ResourceList{}, corev1.ResourceList{}, corev1.ResourceList{}
	for _, m := range Members(p) {
		list := of(m.Spec.Resources)
		switch m.Kind {
		case App:
			apps = add(apps, list)
		case Sidecar:
			sidecars = add(sidecars, list)
			inits = most(inits, sidecars)
		case Init:
			inits = most(inits, add(list.DeepCopy(), sidecars))
		}
	}
	return most(add(apps, sidecars), inits)
}

func add(to, more corev1.ResourceList) corev1.ResourceList {
	if to == nil {
		to = corev1.ResourceList{}
	}
	for name, q := range more {
		sum := to[name].DeepCopy()
		sum.Add(q)
		to[name] = sum
	}
	return to
}

func most(a, b corev1.ResourceList) corev1.ResourceList {
	for name, q := range b {
		if have, ok := a[name]; !ok || have.Cmp(q) < 0 {
			a[name] = q.DeepCopy()
		}
	}
	return a
}

// Shortage is a resource that a pod asks for more of than is left.
type Shortage struct {
	Resource                   corev1.ResourceName
	Requested, Used, Available int64
}

// Reason is the status reason of a pod that is turned away.
func (s Shortage) Reason() string { return "OutOf" + string(s.Resource) }

// Message is what Kubernetes tells of it.
func (s Shortage) Message() string {
	if s.Resource == corev1.ResourcePods {
		return fmt.Sprintf("Node didn't have enough resource: pods, requested: %d, used: %d, capacity: %d", s.Requested, s.Used, s.Available)
	}
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.Resource, s.Requested, s.Used, s.Available)
}

// Fits reports what is short for one more pod beside the others.
func Fits(p *corev1.Pod, others []*corev1.Pod, allocatable corev1.ResourceList) *Shortage {
	if room := allocatable[corev1.ResourcePods]; int64(len(others))+1 > room.Value() {
		return &Shortage{corev1.ResourcePods, 1, int64(len(others)), room.Value()}
	}
	want := Requests(p)
	names := slices.Sorted(maps.Keys(want))
	if len(names) == 0 {
		return nil
	}
	used := corev1.ResourceList{}
	for _, o := range others {
		used = add(used, Requests(o))
	}
	for _, name := range names {
		ask, have, room := amount(name, want), amount(name, used), amount(name, allocatable)
		if ask > 0 && ask+have > room {
			return &Shortage{name, ask, have, room}
		}
	}
	return nil
}

// amount is a quantity in the unit the scheduler counts in.
func amount(name corev1.ResourceName, list corev1.ResourceList) int64 {
	q := list[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// Cgroup holds the limits of a control group. Zero is no limit.
type Cgroup struct {
	CPUShares uint64
	CPUQuota  int64 // µs in each CPUPeriod
	CPUPeriod uint64
	Memory    int64
}

const (
	minShares = 2
	minQuota  = 1000
	period    = 100_000
)

// ContainerCgroup is what a container may use.
func ContainerCgroup(c *corev1.Container) Cgroup {
	return cgroup(c.Resources.Requests, c.Resources.Limits)
}

// PodCgroup is what all containers of a pod may use together.
func PodCgroup(p *corev1.Pod) Cgroup {
	return cgroup(Requests(p), Limits(p))
}

func cgroup(requests, limits corev1.ResourceList) Cgroup {
	req, hasReq := requests[corev1.ResourceCPU]
	lim := limits[corev1.ResourceCPU]
	if !hasReq {
		req = lim
	}
	mem := limits[corev1.ResourceMemory]
	g := Cgroup{CPUShares: max(minShares, uint64(req.MilliValue())*1024/1000), CPUPeriod: period, Memory: mem.Value()}
	if milli := lim.MilliValue(); milli > 0 {
		g.CPUQuota = max(minQuota, milli*period/1000)
	}
	return g
}

// OOMScoreAdj orders processes for the kernel when memory runs out: those of
// pods that promised nothing go first, then those that use more than they
// asked for.
func OOMScoreAdj(p *corev1.Pod, c *corev1.Container, machine int64) int {
	const guaranteed, bestEffort = -997, 1000
	if p.Spec.Priority != nil && *p.Spec.Priority >= 2_000_001_000 { // system-node-critical and above
		return guaranteed
	}
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return bestEffort
	}
	if machine <= 0 {
		return bestEffort - 1
	}
	req := c.Resources.Requests[corev1.ResourceMemory]
	if IsSidecar(c) { // a sidecar must not go before the app it serves
		least := int64(math.MaxInt64)
		for i := range p.Spec.Containers {
			r := p.Spec.Containers[i].Resources.Requests[corev1.ResourceMemory]
			least = min(least, r.Value())
		}
		if least > req.Value() {
			req = *resource.NewQuantity(least, resource.BinarySI)
		}
	}
	return int(min(bestEffort-1, max(bestEffort+guaranteed, bestEffort-bestEffort*req.Value()/machine)))
}

// ResourceValue is the value of a resourceFieldRef, rounded up to its divisor.
// A limit that is not set is what the machine has.
func ResourceValue(ref *corev1.ResourceFieldSelector, c *corev1.Container, allocatable corev1.ResourceList) (string, error) {
	what, name, _ := strings.Cut(ref.Resource, ".")
	list := c.Resources.Limits
	switch what {
	case "limits":
	case "requests":
		list = c.Resources.Requests
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	resourceName := corev1.ResourceName(name)
	switch {
	case resourceName == corev1.ResourceCPU, resourceName == corev1.ResourceMemory, resourceName == corev1.ResourceEphemeralStorage:
	case strings.HasPrefix(name, corev1.ResourceHugePagesPrefix):
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	q, ok := list[resourceName]
	if what == "limits" && (!ok || q.IsZero()) {
		q = allocatable[resourceName]
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if resourceName == corev1.ResourceCPU {
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10), nil
}
