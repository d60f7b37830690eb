// SPDX-License-Identifier: Apache-2.0

// Package registry keeps images that are pushed to this machine.
//
// It serves the OCI distribution API from files. A blob or manifest that was
// answered with 201 is on the disk under the digest of its bytes; what has no
// such answer is not visible. Names and digests become paths only after they
// have been checked to be what the specification allows.
//
// It is written here because the registry of go-containerregistry keeps
// manifests, and blobs that are being uploaded, in memory.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where the registry keeps its files and what it takes. The zero
// value of each bound stands for its default.
type Options struct {
	Dir          string
	MaxBlob      int64         // bytes of one blob
	MaxUploads   int           // blobs that are being uploaded at a time
	UploadIdle   time.Duration // an upload that nobody continues for so long is dropped
	ReserveBytes int64         // disk space that pushes must leave free
	BodyIdle     time.Duration // a client that sends nothing for so long is hung up on
}

const (
	defaultMaxBlob    = 32 << 30
	defaultMaxUploads = 64
	defaultUploadIdle = time.Hour
	defaultReserve    = 512 << 20
	defaultBodyIdle   = time.Minute

	// maxManifest is what the specification asks registries to take at least.
	maxManifest = 4 << 20
)

// A Registry is the OCI distribution API over a directory:
//
//	blobs/sha256/HEX           blobs and manifests
//	repos/NAME/_manifests/HEX  manifests of a repository; holds the media type
//	repos/NAME/_tags/TAG       holds the digest
//	repos/NAME/_subjects/HEX/HEX  manifests that refer to a manifest
//	uploads/ID                 what has arrived of a blob
type Registry struct {
	opts    Options
	handler http.Handler

	// Held for reading while a manifest is checked and noted, and while a blob is
	// made visible or found; for writing by what removes. So nothing goes that a
	// manifest has just been seen to name. Never held while a client sends.
	names sync.RWMutex

	mu      sync.Mutex
	uploads map[string]*upload
}

// Open opens the registry in a directory.
func Open(o Options) (*Registry, error) {
	o.MaxBlob = or(o.MaxBlob, defaultMaxBlob)
	o.MaxUploads = or(o.MaxUploads, defaultMaxUploads)
	o.UploadIdle = or(o.UploadIdle, defaultUploadIdle)
	o.ReserveBytes = or(o.ReserveBytes, defaultReserve)
	o.BodyIdle = or(o.BodyIdle, defaultBodyIdle)
	r := &Registry{opts: o, uploads: map[string]*upload{}}
	// A page in somebody's browser must not push here.
	r.handler = http.NewCrossOriginProtection().Handler(http.HandlerFunc(r.serve))
	for _, d := range []string{"blobs/sha256", "repos", "uploads"} {
		if err := os.MkdirAll(r.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("opening registry: %w", err)
		}
	}
	if err := r.findUploads(); err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	return r, nil
}

// Handler serves the registry in a directory, with the default bounds.
func Handler(dir string) (http.Handler, error) { return Open(Options{Dir: dir}) }

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

func (r *Registry) path(elem ...string) string {
	return filepath.Join(r.opts.Dir, filepath.Join(elem...))
}

func (r *Registry) blobPath(digest string) string { return r.path("blobs", "sha256", hexOf(digest)) }

func (r *Registry) repoPath(name string, elem ...string) string {
	return r.path("repos", filepath.FromSlash(name), filepath.Join(elem...))
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	r.handler.ServeHTTP(w, req)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	call, err := parseCall(req.URL.Path)
	if err == nil {
		err = r.dispatch(w, req, call)
	}
	if err != nil {
		r.refuse(w, req, err)
	}
}

// A call is what a path asks for.
type call struct {
	kind string // "", "_catalog", "tags", "manifests", "blobs", "uploads", "referrers"
	name string // repository
	ref  string // tag, digest or upload
}

// parseCall takes a path apart from its end: a repository may have any of the
// words in its own name.
func parseCall(path string) (call, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return call{}, nil
		}
		return call{}, errNotFound("PAGE_UNKNOWN", "the API is under /v2/")
	}
	if rest == "" || rest == "_catalog" {
		return call{kind: rest}, nil
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	var c call
	switch {
	case n >= 3 && parts[n-2] == "tags" && parts[n-1] == "list":
		c = call{kind: "tags", name: strings.Join(parts[:n-2], "/")}
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		c = call{kind: "uploads", name: strings.Join(parts[:n-3], "/"), ref: parts[n-1]}
	case n >= 3 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		c = call{kind: "uploads", name: strings.Join(parts[:n-2], "/")}
	case n >= 3 && (parts[n-2] == "manifests" || parts[n-2] == "blobs" || parts[n-2] == "referrers"):
		c = call{kind: parts[n-2], name: strings.Join(parts[:n-2], "/"), ref: parts[n-1]}
	default:
		return call{}, errNotFound("PAGE_UNKNOWN", "no such page")
	}
	if !validName(c.name) {
		return call{}, errBad("NAME_INVALID", "invalid repository name")
	}
	if (c.kind == "blobs" || c.kind == "referrers") && !validDigest(c.ref) {
		return call{}, errBad("DIGEST_INVALID", "not a sha256 digest")
	}
	if c.kind == "manifests" && !validDigest(c.ref) && !validTag(c.ref) {
		return call{}, errBad("TAG_INVALID", "neither a tag nor a sha256 digest")
	}
	return c, nil
}

type operation func(w http.ResponseWriter, req *http.Request, c call) error

func (r *Registry) dispatch(w http.ResponseWriter, req *http.Request, c call) error {
	m := req.Method
	if m == http.MethodHead {
		m = http.MethodGet
	}
	ops := map[string]map[string]operation{
		"":          {"GET": r.root},
		"_catalog":  {"GET": r.catalog},
		"tags":      {"GET": r.tags},
		"manifests": {"GET": r.getManifest, "PUT": r.putManifest, "DELETE": r.deleteManifest},
		"blobs":     {"GET": r.getBlob, "DELETE": r.deleteBlob},
		"uploads":   {"GET": r.uploadStatus, "POST": r.startUpload, "PATCH": r.continueUpload, "PUT": r.finishUpload, "DELETE": r.cancelUpload},
		"referrers": {"GET": r.referrers},
	}
	op := ops[c.kind][m]
	if op == nil {
		return &refusal{http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported"}
	}
	return op(w, req, c)
}

func (r *Registry) root(w http.ResponseWriter, _ *http.Request, _ call) error {
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write([]byte("{}"))
	return err
}

// A refusal is an answer that the specification has a code for.
type refusal struct {
	status  int
	code    string
	message string
}

func (e *refusal) Error() string { return e.code + ": " + e.message }

func errBad(code, message string) error { return &refusal{http.StatusBadRequest, code, message} }
func errNotFound(code, message string) error {
	return &refusal{http.StatusNotFound, code, message}
}

// refuse answers with an error. What went wrong inside is for the log alone.
func (r *Registry) refuse(w http.ResponseWriter, req *http.Request, err error) {
	e := new(refusal)
	switch {
	case errors.As(err, &e):
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e = &refusal{http.StatusInsufficientStorage, "UNAVAILABLE", "the disk is full"}
	case req.Context().Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		e = &refusal{http.StatusRequestTimeout, "BLOB_UPLOAD_INVALID", "the request did not come to its end"}
	default:
		slog.Error("registry", "method", req.Method, "path", req.URL.Path, "err", err)
		e = &refusal{http.StatusInternalServerError, "UNKNOWN", "internal error"}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Length")
	w.WriteHeader(e.status)
	if req.Method != http.MethodHead {
		json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]any{{"code": e.code, "message": e.message}}})
	}
}

// checkSpace refuses pushes that would fill the disk.
func (r *Registry) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(r.opts.Dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: r.opts.Dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < r.opts.ReserveBytes {
		return &refusal{http.StatusInsufficientStorage, "UNAVAILABLE", fmt.Sprintf("not enough disk space: %d MiB are free, %d MiB are kept free", free>>20, r.opts.ReserveBytes>>20)}
	}
	return nil
}

// writeFile replaces a file so that after a crash it is the old one or the new.
func writeFile(path string, b []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// makeDir makes a directory below another so that it survives a crash.
func makeDir(base, dir string) error {
	if _, err := os.Stat(dir); err == nil || dir == base {
		return err
	}
	if err := makeDir(base, filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Close drops what is kept in memory of uploads; their clients can go on with
// the next process.
func (r *Registry) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for id, u := range r.uploads {
		err = errors.Join(err, u.close())
		delete(r.uploads, id)
	}
	return err
}

// Run collects garbage now and then, until ctx ends.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		if _, err := r.Collect(ctx, CollectOptions{MinAge: time.Hour}); err != nil && ctx.Err() == nil {
			slog.Warn("registry: collecting garbage", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
