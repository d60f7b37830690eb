// SPDX-License-Identifier: Apache-2.0

// Package volume fills the volumes of a pod.
package volume
