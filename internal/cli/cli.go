// SPDX-License-Identifier: Apache-2.0

// Package cli reads what a person typed and does it.
//
// Law: one file a verb. Flags and the environment are read here and nowhere
// else. An error is one sentence with its remedy, on standard error, exit code 1.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

// Main runs one command line and returns the exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "sonagi:", err)
	return 1
}

// An exitCode ends the program with that code; what there was to say is said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// dataDir is the persistent flag that every verb shares.
type dataDir struct{ path string }

func (d dataDir) load() (app.Settings, error) { return app.Load(d.path) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "sonagi",
		Short:         "Knative services on one machine, from zero and back",
		Long:          "Sonagi is a serverless platform in one binary: a Kubernetes API, real containers and Knative services that scale to zero.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	d := &dataDir{}
	root.PersistentFlags().StringVar(&d.path, "data-dir", cmp.Or(os.Getenv("SONAGI_DATA_DIR"), app.Defaults().DataDir),
		"where all state is kept (also $SONAGI_DATA_DIR)")
	root.AddCommand(up(d), down(d), status(d), logs(d), deploy(d), image(d), kubectl(d), version(), role(d))
	return root
}
