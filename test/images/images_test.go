// SPDX-License-Identifier: Apache-2.0

// Package images holds where images come from and what happens when they do not.
package images

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sonagi/sonagi/test/platform"
	"github.com/sonagi/sonagi/test/shell"
)

var p *platform.Platform

func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "6") // the tests wait more than they work
	os.Exit(platform.Main(m, &p))
}

func wantAll(t testing.TB, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s is %q, want %q", what, got, want)
	}
}

// marked is the shell image with a file /mark that says which one it is.
func marked(t *testing.T, mark string) v1.Image {
	t.Helper()
	img, err := shell.With("mark", mark)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// push pushes as crane does.
func push(t *testing.T, ref string, img v1.Image, options ...remote.Option) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(r, img, options...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// pod is a manifest of a pod that says which image it has; more is further fields of the pod, one a line.
func pod(name, image, policy string, more ...string) string {
	y := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  restartPolicy: Never\n  containers: [{name: main, image: %q, imagePullPolicy: %s, command: [cat, /mark]}]\n", name, image, policy)
	for _, line := range more {
		y += "  " + line + "\n"
	}
	return y
}

// says waits until a pod has succeeded and compares its log.
func says(t *testing.T, s *platform.Space, pod, mark string) {
	t.Helper()
	s.K("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout=60s")
	want(t, "the image of "+pod, s.K("logs", pod), mark)
}

const waiting = ".status.containerStatuses[0].state.waiting"

func TestLoadListRemove(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "load")
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive.tar")
	if err := shell.WriteArchive(archive, marked(t, "archive"), "docker.io/library/archived:v1"); err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: marked(t, "layout"), Descriptor: v1.Descriptor{
		Annotations: map[string]string{"org.opencontainers.image.ref.name": "example.test/laid/out:v2"},
	}})
	if _, err := layout.Write(filepath.Join(dir, "layout"), index); err != nil {
		t.Fatal(err)
	}
	out, err := p.Sonagi(t.Context(), "image", "load", archive, filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, out, "Loaded sha256:", "docker.io/library/archived:v1", "example.test/laid/out:v2")
	out, _ = p.Sonagi(t.Context(), "image", "list")
	wantAll(t, out, "IMAGE", "SIZE", "docker.io/library/archived:v1", "example.test/laid/out:v2", "MB")

	s.Make(pod("archived", "archived:v1", "Never") + "---\n" + pod("laid", "example.test/laid/out:v2", "IfNotPresent"))
	says(t, s, "archived", "archive")
	says(t, s, "laid", "layout")
	s.K("delete", "pod", "--all")
	if out, err = p.Sonagi(t.Context(), "image", "rm", "archived:v1"); err != nil {
		t.Fatal(err)
	}
	wantAll(t, out, "Removed archived:v1")
	out, _ = p.Sonagi(t.Context(), "image", "list")
	if strings.Contains(out, "archived:v1") {
		t.Errorf("after rm:\n%s", out)
	}
	s.Make(pod("gone", "archived:v1", "Never"))
	s.Becomes("pod/gone", waiting+".reason", "ErrImageNeverPull")
	want(t, "message", s.Field("pod/gone", waiting+".message"), `Container image "archived:v1" is not present with pull policy of Never`)
	wantAll(t, s.K("get", "pod", "gone"), "ErrImageNeverPull")

	if out, err := p.Sonagi(t.Context(), "image", "rm", "nosuch:v1"); err == nil {
		t.Errorf("what is not there was removed: %s", out)
	}
	if err := os.WriteFile(archive, []byte("not an archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := p.Sonagi(t.Context(), "image", "load", archive); err == nil {
		t.Errorf("a file that is no archive was loaded: %s", out)
	}
}

func TestBuiltInRegistryFromTheHost(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "host")
	img := marked(t, "pushed")
	push(t, p.Registry+"/team/pushed:v1", img)
	s.Make(pod("tagged", p.Registry+"/team/pushed:v1", "Always") + "---\n" + pod("pinned", p.Registry+"/team/pushed@"+digest(t, img), "IfNotPresent"))
	says(t, s, "tagged", "pushed")
	says(t, s, "pinned", "pushed")
	wantAll(t, s.Field("pod/tagged", ".status.containerStatuses[0].imageID"), digest(t, img))
	s.Says([]string{"Pulling image", "Successfully pulled image", "including waiting). Image size: "}, "get", "events")

	// A tag that moves is seen by Always, and not by IfNotPresent.
	push(t, p.Registry+"/team/pushed:v1", marked(t, "pushed again"))
	s.Make(pod("old", p.Registry+"/team/pushed:v1", "IfNotPresent"))
	says(t, s, "old", "pushed")
	s.Make(pod("new", p.Registry+"/team/pushed:v1", "Always"))
	says(t, s, "new", "pushed again")

	// As crane pulls.
	ref, _ := name.ParseReference(p.Registry + "/team/pushed@" + digest(t, img))
	back, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "what came back", digest(t, back), digest(t, img))
	tags, err := remote.List(ref.Context())
	want(t, "tags", fmt.Sprint(tags, err), "[v1] <nil>")
}

func TestBuiltInRegistryFromPods(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "inside")
	push(t, p.Registry+"/shell:v1", marked(t, "shell"))
	port := s.K("-n", "sonagi-system", "get", "service", "registry", "-o", "jsonpath={.spec.ports[0].port}")
	host := "registry.sonagi-system.svc.cluster.local:" + port
	s.Make(pod("shell", host+"/shell:v1", "Always"))
	says(t, s, "shell", "shell")
	s.K("run", "pusher", "--image="+p.Registry+"/shell:v1", "--restart=Never", "--", "tool", "push", host, "from/pod")
	s.K("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/pusher", "--timeout=60s")
	for i, from := range []string{host, "registry.sonagi-system.svc:" + port, "registry.sonagi-system:" + port, p.Registry} {
		pod := fmt.Sprint("pushed-", i)
		s.K("run", pod, "--image="+from+"/from/pod", "--restart=Never", "--", "hold")
		s.Ready(pod)
	}
}

// private is a registry that lets in only who knows the password.
func private(t *testing.T, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	server := httptest.NewServer(wrap(registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func basic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "ann" || pass != "hush" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func TestPullSecrets(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "private")
	host := private(t, basic)
	push(t, host+"/secret/app:v1", marked(t, "private"), remote.WithAuth(&authn.Basic{Username: "ann", Password: "hush"}))
	s.K("create", "secret", "docker-registry", "right", "--docker-server="+host, "--docker-username=ann", "--docker-password=hush")
	s.K("create", "secret", "docker-registry", "wrong", "--docker-server="+host, "--docker-username=ann", "--docker-password=guess")
	image := host + "/secret/app:v1"
	s.Make(pod("stranger", image, "Always") + "---\n" + pod("guesser", image, "Always", "imagePullSecrets: [{name: wrong}]"))
	for _, name := range []string{"stranger", "guesser"} {
		s.Says([]string{`Failed to pull image "` + image + `"`, "who are you"}, "describe", "pod", name)
	}
	s.Make(pod("friend", image, "Always", "imagePullSecrets: [{name: right}]"))
	says(t, s, "friend", "private")
	// The same by the service account, as "kubectl patch serviceaccount" has it.
	s.K("patch", "serviceaccount", "default", "-p", `{"imagePullSecrets":[{"name":"right"}]}`)
	s.Make(pod("member", image, "Always"))
	says(t, s, "member", "private")
}

func TestFailures(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "failures")
	push(t, p.Registry+"/some/app:v1", marked(t, "some"))
	absent := p.Registry + "/some/app:nosuch"
	s.Make(pod("tag", absent, "Always") + "---\n" + pod("repository", p.Registry+"/nosuch/app:v1", "Always") + "---\n" +
		pod("digest", p.Registry+"/some/app@sha256:"+strings.Repeat("0", 64), "Always") + "---\n" +
		pod("name", "UPPER/Case", "Always") + "---\n" + pod("nobody", "127.0.0.1:1/app:v1", "Always"))
	s.Says([]string{`Pulling image "` + absent + `"`, `Failed to pull image "` + absent + `": `, "not found", "Error: ErrImagePull", `Back-off pulling image "` + absent + `"`, "Error: ImagePullBackOff"}, "describe", "pod", "tag")
	s.Becomes("pod/tag", waiting+".reason", "ImagePullBackOff")
	wantAll(t, s.Field("pod/tag", waiting+".message"), `Back-off pulling image "`+absent+`": ErrImagePull: `, "not found")
	wantAll(t, s.K("get", "pod", "tag"), "0/1", "ImagePullBackOff")
	s.Says([]string{"not found"}, "describe", "pod", "repository")
	s.Says([]string{"not found"}, "describe", "pod", "digest")
	s.Becomes("pod/name", waiting+".reason", "InvalidImageName")
	wantAll(t, s.Field("pod/name", waiting+".message"), `Failed to apply default image tag "UPPER/Case"`)
	s.Says([]string{"connection refused"}, "describe", "pod", "nobody")

	// What comes later is pulled then: deleting and making anew asks at once.
	push(t, absent, marked(t, "later"))
	s.K("delete", "pod", "tag")
	s.Make(pod("tag", absent, "Always"))
	says(t, s, "tag", "later")
}

// spoil changes the answers for blobs.
func spoil(change func([]byte) []byte) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
				next.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			next.ServeHTTP(answer, r)
			body := answer.Body.Bytes()
			if len(body) > 1<<16 {
				body = change(bytes.Clone(body))
			}
			w.WriteHeader(answer.Code)
			_, _ = w.Write(body)
		})
	}
}

func TestRegistryThatLies(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "liar")
	for kind, change := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"changed":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		// Layers of its own, so that nothing of it is on the machine yet.
		img, err := mutate.AppendLayers(empty.Image, noise(t, kind))
		if err != nil {
			t.Fatal(err)
		}
		host := private(t, spoil(change))
		image := host + "/app:v1"
		push(t, image, img)
		s.Make(pod(kind, image, "Always"))
		out := s.Says([]string{`Failed to pull image "` + image + `": `, "Error: ErrImagePull"}, "describe", "pod", kind)
		wantAll(t, out, "content is not what its digest says: ")
		list, _ := p.Sonagi(t.Context(), "image", "list")
		if strings.Contains(list, image) {
			t.Errorf("%s: there is half an image:\n%s", kind, list)
		}
	}
}
