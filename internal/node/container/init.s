// SPDX-License-Identifier: Apache-2.0

// This file lets init.go declare a function that is in another package.
