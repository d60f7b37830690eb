// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/sonagi/sonagi/internal/node/container"
	"github.com/sonagi/sonagi/internal/node/network"
	"github.com/sonagi/sonagi/internal/node/pod"
)

// How long streams may be idle, and how long a client may take to open them.
const (
	streamIdle   = 4 * time.Hour
	streamCreate = 30 * time.Second
)

// running finds the running container that a path names.
func (a *Agent) running(r *http.Request) (*worker, string, error) {
	w, err := a.podOf(r)
	if err != nil {
		return nil, "", err
	}
	id := w.runningID(r.PathValue("container"))
	if id == "" {
		return nil, "", fmt.Errorf("container not found (%q)", r.PathValue("container"))
	}
	return w, id, nil
}

func (a *Agent) serveExec(rw http.ResponseWriter, r *http.Request) {
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w, id, err := a.running(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	remotecommand.ServeExec(rw, r, execer{a, id}, w.first.Name, string(w.uid), r.PathValue("container"),
		r.URL.Query()["command"], opts, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
}

func (a *Agent) serveAttach(rw http.ResponseWriter, r *http.Request) {
	opts, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w, id, err := a.running(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	remotecommand.ServeAttach(rw, r, execer{a, id}, w.first.Name, string(w.uid), r.PathValue("container"),
		opts, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
}

// serveRun runs a command and answers with what it printed.
func (a *Agent) serveRun(rw http.ResponseWriter, r *http.Request) {
	_, id, err := a.running(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	_, out, err := a.execIn(id)(r.Context(), strings.Split(r.URL.Query().Get("cmd"), " "))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Write(out)
}

// execer joins streams with one container.
type execer struct {
	a  *Agent
	id string
}

// ExecInContainer implements remotecommand.Executor.
func (e execer) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	spec := container.ExecSpec{Args: cmd, TTY: tty}
	if tty {
		spec.Env = []string{term}
	}
	code, err := e.a.o.Containers.Exec(ctx, e.id, spec, joined(ctx, in, out, errOut, resize))
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (e execer) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := e.a.o.Containers.Attach(ctx, e.id, joined(ctx, in, out, errOut, resize))
	if ctx.Err() != nil {
		return nil // the client has left
	}
	return err
}

// joined makes the streams of a client those of a container. A stream that the
// client did not ask for must be nil, not an interface that holds nil.
func joined(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) container.Streams {
	s := container.Streams{In: in}
	if out != nil {
		s.Out = out
	}
	if errOut != nil {
		s.Err = errOut
	}
	if resize == nil {
		return s
	}
	sizes := make(chan container.Size)
	s.Resize = sizes
	go func() {
		defer close(sizes)
		for {
			select {
			case size, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- container.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return s
}

func (a *Agent) servePortForward(rw http.ResponseWriter, r *http.Request) {
	w, err := a.podOf(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusNotFound)
		return
	}
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(rw, r, forwarder{a}, w.first.Name, string(w.uid), opts, streamIdle, streamCreate, portforward.SupportedProtocols)
}

// forwarder joins streams with ports of pods.
type forwarder struct{ a *Agent }

// PortForward implements portforward.PortForwarder: it connects as if from
// inside the pod, to its loopback.
func (f forwarder) PortForward(ctx context.Context, _, uid string, port int32, stream io.ReadWriteCloser) error {
	w := f.a.worker(types.UID(uid))
	if w == nil {
		return errors.New("pod does not exist")
	}
	conn, err := w.dial(ctx, port)
	if err != nil {
		return fmt.Errorf("failed to connect to port %d of pod %s: %w", port, pod.FullName(w.snapshot()), err)
	}
	defer conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(stream, conn)
		stream.Close()
	}()
	io.Copy(conn, stream)
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite() // the client has said all; the pod may still have to say something
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}

func (w *worker) dial(ctx context.Context, port int32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w.mu.Lock()
	s, ok := w.sandbox.now()
	host := w.pod.Spec.HostNetwork
	w.mu.Unlock()
	if !ok {
		return nil, errors.New("pod has no sandbox")
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	if host {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	return network.Dial(ctx, s.NetNS, "tcp", address)
}
