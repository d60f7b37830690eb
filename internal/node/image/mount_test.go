// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

func TestMount(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	s := newStore(t)
	img := mustPull(t, s, host+"/app:v1")
	one, two := mustMount(t, s, img, "c1"), mustMount(t, s, img, "c2")
	if err := os.WriteFile(filepath.Join(one, "a"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if read(t, two, "a") != "layer" {
		t.Error("what one container writes, the other sees")
	}
	if again := mustMount(t, s, img, "c1"); again != one || read(t, again, "a") != "changed" {
		t.Error("mounting a key again gives another root")
	}
	use, err := s.Usage(t.Context(), "c1")
	if err != nil || use.Inodes != 2 || use.Bytes < 4096 {
		t.Errorf("usage is %+v, %v", use, err)
	}
	if err := s.Remove(t.Context(), img.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("a mounted image is removed: %v", err)
	}
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Errorf("unmounting twice: %v", err)
	}
	// The next one is a spare, and as empty as any.
	three := mustMount(t, s, img, "c3")
	if read(t, three, "a") != "layer" {
		t.Error("a new container sees what an old one wrote")
	}
	for _, bad := range []string{"", "..", ".", "a/b", "a@b", "-x", strings.Repeat("x", 200)} {
		if _, _, err := s.Mount(t.Context(), img, bad); err == nil {
			t.Errorf("key %q is accepted", bad)
		}
	}
	if _, _, err := s.Mount(t.Context(), Image{ID: "sha256:none"}, "c4"); !errors.Is(err, ErrNotPresent) {
		t.Errorf("got %v", err)
	}
}

func TestSpare(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	s := openStore(t, t.TempDir())
	img := mustPull(t, s, host+"/app:v1")
	if n := len(s.spares[img.ID]); n != 1 {
		t.Fatalf("%d spares after a pull", n)
	}
	root := mustMount(t, s, img, "c2")
	if n := len(s.spares[img.ID]); n != 0 || read(t, root, "a") != "layer" || !isMountpoint(root) {
		t.Error("the spare was not used")
	}
	if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !exists(s.Mounts()[0].Upper, "new") {
		t.Error("what is written is not in upper")
	}
	for i := range sparesOfOne + 3 {
		mustMount(t, s, img, fmt.Sprint("more", i))
	}
	for _, m := range s.Mounts() {
		if err := s.Unmount(t.Context(), m.Key); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.spares[img.ID]); n != sparesOfOne || s.spareCount != n {
		t.Errorf("%d spares, counted %d", n, s.spareCount)
	}
	s.lock.Close()
	s = openStore(t, s.opts.Dir) // after a kill
	defer closeStore(t, s)
	s.work.Wait()
	if n := len(s.spares[img.ID]); n != 1 {
		t.Errorf("%d spares at the start", n)
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if len(s.spares) != 0 || s.spareCount != 0 {
		t.Error("the spare of a removed image stays")
	}
	nothingLeft(t, s)
}

func manyLayers(t testing.TB, n int) v1.Image {
	var layers []v1.Layer
	for i := range n {
		layers = append(layers, layerOf(t, compression.None, tarOf(t, ent{name: fmt.Sprint("f", i), body: "x"})))
	}
	return imageOf(t, layers...)
}

func TestManyLayers(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", manyLayers(t, 130))
	push(t, host+"/none:v1", manyLayers(t, 0))
	// A long path must not keep layers from being named to the kernel.
	s := openStore(t, filepath.Join(t.TempDir(), strings.Repeat("d", 200)))
	defer closeStore(t, s)
	img := mustPull(t, s, host+"/app:v1")
	root := mustMount(t, s, img, "c1")
	for i := range 130 {
		if !exists(root, fmt.Sprint("f", i)) {
			t.Errorf("f%d is missing", i)
		}
	}
	if entries, err := os.ReadDir(mustMount(t, s, mustPull(t, s, host+"/none:v1"), "c2")); err != nil || len(entries) != 0 {
		t.Errorf("image of no layers has %v, %v", entries, err)
	}
	// The way older kernels need.
	dir := filepath.Join(s.opts.Dir, mountsDir, "old@"+strings.Repeat("0", 64))
	for _, d := range []string{"", "upper", "work", "rootfs"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	if err := mountOverlayOld(dir, s.lowerDirs(s.cat.byID[img.ID])); err != nil {
		t.Fatal(err)
	}
	if !exists(dir, "rootfs", "f129") {
		t.Error("f129 is missing")
	}
	if err := s.clearMount(dir); err != nil {
		t.Error(err)
	}
}

// TestAdoption: a store that is opened after a kill finds what is mounted and
// removes what is not.
func TestAdoption(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	dir := t.TempDir()
	s := openStore(t, dir)
	img := mustPull(t, s, host+"/app:v1")
	root := mustMount(t, s, img, "lives")
	dead := mustMount(t, s, img, "dead")
	mustMount(t, s, img, "spare")
	if err := s.Unmount(t.Context(), "spare"); err != nil { // leaves a spare
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(root, "mine"), []byte("kept"), 0o644)
	if err := unix.Unmount(dead, 0); err != nil { // as a machine that restarts does
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "tmp", "half"), nil, 0o600)
	s.lock.Close() // as a kill does

	s = openStore(t, dir)
	defer closeStore(t, s)
	m := s.Mounts()
	if len(m) != 1 || m[0].Key != "lives" || m[0].Image != img.ID || m[0].Rootfs != root {
		t.Fatalf("mounts are %+v", m)
	}
	if again := mustMount(t, s, img, "lives"); read(t, again, "mine") != "kept" {
		t.Error("what the container wrote is lost")
	}
	if err := s.Remove(t.Context(), img.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, mountsDir)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := s.Unmount(t.Context(), "lives"); err != nil {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	if err := Check(dir); err != nil {
		t.Errorf("a usual directory: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := Check("/none/such"); !errors.Is(err, ErrUnfit) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := Check("/proc"); !errors.Is(err, ErrUnfit) {
		t.Errorf("got %v", err)
	}
	// A data directory inside a container's own root.
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	s := newStore(t)
	if err := Check(mustMount(t, s, mustPull(t, s, host+"/app:v1"), "c1")); !errors.Is(err, ErrUnfit) {
		t.Errorf("overlayfs on overlayfs: %v", err)
	} else {
		t.Log(err)
	}
}

func TestPurge(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	dir := filepath.Join(t.TempDir(), "with space")
	s := openStore(t, dir)
	img := mustPull(t, s, host+"/app:v1")
	mustMount(t, s, img, "c1")
	mustMount(t, s, img, "c2")
	if err := s.Unmount(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	s.lock.Close() // killed, with a mount and a spare
	if err := Purge(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := mountsBelow(dir); exists(dir) || len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := Purge(dir); err != nil {
		t.Errorf("purged twice: %v", err)
	}
}

func TestUnmountBusy(t *testing.T) {
	host := peer(t, nil)
	push(t, host+"/app:v1", simpleImage(t, ent{name: "a", body: "layer"}))
	s := newStore(t)
	root := mustMount(t, s, mustPull(t, s, host+"/app:v1"), "c1")
	f, err := os.Open(filepath.Join(root, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Dir(root)) {
		t.Error("the directory stays")
	}
}

func TestRemoveAndCollect(t *testing.T) {
	host := peer(t, nil)
	base := layerOf(t, compression.GZip, tarOf(t, ent{name: "base", body: strings.Repeat("b", 8192)}))
	for _, n := range []string{"one", "two", "three"} {
		push(t, host+"/"+n+":v1", imageOf(t, base, layerOf(t, compression.GZip, tarOf(t, ent{name: n, body: n}))))
	}
	s := newStore(t)
	one, two, three := mustPull(t, s, host+"/one:v1"), mustPull(t, s, host+"/two:v1"), mustPull(t, s, host+"/three:v1")
	push(t, host+"/one:v2", imageOf(t, base, layerOf(t, compression.GZip, tarOf(t, ent{name: "one", body: "one"}))))
	mustPull(t, s, host+"/one:v2")
	if err := s.Remove(t.Context(), host+"/one:v2"); err != nil {
		t.Fatal(err)
	}
	if now, ok := s.Find(host + "/one:v1"); !ok || len(now.Tags()) != 1 {
		t.Errorf("the image went with one of two tags: %+v", now)
	}
	if err := s.Remove(t.Context(), host+"/one:v1"); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Find(one.ID); ok {
		t.Error("the image stays without a tag")
	}
	if err := s.Remove(t.Context(), host+"/one:v1"); !errors.Is(err, ErrNotPresent) {
		t.Errorf("got %v", err)
	}
	layers := func() int { e, _ := os.ReadDir(filepath.Join(s.opts.Dir, "layers")); return len(e) }
	if n := layers(); n != 3 {
		t.Errorf("%d layers", n)
	}
	mustMount(t, s, two, "c1")
	inUse := func(i Image) bool { return i.ID == three.ID }
	got, err := s.Collect(t.Context(), CollectOptions{InUse: inUse, MaxAge: time.Nanosecond})
	if err != nil || len(got.Images) != 0 {
		t.Errorf("collected %+v, %v", got, err)
	}
	got, err = s.Collect(t.Context(), CollectOptions{MaxAge: time.Nanosecond, MinAge: time.Hour})
	if err != nil || len(got.Images) != 0 {
		t.Errorf("collected %+v, %v", got, err)
	}
	got, err = s.Collect(t.Context(), CollectOptions{HighPercent: 1, LowPercent: 1})
	if err != nil || len(got.Images) != 1 || got.Images[0].ID != three.ID || got.Bytes == 0 {
		t.Errorf("collected %+v, %v", got, err)
	}
	if n := layers(); n != 2 {
		t.Errorf("%d layers", n)
	}
}

func TestResolveUser(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "usr/etc"), 0o755)
	os.MkdirAll(filepath.Join(root, "etc"), 0o755)
	// An absolute link is the container's, not the machine's.
	os.Symlink("/usr/etc/passwd", filepath.Join(root, "etc/passwd"))
	os.WriteFile(filepath.Join(root, "usr/etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:34::/srv:\nodd:x:99999999999:1::/:\n1000:x:55:56::/num:\n"), 0o644)
	os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nweb:x:34:\nssl:x:70:other,web\nlogs:x:71:web\n"), 0o644)
	tests := map[string]string{
		"":           "{0 0 [] /root}",
		"root":       "{0 0 [] /root}",
		"web":        "{33 34 [70 71] /srv}",
		"33":         "{33 34 [70 71] /srv}",
		"web:ssl":    "{33 70 [] /srv}",
		"web:5":      "{33 5 [] /srv}",
		"4711":       "{4711 0 [] /}",
		"4711:4712":  "{4711 4712 [] /}",
		"1000":       "{55 56 [] /num}",
		"nobody":     "error",
		"web:none":   "error",
		"odd":        "error",
		"-1":         "error",
		"4294967295": "error",
	}
	for user, want := range tests {
		u, err := ResolveUser(root, user)
		got := fmt.Sprint(u)
		if err != nil {
			got = "error"
			if !errors.Is(err, ErrUser) {
				t.Errorf("%q: %v", user, err)
			}
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", user, got, want)
		}
	}
	if u, err := ResolveUser(t.TempDir(), "7"); err != nil || u.UID != 7 {
		t.Errorf("without files: %v, %v", u, err)
	}
	// A pipe must not block, nor a large file fill the memory.
	trap := t.TempDir()
	os.Mkdir(filepath.Join(trap, "etc"), 0o755)
	unix.Mkfifo(filepath.Join(trap, "etc/passwd"), 0o644)
	if _, err := ResolveUser(trap, "x"); err == nil {
		t.Error("a pipe is read")
	}
	os.Remove(filepath.Join(trap, "etc/passwd"))
	os.WriteFile(filepath.Join(trap, "etc/passwd"), nil, 0o644)
	os.Truncate(filepath.Join(trap, "etc/passwd"), 1<<40)
	if _, err := ResolveUser(trap, "x"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}
