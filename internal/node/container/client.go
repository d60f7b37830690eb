// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxIdle is how many connections a client keeps for later calls.
const maxIdle = 8

// A Client asks the runtime. It is safe for use by many goroutines.
type Client struct {
	socket string
	revive func(context.Context) error // starts a runtime when none answers, or nil

	mu     sync.Mutex
	idle   []*net.UnixConn
	closed bool
	ending bool // the runtime is to be gone: nobody revives it
}

// Dial returns a client of the runtime that listens on socket.
func Dial(socket string) (*Client, error) {
	c := &Client{socket: socket}
	return c, c.ping(context.Background())
}

// Close ends the connections. The runtime and its containers live on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		_ = conn.Close()
	}
	c.idle = nil
	return nil
}

// endLimit is how long a runtime may take to end after its last answer.
const endLimit = 5 * time.Second

// Shutdown kills and deletes all containers and ends the runtime. When it
// returns, the process is gone.
func (c *Client) Shutdown(ctx context.Context) error {
	if err := c.ping(ctx); err != nil {
		return err
	}
	runtime, err := c.process(ctx)
	if err != nil {
		return err
	}
	defer unix.Close(runtime)
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	if _, err := c.call(ctx, request{Op: "shutdown"}); err != nil {
		return err
	}
	return errors.Join(awaitEnd(runtime), c.Close())
}

// awaitEnd waits until the runtime's process is gone.
func awaitEnd(runtime int) error {
	for deadline := time.Now().Add(endLimit); time.Now().Before(deadline); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(runtime), Events: unix.POLLIN}}, int(endLimit.Milliseconds()))
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("%w: the container runtime has not ended within %s", ErrUnavailable, endLimit)
}

// process is a pidfd of the runtime: the kernel knows who listens on its socket.
func (c *Client) process(ctx context.Context) (pidfd int, err error) {
	conn, err := dial(ctx, c.socket)
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	pidfd = -1
	cerr := raw.Control(func(fd uintptr) {
		var peer *unix.Ucred
		if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pidfd, err = unix.PidfdOpen(int(peer.Pid), 0)
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return -1, fmt.Errorf("find the container runtime's process: %w", err)
	}
	return pidfd, nil
}

// Create makes a container with everything but its process's first
// instruction. Start then is a matter of a write.
func (c *Client) Create(ctx context.Context, spec Spec) error {
	_, err := c.call(ctx, request{Op: "create", Spec: &spec})
	return err
}

// Start runs the process of a created container.
func (c *Client) Start(ctx context.Context, id string) (Started, error) {
	r, err := c.call(ctx, request{Op: "start", ID: id})
	if err != nil || r.Started == nil {
		return Started{}, err
	}
	return *r.Started, nil
}

// Signal sends sig to the first process of a container.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.call(ctx, request{Op: "signal", ID: id, Signal: int(sig)})
	return err
}

// Kill ends all processes of a container, whatever they do against it.
func (c *Client) Kill(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Op: "kill", ID: id})
	return err
}

// Delete kills what is left and forgets the container. It is no error when
// there is none.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Op: "delete", ID: id})
	return err
}

// List returns all containers.
func (c *Client) List(ctx context.Context) ([]Status, error) {
	r, err := c.call(ctx, request{Op: "list"})
	return r.Statuses, err
}

// Status returns one container.
func (c *Client) Status(ctx context.Context, id string) (Status, error) {
	r, err := c.call(ctx, request{Op: "status", ID: id})
	if err != nil || len(r.Statuses) != 1 {
		return Status{}, err
	}
	return r.Statuses[0], nil
}

// Resize sets the size of a container's terminal.
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	_, err := c.call(ctx, request{Op: "resize", ID: id, Size: &size})
	return err
}

// Stats returns what a container uses.
func (c *Client) Stats(ctx context.Context, id string) (Usage, error) {
	r, err := c.call(ctx, request{Op: "stats", ID: id})
	if err != nil || r.Usage == nil {
		return Usage{}, err
	}
	return *r.Usage, nil
}

// ReopenLog makes the runtime open the log file anew, after someone moved it.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.call(ctx, request{Op: "reopenLog", ID: id})
	return err
}

// Watch tells the ends of containers until ctx ends, then closes the channel.
// It begins with all ends that are known already.
func (c *Client) Watch(ctx context.Context) (<-chan Event, error) {
	conn, err := c.subscribe(ctx)
	if err != nil {
		return nil, err
	}
	events := make(chan Event)
	go func() {
		defer close(events)
		for wait := time.Duration(0); ctx.Err() == nil; wait = min(max(2*wait, 10*time.Millisecond), time.Second) {
			if conn != nil {
				wait = 0
				follow(ctx, conn, events)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait): // a runtime that cannot be started is not asked for all the time
			}
			conn, _ = c.subscribe(ctx)
		}
	}()
	return events, nil
}

func (c *Client) subscribe(ctx context.Context) (*net.UnixConn, error) {
	conn, _, _, err := c.begin(ctx, request{Op: "watch"})
	return conn, err
}

// follow passes events on until the connection or ctx ends.
func follow(ctx context.Context, conn *net.UnixConn, events chan<- Event) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for {
		var r reply
		files, err := receive(conn, &r)
		closeAll(files)
		if err != nil || r.Event == nil {
			return
		}
		select {
		case events <- *r.Event:
		case <-ctx.Done():
			return
		}
	}
}

// Exec runs one more process in a container until it ends, or ctx does: then
// the process is killed.
func (c *Client) Exec(ctx context.Context, id string, spec ExecSpec, s Streams) (int, error) {
	p, err := newPipes(s, spec.TTY)
	if err != nil {
		return 0, err
	}
	defer p.close()
	conn, _, files, err := c.begin(ctx, request{Op: "exec", ID: id, Exec: &spec, Has: p.has()}, p.theirs()...)
	p.closeTheirs()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if len(files) > 0 {
		if err := p.terminal(files); err != nil {
			return 0, err
		}
	}
	p.start()
	var r reply
	late, err := receive(conn, &r)
	closeAll(late)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	p.drain()
	return r.ExitCode, fromWire(r.Error)
}

// Attach connects s with the standard streams of a container until it ends,
// or ctx does.
func (c *Client) Attach(ctx context.Context, id string, s Streams) error {
	p, err := newPipes(s, false)
	if err != nil {
		return err
	}
	defer p.close()
	conn, _, files, err := c.begin(ctx, request{Op: "attach", ID: id, Has: p.has()}, p.theirs()...)
	closeAll(files)
	p.closeTheirs()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	p.resize = func(size Size) error { return c.Resize(ctx, id, size) }
	p.start()
	var r reply
	late, err := receive(conn, &r)
	closeAll(late)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	p.drain()
	return fromWire(r.Error)
}

func (c *Client) ping(ctx context.Context) error {
	_, err := c.call(ctx, request{Op: "ping"})
	return err
}

// call asks and waits for the answer.
func (c *Client) call(ctx context.Context, r request) (reply, error) {
	conn, out, files, err := c.begin(ctx, r)
	closeAll(files)
	if err != nil {
		return out, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		_ = conn.Close()
	} else {
		c.idle = append(c.idle, conn)
	}
	return out, nil
}

// begin asks, waits for the first answer, and returns the connection for what
// follows. With an error there is no connection. What can be asked twice is,
// when the runtime dies over the first time.
func (c *Client) begin(ctx context.Context, r request, files ...*os.File) (*net.UnixConn, reply, []*os.File, error) {
	conn, out, answer, err := c.try(ctx, r, files)
	once := r.Op == "create" || r.Op == "start" || r.Op == "exec"
	if errors.Is(err, ErrUnavailable) && !once && ctx.Err() == nil {
		return c.try(ctx, r, files)
	}
	return conn, out, answer, err
}

func (c *Client) try(ctx context.Context, r request, files []*os.File) (*net.UnixConn, reply, []*os.File, error) {
	var out reply
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, out, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	if err = send(conn, r, files...); err == nil {
		files, err = receive(conn, &out)
	} else {
		files = nil
	}
	if !stop() && ctx.Err() != nil {
		closeAll(files)
		return nil, out, nil, ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, out, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := fromWire(out.Error); err != nil {
		_ = conn.Close()
		return nil, out, files, err
	}
	return conn, out, files, nil
}

// connect returns a connection that is alive, to a runtime that is.
func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, fmt.Errorf("%w: the client is closed", ErrUnavailable)
		}
		var conn *net.UnixConn
		if n := len(c.idle); n > 0 {
			conn, c.idle = c.idle[n-1], c.idle[:n-1]
		}
		c.mu.Unlock()
		if conn == nil {
			break
		}
		if alive(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
	conn, err := dial(ctx, c.socket)
	c.mu.Lock()
	ending := c.ending
	c.mu.Unlock()
	if err == nil || c.revive == nil || ending {
		return conn, err
	}
	if err := c.revive(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return dial(ctx, c.socket)
}

func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return conn.(*net.UnixConn), nil
}

// alive says that the other end of an idle connection has not closed it.
func alive(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		quiet = errors.Is(err, unix.EAGAIN)
	})
	return err == nil && quiet
}

// pipes connect a caller's streams with files that another process can hold.
type pipes struct {
	streams Streams
	resize  func(Size) error
	child   [3]*os.File
	ours    [3]*os.File
	out     sync.WaitGroup
	ended   chan struct{}
}

func newPipes(s Streams, tty bool) (*pipes, error) {
	p := &pipes{streams: s, ended: make(chan struct{})}
	if tty {
		return p, nil // the terminal comes with the answer
	}
	for i, wanted := range []bool{s.In != nil, s.Out != nil, s.Err != nil} {
		if !wanted {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			p.close()
			return nil, err
		}
		if i == 0 {
			p.child[i], p.ours[i] = r, w
		} else {
			p.child[i], p.ours[i] = w, r
		}
	}
	return p, nil
}

func (p *pipes) has() (out [3]bool) {
	for i, f := range p.child {
		out[i] = f != nil
	}
	return out
}

func (p *pipes) theirs() (out []*os.File) {
	for _, f := range p.child {
		if f != nil {
			out = append(out, f)
		}
	}
	return out
}

func (p *pipes) closeTheirs() { closeAll(p.child[:]); p.child = [3]*os.File{} }

// terminal takes the master of the process's terminal.
func (p *pipes) terminal(files []*os.File) error {
	master, err := pollable(files[0])
	closeAll(files)
	if err != nil {
		return err
	}
	p.ours[1] = master
	p.resize = func(s Size) error { return setSize(master, s) }
	return nil
}

// start begins to copy.
func (p *pipes) start() {
	in := p.ours[0]
	if in == nil && p.streams.In != nil {
		in = p.ours[1] // a terminal
	}
	if in != nil && p.streams.In != nil {
		go func() {
			_, _ = io.Copy(in, p.streams.In)
			if in == p.ours[0] {
				_ = in.Close()
			}
		}()
	}
	for i, to := range []io.Writer{p.streams.Out, p.streams.Err} {
		from := p.ours[i+1]
		if from == nil {
			continue
		}
		if to == nil {
			to = io.Discard
		}
		p.out.Go(func() { _, _ = io.Copy(to, from) })
	}
	if p.streams.Resize != nil && p.resize != nil {
		go p.follow()
	}
}

func (p *pipes) follow() {
	for {
		select {
		case size, ok := <-p.streams.Resize:
			if !ok {
				return
			}
			_ = p.resize(size) // a size that came too late matters to nobody
		case <-p.ended:
			return
		}
	}
}

// drain waits for the last output. A child that the process left behind can
// hold a stream open for as long as it likes, so the wait is bounded.
func (p *pipes) drain() {
	done := make(chan struct{})
	go func() { p.out.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(maxStall):
	}
}

func (p *pipes) close() {
	select {
	case <-p.ended:
	default:
		close(p.ended)
	}
	p.closeTheirs()
	closeAll(p.ours[:])
}
