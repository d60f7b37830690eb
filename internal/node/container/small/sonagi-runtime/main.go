// SPDX-License-Identifier: Apache-2.0

// Command sonagi-runtime is the process that containers have as parent, and the one that becomes them.
package main

import (
	"fmt"
	"os"

	_ "github.com/sonagi/sonagi/internal/node/container/reexec"
)

func main() {
	fmt.Fprintln(os.Stderr, "sonagi starts this by itself; it is of no use alone")
	os.Exit(2)
}
