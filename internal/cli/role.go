// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

// role runs one of the two child processes of "sonagi up". It is not for people.
func role(d *dataDir) *cobra.Command {
	return &cobra.Command{
		Use:    "run control|node",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			switch args[0] {
			case "control":
				return app.RunControl(c.Context(), s)
			case "node":
				return app.RunNode(c.Context(), s)
			}
			return fmt.Errorf("there is no role %q; the roles are control and node", args[0])
		},
	}
}
