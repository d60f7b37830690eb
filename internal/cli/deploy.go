// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/sonagi/sonagi/internal/app"
)

func deploy(d *dataDir) *cobra.Command {
	o := app.DeployOptions{}
	var env []string
	c := &cobra.Command{
		Use:   "deploy DIR",
		Short: "Build a source directory and run it as a Knative service",
		Long:  "Build the Go program in DIR (a go.mod is found) into an image in the built-in registry, create or update the Knative service, wait until it is ready and print its URL.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			o.Dir, o.Out = args[0], c.ErrOrStderr()
			for _, e := range env {
				name, value, ok := strings.Cut(e, "=")
				if !ok || name == "" {
					return fmt.Errorf("--env %q is not NAME=VALUE", e)
				}
				o.Env = append(o.Env, corev1.EnvVar{Name: name, Value: value})
			}
			url, err := app.Deploy(c.Context(), s, o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), url)
			return err
		},
	}
	fl := c.Flags()
	fl.StringVar(&o.Name, "name", "", "name of the service (default the directory's name)")
	fl.StringVarP(&o.Namespace, "namespace", "n", "default", "namespace of the service")
	fl.StringArrayVarP(&env, "env", "e", nil, "variable NAME=VALUE of the program; may be repeated")
	fl.StringVar(&o.Base, "base", "", "base image to build on (default none, so that nothing is fetched)")
	fl.DurationVar(&o.Timeout, "timeout", 2*time.Minute, "how long to wait until the service is ready")
	return c
}
