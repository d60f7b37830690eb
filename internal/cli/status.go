// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

func status(d *dataDir) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what runs, where it answers and what it costs",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			return app.Status(c.Context(), s, c.OutOrStdout())
		},
	}
}
