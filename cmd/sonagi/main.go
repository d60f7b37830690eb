// SPDX-License-Identifier: Apache-2.0

// Command sonagi is the front door.
package main

import (
	"os"

	_ "github.com/sonagi/sonagi/internal/node/container/reexec" // before all else: a container's first process is this binary

	"github.com/sonagi/sonagi/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
