// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"os"
	"path/filepath"
)

// App is the image of the program that speaks every protocol; DeployApp builds it.
func (p *Platform) App() string { return p.Registry + "/app" }

// DeployApp builds the app, and runs it as service "app" in the default namespace.
func (p *Platform) DeployApp(ctx context.Context) error {
	build := p.command(ctx, p.Bin(), "deploy", filepath.Join(p.Root, "test", "platform", "testdata", "app"), "--name", "app", "--data-dir", p.DataDir)
	build.Env = os.Environ() // with the home directory, where Go's build cache is
	_, err := finish(build)
	return err
}
