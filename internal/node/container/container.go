// SPDX-License-Identifier: Apache-2.0

// Package container runs containers.
//
// Two processes meet here. The runtime process is the parent of every
// container: it does all the work of libcontainer, reaps, keeps exit codes,
// writes logs. It is small and outlives the process that asked for the
// containers. The Client is that other process's side: it starts the runtime
// when there is none, talks to it over a unix socket, and finds it again
// after either of the two was restarted.
//
// The law of the room: a container never depends on a process of ours to stay
// alive. Its standard streams are FIFOs that it holds open itself, its state is
// on disk, and a new runtime adopts what the last one left.
package container

import (
	"io"
	"syscall"
	"time"
)

// HostNamespace, in place of a namespace's path, shares the host's.
const HostNamespace = "host"

// DefaultSeccomp and Unconfined are the words for Spec.Seccomp that are not
// paths of a profile.
const (
	DefaultSeccomp = "default"
	Unconfined     = "unconfined"
)

// A Spec says what to run, and in what surroundings.
type Spec struct {
	ID     string            `json:"id"`
	Labels map[string]string `json:"labels,omitempty"`

	// Pause makes the container one process of ours that does nothing but
	// reap, without a root file system: the first of a PID namespace that
	// others join. Only ID, Labels, Resources and CgroupParent are used with it.
	Pause bool `json:"pause,omitempty"`

	RootFS       string   `json:"rootfs"` // mounted already
	ReadOnlyRoot bool     `json:"readOnlyRoot,omitempty"`
	Args         []string `json:"args"`
	Env          []string `json:"env,omitempty"`
	Cwd          string   `json:"cwd,omitempty"` // "/" when empty; made when missing
	User         User     `json:"user"`

	Hostname string `json:"hostname,omitempty"` // only with a UTS namespace of its own
	NetNS    string `json:"netNS,omitempty"`    // of each: a path, HostNamespace, or empty for a new one
	IPCNS    string `json:"ipcNS,omitempty"`
	UTSNS    string `json:"utsNS,omitempty"`
	PIDNS    string `json:"pidNS,omitempty"`

	Mounts  []Mount `json:"mounts,omitempty"`
	ShmSize int64   `json:"shmSize,omitempty"` // bytes of /dev/shm; 64 MiB when zero

	Resources    Resources `json:"resources"`
	CgroupParent string    `json:"cgroupParent"` // e.g. /sonagi/pod<uid>
	OOMScoreAdj  *int      `json:"oomScoreAdj,omitempty"`

	Capabilities    Capabilities      `json:"capabilities"`
	Privileged      bool              `json:"privileged,omitempty"`
	NoNewPrivileges bool              `json:"noNewPrivileges,omitempty"`
	Seccomp         string            `json:"seccomp,omitempty"` // DefaultSeccomp when empty, Unconfined, or the path of a profile
	UnmaskedProc    bool              `json:"unmaskedProc,omitempty"`
	Sysctls         map[string]string `json:"sysctls,omitempty"`
	Devices         []Device          `json:"devices,omitempty"`

	TTY       bool   `json:"tty,omitempty"`
	Stdin     bool   `json:"stdin,omitempty"`
	StdinOnce bool   `json:"stdinOnce,omitempty"` // stdin closes when its first attached stream ends
	LogPath   string `json:"logPath,omitempty"`   // CRI log format; nothing is kept when empty
}

// A User is whom a container's process runs as.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// A Mount is one mount inside the container. An empty Type is a bind mount of
// Source. Options are the words of mount(8), such as ro, nosuid, rbind, mode=.
type Mount struct {
	Source      string   `json:"source,omitempty"`
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Options     []string `json:"options,omitempty"`
	Propagation string   `json:"propagation,omitempty"` // private (default), rslave, rshared
}

// Resources bound what a container may use. Zero is no bound.
type Resources struct {
	CPUShares uint64 `json:"cpuShares,omitempty"`
	CPUQuota  int64  `json:"cpuQuota,omitempty"`  // microseconds per period
	CPUPeriod uint64 `json:"cpuPeriod,omitempty"` // 100,000 when zero
	Memory    int64  `json:"memory,omitempty"`    // bytes, without swap
	Pids      int64  `json:"pids,omitempty"`
}

// Capabilities change the default set. "ALL" is every one, and names may
// come with or without CAP_.
type Capabilities struct {
	Add  []string `json:"add,omitempty"`
	Drop []string `json:"drop,omitempty"`
}

// A Device of the host that the container may use.
type Device struct {
	HostPath    string `json:"hostPath"`
	Path        string `json:"path,omitempty"`        // HostPath when empty
	Permissions string `json:"permissions,omitempty"` // "rwm" when empty
}

// State is where a container is in its life.
type State string

// The states of a container.
const (
	Created State = "created"
	Running State = "running"
	Exited  State = "exited"
)

// A Status is what the runtime knows of a container.
type Status struct {
	ID         string            `json:"id"`
	Labels     map[string]string `json:"labels,omitempty"`
	State      State             `json:"state"`
	Pid        int               `json:"pid,omitempty"`
	CreatedAt  time.Time         `json:"createdAt"`
	StartedAt  time.Time         `json:"startedAt,omitzero"`
	LogPath    string            `json:"logPath,omitempty"`
	FinishedAt time.Time         `json:"finishedAt,omitzero"`
	Exit       Exit              `json:"exit"`
}

// An Exit is how a container ended.
type Exit struct {
	Code      int            `json:"code"` // 128+signal for a signal, UnknownExitCode when nobody saw it
	Signal    syscall.Signal `json:"signal,omitempty"`
	OOMKilled bool           `json:"oomKilled,omitempty"`
	Unknown   bool           `json:"unknown,omitempty"` // it ended while no runtime was there to see
}

// UnknownExitCode is the exit code of a container whose end nobody saw.
const UnknownExitCode = 255

// StartErrorExitCode is the exit code Kubernetes gives to a container whose
// process could not be started.
const StartErrorExitCode = 128

// An Event tells the end of a container. The end of one container may be told
// more than once: after each reconnection to the runtime all ends that are
// still known are told again.
type Event struct {
	ID         string            `json:"id"`
	Labels     map[string]string `json:"labels,omitempty"`
	FinishedAt time.Time         `json:"finishedAt"`
	Exit       Exit              `json:"exit"`
}

// Started tells a process that has just been started.
type Started struct {
	Pid int       `json:"pid"`
	At  time.Time `json:"at"`
}

// An ExecSpec is one more process in a running container. Empty Env, Cwd and
// User mean those of the container.
type ExecSpec struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // added to the container's
	Cwd  string   `json:"cwd,omitempty"`
	User *User    `json:"user,omitempty"`
	TTY  bool     `json:"tty,omitempty"`
}

// Size of a terminal.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Streams connect a caller with a process. Any of them may be nil. With a
// terminal, Err is not used.
type Streams struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Resize <-chan Size
}

// Usage is what a container has used and is using.
type Usage struct {
	At               time.Time `json:"at"`
	CPUNanos         uint64    `json:"cpuNanos"` // since the start
	MemoryUsage      uint64    `json:"memoryUsage"`
	MemoryWorkingSet uint64    `json:"memoryWorkingSet"` // usage less inactive file pages
	MemoryRSS        uint64    `json:"memoryRSS"`
	MemoryPageFaults uint64    `json:"memoryPageFaults"`
	MemoryMajorFault uint64    `json:"memoryMajorFaults"`
	Pids             uint64    `json:"pids"`
}
