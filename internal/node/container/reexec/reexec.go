// SPDX-License-Identifier: Apache-2.0

// Package reexec turns this binary into a container's first process.
//
// Import it, for its effect, from package main and from the TestMain of tests
// that run containers. The binary of the whole platform runs tens of
// milliseconds of package initialization before main; a process that is to
// become a container must not. Packages are initialized in the order of their
// import paths as far as their imports allow, so this one, which imports
// little, runs before the large libraries do.
package reexec

import (
	"os"

	"github.com/sonagi/sonagi/internal/node/container"
)

func init() { container.Become(os.Args) }
