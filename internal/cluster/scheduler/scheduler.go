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
//   - It is made before any informer starts, and informers are shared with the
//     rest of the process, except that of pods: the scheduler must not count
//     pods that have ended.
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
	client   kubernetes.Interface
	shared   factory
	upstream *scheduler.Scheduler
	events   events.EventBroadcaster
	err      error
	end      context.CancelFunc
	synced   chan struct{}
	failed   chan struct{}
}

// New makes the scheduler. It talks to nobody, but asks for informers: call
// it before any task runs that starts them. What is wrong, the task says.
func New(o Options) *Scheduler {
	s := &Scheduler{synced: make(chan struct{}), failed: make(chan struct{})}
	life, end := context.WithCancel(context.Background())
	s.end = end
	s.err = s.construct(life, o)
	return s
}

func (s *Scheduler) construct(life context.Context, o Options) error {
	var err error
	if s.client, err = kubernetes.NewForConfig(o.REST); err != nil {
		return fmt.Errorf("scheduler client: %w", err)
	}
	config, err := latest.Default()
	if err != nil {
		return fmt.Errorf("scheduler profile: %w", err)
	}
	s.events = events.NewBroadcaster(&events.EventSinkImpl{Interface: s.client.EventsV1()})
	s.shared = withoutEnded(o.Informers, s.client)
	s.upstream, err = scheduler.New(life, s.client, s.shared, nil, profile.NewRecorderFactory(s.events),
		scheduler.WithComponentConfigVersion(config.APIVersion),
		scheduler.WithKubeConfig(o.REST),
		scheduler.WithProfiles(config.Profiles...),
		scheduler.WithParallelism(parallelism),
		scheduler.WithPodInitialBackoffSeconds(backoffSeconds),
		scheduler.WithPodMaxBackoffSeconds(maxBackoffSeconds),
	)
	if err != nil {
		return fmt.Errorf("make the scheduler: %w", err)
	}
	return nil
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
	defer s.end()
	if s.err != nil {
		return s.err
	}
	s.events.StartRecordingToSink(ctx.Done())
	defer s.events.Shutdown()
	s.shared.Start(ctx.Done())
	s.shared.WaitForCacheSync(ctx.Done())
	if err := s.upstream.WaitForHandlersSync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("scheduler: %w", err)
	}
	close(s.synced)
	s.upstream.Run(ctx)
	return nil
}
