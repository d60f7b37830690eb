// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	peerregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sonagi/sonagi/internal/node/image"
	"github.com/sonagi/sonagi/internal/node/registry"
)

// program writes files into a directory of their own.
func program(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		at := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	goMod  = "module example.com/app\n\ngo 1.24\n"
	goMain = `package main

import (
	"fmt"
	"os"
	"os/user"
	"time"
)

func main() {
	u, err := user.Current()
	if err != nil {
		fmt.Println(err)
	}
	zone, err := time.LoadLocation("Asia/Seoul")
	fmt.Println(u.Username, zone, err, os.Getenv("SSL_CERT_FILE") != "")
}
`
)

func builtIn(t *testing.T) string {
	t.Helper()
	r, err := registry.Open(registry.Options{Dir: t.TempDir(), ReserveBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	t.Cleanup(func() { srv.Close(); r.Close() })
	return strings.TrimPrefix(srv.URL, "http://")
}

// TestGo takes a program from its source to a root file system it runs in.
func TestGo(t *testing.T) {
	host := builtIn(t)
	dir := program(t, "go.mod", goMod, "main.go", goMain, "kodata/note.txt", "for the program")
	var lines []string
	o := Options{Dir: dir, Repository: host + "/app", Progress: func(s string) { lines = append(lines, s) }}
	ref, err := Go(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"building example.com/app for " + o.platform(), "pushing " + host + "/app:latest", "pushed " + ref}
	if !slices.Equal(lines, want) {
		t.Errorf("said %q, want %q", lines, want)
	}
	again, err := Go(t.Context(), o)
	if err != nil || again != ref {
		t.Errorf("the same source gives %s, then %s, %v", ref, again, err)
	}
	s, err := image.Open(image.Options{Dir: t.TempDir(), ReserveBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	img, err := s.Pull(t.Context(), ref, image.Credentials{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if byTag, err := s.Pull(t.Context(), host+"/app", image.Credentials{}, nil); err != nil || byTag.ID != img.ID {
		t.Errorf("the tag is %s, %v", byTag.ID, err)
	}
	if img.Config.User != nonroot || img.Config.Labels["org.opencontainers.image.title"] != "app" || !slices.Equal(img.Config.Entrypoint, []string{"/ko-app/app"}) {
		t.Errorf("config is %+v", img.Config)
	}
	root, _, err := s.Mount(t.Context(), img, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Unmount(context.Background(), "c1")
	if u, err := image.ResolveUser(root, img.Config.User); err != nil || u.UID != 65532 || u.Home != "/home/nonroot" {
		t.Errorf("user is %+v, %v", u, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "var/run/ko/note.txt")); err != nil || string(b) != "for the program" {
		t.Errorf("kodata: %q, %v", b, err)
	}
	cmd := exec.Command("/ko-app/app")
	cmd.SysProcAttr = confined(root)
	cmd.Env = img.Config.Env
	out, err := cmd.CombinedOutput()
	if hasCerts := readFirst(hostCerts) != nil; err != nil || strings.TrimSpace(string(out)) != strings.Join([]string{"nonroot", "Asia/Seoul", "<nil>", map[bool]string{true: "true", false: "false"}[hasCerts]}, " ") {
		t.Errorf("the program says %q, %v", out, err)
	}
}

func TestGoOnBase(t *testing.T) {
	srv := httptest.NewServer(peerregistry.New(peerregistry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	platform, _ := v1.ParsePlatform(Options{}.platform())
	base, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: platform.OS, Architecture: platform.Architecture, Config: v1.Config{User: "7", Env: []string{"BASE=yes"}}})
	if err != nil {
		t.Fatal(err)
	}
	at, _ := name.ParseReference(host + "/base:v1")
	if err := remote.Write(at, base); err != nil {
		t.Fatal(err)
	}
	dir := program(t, "go.mod", goMod, "cmd/one/main.go", goMain, "lib/lib.go", "package lib\n")
	ref, err := Go(t.Context(), Options{Dir: dir, Repository: host + "/app", Tag: "v7", Base: host + "/base:v1"})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := name.ParseReference(host + "/app:v7")
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if d, _ := img.Digest(); err != nil || cf.Config.User != "7" || !slices.Contains(cf.Config.Env, "BASE=yes") || !strings.HasSuffix(ref, d.String()) || cf.Config.Entrypoint[0] != "/ko-app/one" {
		t.Errorf("got %s, %+v, %v", ref, cf, err)
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]struct {
		dir  string
		kind error
		says []string
	}{
		"nothing":        {program(t), ErrNoProgram, []string{"no go.mod in"}},
		"absent":         {"/none/such", ErrNoProgram, []string{"/none/such is not a directory"}},
		"no module":      {program(t, "main.go", goMain), ErrNoProgram, []string{"go mod init example.com/"}},
		"python":         {program(t, "requirements.txt", ""), ErrNoProgram, []string{"Python programs cannot be built here yet", "kn service create --image"}},
		"library":        {program(t, "go.mod", goMod, "lib.go", "package lib\n"), ErrNoProgram, []string{"has no package main"}},
		"empty module":   {program(t, "go.mod", goMod), ErrNoProgram, []string{"has no package main"}},
		"two programs":   {program(t, "go.mod", goMod, "a/main.go", goMain, "b/main.go", goMain), ErrNoProgram, []string{"example.com/app/a, example.com/app/b"}},
		"does not type":  {program(t, "go.mod", goMod, "main.go", "package main\n\nfunc main() { x := 1 }\n"), ErrCompile, []string{"main.go:3:15: declared and not used: x"}},
		"does not parse": {program(t, "go.mod", goMod, "main.go", "package main\n\nfunc main( {\n"), ErrCompile, []string{"main.go:3"}},
		"import missing": {program(t, "go.mod", goMod, "main.go", "package main\n\nimport _ \"example.com/none/such\"\n\nfunc main() {}\n"), ErrCompile, []string{"example.com/none/such"}},
		"bad go.mod":     {program(t, "go.mod", "nonsense\n", "main.go", goMain), ErrCompile, []string{"go.mod:1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Go(t.Context(), Options{Dir: tt.dir, Repository: "127.0.0.1:1/app"})
			if !errors.Is(err, tt.kind) {
				t.Errorf("got %v", err)
			}
			for _, s := range tt.says {
				if err == nil || !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in: %v", s, err)
				}
			}
			t.Log(err)
		})
	}
}

func TestNoRegistryAndNoGo(t *testing.T) {
	dir := program(t, "go.mod", goMod, "main.go", "package main\n\nfunc main() {}\n")
	if _, err := Go(t.Context(), Options{Dir: dir, Repository: "127.0.0.1:1/app"}); err == nil || !strings.Contains(err.Error(), "is `sonagi up` running?") {
		t.Errorf("got %v", err)
	}
	for at, allowed := range map[string]bool{"http://10.0.0.1/v2/": false, "http://127.0.0.1:1/v2/": true, "http://localhost:1/v2/": true, "https://10.0.0.1/v2/": true, "http://127.0.0.1.evil.com/": false} {
		req, _ := http.NewRequest(http.MethodGet, at, nil)
		if _, err := (tlsOnly{nowhere{}}).RoundTrip(req); errors.Is(err, io.EOF) != allowed {
			t.Errorf("%s: %v", at, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Go(ctx, Options{Dir: dir, Repository: "127.0.0.1:1/app"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Go(t.Context(), Options{Dir: dir, Repository: "127.0.0.1:1/app"}); !errors.Is(err, ErrNoToolchain) || !strings.Contains(err.Error(), "https://go.dev/dl/") {
		t.Errorf("got %v", err)
	}
}

type nowhere struct{}

func (nowhere) RoundTrip(*http.Request) (*http.Response, error) { return nil, io.EOF }

func TestSourceOfImage(t *testing.T) {
	dir := program(t, "go.mod", goMod, "main.go", goMain)
	if src := examine(t.Context(), dir); src.revision != "" || src.time.Unix() != 0 {
		t.Errorf("without git: %+v", src)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x", "--date=2020-01-01T00:00:00Z"}} {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=2020-01-01T00:00:00Z")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %s", args, out)
		}
	}
	if src := examine(t.Context(), dir); len(src.revision) != 40 || src.time.Unix() != 1577836800 {
		t.Errorf("committed: %+v", src)
	}
	os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n"), 0o644)
	if src := examine(t.Context(), dir); src.revision != "" || src.time.Unix() != 1577836800 {
		t.Errorf("changed: %+v", src)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "1000")
	if src := examine(t.Context(), dir); src.time.Unix() != 1000 {
		t.Errorf("told: %+v", src)
	}
}
