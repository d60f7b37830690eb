// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

func down(d *dataDir) *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop the platform and remove what it left on this machine",
		Long: "Stop the platform, all containers included, and remove its links, namespaces, mounts, rules and cgroups.\n" +
			"Objects and images are kept for the next start, unless --purge removes them too.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			return app.Down(c.Context(), s, purge, c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&purge, "purge", false, "also remove the data directory with all objects, images and volumes")
	return c
}
