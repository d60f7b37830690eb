// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"net/http"
	"os"
	"time"
)

func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, c call) error {
	f, err := r.openBlob(c.ref, req.Method == http.MethodHead)
	if errors.Is(err, os.ErrNotExist) {
		return errNotFound("BLOB_UNKNOWN", "blob unknown to registry")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// A client that no longer reads is hung up on, a slow one is not.
	wait := time.Minute + time.Duration(info.Size()/slowest)*time.Second
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait)) // not every writer can
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", c.ref)
	w.Header().Set("ETag", `"`+c.ref+`"`)
	http.ServeContent(w, req, "", time.Time{}, f) // ranges too
	return nil
}

// slowest is how many bytes a second a client must take on average.
const slowest = 64 << 10

// openBlob opens a blob. Who only asks whether it is here may be about to push
// a manifest that names it, so it is then young again.
func (r *Registry) openBlob(digest string, touch bool) (*os.File, error) {
	r.names.RLock()
	defer r.names.RUnlock()
	f, err := os.Open(r.blobPath(digest))
	if err == nil && touch {
		err = r.touch(digest)
	}
	return f, err
}

// touch makes a blob young: a collection leaves young blobs alone.
func (r *Registry) touch(digest string) error {
	now := time.Now()
	return os.Chtimes(r.blobPath(digest), now, now)
}

// deleteBlob removes a blob that no manifest names.
func (r *Registry) deleteBlob(w http.ResponseWriter, _ *http.Request, c call) error {
	r.names.Lock()
	defer r.names.Unlock()
	if !r.hasBlob(c.ref) {
		return errNotFound("BLOB_UNKNOWN", "blob unknown to registry")
	}
	named, err := r.allNamed()
	if err != nil {
		return err
	}
	if named[hexOf(c.ref)] {
		return &refusal{http.StatusForbidden, "DENIED", "a manifest names the blob"}
	}
	if err := os.Remove(r.blobPath(c.ref)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (r *Registry) hasBlob(digest string) bool {
	_, err := os.Stat(r.blobPath(digest))
	return err == nil
}
