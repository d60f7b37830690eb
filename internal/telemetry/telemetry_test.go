// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestWhatLibrariesMendThemselvesIsNoWarning(t *testing.T) {
	conflict := errors.New("Operation cannot be fulfilled on pods \"a\": the object has been modified; please apply your changes to the latest version and try again")
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	library := Logr(log)
	library.Error(fmt.Errorf("sync: %w", conflict), "Unhandled Error")
	library.Error(nil, "Unhandled Error", "err", conflict.Error())
	library.WithValues("a", 1).WithName("b").Error(conflict, "again")
	library.Error(errors.New(`sync "ns/a" failed with replicasets.apps "a" not found`), "Unhandled Error")
	library.Info("a step")
	if out.Len() != 0 {
		t.Error(out.String())
	}
	library.Error(errors.New("disk full"), "Unhandled Error")
	if !strings.Contains(out.String(), "disk full") {
		t.Error("a fault is hidden")
	}
	out.Reset()
	log.Error("ours", "err", conflict)
	if out.Len() == 0 {
		t.Error("what this program says itself is its own business")
	}
}
