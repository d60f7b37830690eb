// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var ts Times
	for i := range 100 {
		ts = append(ts, time.Duration(100-i)*time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 50, 0.9: 90, 0.99: 99, 1: 100} {
		if got := ts.Quantile(q); got != want*time.Millisecond {
			t.Errorf("%v: %v, want %d ms", q, got, want)
		}
	}
	if got := Times(nil).Median(); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestParseStat(t *testing.T) {
	got, err := parseStat("7 (a) b (c)) S 3 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 5 6 7")
	if want := (stat{3, 2 * time.Second}); err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := parseStat("nonsense"); err == nil {
		t.Error("nonsense is read")
	}
}

func TestProcs(t *testing.T) {
	self := Procs{os.Getpid()}
	begin := self.CPU()
	for end := time.Now().Add(60 * time.Millisecond); time.Now().Before(end); {
	}
	if used := self.CPU() - begin; used <= 0 || used > 2*time.Second {
		t.Errorf("60 ms of work are %v", used)
	}
	if pss := self.PSS(); pss < 1<<20 {
		t.Errorf("memory: %d", pss)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	found := false
	for _, pid := range Family(os.Getpid()) {
		found = found || pid == child.Process.Pid
	}
	if !found {
		t.Error("a child is not of the family")
	}
}

func TestParseWrk(t *testing.T) {
	got, err := parseWrk(`Running 10s test @ http://127.0.0.1:8080/
  2 threads and 64 connections
  Latency Distribution
     50%  812.00us
     75%    1.10ms
     90%    1.51ms
     99%    1.02s
  612345 requests in 10.10s, 82.33MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec:  60629.12
Transfer/sec:      8.15MB
`)
	want := Load{612345, 60629.12, 812 * time.Microsecond, 1020 * time.Millisecond, 15}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parseWrk("unable to connect"); err == nil {
		t.Error("nonsense is read")
	}
}

func TestTable(t *testing.T) {
	rows := []Row{
		{What: "a", Ours: "3 ms", Peers: "1 ms", Peer: "crun", Ratio: 3, Target: "≤ 3", Met: true},
		{What: "b", Ratio: math.NaN(), Unjudged: true},
	}
	want := heading + "| a | 3 ms | 1 ms | crun | 3.00 | ≤ 3 | yes |\n| b | – | – | – | – | – | – |\n"
	if got := Table(rows); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	text := "x\n<!-- cold -->\nbefore\n<!-- /cold -->\ny"
	got, err := splice(text, "cold", "\nnew\n\n")
	if want := strings.Replace(text, "before", "new", 1); err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := splice(text, "warm", "new"); err == nil {
		t.Error("spliced into nothing")
	}
}

func TestCrun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("crun is not installed: bench/setup does it")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	app := filepath.Join(dir, "app")
	if err := BuildApp(ctx, filepath.Join(Root(), "samples", "hello"), app); err != nil {
		t.Fatal(err)
	}
	if d, err := ForkExec(ctx, app); err != nil || d <= 0 {
		t.Errorf("fork and exec: %v, %v", d, err)
	}
	c, err := NewCrun(filepath.Join(dir, "crun"), app)
	if err != nil {
		t.Fatal(err)
	}
	k, err := c.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.FirstAnswer(ctx, "/"); err != nil {
		t.Error(err)
	}
	if err := k.Delete(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{"/run/netns/sonagibench*", "/sys/class/net/sbench*", "/sys/fs/cgroup/*/sonagibench/*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}
