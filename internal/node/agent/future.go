// SPDX-License-Identifier: Apache-2.0

package agent

import "context"

// A future is a value that is being made.
type future[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// begin makes a value in the background.
func begin[T any](f func() (T, error)) *future[T] {
	out := &future[T]{done: make(chan struct{})}
	go func() {
		defer close(out.done)
		out.value, out.err = f()
	}()
	return out
}

// made is a value that is there.
func made[T any](v T) *future[T] {
	out := &future[T]{done: make(chan struct{}), value: v}
	close(out.done)
	return out
}

// wait returns the value once it is there.
func (f *future[T]) wait(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	default:
	}
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// now returns the value if it is there.
func (f *future[T]) now() (T, bool) {
	if f != nil {
		select {
		case <-f.done:
			return f.value, f.err == nil
		default:
		}
	}
	var none T
	return none, false
}
