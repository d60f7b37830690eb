// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TestKilledUnderWritesLosesNothing: whatever was acknowledged before the
// kill is there after the restart, and so are certificates and tokens.
func TestKilledUnderWritesLosesNothing(t *testing.T) {
	dir, port := t.TempDir(), freePort(t)
	p := start(t, dir, port)
	before := p.config(t)
	written := 0
	for range 3 {
		client := kubernetes.NewForConfigOrDie(p.config(t))
		done := make(chan int)
		go func() { // writes until the server is gone
			n := written
			for ; ; n++ {
				_, err := client.CoreV1().ConfigMaps("default").Create(t.Context(),
					&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("kept-%d", n)}}, metav1.CreateOptions{})
				if err != nil {
					done <- n
					return
				}
				if n == written+50 {
					_ = p.command.Process.Kill()
				}
			}
		}()
		// The one in flight may have been stored without an answer.
		written = <-done + 1
		_ = p.command.Wait()
		p = start(t, dir, port)
	}
	client := kubernetes.NewForConfigOrDie(before)
	list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{}
	for _, m := range list.Items {
		kept[m.Name] = true
	}
	missing := 0
	for n := range written {
		if !kept[fmt.Sprintf("kept-%d", n)] {
			missing++
		}
	}
	if missing > 3 { // the three that were in flight
		t.Errorf("%d of %d are missing", missing, written)
	}
	t.Logf("%d written, %d never acknowledged; stopped in %v", written, missing, p.stop(t))
}

func TestStartFailuresSaySo(t *testing.T) {
	t.Run("port taken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		fails(t, t.TempDir(), port, "127.0.0.1:"+port+" is already in use by", fmt.Sprintf("(process %d)", os.Getpid()))
	})
	t.Run("second instance", func(t *testing.T) {
		p := start(t, t.TempDir(), freePort(t))
		fails(t, p.dir, freePort(t), "another process has the store in "+p.dir)
	})
	t.Run("disk full", func(t *testing.T) {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
			t.Skip("no tmpfs: ", err)
		}
		defer syscall.Unmount(dir, syscall.MNT_DETACH)
		fails(t, dir, freePort(t), "no room for the store", "choose another data directory")
	})
	t.Run("damaged log", func(t *testing.T) {
		damaged(t, "member/wal/*.wal")
	})
	t.Run("damaged file", func(t *testing.T) {
		damaged(t, "member/snap/db")
	})
	t.Run("path too long", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
		fails(t, dir, freePort(t), "too long for a unix socket")
	})
}

// damaged starts on a store whose files were overwritten.
func damaged(t *testing.T, pattern string) {
	p := start(t, t.TempDir(), freePort(t))
	p.stop(t)
	files, err := filepath.Glob(filepath.Join(p.dir, "etcd", pattern))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(strings.Repeat("nonsense", 4096)), 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	fails(t, p.dir, p.port, filepath.Join(p.dir, "etcd"), "damaged")
}

// fails expects a start to fail with all of the words.
func fails(t *testing.T, dir, port string, words ...string) {
	t.Helper()
	p, err := launch(dir, port)
	if err == nil {
		p.kill()
		t.Fatal("it started")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in: %s", word, err)
		}
	}
	t.Logf("%s", err)
}
