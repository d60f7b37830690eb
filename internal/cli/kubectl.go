// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
)

// kubectl is upstream's command, pointed at this platform unless $KUBECONFIG or
// --kubeconfig says otherwise.
func kubectl(d *dataDir) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl COMMAND…",
		Short:              "Run kubectl against this platform (nothing else to install)",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := d.load()
			if err != nil {
				return err
			}
			if err := os.Setenv(clientcmd.RecommendedConfigPathEnvVar,
				cmp.Or(os.Getenv(clientcmd.RecommendedConfigPathEnvVar), s.Kubeconfig())); err != nil {
				return err
			}
			if code := runKubectl(args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

func runKubectl(args []string) int {
	os.Args = append([]string{"kubectl"}, args...) // kubectl reads os.Args for its plugins
	return cli.Run(kubectlcmd.NewDefaultKubectlCommandWithArgs(kubectlcmd.KubectlOptions{
		PluginHandler: kubectlcmd.NewDefaultPluginHandler([]string{"kubectl"}),
		Arguments:     os.Args,
		ConfigFlags:   genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50),
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	}))
}
