// SPDX-License-Identifier: Apache-2.0

package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sonagi/sonagi/internal/kube"
)

// LogOptions say which logs to print.
type LogOptions struct {
	Service, Namespace string
	Follow             bool
	Tail               int64 // lines to begin with
	Out                io.Writer
}

// PlatformLogs prints the children's logs.
func PlatformLogs(ctx context.Context, s Settings, o LogOptions) error {
	out := &lineWriter{w: o.Out}
	var wait sync.WaitGroup
	errs := make([]error, 2)
	for i, child := range []string{"control", "node"} {
		wait.Go(func() { errs[i] = tailFile(ctx, s.LogFile(child), child+" | ", o, out) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// tailFile prints the last lines of a file, and what is added when following.
func tailFile(ctx context.Context, path, prefix string, o LogOptions, out *lineWriter) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	defer f.Close()
	if err := seekTail(f, o.Tail); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			out.line(prefix, line)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) || !o.Follow {
			return nil
		}
		select { // a plain file tells nobody that it grew
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// seekTail goes to where the last n lines begin, within the last MiB.
func seekTail(f *os.File, n int64) error {
	const most = 1 << 20
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	from := max(0, size-most)
	text := make([]byte, size-from)
	if _, err := f.ReadAt(text, from); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	at := len(text)
	for ; at > 0; at-- {
		if text[at-1] == '\n' && at < len(text) {
			if n--; n == 0 {
				break
			}
		}
	}
	_, err = f.Seek(from+int64(at), io.SeekStart)
	return err
}

// RequestLogs prints the request logs of a service's revisions, also of those
// that have no pod now.
func RequestLogs(ctx context.Context, s Settings, o LogOptions) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return errNotUp
	}
	api, err := kube.NewClient(cfg)
	if err != nil {
		return fmt.Errorf("%w (%w)", errNotUp, err)
	}
	var revisions servingv1.RevisionList
	if err := api.List(ctx, &revisions, client.InNamespace(o.Namespace), client.MatchingLabels{serving.ServiceLabelKey: o.Service}); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	out := &lineWriter{w: o.Out}
	var wait sync.WaitGroup
	errs := make([]error, len(revisions.Items))
	found := false
	for i, r := range revisions.Items {
		path := s.Path("logs", "requests", r.Namespace, r.Name+".log")
		if _, err := os.Stat(path); err != nil {
			continue // no request was logged
		}
		found = true
		wait.Go(func() { errs[i] = tailFile(ctx, path, r.Name+" | ", o, out) })
	}
	wait.Wait()
	if !found {
		return fmt.Errorf("no request of service %s in namespace %s was logged; logging.enable-request-log in the ConfigMap config-observability of namespace knative-serving switches the log on", o.Service, o.Namespace)
	}
	return errors.Join(errs...)
}

// ServiceLogs prints the logs of the user containers of a service's pods.
func ServiceLogs(ctx context.Context, s Settings, o LogOptions) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig())
	if err != nil {
		return errNotUp
	}
	api, err := kube.NewClient(cfg)
	if err != nil {
		return fmt.Errorf("%w (%w)", errNotUp, err)
	}
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(o.Namespace), client.MatchingLabels{serving.ServiceLabelKey: o.Service}); err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	if len(pods.Items) == 0 {
		return fmt.Errorf("service %s in namespace %s has no pod now: it is scaled to zero, or does not exist", o.Service, o.Namespace)
	}
	out := &lineWriter{w: o.Out}
	var wait sync.WaitGroup
	errs := make([]error, len(pods.Items))
	for i, pod := range pods.Items {
		wait.Go(func() { errs[i] = podLog(ctx, core, &pod, o, out) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

func podLog(ctx context.Context, core kubernetes.Interface, pod *corev1.Pod, o LogOptions, out *lineWriter) error {
	stream, err := core.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: pod.Spec.Containers[0].Name, Follow: o.Follow, TailLines: &o.Tail,
	}).Stream(ctx)
	if err != nil {
		return fmt.Errorf("logs of %s: %w", pod.Name, err)
	}
	defer stream.Close()
	in := bufio.NewReader(stream)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			out.line(pod.Name+" | ", line)
		}
		if err != nil {
			return nil // the end, or Ctrl-C
		}
	}
}

// A lineWriter keeps the lines of several sources whole.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) line(prefix, line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprint(l.w, prefix, line)
}
