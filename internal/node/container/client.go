// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"syscall"
)

// Options of Launch.
type Options struct {
	Dir    string // state of the containers
	Socket string // where the runtime listens
}

// A Client asks the runtime. It is safe for use by many goroutines.
type Client struct{ socket string }

var errLater = errors.New("not built yet")

// Dial returns a client of the runtime that listens on socket.
func Dial(socket string) (*Client, error) { return &Client{socket}, nil }

// Launch returns a client of the runtime on o.Socket, and starts that runtime
// when none answers: now, and again whenever it is found dead.
func Launch(ctx context.Context, o Options) (*Client, error) { return Dial(o.Socket) }

// Close ends the connections. The runtime and its containers live on.
func (c *Client) Close() error { return nil }

// Shutdown kills and deletes all containers and ends the runtime.
func (c *Client) Shutdown(ctx context.Context) error { return errLater }

// Create makes a container with everything but its process's first
// instruction. Start then is a matter of a write.
func (c *Client) Create(ctx context.Context, spec Spec) error { return errLater }

// Start runs the process of a created container.
func (c *Client) Start(ctx context.Context, id string) (Started, error) { return Started{}, errLater }

// Signal sends sig to the first process of a container.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error { return errLater }

// Kill ends all processes of a container, whatever they do against it.
func (c *Client) Kill(ctx context.Context, id string) error { return errLater }

// Delete kills what is left and forgets the container. It is no error when
// there is none.
func (c *Client) Delete(ctx context.Context, id string) error { return errLater }

// List returns all containers.
func (c *Client) List(ctx context.Context) ([]Status, error) { return nil, errLater }

// Status returns one container.
func (c *Client) Status(ctx context.Context, id string) (Status, error) { return Status{}, errLater }

// Watch tells the ends of containers until ctx ends, then closes the channel.
// It begins with all ends that are known already.
func (c *Client) Watch(ctx context.Context) (<-chan Event, error) { return nil, errLater }

// Exec runs one more process in a container until it ends.
func (c *Client) Exec(ctx context.Context, id string, spec ExecSpec, s Streams) (int, error) {
	return 0, errLater
}

// Attach connects s with the standard streams of a container until it ends,
// or ctx does.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error { return errLater }

// Resize sets the size of a container's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error { return errLater }

// Stats returns what a container uses.
func (c *Client) Stats(ctx context.Context, id string) (Usage, error) { return Usage{}, errLater }

// ReopenLog makes the runtime open the log file anew, after someone moved it.
func (c *Client) ReopenLog(ctx context.Context, id string) error { return errLater }
