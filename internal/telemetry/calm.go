// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"log/slog"
	"strings"
)

// calm lowers what the linked libraries report as errors and mend themselves:
// they know one level for a write that lost a race, which is tried again, and
// for a fault that somebody has to look at.
type calm struct{ slog.Handler }

// Calm lowers, on its way to h, what libraries report and mend themselves.
func Calm(h slog.Handler) slog.Handler { return calm{h} }

// passing are words of such reports. Each is followed by another try.
var passing = []string{
	"the object has been modified; please apply your changes to the latest version",
	"is not as new as written version", // a cache that lags behind its own process' write
	"StorageError: invalid object, Code: 4", "Precondition failed: UID in precondition",
	"because it is being terminated",     // a namespace, and what would have been made in it
	`namespaces "kube-system" not found`, // which is made in the same moment
	// Until the node serves it, and again while the node is being started.
	"v1beta1.metrics.k8s.io failed with",
	"metrics.k8s.io/v1beta1: stale GroupVersion discovery",
	"unable to handle the request (get pods.metrics.k8s.io)",
	// A watch has a time, and ends with its process.
	"watch ended", "very short watch", "context canceled",
}

// Handle implements slog.Handler.
func (c calm) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn && passes(r) {
		if r.Level = slog.LevelDebug; !c.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return c.Handler.Handle(ctx, r)
}

func passes(r slog.Record) bool {
	if known(r.Message) {
		return true
	}
	found := false
	r.Attrs(func(a slog.Attr) bool {
		switch v := a.Value.Resolve().Any().(type) {
		case error:
			found = known(v.Error())
		case string:
			found = (a.Key == "err" || a.Key == "error") && known(v)
		}
		return !found
	})
	return found
}

func known(text string) bool {
	// What was to be brought in line has gone in the meantime.
	if strings.HasPrefix(text, "sync ") && strings.HasSuffix(text, " not found") {
		return true
	}
	for _, p := range passing {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}

func (c calm) WithAttrs(a []slog.Attr) slog.Handler { return calm{c.Handler.WithAttrs(a)} }

func (c calm) WithGroup(name string) slog.Handler { return calm{c.Handler.WithGroup(name)} }
