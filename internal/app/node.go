// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"log/slog"

	"github.com/sonagi/sonagi/internal/run"
)

// RunNode is the node process: pods and the data plane.
func RunNode(ctx context.Context, s Settings) error { return play(ctx, "node", s, node) }

func node(context.Context, Settings, *slog.Logger) ([][]run.Task, error) { return nil, nil }

func runtimePid(Settings) int { return 0 }
