// SPDX-License-Identifier: Apache-2.0

// Package small holds the small binary that containers start from.
//
// It is command sonagi-runtime, built before this package is: go generate
// does it. Without it the platform's own binary does the same work, with
// three times the processor time for each container and ten times the memory.
package small

import "embed"

//go:generate env CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o bin/sonagi-runtime ./sonagi-runtime

//go:embed all:bin
var built embed.FS

// Binary returns the small binary, or nil if it was not built.
func Binary() []byte {
	binary, err := built.ReadFile("bin/sonagi-runtime")
	if err != nil {
		return nil
	}
	return binary
}
