// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// Class and provisioner of node-local volumes. The provisioner's name is what
// claims and volumes remember, so it stays.
const (
	LocalPathClass       = "local-path"
	LocalPathProvisioner = "sonagi.dev/local-path"

	selectedNode    = "volume.kubernetes.io/selected-node"
	provisionedBy   = "pv.kubernetes.io/provisioned-by"
	defaultClass    = "storageclass.kubernetes.io/is-default-class"
	deletedByOurs   = "sonagi.dev/local-path-cleanup" // finalizer: the directory goes before the object does
	provisionFailed = "ProvisioningFailed"
)

// localPath makes a directory for each claim of its class once the scheduler
// has said where the claim is needed, and removes it once the volume is
// released. Binding, and protection of what is in use, is upstream's work.
type localPath struct {
	dir      string
	node     string
	client   kubernetes.Interface
	claims   corelisters.PersistentVolumeClaimLister
	volumes  corelisters.PersistentVolumeLister
	classes  storagelisters.StorageClassLister
	nodes    corelisters.NodeLister
	synced   []cache.InformerSynced
	queue    workqueue.TypedRateLimitingInterface[item]
	events   record.EventRecorder
	announce record.EventBroadcaster
	log      *slog.Logger
}

// An item is a claim, or a volume when it has no namespace.
type item struct{ namespace, name string }

func newLocalPath(t *tools) (*localPath, error) {
	core, classes := t.informers.Core().V1(), t.informers.Storage().V1().StorageClasses()
	announce := record.NewBroadcaster()
	p := &localPath{
		dir:      t.LocalPathDir,
		node:     t.NodeName,
		client:   t.client,
		claims:   core.PersistentVolumeClaims().Lister(),
		volumes:  core.PersistentVolumes().Lister(),
		classes:  classes.Lister(),
		nodes:    core.Nodes().Lister(),
		queue:    workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[item]()),
		events:   announce.NewRecorder(scheme.Scheme, corev1.EventSource{Component: LocalPathProvisioner}),
		announce: announce,
		log:      t.Log.With("controller", LocalPathClass),
	}
	enqueue := func(object any) {
		if key, err := cache.DeletionHandlingObjectToName(object); err == nil {
			p.queue.Add(item{key.Namespace, key.Name})
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, object any) { enqueue(object) }}
	for _, informer := range []cache.SharedIndexInformer{core.PersistentVolumeClaims().Informer(), core.PersistentVolumes().Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("local volumes: %w", err)
		}
		p.synced = append(p.synced, informer.HasSynced)
	}
	p.synced = append(p.synced, classes.Informer().HasSynced, core.Nodes().Informer().HasSynced)
	return p, nil
}

func (p *localPath) run(ctx context.Context) {
	p.announce.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: p.client.CoreV1().Events("")})
	defer p.announce.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return
	}
	if err := p.ensureClass(ctx); err != nil && ctx.Err() == nil {
		p.log.Error("storage class", "error", err)
	}
	stop := context.AfterFunc(ctx, p.queue.ShutDown)
	defer stop()
	for {
		next, down := p.queue.Get()
		if down {
			return
		}
		if err := p.reconcile(ctx, next); err != nil && ctx.Err() == nil {
			p.log.Warn("local volume", "namespace", next.namespace, "name", next.name, "error", err)
			p.queue.AddRateLimited(next)
		} else {
			p.queue.Forget(next)
		}
		p.queue.Done(next)
	}
}

// ensureClass makes the class when it is missing; one that is there belongs
// to the user. It is the default unless there is another default.
func (p *localPath) ensureClass(ctx context.Context) error {
	classes, err := p.classes.List(labels.Everything())
	if err != nil {
		return err
	}
	isDefault := "true"
	for _, c := range classes {
		if c.Name == LocalPathClass {
			return nil
		}
		if c.Annotations[defaultClass] == "true" {
			isDefault = "false"
		}
	}
	_, err = p.client.StorageV1().StorageClasses().Create(ctx, class(isDefault), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func class(isDefault string) *storagev1.StorageClass {
	reclaim, mode := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: LocalPathClass, Annotations: map[string]string{defaultClass: isDefault}},
		Provisioner:       LocalPathProvisioner,
		ReclaimPolicy:     &reclaim,
		VolumeBindingMode: &mode,
	}
}

func (p *localPath) reconcile(ctx context.Context, i item) error {
	if i.namespace == "" {
		volume, err := p.volumes.Get(i.name)
		if err != nil {
			return ignoreNotFound(err)
		}
		return p.release(ctx, volume)
	}
	claim, err := p.claims.PersistentVolumeClaims(i.namespace).Get(i.name)
	if err != nil {
		return ignoreNotFound(err)
	}
	return p.provision(ctx, claim)
}

// provision makes directory and volume for a claim that waits for them.
func (p *localPath) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := p.classes.Get(*claim.Spec.StorageClassName)
	if err != nil {
		return ignoreNotFound(err)
	}
	if class.Provisioner != LocalPathProvisioner {
		return nil
	}
	node := claim.Annotations[selectedNode]
	if node == "" && (class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer) {
		node = p.node
	}
	if node == "" {
		return nil // nobody uses it yet
	}
	if reason := unsupported(claim); reason != "" {
		p.events.Event(claim, corev1.EventTypeWarning, provisionFailed, reason)
		return nil
	}
	volume := p.volume(claim, class, node)
	if err := p.makeDirectory(volume.Spec.HostPath.Path); err != nil {
		p.events.Event(claim, corev1.EventTypeWarning, provisionFailed, err.Error())
		return err
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // made before; the binder has not caught up
	}
	return err
}

// unsupported says what a directory cannot be.
func unsupported(claim *corev1.PersistentVolumeClaim) string {
	switch {
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return "storage class " + LocalPathClass + " has directories, no block devices"
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return "storage class " + LocalPathClass + " cannot copy a volume or restore a snapshot"
	case claim.Spec.Selector != nil:
		return "storage class " + LocalPathClass + " makes volumes; it cannot select among existing ones"
	}
	return ""
}

func (p *localPath) volume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node string) *corev1.PersistentVolume {
	name := "pvc-" + string(claim.UID)
	directory := corev1.HostPathDirectoryOrCreate
	reclaim := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		reclaim = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{provisionedBy: LocalPathProvisioner},
			Finalizers:  []string{deletedByOurs},
		},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName:              class.Name,
			PersistentVolumeReclaimPolicy: reclaim,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    &mode,
			MountOptions:                  class.MountOptions,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{
				Path: filepath.Join(p.dir, name+"_"+claim.Namespace+"_"+claim.Name), Type: &directory,
			}},
			NodeAffinity: p.affinity(node),
		},
	}
}

// affinity ties the volume to the node its directory is on, by the label
// that the scheduler of upstream also uses for local volumes.
func (p *localPath) affinity(node string) *corev1.VolumeNodeAffinity {
	hostname := node
	if n, err := p.nodes.Get(node); err == nil && n.Labels[corev1.LabelHostname] != "" {
		hostname = n.Labels[corev1.LabelHostname]
	}
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{
			Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{hostname},
		}},
	}}}}
}

// makeDirectory makes what any user inside a container may write to.
func (p *localPath) makeDirectory(path string) error {
	if err := os.MkdirAll(path, 0o777); err != nil {
		return fmt.Errorf("make directory of volume: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil { // the umask has taken bits away
		return fmt.Errorf("open directory of volume: %w", err)
	}
	return nil
}

// release removes the directory of a volume nobody claims any more.
func (p *localPath) release(ctx context.Context, volume *corev1.PersistentVolume) error {
	if volume.Annotations[provisionedBy] != LocalPathProvisioner {
		return nil
	}
	// Retained volumes keep their directory even when the object is removed.
	keep := volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete
	switch {
	case volume.DeletionTimestamp == nil && volume.Status.Phase == corev1.VolumeReleased && !keep:
		// Deleting sets the timestamp; the event it causes comes back here.
		return ignoreNotFound(p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &volume.UID}}))
	case volume.DeletionTimestamp == nil || inUse(volume):
		return nil
	case !keep:
		if err := p.removeDirectory(volume); err != nil {
			p.events.Event(volume, corev1.EventTypeWarning, "VolumeFailedDelete", err.Error())
			return err
		}
	}
	return p.letGo(ctx, volume)
}

// inUse reports whether upstream's protection still holds the volume.
func inUse(volume *corev1.PersistentVolume) bool {
	for _, f := range volume.Finalizers {
		if f == "kubernetes.io/pv-protection" {
			return true
		}
	}
	return false
}

// removeDirectory removes only what this provisioner can have made, whatever
// the object says by now.
func (p *localPath) removeDirectory(volume *corev1.PersistentVolume) error {
	if volume.Spec.HostPath == nil {
		return nil
	}
	path := filepath.Clean(volume.Spec.HostPath.Path)
	if filepath.Dir(path) != filepath.Clean(p.dir) || !strings.HasPrefix(filepath.Base(path), volume.Name+"_") {
		return fmt.Errorf("will not remove %s: it is not a directory of %s", path, p.dir)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove directory of volume: %w", err)
	}
	return nil
}

func (p *localPath) letGo(ctx context.Context, volume *corev1.PersistentVolume) error {
	kept := make([]string, 0, len(volume.Finalizers))
	for _, f := range volume.Finalizers {
		if f != deletedByOurs {
			kept = append(kept, f)
		}
	}
	if len(kept) == len(volume.Finalizers) {
		return nil
	}
	volume = volume.DeepCopy()
	volume.Finalizers = kept
	_, err := p.client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{})
	return ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
