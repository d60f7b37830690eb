// SPDX-License-Identifier: Apache-2.0

// Package reexec turns this binary into a container's first process.
package reexec

import _ "github.com/sonagi/sonagi/internal/node/container"
