// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

type served struct {
	*Registry
	t    testing.TB
	host string
}

func serve(t testing.TB, dir string, set ...func(*Options)) *served {
	t.Helper()
	o := Options{Dir: dir, ReserveBytes: 1}
	for _, s := range set {
		s(&o)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	t.Cleanup(func() { srv.Close(); r.Close() })
	return &served{r, t, strings.TrimPrefix(srv.URL, "http://")}
}

// do sends a request and gives the status, headers and body.
func (s *served) do(method, path string, body string, header ...string) (int, http.Header, string) {
	s.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = "http://" + s.host + path
	}
	req, err := http.NewRequest(method, path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b)
}

func (s *served) push(repo, blob string) string {
	s.t.Helper()
	d := digestOf([]byte(blob))
	if code, _, body := s.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, blob); code != 201 {
		s.t.Fatalf("pushing a blob: %d %s", code, body)
	}
	return d
}

// TestClient pushes and pulls as crane and ko do.
func TestClient(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	img, err := random.Image(100<<10, 3)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := random.Index(1000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref := func(s string) name.Reference {
		r, err := name.ParseReference(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for i, repo := range []string{"one", "team/two", "team/blobs/uploads"} {
		if err := remote.Write(ref(s.host+"/"+repo+":v1"), img); err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref(fmt.Sprintf("%s/%s:idx%d", s.host, repo, i)), idx); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Tag(ref(s.host+"/one:v2").(name.Tag), img); err != nil {
		t.Fatal(err)
	}
	// Another process serves what this one took.
	s = serve(t, dir)
	got, err := remote.Image(ref(s.host + "/team/two:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	gotIdx, err := remote.Index(ref(s.host + "/one:idx0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(gotIdx); err != nil {
		t.Error(err)
	}
	reg, _ := name.NewRegistry(s.host)
	if names, err := remote.Catalog(t.Context(), reg); err != nil || !reflect.DeepEqual(names, []string{"one", "team/blobs/uploads", "team/two"}) {
		t.Errorf("catalog: %v, %v", names, err)
	}
	for _, page := range []int{0, 1, 2, 1000} {
		var opts []remote.Option
		if page > 0 {
			opts = append(opts, remote.WithPageSize(page))
		}
		if tags, err := remote.List(reg.Repo("one"), opts...); err != nil || !reflect.DeepEqual(tags, []string{"idx0", "v1", "v2"}) {
			t.Errorf("tags in pages of %d: %v, %v", page, tags, err)
		}
	}
	if _, err := remote.Head(ref(s.host + "/one:v1")); err != nil {
		t.Error(err)
	}
	digest, _ := img.Digest()
	if err := remote.Delete(ref(s.host + "/one:v2")); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ref(s.host + "/one:v1")); err != nil {
		t.Error("a tag took the manifest with it")
	}
	if err := remote.Delete(ref(s.host + "/one@" + digest.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ref(s.host + "/one:v1")); err == nil {
		t.Error("a deleted manifest is served")
	}
}

func TestReferrers(t *testing.T) {
	s := serve(t, t.TempDir())
	subject, _ := random.Image(10, 1)
	ref, _ := name.ParseReference(s.host + "/app:v1")
	if err := remote.Write(ref, subject); err != nil {
		t.Fatal(err)
	}
	d, _ := subject.Digest()
	size, _ := subject.Size()
	sig, _ := random.Image(10, 1)
	sig = mutate.ConfigMediaType(mutate.MediaType(sig, types.OCIManifestSchema1), "application/vnd.test.sig")
	sig = mutate.Subject(sig, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: d, Size: size}).(v1.Image)
	sigDigest, _ := sig.Digest()
	if err := remote.Write(ref.Context().Digest(sigDigest.String()), sig); err != nil {
		t.Fatal(err)
	}
	idx, err := remote.Referrers(ref.Context().Digest(d.String()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != sigDigest || m.Manifests[0].ArtifactType != "application/vnd.test.sig" {
		t.Errorf("got %+v, %v", m, err)
	}
}

// TestUploads goes through what the specification says of chunks.
func TestUploads(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	const blob = "0123456789"
	d := digestOf([]byte(blob))
	code, h, _ := s.do("POST", "/v2/app/blobs/uploads/", "")
	at := h.Get("Location")
	if code != 202 || at == "" {
		t.Fatalf("start: %d, %v", code, h)
	}
	if code, h, _ = s.do("PATCH", at, blob[:4], "Content-Range", "0-3"); code != 202 || h.Get("Range") != "0-3" {
		t.Errorf("first chunk: %d, %v", code, h)
	}
	if code, h, _ = s.do("PATCH", at, blob[6:], "Content-Range", "6-9"); code != 416 || h.Get("Range") != "0-3" {
		t.Errorf("chunk out of order: %d, %v", code, h)
	}
	if code, _, _ = s.do("PATCH", at, "x", "Content-Range", "all"); code != 416 {
		t.Errorf("chunk of no range: %d", code)
	}
	if code, h, _ = s.do("GET", at, ""); code != 204 || h.Get("Range") != "0-3" {
		t.Errorf("status: %d, %v", code, h)
	}
	if code, _, _ := s.do("HEAD", "/v2/app/blobs/"+d, ""); code != 404 {
		t.Errorf("half a blob is visible: %d", code)
	}
	if code, _, _ = s.do("PUT", at+"?digest="+d, blob[6:], "Content-Range", "6-9"); code != 416 {
		t.Errorf("last chunk out of order: %d", code)
	}
	// The next process goes on with it.
	s = serve(t, dir)
	if code, h, _ = s.do("PATCH", at, blob[4:8], "Content-Range", "4-7"); code != 202 || h.Get("Range") != "0-7" {
		t.Errorf("chunk after restart: %d, %v", code, h)
	}
	if code, _, body := s.do("PUT", at+"?digest="+d, blob[8:]); code != 201 {
		t.Errorf("finish: %d %s", code, body)
	}
	if code, _, body := s.do("GET", "/v2/app/blobs/"+d, ""); code != 200 || body != blob {
		t.Errorf("get: %d %q", code, body)
	}
	if code, _, body := s.do("GET", "/v2/app/blobs/"+d, "", "Range", "bytes=2-4"); code != 206 || body != "234" {
		t.Errorf("range: %d %q", code, body)
	}
	if code, _, _ := s.do("PUT", at+"?digest="+d, ""); code != 404 {
		t.Errorf("finished twice: %d", code)
	}
	if code, h, _ := s.do("POST", "/v2/other/blobs/uploads/?mount="+d+"&from=app", ""); code != 201 || h.Get("Location") != "/v2/other/blobs/"+d {
		t.Errorf("mount: %d", code)
	}
	if code, _, _ := s.do("POST", "/v2/other/blobs/uploads/?mount="+digestOf(nil)+"&from=app", ""); code != 202 {
		t.Errorf("mount of nothing: %d", code)
	}
	wrong := digestOf([]byte("other"))
	if code, _, body := s.do("POST", "/v2/app/blobs/uploads/?digest="+wrong, blob); code != 400 || !strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("wrong digest: %d %s", code, body)
	}
	_, h, _ = s.do("POST", "/v2/app/blobs/uploads/", "")
	if code, _, _ := s.do("DELETE", h.Get("Location"), ""); code != 204 {
		t.Errorf("cancel: %d", code)
	}
	if code, _, _ := s.do("GET", h.Get("Location"), ""); code != 404 {
		t.Errorf("status after cancel: %d", code)
	}
}

func TestRefusals(t *testing.T) {
	s := serve(t, t.TempDir(), func(o *Options) { o.MaxBlob = 1000; o.MaxUploads = 3 })
	d := s.push("app", "{}")
	manifest := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[]}`, d)
	if code, _, _ := s.do("PUT", "/v2/app/manifests/v1", manifest); code != 201 {
		t.Fatalf("manifest: %d", code)
	}
	missing := digestOf([]byte("missing"))
	long := strings.Repeat("a", 300)
	for _, tt := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/", "", 404, "PAGE_UNKNOWN"},
		{"GET", "/v2/", "", 200, ""},
		{"GET", "/v2/app/manifests/none", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/none/manifests/v1", "", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/none/tags/list", "", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/app/tags/list?n=x", "", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/UPPER/tags/list", "", 400, "NAME_INVALID"},
		{"GET", "/v2/" + long + "/tags/list", "", 400, "NAME_INVALID"},
		{"GET", "/v2/_manifests/tags/list", "", 400, "NAME_INVALID"},
		{"GET", "/v2/app/_tags/tags/list", "", 400, "NAME_INVALID"},
		{"GET", "/v2/app/manifests/-x", "", 400, "TAG_INVALID"},
		{"GET", "/v2/app/manifests/sha256:abc", "", 400, "TAG_INVALID"},
		{"GET", "/v2/app/blobs/sha256:abc", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/app/blobs/sha512:" + strings.Repeat("a", 128), "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/app/blobs/" + missing, "", 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/%2e%2e/%2e%2e/blobs/" + missing, "", 400, "NAME_INVALID"},
		{"GET", "/v2/a%2f..%2f../manifests/v1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/app/manifests/..%2f..%2fx", "", 404, "PAGE_UNKNOWN"},
		{"GET", "/v2/app/blobs/uploads/..%2f..%2fblobs", "", 404, "PAGE_UNKNOWN"},
		{"GET", "/v2/app/blobs/uploads/%2e%2e", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"PUT", "/v2/app/manifests/v1", "{", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/app/manifests/v1", `{"config":{"digest":"../../etc/passwd"}}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/app/manifests/v1", `{"config":{"digest":"` + missing + `"}}`, 400, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/app/manifests/v1", `{"manifests":[{"digest":"` + missing + `"}]}`, 400, "MANIFEST_BLOB_UNKNOWN"},
		{"PUT", "/v2/app/manifests/" + missing, manifest, 400, "DIGEST_INVALID"},
		{"PUT", "/v2/app/manifests/v1", strings.Repeat(" ", maxManifest+1), 413, "MANIFEST_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?digest=" + missing, strings.Repeat("x", 1001), 413, "SIZE_INVALID"},
		{"POST", "/v2/app/blobs/uploads/?digest=md5:x", "", 400, "DIGEST_INVALID"},
		{"PATCH", "/v2/app/blobs/uploads/none", "", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"DELETE", "/v2/app/blobs/" + d, "", 403, "DENIED"},
		{"DELETE", "/v2/app/blobs/" + missing, "", 404, "BLOB_UNKNOWN"},
		{"DELETE", "/v2/app/tags/list", "", 405, "UNSUPPORTED"},
	} {
		code, _, body := s.do(tt.method, tt.path, tt.body)
		if code != tt.status || !strings.Contains(body, tt.code) {
			t.Errorf("%s %s: %d %s, want %d %s", tt.method, clip(tt.path), code, body, tt.status, tt.code)
		}
	}
	// A page of another site that a browser shows.
	if code, _, _ := s.do("POST", "/v2/app/blobs/uploads/", "", "Sec-Fetch-Site", "cross-site"); code != 403 {
		t.Errorf("another site pushes: %d", code)
	}
	for range 3 {
		s.do("POST", "/v2/app/blobs/uploads/", "")
	}
	if code, _, body := s.do("POST", "/v2/app/blobs/uploads/", ""); code != 429 {
		t.Errorf("one upload too many: %d %s", code, body)
	}
	if code, _, body := s.do("GET", "/v2/app/manifests/v1", ""); code != 200 || body != manifest {
		t.Errorf("the manifest was harmed: %d %s", code, body)
	}
}

func clip(s string) string { return s[:min(len(s), 100)] }

func TestDiskIsKeptFree(t *testing.T) {
	s := serve(t, t.TempDir(), func(o *Options) { o.ReserveBytes = 1 << 60 })
	if code, _, body := s.do("POST", "/v2/app/blobs/uploads/", ""); code != 507 || !strings.Contains(body, "not enough disk space") {
		t.Errorf("got %d %s", code, body)
	}
}

// TestSlowClient: a client that stops sending is hung up on, and what it sent
// can be gone on from.
func TestSlowClient(t *testing.T) {
	s := serve(t, t.TempDir(), func(o *Options) { o.BodyIdle = 50 * time.Millisecond })
	_, h, _ := s.do("POST", "/v2/app/blobs/uploads/", "")
	at := h.Get("Location")
	c, err := net.Dial("tcp", s.host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello", at)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if answer, err := io.ReadAll(c); err != nil || !bytes.Contains(answer, []byte("408")) {
		t.Errorf("got %q, %v", answer, err)
	}
	if code, h, _ := s.do("GET", at, ""); code != 204 || h.Get("Range") != "0-4" {
		t.Errorf("status: %d, %v", code, h)
	}
	if code, _, body := s.do("PUT", at+"?digest="+digestOf([]byte("hello")), ""); code != 201 {
		t.Errorf("finish: %d %s", code, body)
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	idx, _ := random.Index(1000, 2, 2)
	one, _ := random.Image(1000, 1)
	old, _ := random.Image(1000, 1)
	ref, _ := name.ParseReference(s.host + "/app:v1")
	other, _ := name.ParseReference(s.host + "/idx:v1")
	for _, img := range []v1.Image{old, one} { // the tag moves
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.WriteIndex(other, idx); err != nil {
		t.Fatal(err)
	}
	loose := s.push("app", "nobody names it")
	ctx := context.Background()
	got, err := s.Collect(ctx, CollectOptions{MinAge: time.Hour})
	if err != nil || got != (Collected{}) {
		t.Errorf("young blobs: %+v, %v", got, err)
	}
	got, err = s.Collect(ctx, CollectOptions{})
	if err != nil || got.Blobs != 1 || got.Bytes != int64(len("nobody names it")) {
		t.Errorf("loose blob: %+v, %v", got, err)
	}
	if code, _, _ := s.do("HEAD", "/v2/app/blobs/"+loose, ""); code != 404 {
		t.Errorf("loose blob: %d", code)
	}
	oldDigest, _ := old.Digest()
	if img, err := remote.Image(ref.Context().Digest(oldDigest.String())); err != nil || validate.Image(img) != nil {
		t.Errorf("an image that a digest names has gone: %v", err)
	}
	var asked []string
	got, err = s.Collect(ctx, CollectOptions{Untagged: func(repo, d string) bool { asked = append(asked, repo+"@"+d); return true }})
	if err != nil || got.Manifests != 1 || got.Blobs != 3 || !slices.Equal(asked, []string{"app@" + oldDigest.String()}) {
		t.Errorf("untagged: %+v, %v, asked %v", got, err, asked)
	}
	if img, err := remote.Image(ref); err != nil || validate.Image(img) != nil {
		t.Errorf("app:v1: %v", err)
	}
	if idx, err := remote.Index(other); err != nil || validate.Index(idx) != nil {
		t.Errorf("idx:v1: %v", err)
	}
	// An asked-for blob is young again.
	d := s.push("app", "asked for")
	long := time.Now().Add(-2 * time.Hour)
	os.Chtimes(s.blobPath(d), long, long)
	s.do("HEAD", "/v2/app/blobs/"+d, "")
	if got, _ := s.Collect(ctx, CollectOptions{MinAge: time.Hour}); got.Blobs != 0 {
		t.Error("a blob that was asked for has gone")
	}
	if err := remote.Delete(ref); err != nil {
		t.Fatal(err)
	}
	oneDigest, _ := one.Digest()
	if err := remote.Delete(ref.Context().Digest(oneDigest.String())); err != nil {
		t.Fatal(err)
	}
	if exists(s.repoPath("app")) {
		t.Error("an empty repository stays")
	}
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

// TestAtOnce: pushes of the same and of other images, pulls, deletions and
// collections at the same time.
func TestAtOnce(t *testing.T) {
	s := serve(t, t.TempDir())
	shared, _ := random.Image(50<<10, 2)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				img := shared
				if i%2 == 0 {
					img, _ = random.Image(10<<10, 1)
				}
				ref, _ := name.ParseReference(fmt.Sprintf("%s/app%d:v%d", s.host, i/2, j))
				if err := remote.Write(ref, img); err != nil {
					t.Error(err)
					continue
				}
				got, err := remote.Image(ref)
				if err == nil {
					err = validate.Image(got)
				}
				if i%2 == 1 && err != nil && !strings.Contains(err.Error(), "MANIFEST_UNKNOWN") {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			if _, err := s.Collect(context.Background(), CollectOptions{MinAge: time.Minute}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if left, _ := os.ReadDir(s.path("uploads")); len(left) > 0 {
		t.Errorf("%d uploads are left", len(left))
	}
}

func TestTornFilesAreNotServed(t *testing.T) {
	dir := t.TempDir()
	s := serve(t, dir)
	d := s.push("app", "{}")
	s.do("PUT", "/v2/app/manifests/v1", fmt.Sprintf(`{"config":{"digest":%q}}`, d))
	// What a crash may leave: temporary files, and a tag that was never renamed.
	os.WriteFile(s.repoPath("app", "_tags", ".new-123"), []byte("sha2"), 0o600)
	os.WriteFile(filepath.Join(dir, "blobs", "sha256", ".new-123"), []byte("half"), 0o600)
	s = serve(t, dir)
	if code, _, body := s.do("GET", "/v2/app/tags/list", ""); code != 200 || body != `{"name":"app","tags":["v1"]}`+"\n" {
		t.Errorf("got %d %s", code, body)
	}
	if got, err := s.Collect(context.Background(), CollectOptions{}); err != nil || got.Blobs != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzParseCall(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/manifests/v1", "/v2/../x/tags/list", "/v2/a/blobs/uploads/x", "/v2//blobs/", "/v2/a/../b/manifests/."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		c, err := parseCall(path)
		if err != nil {
			if e := new(refusal); !errors.As(err, &e) {
				t.Errorf("%q: %v", path, err)
			}
			return
		}
		for _, part := range strings.Split(c.name+"/"+c.ref, "/") {
			if c.kind != "uploads" && (part == ".." || part == "." || strings.ContainsAny(part, "\x00\\")) {
				t.Errorf("%q is %+v", path, c)
			}
		}
		if c.name != "" && !filepath.IsLocal(c.name) {
			t.Errorf("%q is %+v", path, c)
		}
	})
}

func BenchmarkPush(b *testing.B) {
	s := serve(b, b.TempDir())
	blob := make([]byte, 16<<20)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		rand.Read(blob[:64])
		s.push("app", string(blob))
	}
}
