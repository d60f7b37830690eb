// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// Heartbeats, as Kubernetes' node controllers expect them.
const (
	leaseDuration  = 40               // seconds
	leaseEvery     = 10 * time.Second // and as often the machine is looked at
	statusTellOnce = 5 * time.Minute  // how often the API is told though nothing changed
	maxNodeImages  = 50
)

// keepNode tells the API of this machine until ctx ends.
func (a *Agent) keepNode(ctx context.Context) {
	k := &nodeKeeper{a: a}
	if _, err := insist(ctx, func() (struct{}, error) { return struct{}{}, k.register(ctx) }, func(err error) {
		a.log.Warn("node not registered", "err", err)
	}); err != nil {
		return
	}
	a.machine.isTold()
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		if err := k.beat(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("node heartbeat failed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

type nodeKeeper struct {
	a     *Agent
	told  *corev1.Node
	at    time.Time
	lease *coordinationv1.Lease
}

// beat renews the lease and tells what has changed.
func (k *nodeKeeper) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseEvery)
	defer cancel()
	lease, err := k.renew(ctx, k.lease)
	k.lease = lease
	if err != nil {
		err = fmt.Errorf("renewing lease: %w", err)
	}
	return errors.Join(err, k.tell(ctx))
}

// labels are those that say what the machine is.
func (k *nodeKeeper) labels() map[string]string {
	return map[string]string{
		corev1.LabelHostname:      k.a.o.NodeName,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	}
}

// register makes the node's object, or makes the one that is there ours.
func (k *nodeKeeper) register(ctx context.Context) error {
	nodes := k.a.o.Client.CoreV1().Nodes()
	fresh := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: k.a.o.NodeName, Labels: k.labels(),
	}}
	fresh.Status = k.status(&fresh.Status)
	have, err := nodes.Get(ctx, fresh.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nodes.Create(ctx, fresh, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("registering node: %w", err)
	}
	if want := maps.Clone(have.Labels); !containsAll(want, k.labels()) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": k.labels()}})
		if err != nil {
			return err
		}
		if have, err = nodes.Patch(ctx, have.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("labelling node: %w", err)
		}
	}
	k.told = have
	k.at = time.Time{}
	return k.tell(ctx)
}

func containsAll(have, want map[string]string) bool {
	for name, v := range want {
		if have[name] != v {
			return false
		}
	}
	return true
}

// tell writes the node's status if it has changed or was not told for long.
func (k *nodeKeeper) tell(ctx context.Context) error {
	next := k.told.DeepCopy()
	next.Status = k.status(&k.told.Status)
	now := k.a.now()
	if sameNode(&k.told.Status, &next.Status) && now.Sub(k.at) < statusTellOnce {
		return nil
	}
	before, err := json.Marshal(corev1.Node{Status: k.told.Status})
	if err != nil {
		return err
	}
	after, err := json.Marshal(corev1.Node{ObjectMeta: metav1.ObjectMeta{UID: k.told.UID}, Status: next.Status})
	if err != nil {
		return err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
	if err != nil {
		return err
	}
	got, err := k.a.o.Client.CoreV1().Nodes().Patch(ctx, next.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return k.register(ctx) // somebody has removed the node: we are still here
	}
	if err != nil {
		return fmt.Errorf("writing node status: %w", err)
	}
	k.told, k.at = got, now
	return nil
}

// sameNode compares statuses but for their heartbeats.
func sameNode(a, b *corev1.NodeStatus) bool {
	strip := func(s *corev1.NodeStatus) *corev1.NodeStatus {
		s = s.DeepCopy()
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		return s
	}
	return equality.Semantic.DeepEqual(strip(a), strip(b))
}

func (k *nodeKeeper) status(old *corev1.NodeStatus) corev1.NodeStatus {
	a := k.a
	s := *old.DeepCopy()
	s.Capacity, s.Allocatable = a.machine.capacity, a.machine.allocatable()
	s.NodeInfo = a.machine.info
	s.Phase = ""
	s.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: a.o.NodeName}}
	if a.o.NodeIP.IsValid() {
		s.Addresses = slices.Insert(s.Addresses, 0, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.o.NodeIP.String()})
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = a.apiPort()
	s.Images = k.images()
	now := metav1.NewTime(a.now()).Rfc3339Copy()
	for _, c := range a.conditions() {
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		at := slices.IndexFunc(s.Conditions, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		if at < 0 {
			s.Conditions = append(s.Conditions, c)
			continue
		}
		if s.Conditions[at].Status == c.Status {
			c.LastTransitionTime = s.Conditions[at].LastTransitionTime
		}
		s.Conditions[at] = c
	}
	return s
}

// apiPort is the port the agent answers on.
func (a *Agent) apiPort() int32 {
	for _, l := range a.o.API.Listen {
		if _, port, err := net.SplitHostPort(l); err == nil {
			if n, err := strconv.Atoi(port); err == nil {
				return int32(n)
			}
		}
	}
	return 0
}

// images lists the largest images.
func (k *nodeKeeper) images() []corev1.ContainerImage {
	var out []corev1.ContainerImage
	for _, i := range k.a.o.Images.List() {
		out = append(out, corev1.ContainerImage{Names: slices.Concat(i.Digests(), i.Tags()), SizeBytes: i.Size})
	}
	slices.SortStableFunc(out, func(x, y corev1.ContainerImage) int { return int(y.SizeBytes>>10 - x.SizeBytes>>10) })
	for i := range out {
		out[i].Names = out[i].Names[:min(5, len(out[i].Names))]
	}
	return out[:min(maxNodeImages, len(out))]
}

// Pressures begin below these shares of what the machine has.
const (
	leastDisk   = 0.05
	leastInodes = 0.05
	leastPids   = 0.05
)

// conditions is how the machine is.
func (a *Agent) conditions() []corev1.NodeCondition {
	mem, disk, pids := a.pressures()
	pressure := func(t corev1.NodeConditionType, on bool, yes, no, yesText, noText string) corev1.NodeCondition {
		if on {
			return corev1.NodeCondition{Type: t, Status: corev1.ConditionTrue, Reason: yes, Message: yesText}
		}
		return corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: no, Message: noText}
	}
	return []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, mem, "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
			"kubelet has insufficient memory available", "kubelet has sufficient memory available"),
		pressure(corev1.NodeDiskPressure, disk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
			"kubelet has disk pressure", "kubelet has no disk pressure"),
		pressure(corev1.NodePIDPressure, pids, "KubeletHasInsufficientPID", "KubeletHasSufficientPID",
			"kubelet has insufficient PID available", "kubelet has sufficient PID available"),
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"},
	}
}

func (a *Agent) pressures() (memory, disk, pids bool) {
	if m, err := memInfo(); err == nil {
		memory = m["MemAvailable"] < reservedMemory
	}
	if d, err := readDisk(a.o.DataDir); err == nil {
		disk = float64(d.free) < leastDisk*float64(d.size) || d.inodes > 0 && float64(d.inodesFree) < leastInodes*float64(d.inodes)
	}
	running, most := processes()
	pids = most > 0 && float64(most-running) < leastPids*float64(most)
	return memory, disk, pids
}

// renew says that the machine is there.
func (k *nodeKeeper) renew(ctx context.Context, have *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	leases := k.a.o.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	name, seconds, now := k.a.o.NodeName, int32(leaseDuration), metav1.NewMicroTime(k.a.now())
	if have == nil {
		got, err := leases.Get(ctx, name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if err != nil {
			return leases.Create(ctx, &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, OwnerReferences: k.owner()},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
			}, metav1.CreateOptions{})
		}
		have = got
	}
	next := have.DeepCopy()
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &name, &seconds, &now
	next.OwnerReferences = k.owner()
	got, err := leases.Update(ctx, next, metav1.UpdateOptions{})
	if err != nil {
		return nil, err // read it again next time
	}
	return got, nil
}

func (k *nodeKeeper) owner() []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: k.told.Name, UID: k.told.UID}}
}
