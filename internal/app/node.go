// SPDX-License-Identifier: Apache-2.0

package app

import (
	"context"
	"io"
	"log/slog"

	"github.com/sonagi/sonagi/internal/run"
)

// RunNode is the node process: pods and the data plane.
func RunNode(ctx context.Context, s Settings) error { return play(ctx, "node", s, node) }

func node(context.Context, Settings, *slog.Logger) ([][]run.Task, error) { return nil, nil }

func cleanUp(context.Context, Settings) error { return nil }
func runtimePid(Settings) int                 { return 0 }

func ListImages(context.Context, Settings, io.Writer) error             { return nil }
func LoadImages(context.Context, Settings, []string, io.Writer) error   { return nil }
func RemoveImages(context.Context, Settings, []string, io.Writer) error { return nil }
