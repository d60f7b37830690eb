// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestPull(t *testing.T) {
	host := peer(t, nil)
	img := imageOf(t,
		layerOf(t, compression.GZip, tarOf(t, ent{name: "etc", typ: 'd'}, ent{name: "etc/a", body: "one"})),
		layerOf(t, compression.ZStd, tarOf(t, ent{name: "etc", typ: 'd'}, ent{name: "etc/a", body: "two"}, ent{name: "b", body: "bee"})),
		layerOf(t, compression.None, tarOf(t, ent{name: "c", body: "sea"})),
	)
	digest := push(t, host+"/team/app:v1", img)
	s := newStore(t)
	var seen []Progress
	got, err := s.Pull(t.Context(), host+"/team/app:v1", Credentials{}, func(p Progress) { seen = append(seen, p) })
	if err != nil {
		t.Fatal(err)
	}
	id, _ := img.ConfigName()
	if got.ID != id.String() || got.Digest != digest {
		t.Errorf("got ID %s, digest %s; want %s, %s", got.ID, got.Digest, id, digest)
	}
	want := []string{host + "/team/app:v1", host + "/team/app@" + digest}
	if !reflect.DeepEqual(got.Refs, want) {
		t.Errorf("got refs %v; want %v", got.Refs, want)
	}
	if p := got.Pinned(host + "/team/app:v1"); p != want[1] {
		t.Errorf("pinned as %s", p)
	}
	wantConfig := Config{
		Entrypoint: []string{"/app"}, Cmd: []string{"--serve"}, Env: []string{"A=1"}, User: "65532", WorkingDir: "/srv",
		StopSignal: "SIGINT", ExposedPorts: []string{"8080/tcp"}, Labels: map[string]string{"l": "v"},
	}
	if !reflect.DeepEqual(got.Config, wantConfig) {
		t.Errorf("got config %+v", got.Config)
	}
	if last := seen[len(seen)-1]; last.Status != StatusDone || last.Ref != want[0] {
		t.Errorf("last progress is %+v", last)
	}
	root := mustMount(t, s, got, "c1")
	if a, b, c := read(t, root, "etc/a"), read(t, root, "b"), read(t, root, "c"); a != "two" || b != "bee" || c != "sea" {
		t.Errorf("got %q %q %q", a, b, c)
	}
	for _, ref := range append(want, id.String(), id.Hex[:12]) {
		if f, ok := s.Find(ref); !ok || f.ID != got.ID {
			t.Errorf("%s is not found", ref)
		}
	}
}

func TestPullByIndex(t *testing.T) {
	host := peer(t, nil)
	mine := simpleImage(t, ent{name: "me", body: "me"})
	other := simpleImage(t, ent{name: "other", body: "other"})
	p := thisPlatform()
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.OS, Architecture: p.Architecture}}},
	)
	digest := push(t, host+"/app:v1", idx)
	s := newStore(t)
	got := mustPull(t, s, host+"/app@"+digest)
	if got.Digest != digest || got.Pinned(host+"/app") != host+"/app@"+digest {
		t.Errorf("digest is %s, pinned as %s; want %s", got.Digest, got.Pinned(host+"/app"), digest)
	}
	if root := mustMount(t, s, got, "c1"); read(t, root, "me") != "me" {
		t.Error("another platform's image was chosen")
	}

	alien := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
	push(t, host+"/alien:v1", alien)
	_, err := s.Pull(t.Context(), host+"/alien:v1", Credentials{}, nil)
	if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("got %v", err)
	}
}

func TestTagMoves(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "1"}))
	s := newStore(t)
	first := mustPull(t, s, host+"/app:v1")
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "2"}))
	second := mustPull(t, s, host+"/app:v1")
	if first.ID == second.ID {
		t.Fatal("the tag did not move")
	}
	if now, _ := s.Find(host + "/app:v1"); now.ID != second.ID {
		t.Error("the tag is still the first image's")
	}
	if old, ok := s.Find(first.ID); !ok || len(old.Tags()) != 0 || len(old.Digests()) != 1 {
		t.Errorf("the first image is %+v", old)
	}
}

// TestPullShared: pulls of one name are one, and images share layers.
func TestPullShared(t *testing.T) {
	var blobs atomic.Int64
	host := peer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				blobs.Add(1)
				time.Sleep(20 * time.Millisecond) // long enough for the others to come
			}
			h.ServeHTTP(w, r)
		})
	})
	shared := layerOf(t, compression.GZip, tarOf(t, ent{name: "base", body: strings.Repeat("b", 1<<16)}))
	push(t, host+"/aa:v1", imageOf(t, shared, layerOf(t, compression.GZip, tarOf(t, ent{name: "a", body: "a"}))))
	push(t, host+"/bb:v1", imageOf(t, shared, layerOf(t, compression.GZip, tarOf(t, ent{name: "b", body: "b"}))))
	s := newStore(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), fmt.Sprintf("%s/%s:v1", host, []string{"aa", "bb"}[i%2]), Credentials{}, func(Progress) {}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := blobs.Load(); n != 5 { // two configurations, three layers
		t.Errorf("%d blobs were asked for", n)
	}
}

// TestPullLeft: a pull goes on as long as somebody waits for it, and no longer.
func TestPullLeft(t *testing.T) {
	release, asked, gone := make(chan struct{}), make(chan struct{}, 10), make(chan struct{}, 10)
	host := peer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
				asked <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
					gone <- struct{}{}
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/aa:v1", simpleImage(t, ent{name: "a"}))
	s := newStore(t, func(o *Options) { o.Stall = time.Minute })
	ctx, leave := context.WithCancel(t.Context())
	results := make(chan error, 2)
	pull := func(ctx context.Context) {
		_, err := s.Pull(ctx, host+"/aa:v1", Credentials{}, nil)
		results <- err
	}
	go pull(ctx)
	<-asked
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-gone // nobody waits: the registry is no longer asked

	ctx, leave = context.WithCancel(t.Context())
	go pull(ctx)
	<-asked
	go pull(t.Context())
	for waiters := 0; waiters < 2; {
		s.pulls.mu.Lock()
		for _, f := range s.pulls.m {
			waiters = f.waiters
		}
		s.pulls.mu.Unlock()
	}
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := <-results; err != nil {
		t.Errorf("the one who stayed got %v", err)
	}
	if len(gone) > 0 {
		t.Error("the pull was given up although one stayed")
	}
}

func TestAlias(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a"}))
	const named = "registry.sonagi-system.svc.cluster.local:5000"
	s := newStore(t, func(o *Options) { o.Aliases = map[string]string{named: host} })
	got := mustPull(t, s, named+"/app:v1")
	if got.Refs[0] != named+"/app:v1" {
		t.Errorf("kept as %v", got.Refs)
	}
}

func TestClosedStore(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a"}))
	s := newStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), host+"/app:v1", Credentials{}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestSecondStore(t *testing.T) {
	s := newStore(t)
	if _, err := Open(Options{Dir: s.opts.Dir}); err == nil || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("got %v", err)
	}
}

func TestInvalidName(t *testing.T) {
	s := newStore(t)
	_, err := s.Pull(t.Context(), "UPPER", Credentials{}, nil)
	if ReasonOf(err) != ReasonInvalidName {
		t.Fatalf("got %v", err)
	}
	const want = `Failed to apply default image tag "UPPER": couldn't parse image name "UPPER": invalid reference format: repository name (library/UPPER) must be lowercase`
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}
