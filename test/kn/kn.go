// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package kn pins the real kn, which the scenarios use as a user would. It is a
// module of its own, since kn and the platform need different versions of
// their shared dependencies.
package kn

import _ "knative.dev/client/cmd/kn"
