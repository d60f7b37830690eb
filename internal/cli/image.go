// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

func image(d *dataDir) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Load, list and remove the images of this machine"}
	verb := func(use, short string, args cobra.PositionalArgs, do func(c *cobra.Command, s app.Settings, args []string) error) {
		c.AddCommand(&cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, args []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			return do(c, s, args)
		}})
	}
	verb("list", "List the images that containers can be made of at once", cobra.NoArgs,
		func(c *cobra.Command, s app.Settings, _ []string) error {
			return app.ListImages(c.Context(), s, c.OutOrStdout())
		})
	verb("load PATH…", "Load OCI layout directories, OCI archives or docker archives (docker save)", cobra.MinimumNArgs(1),
		func(c *cobra.Command, s app.Settings, args []string) error {
			return app.LoadImages(c.Context(), s, args, c.OutOrStdout())
		})
	verb("rm REF…", "Remove images that no container uses", cobra.MinimumNArgs(1),
		func(c *cobra.Command, s app.Settings, args []string) error {
			return app.RemoveImages(c.Context(), s, args, c.OutOrStdout())
		})
	return c
}
