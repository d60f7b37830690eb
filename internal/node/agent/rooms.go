// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"syscall"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/network"
)

// Containers is what the agent asks of the room that runs containers.
type Containers interface {
	Create(ctx context.Context, spec container.Spec) error
	Start(ctx context.Context, id string) (container.Started, error)
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	Kill(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
	List(ctx context.Context) ([]container.Status, error)
	Status(ctx context.Context, id string) (container.Status, error)
	Watch(ctx context.Context) (<-chan container.Event, error)
	Exec(ctx context.Context, id string, spec container.ExecSpec, s container.Streams) (int, error)
	Attach(ctx context.Context, id string, s container.Streams) error
	Stats(ctx context.Context, id string) (container.Usage, error)
	ReopenLog(ctx context.Context, id string) error
}

// Images is what the agent asks of the room that keeps images.
type Images interface {
	Pull(ctx context.Context, ref string, creds image.Credentials, progress func(image.Progress)) (image.Image, error)
	Find(ref string) (image.Image, bool)
	List() []image.Image
	Collect(ctx context.Context, o image.CollectOptions) (image.Collected, error)
	Mount(ctx context.Context, img image.Image, key string) (rootfs, upper string, err error)
	Unmount(ctx context.Context, key string) error
	Mounts() []image.Mounted
	Usage(ctx context.Context, key string) (image.Usage, error)
}

// Network is what the agent asks of the room that makes sandboxes.
type Network interface {
	Acquire(ctx context.Context, podUID, hostname string) (network.Sandbox, error)
	Release(ctx context.Context, podUID string) error
	Sandboxes() []network.Sandbox
	SetHostPorts(ctx context.Context, podUID string, ports []network.HostPort) error
	SetSysctls(ctx context.Context, podUID string, values map[string]string) error
}
