// SPDX-License-Identifier: Apache-2.0

package container_test

import (
	"strings"
	"testing"
)

func TestRunsToItsEnd(t *testing.T) {
	l := newLab(t)
	s := l.spec("echo hello; echo oops >&2; exit 7")
	out, e := l.output(s)
	if !strings.Contains(out, "hello\n") || !strings.Contains(out, "oops\n") {
		t.Errorf("log is %q", out)
	}
	if e.Exit.Code != 7 || e.Exit.OOMKilled || e.Exit.Unknown {
		t.Errorf("exit is %+v", e.Exit)
	}
	must(t, l.client.Delete(t.Context(), s.ID))
	left, err := l.client.List(t.Context())
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left after delete: %+v", left)
	}
}
