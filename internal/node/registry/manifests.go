// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// descriptor is how a manifest names a blob or another manifest.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// manifest is what manifests and indexes have, together.
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Blobs         []descriptor      `json:"blobs"` // of artifact manifests, a draft that is in use
	Manifests     []descriptor      `json:"manifests"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

const (
	ociIndex    = "application/vnd.oci.image.index.v1+json"
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
)

func parseManifest(b []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, errBad("MANIFEST_INVALID", "the manifest is not JSON")
	}
	for _, d := range m.names() {
		if !validDigest(d.Digest) {
			return m, errBad("MANIFEST_INVALID", "the manifest names something by what is not a sha256 digest")
		}
	}
	if m.Subject != nil && !validDigest(m.Subject.Digest) {
		return m, errBad("MANIFEST_INVALID", "the subject is not a sha256 digest")
	}
	return m, nil
}

// names is all that must be here for the manifest to be whole.
func (m manifest) names() []descriptor {
	all := slices.Concat(m.Layers, m.Blobs, m.Manifests)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	return all
}

func (m manifest) mediaType(sent string) string {
	sent, _, _ = strings.Cut(sent, ";")
	switch {
	case m.MediaType != "":
		return m.MediaType
	case sent != "" && sent != "application/json" && sent != "application/octet-stream":
		return sent
	case m.Manifests != nil:
		return ociIndex
	}
	return ociManifest
}

func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, c call) error {
	body := &patientReader{r: req.Body, conn: http.NewResponseController(w), idle: r.opts.BodyIdle}
	defer body.done()
	b, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return err
	}
	if len(b) > maxManifest {
		return &refusal{http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", fmt.Sprintf("a manifest may have at most %d bytes", maxManifest)}
	}
	m, err := parseManifest(b)
	if err != nil {
		return err
	}
	digest := digestOf(b)
	if validDigest(c.ref) && c.ref != digest {
		return errBad("DIGEST_INVALID", fmt.Sprintf("the manifest is %s, not %s", digest, c.ref))
	}
	r.names.RLock()
	defer r.names.RUnlock()
	for _, d := range m.names() {
		if len(d.URLs) == 0 && !r.hasBlob(d.Digest) {
			return errBad("MANIFEST_BLOB_UNKNOWN", "the manifest names "+d.Digest+", which is unknown to registry")
		}
	}
	if err := r.keepManifest(c, b, digest, m.mediaType(req.Header.Get("Content-Type")), m.Subject); err != nil {
		return err
	}
	if m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest)
	}
	w.Header().Set("Location", "/v2/"+c.name+"/manifests/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
	return nil
}

// keepManifest writes a manifest in the order in which it is found: the bytes,
// their place in the repository, who refers to it, the tag.
func (r *Registry) keepManifest(c call, b []byte, digest, mediaType string, subject *descriptor) error {
	if err := r.checkSpace(); err != nil {
		return err
	}
	if err := writeFile(r.blobPath(digest), b); err != nil {
		return err
	}
	if err := r.note(mediaType, c.name, "_manifests", hexOf(digest)); err != nil {
		return err
	}
	if subject != nil {
		if err := r.note("", c.name, "_subjects", hexOf(subject.Digest), hexOf(digest)); err != nil {
			return err
		}
	}
	if validDigest(c.ref) {
		return nil
	}
	return r.note(digest, c.name, "_tags", c.ref)
}

// note writes a small file of a repository.
func (r *Registry) note(text, name string, elem ...string) error {
	file := r.repoPath(name, elem...)
	if err := makeDir(r.path("repos"), filepath.Dir(file)); err != nil {
		return err
	}
	return writeFile(file, []byte(text))
}

// find gives the digest and media type of a manifest of a repository.
func (r *Registry) find(c call) (digest, mediaType string, err error) {
	digest = c.ref
	if !validDigest(digest) {
		b, err := os.ReadFile(r.repoPath(c.name, "_tags", c.ref))
		if digest = string(b); err != nil || !validDigest(digest) {
			return "", "", r.unknown(c, err)
		}
	}
	b, err := os.ReadFile(r.repoPath(c.name, "_manifests", hexOf(digest)))
	if err != nil {
		return "", "", r.unknown(c, err)
	}
	return digest, string(b), nil
}

// unknown says what there is not: the repository, or the manifest in it.
func (r *Registry) unknown(c call, err error) error {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !r.isRepo(c.name) {
		return errNotFound("NAME_UNKNOWN", "repository name not known to registry")
	}
	return errNotFound("MANIFEST_UNKNOWN", "manifest unknown")
}

func (r *Registry) isRepo(name string) bool {
	_, err := os.Stat(r.repoPath(name, "_manifests"))
	return err == nil
}

func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, c call) error {
	digest, mediaType, err := r.find(c)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(r.blobPath(digest))
	if err != nil {
		return r.unknown(c, err)
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("ETag", `"`+digest+`"`)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if req.Method == http.MethodHead {
		return nil
	}
	_, err = w.Write(b)
	if err != nil {
		return nil // the client has gone
	}
	return nil
}

// deleteManifest takes a tag away, or a manifest with all its tags.
func (r *Registry) deleteManifest(w http.ResponseWriter, _ *http.Request, c call) error {
	r.names.Lock()
	defer r.names.Unlock()
	digest, _, err := r.find(c)
	if err != nil {
		return err
	}
	if validDigest(c.ref) {
		err = r.dropManifest(c.name, digest)
	} else {
		err = os.Remove(r.repoPath(c.name, "_tags", c.ref))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (r *Registry) dropManifest(name, digest string) error {
	tags, err := r.list(name, "_tags")
	if err != nil {
		return err
	}
	for _, t := range tags {
		b, err := os.ReadFile(r.repoPath(name, "_tags", t))
		if err == nil && string(b) == digest {
			err = os.Remove(r.repoPath(name, "_tags", t))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := r.dropSubject(name, digest); err != nil {
		return err
	}
	err = os.Remove(r.repoPath(name, "_manifests", hexOf(digest)))
	for _, d := range []string{"_tags", "_subjects", "_manifests", ""} {
		os.Remove(r.repoPath(name, d)) // the last manifest's repository goes; others are not empty
	}
	return err
}

func (r *Registry) dropSubject(name, digest string) error {
	b, err := os.ReadFile(r.blobPath(digest))
	if err != nil {
		return nil // nothing says what it referred to
	}
	m, err := parseManifest(b)
	if err != nil || m.Subject == nil {
		return nil
	}
	err = os.Remove(r.repoPath(name, "_subjects", hexOf(m.Subject.Digest), hexOf(digest)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// list gives the names of a repository's small files, in order.
func (r *Registry) list(name string, elem ...string) ([]string, error) {
	entries, err := os.ReadDir(r.repoPath(name, elem...))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") { // being written
			names = append(names, e.Name())
		}
	}
	return names, err
}

func (r *Registry) tags(w http.ResponseWriter, req *http.Request, c call) error {
	if !r.isRepo(c.name) {
		return errNotFound("NAME_UNKNOWN", "repository name not known to registry")
	}
	tags, err := r.list(c.name, "_tags")
	if err != nil {
		return err
	}
	page, err := paginate(w, req, tags)
	if err != nil {
		return err
	}
	return answerJSON(w, "application/json", map[string]any{"name": c.name, "tags": page})
}

func (r *Registry) catalog(w http.ResponseWriter, req *http.Request, _ call) error {
	names, err := r.repositories()
	if err != nil {
		return err
	}
	page, err := paginate(w, req, names)
	if err != nil {
		return err
	}
	return answerJSON(w, "application/json", map[string]any{"repositories": page})
}

// repositories lists the repositories that have a manifest.
func (r *Registry) repositories() ([]string, error) {
	var names []string
	base := r.path("repos")
	err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), "_") {
			if d.Name() == "_manifests" {
				name, _ := filepath.Rel(base, filepath.Dir(p))
				names = append(names, filepath.ToSlash(name))
			}
			return fs.SkipDir
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// paginate cuts out what ?n= and ?last= ask for and says where it goes on.
func paginate(w http.ResponseWriter, req *http.Request, all []string) ([]string, error) {
	q := req.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(all, last)
		if found {
			i++
		}
		all = all[i:]
	}
	if s := q.Get("n"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return nil, errBad("PAGINATION_NUMBER_INVALID", "n is not a number")
		}
		if n < len(all) {
			all = all[:n]
			if n > 0 {
				w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d&last=%s>; rel="next"`, req.URL.Path, n, url.QueryEscape(all[n-1])))
			}
		}
	}
	if all == nil {
		all = []string{}
	}
	return all, nil
}

// referrers lists the manifests that have a manifest as their subject.
func (r *Registry) referrers(w http.ResponseWriter, req *http.Request, c call) error {
	hexes, err := r.list(c.name, "_subjects", hexOf(c.ref))
	if err != nil {
		return err
	}
	only := req.URL.Query().Get("artifactType")
	found := []descriptor{}
	for _, h := range hexes {
		b, err := os.ReadFile(r.blobPath(sha256Prefix + h))
		if err != nil {
			continue
		}
		m, err := parseManifest(b)
		if err != nil {
			continue
		}
		kind := m.ArtifactType
		if kind == "" && m.Config != nil {
			kind = m.Config.MediaType
		}
		if only == "" || only == kind {
			found = append(found, descriptor{MediaType: m.mediaType(""), Digest: sha256Prefix + h, Size: int64(len(b)), ArtifactType: kind, Annotations: m.Annotations})
		}
	}
	if only != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return answerJSON(w, ociIndex, map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": found})
}

func answerJSON(w http.ResponseWriter, contentType string, v any) error {
	w.Header().Set("Content-Type", contentType)
	json.NewEncoder(w).Encode(v) // an error here is a client that has gone
	return nil
}
