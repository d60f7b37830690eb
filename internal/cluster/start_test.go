// SPDX-License-Identifier: Apache-2.0

package cluster_test

import "testing"

func TestStart(t *testing.T) {
	p := start(t, t.TempDir(), freePort(t))
	t.Logf("stopped in %v", p.stop(t))
	p = start(t, p.dir, p.port)
	t.Logf("stopped in %v\n%s", p.stop(t), p.errors)
}
