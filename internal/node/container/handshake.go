// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// This file speaks the other side of libcontainer.Init's protocol, in place of
// libcontainer's Container: that type starts a process for each container,
// seals the binary each time, and moves processes into cgroups by PID. The
// protocol is not promised by libcontainer, so the version in go.mod is what
// these types are written for, and the tests start real containers.

// initConfig is what libcontainer.Init reads first.
type initConfig struct {
	Config           *configs.Config       `json:"config"`
	Args             []string              `json:"args"`
	Env              []string              `json:"env"`
	UID              int                   `json:"uid"`
	GID              int                   `json:"gid"`
	AdditionalGroups []int                 `json:"additional_groups"`
	Cwd              string                `json:"cwd"`
	CreateConsole    bool                  `json:"create_console"`
	ConsoleWidth     uint16                `json:"console_width"`
	ConsoleHeight    uint16                `json:"console_height"`
	Capabilities     *configs.Capabilities `json:"capabilities"`
	NoNewPrivileges  bool                  `json:"no_new_privileges"`
	Rlimits          []configs.Rlimit      `json:"rlimits"`
	ContainerID      string                `json:"containerid"`
	Cgroup2Path      string                `json:"cgroup2_path,omitempty"`
}

// The steps of the protocol, as libcontainer names them.
const (
	syncError    = "procError"
	syncReady    = "procReady"
	syncRun      = "procRun"
	syncHooks    = "procHooks"
	syncHooksRun = "procHooksDone"
	syncMount    = "procMountPlease"
)

type syncMessage struct {
	Type  string        `json:"type"`
	Flags int           `json:"flags"`
	Arg   *syncErrorArg `json:"arg,omitempty"`
}

type syncErrorArg struct {
	Message string `json:"message,omitempty"`
	Source  string `json:"source,omitempty"` // of a mount that is asked for
}

// channels are both ends of what connects the runtime with a starting process.
type channels struct {
	init, sync           *os.File
	initChild, syncChild *os.File
}

func openChannels() (*channels, error) {
	init, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	sync, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(init[0])
		_ = unix.Close(init[1])
		return nil, os.NewSyscallError("socketpair", err)
	}
	// Ours are polled, so that a process that hangs costs no thread.
	_ = unix.SetNonblock(init[0], true)
	_ = unix.SetNonblock(sync[0], true)
	return &channels{
		init: os.NewFile(uintptr(init[0]), "init"), initChild: os.NewFile(uintptr(init[1]), "init-child"),
		sync: os.NewFile(uintptr(sync[0]), "sync"), syncChild: os.NewFile(uintptr(sync[1]), "sync-child"),
	}, nil
}

func (c *channels) closeChild() { closeAll([]*os.File{c.initChild, c.syncChild}) }
func (c *channels) close()      { closeAll([]*os.File{c.init, c.sync}) }

// follow gives the process its configuration and goes with it until it is
// about to exec. ready is called when its surroundings are made and it is
// about to drop its privileges.
func (c *channels) follow(config *initConfig, ready func() error) error {
	if err := json.NewEncoder(c.init).Encode(config); err != nil {
		return fmt.Errorf("send configuration: %w", err)
	}
	packet, seenReady := make([]byte, 64<<10), false
	for {
		n, err := c.sync.Read(packet)
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			if seenReady {
				return nil
			}
			return errors.New("the process ended while it was set up")
		}
		if err != nil {
			return fmt.Errorf("follow the process: %w", err)
		}
		var m syncMessage
		if err := json.Unmarshal(packet[:n], &m); err != nil {
			return fmt.Errorf("follow the process: %w", err)
		}
		if err := c.step(m, ready); err != nil {
			return err
		}
		seenReady = seenReady || m.Type == syncReady
	}
}

func (c *channels) step(m syncMessage, ready func() error) error {
	switch m.Type {
	case syncHooks:
		return c.say(syncMessage{Type: syncHooksRun})
	case syncReady:
		if err := ready(); err != nil {
			return err
		}
		return c.say(syncMessage{Type: syncRun})
	case syncMount:
		// It asks for a mount's source because it cannot see it, and it sees
		// all that we do.
		return c.say(syncMessage{Type: syncError, Arg: &syncErrorArg{Message: "no such file or directory"}})
	case syncError:
		if m.Arg == nil {
			return errors.New("error during container init")
		}
		return fmt.Errorf("error during container init: %s", m.Arg.Message)
	}
	return fmt.Errorf("the process asks for %q", m.Type)
}

func (c *channels) say(m syncMessage) error {
	body, err := json.Marshal(m)
	if err == nil {
		_, err = c.sync.Write(body)
	}
	return err
}
