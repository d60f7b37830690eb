// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/volume/ephemeral"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
	"k8s.io/kubernetes/pkg/controller/volume/pvcprotection"
	"k8s.io/kubernetes/pkg/controller/volume/pvprotection"
)

// storage are the controllers of volumes: binding, protection, and our provisioner.
func storage(ctx context.Context, t *tools) ([]loop, error) {
	core := t.informers.Core().V1()
	binder, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient:                t.client,
		SyncPeriod:                5 * time.Minute,
		VolumeInformer:            core.PersistentVolumes(),
		ClaimInformer:             core.PersistentVolumeClaims(),
		ClassInformer:             t.informers.Storage().V1().StorageClasses(),
		PodInformer:               core.Pods(),
		NodeInformer:              core.Nodes(),
		EnableDynamicProvisioning: true,
	})
	if err != nil {
		return nil, fmt.Errorf("volume binder: %w", err)
	}
	claims, err := pvcprotection.NewPVCProtectionController(klog.FromContext(ctx), core.PersistentVolumeClaims(), core.Pods(), t.client)
	if err != nil {
		return nil, fmt.Errorf("claim protection: %w", err)
	}
	volumes := pvprotection.NewPVProtectionController(klog.FromContext(ctx), core.PersistentVolumes(), t.client)
	inline, err := ephemeral.NewController(ctx, t.client, core.Pods(), core.PersistentVolumeClaims())
	if err != nil {
		return nil, fmt.Errorf("ephemeral volumes: %w", err)
	}
	local, err := newLocalPath(t)
	if err != nil {
		return nil, err
	}
	return []loop{
		binder.Run,
		func(ctx context.Context) { claims.Run(ctx, 1) },
		func(ctx context.Context) { volumes.Run(ctx, 1) },
		func(ctx context.Context) { inline.Run(ctx, 1) },
		local.run,
	}, nil
}
