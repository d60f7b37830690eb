// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	texttemplate "text/template"

	pkghttp "knative.dev/serving/pkg/http"

	"github.com/sonagi/sonagi/internal/mesh/gateway"
	"github.com/sonagi/sonagi/internal/mesh/routing"
)

const (
	// maxWaiting bounds the requests whose line is yet to be made. A template
	// takes some microseconds: these are a fraction of a second.
	maxWaiting = 4096
	// maxRequestLog bounds the log of one revision, and what was before it.
	maxRequestLog = 10 << 20
	// maxOpen bounds the open files.
	maxOpen = 64
)

// requestLog writes Knative's request log, a file for each revision: what
// queue-proxy writes to its standard output, and here there is none.
type requestLog struct {
	dir     string
	log     *slog.Logger
	dropped atomic.Uint64
	entries chan entry
	gone    chan routing.Name
	open    map[routing.Name]*rotated
}

// entry is a line that is yet to be made.
type entry struct {
	revision routing.Name
	form     *texttemplate.Template
	input    *pkghttp.RequestLogTemplateInput
}

func newRequestLog(dir string, log *slog.Logger) *requestLog {
	return &requestLog{
		dir: dir, log: log, open: map[routing.Name]*rotated{},
		entries: make(chan entry, maxWaiting), gone: make(chan routing.Name, maxWaiting),
	}
}

// template is the form of the lines while the settings stay as they are.
type template struct {
	to   *requestLog
	form *texttemplate.Template
}

func (l *requestLog) with(text string) (*template, error) {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	form, err := texttemplate.New("requestLog").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("request log template: %w", err)
	}
	return &template{l, form}, nil
}

// take copies what a line may need; the line is made later.
func (t *template) take(r *gateway.Report, podName func(netip.Addr) string) {
	if len(t.to.entries) == cap(t.to.entries) {
		t.to.dropped.Add(1)
		return
	}
	req := r.HTTP()
	revision := &pkghttp.RequestLogRevision{
		Name: r.Revision.Name.Name, Namespace: r.Revision.Name.Namespace,
		Service: r.Revision.Service, Configuration: r.Revision.Configuration,
	}
	if r.Pod != nil {
		revision.PodIP, revision.PodName = r.Pod.Addr.Addr().String(), podName(r.Pod.Addr.Addr())
	}
	e := entry{r.Revision.Name, t.form, &pkghttp.RequestLogTemplateInput{
		Request: req, Revision: revision, TraceID: pkghttp.ExtractTraceID(req.Header),
		Response: &pkghttp.RequestLogResponse{Code: r.Status, Size: int(r.Out), Latency: r.Took.Seconds()},
	}}
	select {
	case t.to.entries <- e:
	default:
		t.to.dropped.Add(1)
	}
}

// forget removes the log of a revision that is no more.
func (l *requestLog) forget(revision routing.Name) {
	select {
	case l.gone <- revision:
	default: // so many at once: a file stays
	}
}

// run writes until its context ends.
func (l *requestLog) run(ctx context.Context) {
	defer l.closeAll()
	for {
		select {
		case e := <-l.entries:
			l.write(e)
		case revision := <-l.gone:
			l.remove(revision)
		case <-ctx.Done():
			for range len(l.entries) {
				l.write(<-l.entries)
			}
			return
		}
	}
}

func (l *requestLog) write(e entry) {
	var line bytes.Buffer
	if err := e.form.Execute(&line, e.input); err != nil {
		line.Reset()
		fmt.Fprintf(&line, "Invalid request log template: method: %v, response code: %v, latency: %v, url: %v\n",
			e.input.Request.Method, e.input.Response.Code, e.input.Response.Latency, e.input.Request.URL)
	}
	if err := l.file(e.revision).write(line.Bytes()); err != nil {
		l.dropped.Add(1)
		l.log.Debug("writing the request log", "revision", e.revision.String(), "err", err)
	}
}

func (l *requestLog) file(revision routing.Name) *rotated {
	f, ok := l.open[revision]
	if !ok {
		if len(l.open) >= maxOpen {
			l.closeAll()
		}
		f = &rotated{path: l.path(revision), limit: maxRequestLog}
		l.open[revision] = f
	}
	return f
}

func (l *requestLog) path(revision routing.Name) string {
	return filepath.Join(l.dir, revision.Namespace, revision.Name+".log")
}

func (l *requestLog) remove(revision routing.Name) {
	if f, ok := l.open[revision]; ok {
		f.close()
		delete(l.open, revision)
	}
	for _, path := range []string{l.path(revision), l.path(revision) + ".1"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.log.Debug("removing a request log", "err", err)
		}
	}
}

func (l *requestLog) closeAll() {
	for _, f := range l.open {
		f.close()
	}
	clear(l.open)
}
