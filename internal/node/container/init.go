// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	_ "github.com/opencontainers/runc/libcontainer" // for startInitialization
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// This file runs in the process that becomes the container's. It does what
// libcontainer's own bootstrap would do in C, with less: it is in its PID
// namespace already, joins the others, and leaves the root file system, users,
// capabilities and everything after to libcontainer.Init.

// order is what a blank is told.
type order struct {
	Init       string   `json:"init"`              // standard, or setns to join a container
	Tasks      []string `json:"tasks,omitempty"`   // cgroup v1 files to enter by
	Join       []int    `json:"join,omitempty"`    // namespaces (CLONE_NEW*), one for each file after the fixed ones
	Unshare    int      `json:"unshare,omitempty"` // namespaces to make
	Console    bool     `json:"console,omitempty"`
	Filter     bool     `json:"filter,omitempty"` // a seccomp program will come
	Stage      *stage   `json:"stage,omitempty"`
	HostCgroup bool     `json:"hostCgroup,omitempty"`
}

// The files that come with an order, by position. A console follows them if
// there is one, then the namespaces to join.
const (
	fileStdin = iota
	fileStdout
	fileStderr
	fileInit
	fileSync
	fileLog
	fileGate
	fixedFiles
)

const controlFD = 3

// done is what the process answers when the filter is in place, or all is
// made for a pause.
const done = "ok"

// Init turns this process into the first process of a container. It is called
// before anything else in the program has run, and does not return.
func Init() {
	if err := becomeContainer(); err != nil {
		fmt.Fprintln(os.Stderr, "container init:", err)
	}
	os.Exit(255)
}

func becomeContainer() error {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	unix.CloseOnExec(controlFD)
	warm()
	o, files, err := awaitOrder()
	if err != nil {
		return err
	}
	if o.Init == "" { // the runtime is gone, or does not need us
		os.Exit(0)
	}
	if o.Init == pauseInit {
		return pause(o)
	}
	if err := carryOut(o, files); err != nil {
		return refuse(files[fileSync], err)
	}
	return startInitialization()
}

// startInitialization is what libcontainer.Init calls once it has set
// GOMAXPROCS to 1. With one processor, the thread that installs the filter
// would wait for the scheduler's watchdog to take it from the thread that
// blocks at the gate, up to 10 ms after the program is here.
//
//go:linkname startInitialization github.com/opencontainers/runc/libcontainer.startInitialization
func startInitialization() error

// warm does, while nobody waits, what libcontainer would do for the first time
// when somebody does: decoders are made per type, and capabilities asked of
// the kernel one by one. Nothing depends on its success.
func warm() {
	var c initConfig
	_ = json.Unmarshal([]byte(`{"config":{"mounts":[{}],"namespaces":[{}],"cgroups":{"devices":[{}]},"capabilities":{"Bounding":["CAP_KILL"]}}}`), &c)
	if c.Config != nil {
		_, _ = capabilities.New(c.Config.Capabilities)
	}
	_ = selinux.GetEnabled()
}

// awaitOrder blocks until the runtime says what to become.
func awaitOrder() (order, []int, error) {
	var o order
	body, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*16))
	var n, oobn int
	var err error
	for {
		if n, oobn, _, _, err = unix.Recvmsg(controlFD, body, oob, unix.MSG_CMSG_CLOEXEC); err != unix.EINTR {
			break
		}
	}
	if err != nil || n == 0 {
		return o, nil, err
	}
	if err := json.Unmarshal(body[:n], &o); err != nil {
		return o, nil, fmt.Errorf("order: %w", err)
	}
	if o.Init == pauseInit {
		return o, nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return o, nil, fmt.Errorf("order came without its files: %w", err)
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) < fixedFiles+len(o.Join) {
		return o, nil, fmt.Errorf("order came with %d files", len(files))
	}
	return o, files, nil
}

func carryOut(o order, files []int) error {
	// Writing 0 moves the writing thread alone. For that the kernel takes no
	// lock against forks everywhere; moving a process by its PID does, and
	// first waits for an RCU grace period, 5 to 10 ms.
	for _, tasks := range o.Tasks {
		if err := writeFile(tasks, "0"); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	for i := range 3 {
		if err := unix.Dup3(files[i], i, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	if err := enterNamespaces(o, files[len(files)-len(o.Join):]); err != nil {
		return err
	}
	if o.Stage != nil {
		if err := o.Stage.set(); err != nil {
			return err
		}
	}
	environ := map[string]int{"INITPIPE": files[fileInit], "SYNCPIPE": files[fileSync], "LOGPIPE": files[fileLog], "FIFOFD": files[fileGate]}
	if o.Console {
		environ["CONSOLE"] = files[fixedFiles]
	}
	for name, fd := range environ {
		if err := os.Setenv("_LIBCONTAINER_"+name, strconv.Itoa(fd)); err != nil {
			return err
		}
	}
	if o.Filter {
		set := make(chan struct{})
		go installFilter(set)
		<-set
	}
	return os.Setenv("_LIBCONTAINER_INITTYPE", o.Init)
}

// writeFile writes without Go's poller, which costs three calls more.
func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// enterNamespaces moves this thread, the only one that will be left after
// exec, into the namespaces of the container.
func enterNamespaces(o order, files []int) error {
	// Threads share their root and working directory, and one that shares
	// them may not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for i, kind := range o.Join {
		if err := unix.Setns(files[i], kind); err != nil {
			return fmt.Errorf("join namespace %#x: %w", kind, err)
		}
		_ = unix.Close(files[i])
	}
	if o.Unshare != 0 {
		if err := unix.Unshare(o.Unshare); err != nil {
			return fmt.Errorf("make namespaces %#x: %w", o.Unshare, err)
		}
	}
	return nil
}

// refuse tells the runtime, in libcontainer's own form, why there will be no
// container.
func refuse(fd int, cause error) error {
	body, err := json.Marshal(syncMessage{Type: syncError, Arg: &syncErrorArg{Message: cause.Error()}})
	if err == nil {
		_, err = unix.Write(fd, body)
	}
	if err != nil {
		return fmt.Errorf("%w (and could not say so: %w)", cause, err)
	}
	return nil
}

// installFilter waits for a seccomp program and installs it on every thread
// of this process, the one that is about to exec among them. libcontainer can
// load filters only through libseccomp, a C library that would compile the
// profile anew for each container; here the program comes compiled.
//
// It arrives when all privileges are dropped, so that a profile need not
// allow what dropping them takes. This thread keeps its own until then.
func installFilter(set chan<- struct{}) {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	close(set)
	program := make([]byte, 64<<10)
	var n int
	var err error
	for {
		if n, err = unix.Read(controlFD, program); err != unix.EINTR {
			break
		}
	}
	answer := done
	if err != nil || n == 0 {
		answer = fmt.Sprintf("no program: %v", err)
	} else if err := loadFilter(program[:n]); err != nil {
		answer = err.Error()
	}
	_, _ = unix.Write(controlFD, []byte(answer))
	select {} // the thread must not end before exec ends it
}

func loadFilter(program []byte) error {
	if len(program)%8 != 0 || len(program) == 0 {
		return fmt.Errorf("program of %d bytes", len(program))
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	data[0].Effective, data[1].Effective = data[0].Permitted, data[1].Permitted
	if err := unix.Capset(&header, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	fprog := unix.SockFprog{Len: uint16(len(program) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	stuck, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if stuck != 0 {
		return fmt.Errorf("thread %d cannot take the filter", stuck)
	}
	return nil
}

// A stage is what is built for a container, in its mount namespace, before
// libcontainer makes the root file system: one tmpfs with the container's
// /dev and /sys/fs/cgroup, which are then bound into place whole. The same
// made inside the root file system, node by node on paths that an image
// controls, costs ten times as many system calls.
type stage struct {
	Dir     string            `json:"dir"`
	Nodes   []node            `json:"nodes"`
	ShmSize int64             `json:"shmSize"`
	Cgroups map[string]string `json:"cgroups,omitempty"` // name below /sys/fs/cgroup: directory
	Unified bool              `json:"unified,omitempty"` // cgroup v2, in a cgroup namespace of its own
	Queues  bool              `json:"queues,omitempty"`  // mount mqueue
}

// A node is a device node.
type node struct {
	Path string `json:"path"` // below /dev
	Mode uint32 `json:"mode"`
	Dev  uint64 `json:"dev"`
	UID  int    `json:"uid,omitempty"`
	GID  int    `json:"gid,omitempty"`
}

func (s *stage) dev() string    { return filepath.Join(s.Dir, "dev") }
func (s *stage) cgroup() string { return filepath.Join(s.Dir, "cgroup") }

func (s *stage) set() error {
	// Nothing of this may appear in the host's mount namespace.
	if err := mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", s.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=755,size=65536k"); err != nil {
		return err
	}
	unix.Umask(0)
	if err := s.setDev(); err != nil {
		return err
	}
	return s.setCgroups()
}

func (s *stage) setDev() error {
	dev := s.dev()
	for _, dir := range []string{dev, dev + "/pts", dev + "/shm", dev + "/mqueue"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, n := range s.Nodes {
		if err := n.make(dev); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
		"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "core": "/proc/kcore",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := mount("devpts", dev+"/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return err
	}
	if s.Queues {
		if err := mount("mqueue", dev+"/mqueue", "mqueue", flags|unix.MS_NODEV, ""); err != nil {
			return err
		}
	}
	return mount("shm", dev+"/shm", "tmpfs", flags|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", s.ShmSize))
}

func (n node) make(dev string) error {
	path := filepath.Join(dev, n.Path)
	if dir := filepath.Dir(path); dir != dev {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mknod(path, n.Mode, int(n.Dev)); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	if n.UID == 0 && n.GID == 0 {
		return nil
	}
	return os.Chown(path, n.UID, n.GID)
}

func (s *stage) setCgroups() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	root := s.cgroup()
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if s.Unified {
		return mount("cgroup", root, "cgroup2", flags, "")
	}
	for name, dir := range s.Cgroups {
		at := filepath.Join(root, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := mount(dir, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := mount("", at, "", flags|unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind+source, target, err)
	}
	return nil
}
