// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// An upload is a blob that is arriving. Its file is all there is to it: a
// later process goes on with it.
type upload struct {
	path string

	mu   sync.Mutex // held while bytes arrive
	f    *os.File   // nil until somebody sends bytes
	sum  hash.Hash  // of what is in the file
	size int64
	used time.Time
	over bool
}

func (r *Registry) findUploads() error {
	entries, err := os.ReadDir(r.path("uploads"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		r.uploads[e.Name()] = &upload{path: r.path("uploads", e.Name()), size: info.Size(), used: info.ModTime()}
	}
	return nil
}

// startUpload begins an upload, takes a whole blob at once (?digest=), or finds
// that the blob is here already (?mount=).
func (r *Registry) startUpload(w http.ResponseWriter, req *http.Request, c call) error {
	q := req.URL.Query()
	if mount := q.Get("mount"); validDigest(mount) {
		if f, err := r.openBlob(mount, true); err == nil {
			f.Close()
			return created(w, c.name, mount)
		}
	}
	digest := q.Get("digest")
	if digest != "" && !validDigest(digest) {
		return errBad("DIGEST_INVALID", "not a sha256 digest")
	}
	if err := r.checkSpace(); err != nil {
		return err
	}
	id, u, err := r.newUpload()
	if err != nil {
		return err
	}
	if digest == "" {
		answerUpload(w, c.name, id, 0, http.StatusAccepted)
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := r.receive(w, req, u); err != nil {
		r.drop(id, u)
		return err
	}
	return r.commit(w, c.name, id, u, digest)
}

func (r *Registry) newUpload() (string, *upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.uploads) >= r.opts.MaxUploads {
		r.dropIdleLocked(min(r.opts.UploadIdle, time.Minute)) // they keep others out
	}
	if len(r.uploads) >= r.opts.MaxUploads {
		return "", nil, &refusal{http.StatusTooManyRequests, "TOOMANYREQUESTS", fmt.Sprintf("%d uploads are under way", len(r.uploads))}
	}
	id := strings.ToLower(rand.Text())
	u := &upload{path: r.path("uploads", id), used: time.Now()}
	f, err := os.OpenFile(u.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	u.f, u.sum = f, sha256.New()
	r.uploads[id] = u
	return id, u, nil
}

// dropIdleLocked drops uploads that were given up; the caller holds r.mu.
func (r *Registry) dropIdleLocked(idle time.Duration) {
	now := time.Now()
	for id, u := range r.uploads {
		if u.mu.TryLock() { // else bytes are arriving
			if now.Sub(u.used) >= idle {
				u.over = true
				u.close()
				os.Remove(u.path)
				delete(r.uploads, id)
			}
			u.mu.Unlock()
		}
	}
}

// hold finds an upload and keeps others from it until release is called.
func (r *Registry) hold(id string) (u *upload, release func(), err error) {
	r.mu.Lock()
	u = r.uploads[id]
	r.mu.Unlock()
	if u == nil {
		return nil, nil, errUploadUnknown()
	}
	if !u.mu.TryLock() {
		return nil, nil, errBad("BLOB_UPLOAD_INVALID", "the upload is being written by another request")
	}
	if u.over {
		u.mu.Unlock()
		return nil, nil, errUploadUnknown()
	}
	return u, u.mu.Unlock, nil
}

func errUploadUnknown() error {
	return errNotFound("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
}

func (r *Registry) uploadStatus(w http.ResponseWriter, _ *http.Request, c call) error {
	u, release, err := r.hold(c.ref)
	if err != nil {
		return err
	}
	defer release()
	answerUpload(w, c.name, c.ref, u.size, http.StatusNoContent)
	return nil
}

// rangePattern is Content-Range as the specification has it for chunks.
var rangePattern = regexp.MustCompile(`^(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?$`)

// isNext reports whether a chunk begins where the upload ends. What does not
// say where it begins does.
func isNext(req *http.Request, u *upload) bool {
	sent := req.Header.Get("Content-Range")
	if sent == "" {
		return true
	}
	m := rangePattern.FindStringSubmatch(sent)
	if m == nil {
		return false
	}
	from, err := strconv.ParseInt(m[1], 10, 64)
	return err == nil && from == u.size
}

// continueUpload takes a chunk, or all of a blob as a stream.
func (r *Registry) continueUpload(w http.ResponseWriter, req *http.Request, c call) error {
	u, release, err := r.hold(c.ref)
	if err != nil {
		return err
	}
	defer release()
	if !isNext(req, u) {
		answerUpload(w, c.name, c.ref, u.size, http.StatusRequestedRangeNotSatisfiable)
		return nil
	}
	if err := r.receive(w, req, u); err != nil {
		if e := new(refusal); errors.As(err, &e) { // it can never become a blob
			r.drop(c.ref, u)
		}
		return err
	}
	answerUpload(w, c.name, c.ref, u.size, http.StatusAccepted)
	return nil
}

// finishUpload takes the last bytes and makes the upload a blob.
func (r *Registry) finishUpload(w http.ResponseWriter, req *http.Request, c call) error {
	digest := req.URL.Query().Get("digest")
	if !validDigest(digest) {
		return errBad("DIGEST_INVALID", "not a sha256 digest")
	}
	u, release, err := r.hold(c.ref)
	if err != nil {
		return err
	}
	defer release()
	if !isNext(req, u) {
		answerUpload(w, c.name, c.ref, u.size, http.StatusRequestedRangeNotSatisfiable)
		return nil
	}
	if err := r.receive(w, req, u); err != nil {
		if e := new(refusal); errors.As(err, &e) {
			r.drop(c.ref, u)
		}
		return err
	}
	return r.commit(w, c.name, c.ref, u, digest)
}

func (r *Registry) cancelUpload(w http.ResponseWriter, _ *http.Request, c call) error {
	u, release, err := r.hold(c.ref)
	if err != nil {
		return err
	}
	defer release()
	r.drop(c.ref, u)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// receive appends a request's body to an upload. What has come before an error
// stays, and can be gone on from.
func (r *Registry) receive(w http.ResponseWriter, req *http.Request, u *upload) error {
	if err := u.open(); err != nil {
		return err
	}
	defer func() { u.used = time.Now() }()
	if req.ContentLength > r.opts.MaxBlob-u.size {
		return r.errTooLarge()
	}
	body := &patientReader{r: req.Body, conn: http.NewResponseController(w), idle: r.opts.BodyIdle}
	defer body.done()
	buf := make([]byte, 128<<10)
	for unchecked := int64(0); ; {
		n, err := body.Read(buf)
		if werr := u.write(buf[:n]); werr != nil {
			return werr
		}
		if u.size > r.opts.MaxBlob {
			return r.errTooLarge()
		}
		if unchecked += int64(n); unchecked >= 64<<20 {
			unchecked = 0
			if err := r.checkSpace(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *Registry) errTooLarge() error {
	return &refusal{http.StatusRequestEntityTooLarge, "SIZE_INVALID", fmt.Sprintf("a blob may have at most %d bytes", r.opts.MaxBlob)}
}

// A patientReader waits for each part of a body, but not for ever.
type patientReader struct {
	r    io.Reader
	conn *http.ResponseController
	idle time.Duration
	end  bool
}

func (p *patientReader) Read(b []byte) (int, error) {
	p.conn.SetReadDeadline(time.Now().Add(p.idle)) // not every writer can
	n, err := p.r.Read(b)
	p.end = p.end || err == io.EOF
	return n, err
}

// done lets the connection wait for its next request. After a body that has not
// come to its end the last deadline stays: the server reads what is left.
func (p *patientReader) done() {
	if p.end {
		p.conn.SetReadDeadline(time.Time{})
	}
}

// open makes an upload of an earlier process one of this one.
func (u *upload) open() error {
	if u.f != nil {
		return nil
	}
	f, err := os.OpenFile(u.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		f.Close()
		return err
	}
	u.f, u.sum, u.size = f, sum, n
	return nil
}

// write keeps the file, its length and its digest at one.
func (u *upload) write(b []byte) error {
	n, err := u.f.WriteAt(b, u.size)
	u.sum.Write(b[:n])
	u.size += int64(n)
	return err
}

func (u *upload) close() error {
	if u.f == nil {
		return nil
	}
	err := u.f.Close()
	u.f = nil
	return err
}

// commit makes an upload a blob: on the disk first, then visible.
func (r *Registry) commit(w http.ResponseWriter, name, id string, u *upload, digest string) error {
	defer r.drop(id, u)
	if got := sha256Prefix + hex.EncodeToString(u.sum.Sum(nil)); got != digest {
		return errBad("DIGEST_INVALID", fmt.Sprintf("the blob is %s, not %s", got, digest))
	}
	if err := u.f.Sync(); err != nil {
		return err
	}
	r.names.RLock()
	defer r.names.RUnlock()
	if err := os.Rename(u.path, r.blobPath(digest)); err != nil {
		return err
	}
	if err := syncDir(r.path("blobs", "sha256")); err != nil {
		return err
	}
	return created(w, name, digest)
}

// drop ends an upload; the caller holds it.
func (r *Registry) drop(id string, u *upload) {
	u.over = true
	u.close()
	os.Remove(u.path) // gone already when it has become a blob
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uploads, id)
}

func created(w http.ResponseWriter, name, digest string) error {
	w.Header().Set("Location", "/v2/"+name+"/blobs/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
	return nil
}

func answerUpload(w http.ResponseWriter, name, id string, size int64, status int) {
	w.Header().Set("Location", "/v2/"+name+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	w.WriteHeader(status)
}
