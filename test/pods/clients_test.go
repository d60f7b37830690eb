// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/sonagi/sonagi/test/platform"
)

func TestLogs(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "logs")
	s.Make(spec(pod("speaker", "for i in 1 2 3 4 5; do echo line $i; done; sleep 0.1; echo oops >&2; sleep 0.1; exec tool hold"), "") + "  - {name: other, image: " + image + ", command: [sh, -c, echo from the other; exec tool hold]}\n")
	s.Ready("speaker")
	s.Says([]string{"line 1\nline 2\nline 3\nline 4\nline 5\n", "oops\n", "holding"}, "logs", "speaker", "-c", "main")
	want(t, "--tail", s.K("logs", "speaker", "-c", "main", "--tail=1"), "holding")
	want(t, "-c other", s.K("logs", "speaker", "-c", "other", "--tail=2"), "from the other\nholding")
	wantAll(t, s.K("logs", "speaker", "--all-containers", "--prefix"), "[pod/speaker/main] line 1", "[pod/speaker/other] from the other")
	wantAll(t, s.K("logs", "speaker", "-c", "main", "--since=1h"), "line 1")
	want(t, "--since-time", s.K("logs", "speaker", "-c", "main", "--since-time=2099-01-01T00:00:00Z"), "")
	if out := s.K("logs", "speaker", "-c", "main", "--timestamps", "--tail=1"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\S+Z holding\n$`).MatchString(out) {
		t.Errorf("--timestamps: %q", out)
	}
	want(t, "--limit-bytes", s.K("logs", "speaker", "-c", "main", "--limit-bytes=4"), "line")
	out, err := s.Try("logs", "speaker", "-c", "nosuch")
	if err == nil {
		t.Error("logs of a container that is not there")
	}
	wantAll(t, out, "container nosuch is not valid for pod speaker")
	out, _ = s.Try("logs", "speaker", "-c", "main", "--previous")
	wantAll(t, out, `previous terminated container "main" in pod "speaker" not found`)
}

func TestLogsFollow(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "follow")
	s.Make(pod("talker", "echo first; while test ! -e /tmp/go; do sleep 0.05; done; echo second; exit 0"))
	s.Says([]string{"first"}, "logs", "talker")
	cmd := s.Command("logs", "-f", "talker")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func() string { lines.Scan(); return lines.Text() }
	want(t, "followed", next(), "first")
	s.K("exec", "talker", "--", "touch", "/tmp/go")
	want(t, "followed", next(), "second")
	if lines.Scan() {
		t.Errorf("one line more: %q", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "exec")
	s.Make(pod("shell", "exec tool hold", "workingDir: /srv"))
	s.Ready("shell")
	want(t, "working directory", s.K("exec", "shell", "--", "pwd"), "/srv")
	cmd := s.Command("exec", "-i", "shell", "--", "sh", "-c", "cat; echo err >&2; exit 6")
	var out, errs bytes.Buffer
	big := strings.Repeat("0123456789abcdef", 1<<16)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(big), &out, &errs
	err := cmd.Run()
	if code := exitCode(err); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if out.String() != big {
		t.Errorf("of %d bytes %d came back", len(big), out.Len())
	}
	want(t, "stderr", errs.String(), "err\ncommand terminated with exit code 6")
	o, err := s.Try("exec", "shell", "--", "/nosuch")
	if err == nil {
		t.Error("a missing program ran")
	}
	wantAll(t, o, "/nosuch", "no such file or directory")

	script := exec.Command("script", "-qec", "stty rows 33 cols 77; kubectl -n exec exec -it shell -- sh -c 'tty; until stty size | grep 77; do sleep 0.1; done; echo it is $TERM; exit 9'", "/dev/null")
	script.Env, script.Stdin = s.Command().Env, strings.NewReader("")
	tty, err := script.CombinedOutput()
	if code := exitCode(err); code != 9 {
		t.Errorf("exit code in a terminal %d, want 9\n%s", code, tty)
	}
	wantAll(t, string(tty), "/dev/pts/0", "33 77", "it is xterm")
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func TestAttachAndRun(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "attach")
	run := s.Command("run", "once", "-i", "--rm", "--restart=Never", "--quiet", "--image="+image, "--", "sh", "-c", "read x; echo got $x; exit 3")
	run.Stdin = strings.NewReader("words\n")
	out, err := run.CombinedOutput()
	if code := exitCode(err); code != 3 {
		t.Errorf("run -i --rm: exit code %d, want 3", code)
	}
	wantAll(t, string(out), "got words")
	s.K("wait", "--for=delete", "pod/once", "--timeout=30s")

	script := exec.Command("script", "-qec", "kubectl -n attach run term -it --rm --restart=Never --quiet --image="+image+" -- sh -c 'tty; echo done'", "/dev/null")
	script.Env, script.Stdin = s.Command().Env, strings.NewReader("")
	tty, err := script.CombinedOutput()
	if err != nil {
		t.Errorf("run -it --rm: %v\n%s", err, tty)
	}
	wantAll(t, string(tty), "/dev/", "done")

	s.Make(pod("reader", "while read x; do echo heard $x; done", "stdin: true"))
	s.Ready("reader")
	attach := s.Command("attach", "-i", "reader")
	in, _ := attach.StdinPipe()
	reply, _ := attach.StdoutPipe()
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "one")
	line, err := bufio.NewReader(reply).ReadString('\n')
	if err != nil || !strings.Contains(line, "heard one") {
		t.Errorf("attach: %q, %v", line, err)
	}
	_ = attach.Process.Kill()
	_ = attach.Wait()
	s.Says([]string{"heard one"}, "logs", "reader")
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "forward")
	s.Make(pod("web", "exec tool serve 8080", "ports: [{containerPort: 8080}]", "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}"))
	s.K("expose", "pod", "web", "--port=80", "--target-port=8080")
	s.Ready("web")
	for _, what := range []string{"pod/web", "service/web"} {
		port := map[string]string{"pod/web": ":8080", "service/web": ":80"}[what]
		cmd := s.Command("port-forward", what, port)
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
		if err != nil || at == "" {
			t.Fatalf("port-forward said %q, %v", line, err)
		}
		for range 3 {
			resp, err := http.Get("http://" + at + "/")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			want(t, what, string(body), "web")
		}
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
	}
}

func TestCopy(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "copy")
	s.Make(pod("store", "exec tool hold"))
	s.Ready("store")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "in/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("sonagi\n"), 500_000)
	for name, content := range map[string][]byte{"in/deep/file": []byte("words\n"), "in/big": big} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.K("cp", filepath.Join(dir, "in"), "store:/srv/in")
	want(t, "copied in", s.K("exec", "store", "--", "cat", "/srv/in/deep/file"), "words")
	s.K("cp", "store:/srv/in", filepath.Join(dir, "out"))
	wantFile(t, filepath.Join(dir, "out/deep/file"), "words\n")
	if back, _ := os.ReadFile(filepath.Join(dir, "out/big")); !bytes.Equal(back, big) {
		t.Errorf("%d bytes came back of %d", len(back), len(big))
	}
}

func TestDebug(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "debug")
	s.Make(pod("web", "exec tool serve 8080"))
	s.Ready("web")
	s.K("debug", "web", "--image="+image, "--container=doctor", "--target=main", "--", "sh", "-c", "ps; wget -qO- http://127.0.0.1:8080/; exit 2")
	s.Becomes("pod/web", ".status.ephemeralContainerStatuses[0].state.terminated.exitCode", "2")
	wantAll(t, s.K("logs", "web", "-c", "doctor"), "tool serve 8080", "\nweb\n")
	s.Ready("web")
}

func TestCordonAndDrain(t *testing.T) {
	s := p.Space(t, "drain") // not parallel: the node takes no new pods meanwhile
	s.Make("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}" + template("web", "  "))
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
	node := s.Field("pod", ".items[0].spec.nodeName")
	defer uncordon(s, node)
	wantAll(t, s.K("drain", node, "--pod-selector=app=web", "--timeout=60s"), "cordoned", "evicting pod drain/web-", "drained")
	wantAll(t, s.K("get", "node"), "Ready,SchedulingDisabled")
	s.Becomes("pod", ".items[0].status.phase", "Pending")
	s.Says([]string{"FailedScheduling", "0/1 nodes are available: 1 node(s) were unschedulable"}, "get", "events")
	uncordon(s, node)
	s.K("rollout", "status", "deployment/web", "--timeout=60s")
}

func uncordon(s *platform.Space, node string) { s.K("uncordon", node) }

func TestNode(t *testing.T) {
	t.Parallel()
	s := p.Space(t, "node")
	wantAll(t, s.K("get", "node", "-o", "wide"), "Ready", "v1.36.3", "sonagi://")
	wantAll(t, s.K("describe", "node"), "MemoryPressure", "DiskPressure", "PIDPressure", "Ready", "Capacity:", "Allocatable:", "pods:", "Allocated resources:")
	wantAll(t, s.K("get", "--raw", "/readyz"), "ok")
}
