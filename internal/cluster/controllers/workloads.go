// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/job"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	hpametrics "k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/replication"
	"k8s.io/kubernetes/pkg/controller/statefulset"
	"k8s.io/kubernetes/pkg/controller/ttlafterfinished"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

// workers is how many objects of a kind one controller works on at a time:
// upstream's usual number. More would only queue for the same disk.
const workers = 5

// workloads are the controllers that make pods, and those that count them.
func workloads(ctx context.Context, t *tools) ([]loop, error) {
	apps, core, batch := t.informers.Apps().V1(), t.informers.Core().V1(), t.informers.Batch().V1()

	deployments, err := deployment.NewDeploymentController(ctx, apps.Deployments(), apps.ReplicaSets(), core.Pods(), t.client)
	if err != nil {
		return nil, fmt.Errorf("deployment controller: %w", err)
	}
	replicaSets := replicaset.NewReplicaSetController(ctx, apps.ReplicaSets(), core.Pods(), t.client, replicaset.BurstReplicas)
	replications := replication.NewReplicationManager(ctx, core.Pods(), core.ReplicationControllers(), t.client, replication.BurstReplicas)
	statefulSets := statefulset.NewStatefulSetController(ctx, core.Pods(), apps.StatefulSets(), core.PersistentVolumeClaims(), apps.ControllerRevisions(), t.client)
	daemons, err := daemon.NewDaemonSetsController(ctx, apps.DaemonSets(), apps.ControllerRevisions(), core.Pods(), core.Nodes(), t.client,
		flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	jobs, err := job.NewController(ctx, t.client, core.Pods(), batch.Jobs(), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	cronJobs, err := cronjob.NewControllerV2(ctx, batch.Jobs(), batch.CronJobs(), t.client)
	if err != nil {
		return nil, fmt.Errorf("cronjob controller: %w", err)
	}
	finished := ttlafterfinished.New(ctx, batch.Jobs(), t.client)
	budgets := disruption.NewDisruptionController(ctx, core.Pods(), t.informers.Policy().V1().PodDisruptionBudgets(),
		core.ReplicationControllers(), apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), t.client, t.mapper, t.scales, t.kinds)
	autoscalers, err := horizontal(ctx, t)
	if err != nil {
		return nil, err
	}
	return []loop{
		func(ctx context.Context) { deployments.Run(ctx, workers) },
		func(ctx context.Context) { replicaSets.Run(ctx, workers) },
		func(ctx context.Context) { replications.Run(ctx, 1) },
		func(ctx context.Context) { statefulSets.Run(ctx, workers) },
		func(ctx context.Context) { daemons.Run(ctx, 2) },
		func(ctx context.Context) { jobs.Run(ctx, workers) },
		func(ctx context.Context) { cronJobs.Run(ctx, workers) },
		func(ctx context.Context) { finished.Run(ctx, 1) },
		budgets.Run,
		autoscalers,
	}, nil
}

// horizontal is the autoscaler of plain Deployments, by CPU, memory or custom metrics.
func horizontal(ctx context.Context, t *tools) (loop, error) {
	resources, err := resourceclient.NewForConfig(t.json)
	if err != nil {
		return nil, fmt.Errorf("metrics client: %w", err)
	}
	external, err := external_metrics.NewForConfig(t.json)
	if err != nil {
		return nil, fmt.Errorf("external metrics client: %w", err)
	}
	custom := custom_metrics.NewForConfig(t.json, t.mapper, custom_metrics.NewAvailableAPIsGetter(t.kinds))
	const (
		syncPeriod    = 15 * time.Second // these five are upstream's
		stabilization = 5 * time.Minute
		tolerance     = 0.1
		initialCPU    = 5 * time.Minute
		initialReady  = 30 * time.Second
	)
	c := podautoscaler.NewHorizontalController(ctx, t.client.CoreV1(), t.scales, t.client.AutoscalingV2(), t.mapper,
		hpametrics.NewRESTMetricsClient(resources, custom, external),
		t.informers.Autoscaling().V2().HorizontalPodAutoscalers(), t.informers.Core().V1().Pods(),
		syncPeriod, stabilization, tolerance, initialCPU, initialReady)
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}
