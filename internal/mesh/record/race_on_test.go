// SPDX-License-Identifier: Apache-2.0

//go:build race

package record

// raceEnabled says that the race detector distorts what things cost.
const raceEnabled = true
