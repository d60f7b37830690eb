// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
)

// What a call of the Client can be refused for.
var (
	ErrNotFound    = errors.New("container not found")
	ErrExists      = errors.New("container exists")
	ErrNotRunning  = errors.New("container is not running")
	ErrUnavailable = errors.New("runtime is not reachable")
)

// A StartError says that the process could not be started, in the words
// Kubernetes users know. Its exit code is StartErrorExitCode.
type StartError struct {
	Reason  string // StartError, or RunContainerError when our own surroundings failed
	Message string
}

func (e *StartError) Error() string { return fmt.Sprintf("failed to start container: %s", e.Message) }
