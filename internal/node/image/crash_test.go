// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const crashDir, crashRef = "SONAGI_TEST_CRASH_DIR", "SONAGI_TEST_CRASH_REF"

// TestMain lets this program be the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		pullForEver(dir, os.Getenv(crashRef))
	}
	os.Exit(m.Run())
}

// pullForEver pulls, mounts, unmounts and removes an image until it is killed.
func pullForEver(dir, ref string) {
	fmt.Println("begun")
	s, err := Open(Options{Dir: dir, ReserveBytes: 1})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		img, err := s.Pull(noContext{}, ref, Credentials{}, nil)
		if err == nil {
			_, _, err = s.Mount(noContext{}, img, "k")
		}
		if err == nil {
			err = s.Unmount(noContext{}, "k")
		}
		if err == nil {
			err = s.Remove(noContext{}, img.ID)
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// noContext never ends: the process that has it is killed.
type noContext struct{}

func (noContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (noContext) Done() <-chan struct{}       { return nil }
func (noContext) Err() error                  { return nil }
func (noContext) Value(any) any               { return nil }

// TestKill kills a process at any point of a pull, a mount or a removal. What
// is then found is nothing or all of the image.
func TestKill(t *testing.T) {
	var layers []v1.Layer
	for i := range 6 {
		var files []ent
		for j := range 40 {
			files = append(files, ent{name: fmt.Sprintf("d%d/f%d", i, j), body: strings.Repeat(fmt.Sprint(i, j, " "), 2000)})
		}
		layers = append(layers, layerOf(t, compression.GZip, tarOf(t, files...)))
	}
	var slow atomic.Bool
	host := peer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if slow.Load() && strings.Contains(r.URL.Path, "/blobs/") {
				time.Sleep(rand.N(3 * time.Millisecond))
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/app:v1", imageOf(t, layers...))
	dir := t.TempDir()
	whole := 0
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		slow.Store(true)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashRef+"="+host+"/app:v1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan()
		time.Sleep(rand.N(120 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			t.Errorf("round %d: the process said %q", round, lines.Text())
		}
		cmd.Wait()
		slow.Store(false)

		s := openStore(t, dir)
		for _, img := range s.List() {
			whole++
			checkWhole(t, s, img)
		}
		img := mustPull(t, s, host+"/app:v1")
		checkWhole(t, s, img)
		if rand.N(2) == 0 {
			if err := s.Remove(t.Context(), img.ID); err != nil {
				t.Error(err)
			}
		}
		closeStore(t, s)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	t.Logf("%d of %d kills found the image whole", whole, rounds)
}

func checkWhole(t *testing.T, s *Store, img Image) {
	t.Helper()
	root := mustMount(t, s, img, "check")
	for i := range 6 {
		for j := range 40 {
			if got := read(t, root, fmt.Sprintf("d%d/f%d", i, j)); got != strings.Repeat(fmt.Sprint(i, j, " "), 2000) {
				t.Errorf("d%d/f%d has %d bytes", i, j, len(got))
			}
		}
	}
	if err := s.Unmount(t.Context(), "check"); err != nil {
		t.Error(err)
	}
}
