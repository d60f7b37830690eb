// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Main starts one platform for all tests of a package, and afterwards removes
// it and reports what it left behind. Call it from TestMain.
func Main(m interface{ Run() int }, p **Platform, extra ...string) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the scenarios run containers and therefore need root: sudo make test")
		return 1
	}
	dir, err := os.MkdirTemp("", "sonagi-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	*p, err = New(filepath.Join(dir, "data"))
	if err == nil {
		err = (*p).Up(context.Background(), extra...)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if code != 0 {
		(*p).PrintLogs()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := (*p).Purge(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if left := (*p).Leftovers(); len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:\n"+strings.Join(left, "\n"))
		return 1
	}
	return code
}

// PrintLogs shows the end of the platform's own logs, for a failure in CI.
func (p *Platform) PrintLogs() {
	for _, child := range []string{"control", "node"} {
		text, _ := os.ReadFile(filepath.Join(p.DataDir, "logs", child+".log"))
		fmt.Fprintf(os.Stderr, "--- %s.log (end)\n%s\n", child, text[max(0, len(text)-6000):])
	}
}

// Eventually tries until ok, and fails the test with the last error when the
// limit is over. It is for states that no watch tells of.
func Eventually(t testing.TB, limit time.Duration, ok func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
