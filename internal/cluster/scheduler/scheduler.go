// SPDX-License-Identifier: Apache-2.0

// Package scheduler runs the scheduler in this process.
//
// It is upstream's scheduler with upstream's default profile, so that
// affinity, spreading, taints, priorities, preemption and volume topology mean
// what users know them to mean, even where there is one node.
//
// The law of the room:
//
//   - No pod waits for a clock. A pod that fits is bound in the pass its
//     creation starts; one that did not fit is tried again when an event
//     could have changed that, and then at once: the back-off is as short as
//     upstream lets it be, since nobody else competes for the one node.
//   - Informers are shared with the rest of the process, except that of pods:
//     the scheduler must not count pods that have ended.
package scheduler

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"github.com/sonagi/sonagi/internal/run"
)

const (
	// The shortest upstream takes. A pod that did not fit does not wait for
	// it as long as nothing else waits; one whose binding failed does.
	backoffSeconds    = 1
	maxBackoffSeconds = 2

	// How many goroutines look at nodes. There is one node.
	parallelism = 1
)

// Options say what the scheduler works with.
type Options struct {
	REST      *rest.Config
	Informers informers.SharedInformerFactory
}

// A Scheduler binds pods to nodes.
type Scheduler struct {
	options Options
	synced  chan struct{}
	failed  chan struct{}
}

// New prepares a scheduler; it touches nothing before its task runs.
func New(o Options) *Scheduler {
	return &Scheduler{options: o, synced: make(chan struct{}), failed: make(chan struct{})}
}

// Task runs the scheduler until its context ends. It may start together with
// the API server: its first requests wait for it.
func (s *Scheduler) Task() run.Task {
	return run.Task{Name: "scheduler", Run: s.run, Ready: s.ready}
}

func (s *Scheduler) ready(ctx context.Context) error {
	select {
	case <-s.synced:
		return nil
	case <-s.failed:
		return errors.New("the scheduler did not start")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Scheduler) run(ctx context.Context) error {
	defer close(s.failed)
	client, err := kubernetes.NewForConfig(s.options.REST)
	if err != nil {
		return fmt.Errorf("scheduler client: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	broadcaster.StartRecordingToSink(ctx.Done())
	defer broadcaster.Shutdown()

	config, err := latest.Default()
	if err != nil {
		return fmt.Errorf("scheduler profile: %w", err)
	}
	shared := withoutEnded(s.options.Informers, client)
	upstream, err := scheduler.New(ctx, client, shared, nil, profile.NewRecorderFactory(broadcaster),
		scheduler.WithComponentConfigVersion(config.APIVersion),
		scheduler.WithKubeConfig(s.options.REST),
		scheduler.WithProfiles(config.Profiles...),
		scheduler.WithParallelism(parallelism),
		scheduler.WithPodInitialBackoffSeconds(backoffSeconds),
		scheduler.WithPodMaxBackoffSeconds(maxBackoffSeconds),
	)
	if err != nil {
		return fmt.Errorf("make the scheduler: %w", err)
	}
	shared.Start(ctx.Done())
	shared.WaitForCacheSync(ctx.Done())
	if err := upstream.WaitForHandlersSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("scheduler: %w", err)
	}
	close(s.synced)
	upstream.Run(ctx)
	return nil
}
