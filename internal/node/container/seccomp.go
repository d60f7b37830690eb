// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A profile is a seccomp profile in the JSON form that container runtimes
// share.
type profile struct {
	DefaultAction   string         `json:"defaultAction"`
	DefaultErrnoRet *uint32        `json:"defaultErrnoRet"`
	Syscalls        []profileRules `json:"syscalls"`
}

type profileRules struct {
	Names    []string      `json:"names"`
	Action   string        `json:"action"`
	ErrnoRet *uint32       `json:"errnoRet"`
	Args     []profileArg  `json:"args"`
	Includes profileFilter `json:"includes"`
	Excludes profileFilter `json:"excludes"`
}

type profileArg struct {
	Index    uint32 `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo"`
	Op       string `json:"op"`
}

type profileFilter struct {
	Caps   []string `json:"caps"`
	Arches []string `json:"arches"`
}

// maxProfile bounds the file of a profile.
const maxProfile = 1 << 20

// seccompProgram returns the program for spec's profile, compiled, or nil for
// none. The result depends on the profile's words and caps only.
func seccompProgram(name string, caps []string) ([]byte, error) {
	p := &profile{}
	switch name {
	case Unconfined:
		return nil, nil
	case "", DefaultSeccomp:
		p = defaultProfile()
	default:
		if err := readProfile(name, p); err != nil {
			return nil, err
		}
	}
	program, err := p.compile(caps)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", name, err)
	}
	return program, nil
}

func readProfile(name string, p *profile) error {
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if info.Size() > maxProfile {
		return fmt.Errorf("seccomp profile %s is larger than %d bytes", name, maxProfile)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	if err := json.Unmarshal(text, p); err != nil {
		return fmt.Errorf("seccomp profile %s: %w", name, err)
	}
	return nil
}

// A rule returns action when all args hold.
type rule struct {
	args   []profileArg
	action uint32
}

// compile returns the profile as a BPF program.
//
// The first rule that holds for a system call decides. System calls newer
// than the newest one known here get ENOSYS, whatever the default action, so
// that programs which try a new one fall back to what it replaces.
func (p *profile) compile(caps []string) ([]byte, error) {
	errno := uint32(unix.EPERM)
	if p.DefaultErrnoRet != nil {
		errno = *p.DefaultErrnoRet
	}
	fallback, err := actionValue(p.DefaultAction, errno)
	if err != nil {
		return nil, err
	}
	numbers := syscallNumbers()
	rules := map[uint32][]rule{}
	for _, r := range p.Syscalls {
		if !r.Includes.holds(caps, true) || !r.Excludes.holds(caps, false) {
			continue
		}
		errno := uint32(unix.EPERM)
		if r.ErrnoRet != nil {
			errno = *r.ErrnoRet
		}
		action, err := actionValue(r.Action, errno)
		if err != nil {
			return nil, err
		}
		for _, name := range r.Names {
			if nr, ok := numbers[name]; ok { // others are of other architectures
				rules[nr] = append(rules[nr], alternatives(r.Args, action)...)
			}
		}
	}
	newest := uint32(0)
	for _, nr := range numbers {
		newest = max(newest, nr)
	}
	if fallback == unix.SECCOMP_RET_ALLOW {
		newest = ^uint32(0) - 1 // what allows by default allows the future too
	}
	return assemble(rules, fallback, newest)
}

// alternatives returns the rules that args mean: conditions on one argument
// twice are alternatives, all others must hold together.
func alternatives(args []profileArg, action uint32) []rule {
	seen := map[uint32]bool{}
	for _, a := range args {
		if seen[a.Index] {
			var out []rule
			for _, one := range args {
				out = append(out, rule{[]profileArg{one}, action})
			}
			return out
		}
		seen[a.Index] = true
	}
	return []rule{{args, action}}
}

func (f profileFilter) holds(caps []string, include bool) bool {
	if len(f.Arches) > 0 && slices.Contains(f.Arches, runtime.GOARCH) != include {
		return false
	}
	if len(f.Caps) == 0 {
		return true
	}
	if include {
		return !slices.ContainsFunc(f.Caps, func(c string) bool { return !slices.Contains(caps, c) })
	}
	return !slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(caps, c) })
}

func actionValue(name string, errno uint32) (uint32, error) {
	switch name {
	case "SCMP_ACT_ALLOW":
		return unix.SECCOMP_RET_ALLOW, nil
	case "SCMP_ACT_ERRNO":
		return unix.SECCOMP_RET_ERRNO | errno&unix.SECCOMP_RET_DATA, nil
	case "SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD":
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case "SCMP_ACT_KILL_PROCESS":
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case "SCMP_ACT_TRAP":
		return unix.SECCOMP_RET_TRAP, nil
	case "SCMP_ACT_TRACE":
		return unix.SECCOMP_RET_TRACE | errno&unix.SECCOMP_RET_DATA, nil
	case "SCMP_ACT_LOG":
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("unknown action %q", name)
}

// Offsets into struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// program is BPF under construction.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf})
}

func (p *program) load(offset uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }
func (p *program) ret(action uint32)  { p.add(unix.BPF_RET|unix.BPF_K, action, 0, 0) }

// span is system calls from first on, up to the next span.
type span struct {
	first uint32
	rules []rule
	rest  uint32 // action when no rule holds
}

func assemble(rules map[uint32][]rule, fallback, newest uint32) ([]byte, error) {
	var p program
	p.load(dataArch)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, auditArch(), 1, 0)
	// Another architecture's numbers mean other calls: none of them.
	p.ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	p.load(dataNumber)
	if err := p.search(spans(rules, fallback, newest)); err != nil {
		return nil, err
	}
	if len(p) > 4096 {
		return nil, fmt.Errorf("program of %d instructions, the kernel takes 4096", len(p))
	}
	out := make([]byte, 0, 8*len(p))
	for _, i := range p {
		out = binary.NativeEndian.AppendUint16(out, i.Code)
		out = append(out, i.Jt, i.Jf)
		out = binary.NativeEndian.AppendUint32(out, i.K)
	}
	return out, nil
}

// spans cuts the numbers into runs that are treated alike.
func spans(rules map[uint32][]rule, fallback, newest uint32) []span {
	var out []span
	add := func(s span) {
		if n := len(out); n > 0 && len(s.rules) == 0 && len(out[n-1].rules) == 0 && out[n-1].rest == s.rest {
			return
		}
		out = append(out, s)
	}
	known := make([]uint32, 0, len(rules))
	for nr := range rules {
		known = append(known, nr)
	}
	slices.Sort(known)
	next := uint32(0)
	for _, nr := range known {
		if nr > next {
			add(span{first: next, rest: fallback})
		}
		add(plain(nr, rules[nr], fallback))
		next = nr + 1
	}
	if next <= newest {
		add(span{first: next, rest: fallback})
	}
	if newest+1 != ^uint32(0) {
		add(span{first: newest + 1, rest: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	return out
}

// plain drops the rules that come after one without conditions.
func plain(nr uint32, rules []rule, fallback uint32) span {
	for i, r := range rules {
		if len(r.args) == 0 {
			return span{nr, rules[:i], r.action}
		}
	}
	return span{nr, rules, fallback}
}

// search appends a binary search for the number in the accumulator.
func (p *program) search(s []span) error {
	if len(s) == 1 {
		return p.leaf(s[0])
	}
	middle := len(s) / 2
	at := len(*p)
	p.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, s[middle].first, 0, 1)
	p.add(unix.BPF_JMP|unix.BPF_JA, 0, 0, 0) // conditional jumps reach 255 instructions, this one all
	if err := p.search(s[:middle]); err != nil {
		return err
	}
	(*p)[at+1].K = uint32(len(*p) - at - 2)
	return p.search(s[middle:])
}

func (p *program) leaf(s span) error {
	for _, r := range s.rules {
		if err := p.rule(r); err != nil {
			return err
		}
	}
	p.ret(s.rest)
	return nil
}

// rule appends "if all args hold, return action".
func (p *program) rule(r rule) error {
	start := len(*p)
	for _, a := range r.args {
		if err := p.condition(a); err != nil {
			return err
		}
	}
	p.ret(r.action)
	end := len(*p)
	// Conditions jump to 255 when they fail; send those past the end.
	for i := start; i < end; i++ {
		in := &(*p)[i]
		if in.Code&7 != unix.BPF_JMP {
			continue
		}
		if end-i-1 > 200 {
			return fmt.Errorf("a rule has too many conditions")
		}
		if in.Jt == 255 {
			in.Jt = uint8(end - i - 1)
		}
		if in.Jf == 255 {
			in.Jf = uint8(end - i - 1)
		}
	}
	return nil
}

// condition appends a comparison of a 64-bit argument, high half first. A jump
// of 255 means "does not hold".
func (p *program) condition(a profileArg) error {
	if a.Index > 5 {
		return fmt.Errorf("argument %d of a system call", a.Index)
	}
	low, high := dataArgs+8*a.Index, dataArgs+8*a.Index+4
	if isBigEndian() {
		low, high = high, low
	}
	jump := func(op uint16, k uint32, jt, jf uint8) { p.add(unix.BPF_JMP|op|unix.BPF_K, k, jt, jf) }
	vh, vl := uint32(a.Value>>32), uint32(a.Value)
	switch a.Op {
	case "SCMP_CMP_EQ":
		p.load(high)
		jump(unix.BPF_JEQ, vh, 0, 255)
		p.load(low)
		jump(unix.BPF_JEQ, vl, 0, 255)
	case "SCMP_CMP_NE":
		p.load(high)
		jump(unix.BPF_JEQ, vh, 0, 2)
		p.load(low)
		jump(unix.BPF_JEQ, vl, 255, 0)
	case "SCMP_CMP_MASKED_EQ":
		wh, wl := uint32(a.ValueTwo>>32), uint32(a.ValueTwo)
		p.load(high)
		p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, vh, 0, 0)
		jump(unix.BPF_JEQ, wh, 0, 255)
		p.load(low)
		p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, vl, 0, 0)
		jump(unix.BPF_JEQ, wl, 0, 255)
	case "SCMP_CMP_GT", "SCMP_CMP_GE": // high > vh, or equal and low above
		op := uint16(unix.BPF_JGT)
		if a.Op == "SCMP_CMP_GE" {
			op = unix.BPF_JGE
		}
		p.load(high)
		jump(unix.BPF_JGT, vh, 3, 0)
		jump(unix.BPF_JEQ, vh, 0, 255)
		p.load(low)
		jump(op, vl, 0, 255)
	case "SCMP_CMP_LT", "SCMP_CMP_LE": // not (high > vh), and if equal low not above
		op := uint16(unix.BPF_JGE)
		if a.Op == "SCMP_CMP_LE" {
			op = unix.BPF_JGT
		}
		p.load(high)
		jump(unix.BPF_JGT, vh, 255, 0)
		jump(unix.BPF_JEQ, vh, 0, 2)
		p.load(low)
		jump(op, vl, 255, 0)
	default:
		return fmt.Errorf("unknown comparison %q", a.Op)
	}
	return nil
}

func isBigEndian() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

func auditArch() uint32 {
	if runtime.GOARCH == "arm64" {
		return unix.AUDIT_ARCH_AARCH64
	}
	return unix.AUDIT_ARCH_X86_64
}

// defaultProfile is what runs as RuntimeDefault: the calls that container
// runtimes agree a workload may make, and those that a capability brings.
func defaultProfile() *profile {
	allow := func(names string, args ...profileArg) profileRules {
		return profileRules{Names: strings.Fields(names), Action: "SCMP_ACT_ALLOW", Args: args}
	}
	with := func(capability, names string) profileRules {
		return profileRules{Names: strings.Fields(names), Action: "SCMP_ACT_ALLOW", Includes: profileFilter{Caps: []string{capability}}}
	}
	p := &profile{DefaultAction: "SCMP_ACT_ERRNO", Syscalls: []profileRules{
		allow(defaultSyscalls),
		allow("socket", profileArg{Index: 0, Op: "SCMP_CMP_NE", Value: unix.AF_VSOCK}),
		with("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
		with("CAP_SYS_ADMIN", "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"),
		with("CAP_SYS_BOOT", "reboot"),
		with("CAP_SYS_CHROOT", "chroot"),
		with("CAP_SYS_MODULE", "delete_module init_module finit_module"),
		with("CAP_SYS_PACCT", "acct"),
		with("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev"),
		with("CAP_SYS_RAWIO", "iopl ioperm"),
		with("CAP_SYS_TIME", "settimeofday clock_settime"),
		with("CAP_SYS_TTY_CONFIG", "vhangup"),
		with("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
		with("CAP_SYSLOG", "syslog"),
		with("CAP_BPF", "bpf"),
		with("CAP_PERFMON", "perf_event_open"),
		// clone without new namespaces; clone3 hides its flags in memory, so
		// it is denied with the errno that makes libc use clone.
		allow("clone", profileArg{Index: 0, Op: "SCMP_CMP_MASKED_EQ",
			Value: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP}),
	}}
	enosys := uint32(unix.ENOSYS)
	p.Syscalls = append(p.Syscalls, profileRules{Names: []string{"clone3"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &enosys})
	for _, persona := range []uint64{0, 8, 0x20000, 0x20008, 0xffffffff} { // Linux, 32-bit, with UNAME26, and "which one?"
		p.Syscalls = append(p.Syscalls, allow("personality", profileArg{Index: 0, Op: "SCMP_CMP_EQ", Value: persona}))
	}
	return p
}

const defaultSyscalls = `accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown
clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate
futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64
getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get
ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto
set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid
setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown
sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo
tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4
waitid write writev`
