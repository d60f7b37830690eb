// SPDX-License-Identifier: Apache-2.0

// Package build builds a source directory into an image.
package build

import (
	"context"
	"errors"
)

// Options say what to build and where the image goes.
type Options struct {
	Dir        string       // the program's source
	Base       string       // image to build on; empty: an empty one, made here
	Platform   string       // as linux/amd64; empty: this machine's
	Repository string       // as 127.0.0.1:5000/hello
	Tag        string       // empty: latest
	Progress   func(string) // is given lines for a person
}

// Go builds the Go program in a directory, pushes the image and returns its
// name by digest.
func Go(ctx context.Context, o Options) (string, error) { return "", errors.New("not built yet") }
