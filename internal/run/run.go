// SPDX-License-Identifier: Apache-2.0

// Package run starts, watches and drains tasks.
package run

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Task is one long-lived part of the process.
type Task struct {
	Name  string
	Run   func(context.Context) error // blocks until ctx ends or the task fails
	Ready func(context.Context) error // blocks until the task serves; nil means at once
}

// afterFailure is how long the tasks have to end when one of them has failed.
const afterFailure = 2 * time.Second

// A stage is a set of running tasks with a context of its own.
type stage struct {
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// A Watcher is told of each task that is started, and when it is ready how long
// that took. It is called from one goroutine per task.
type Watcher interface {
	Starting(task string)
	Ready(task string, took time.Duration)
}

// Stages starts each stage once the one before it is ready, and runs until
// ctx ends or a task returns. It then ends the stages from last to first, so
// that a task can rely on every earlier stage until it has returned itself.
// When a task has failed, the others may be unable to end without it, such as
// requests without their store; they get a moment only, and the process is to end.
func Stages(ctx context.Context, watch Watcher, stages ...[]Task) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	var started []*stage
	for _, tasks := range stages {
		s := start(ctx, tasks, fail)
		started = append(started, s)
		if !ready(ctx, tasks, fail, watch) {
			break
		}
	}
	<-ctx.Done()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := len(started) - 1; i >= 0; i-- {
			started[i].cancel()
			started[i].tasks.Wait()
		}
	}()
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) {
		<-ended
		return nil
	}
	select {
	case <-ended:
	case <-time.After(afterFailure):
	}
	return err
}

func start(ctx context.Context, tasks []Task, fail context.CancelCauseFunc) *stage {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &stage{cancel: cancel}
	for _, task := range tasks {
		s.tasks.Go(func() {
			err := task.Run(own)
			if own.Err() == nil {
				fail(fmt.Errorf("%s ended: %w", task.Name, errOr(err, errReturned)))
			}
		})
	}
	return s
}

// ready waits for the tasks side by side, so that each is reported at its
// own time, and says whether all became ready before ctx ended.
func ready(ctx context.Context, tasks []Task, fail context.CancelCauseFunc, watch Watcher) bool {
	var wait sync.WaitGroup
	began := time.Now()
	for _, task := range tasks {
		wait.Go(func() {
			watch.Starting(task.Name)
			if task.Ready != nil {
				if err := task.Ready(ctx); err != nil {
					fail(fmt.Errorf("%s not ready: %w", task.Name, err))
					return
				}
			}
			watch.Ready(task.Name, time.Since(began))
		})
	}
	wait.Wait()
	return ctx.Err() == nil
}

var errReturned = errors.New("returned before it was told to")

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
