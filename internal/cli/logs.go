// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/sonagi/sonagi/internal/app"
)

func logs(d *dataDir) *cobra.Command {
	o := app.LogOptions{}
	requests := false
	c := &cobra.Command{
		Use:   "logs [SERVICE]",
		Short: "Print the logs of a service, or of the platform itself",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			o.Out = c.OutOrStdout()
			if len(args) == 0 {
				return app.PlatformLogs(c.Context(), s, o)
			}
			o.Service = args[0]
			if requests {
				return app.RequestLogs(c.Context(), s, o)
			}
			return app.ServiceLogs(c.Context(), s, o)
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is written from now on")
	fl.Int64Var(&o.Tail, "tail", 200, "lines to begin with")
	fl.StringVarP(&o.Namespace, "namespace", "n", "default", "namespace of the service")
	fl.BoolVar(&requests, "requests", false, "print the service's request log (config-observability switches it on)")
	return c
}
