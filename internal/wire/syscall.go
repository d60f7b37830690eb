// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// recv reads from a non-blocking socket.
func recv(fd uintptr, p []byte, flags int) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, unix.EINVAL
	}
	for {
		n, _, err := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), uintptr(flags), 0, 0)
		if err != unix.EINTR {
			return int(n), err
		}
	}
}

// send writes two buffers, either of which may be empty, to a non-blocking
// socket. It never raises SIGPIPE.
func send(fd uintptr, a, b []byte) (int, syscall.Errno) {
	if len(a) == 0 {
		a, b = b, nil
	}
	for {
		var (
			n   uintptr
			err syscall.Errno
		)
		if len(b) == 0 {
			n, _, err = syscall.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&a[0])), uintptr(len(a)), unix.MSG_NOSIGNAL, 0, 0)
		} else {
			vec := [2]unix.Iovec{{Base: &a[0]}, {Base: &b[0]}}
			vec[0].SetLen(len(a))
			vec[1].SetLen(len(b))
			msg := unix.Msghdr{Iov: &vec[0]}
			msg.SetIovlen(2)
			n, _, err = syscall.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
			runtime.KeepAlive(&vec)
		}
		if err != unix.EINTR {
			return int(n), err
		}
	}
}
