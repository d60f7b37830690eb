// SPDX-License-Identifier: Apache-2.0

// Package measure times the platform and its peers in the same run.
//
// Law: a figure stands beside that of a peer or a floor that was measured in
// the same run on the same machine; it is the ratio that counts, because these
// machines are shared. What could not be measured is said, not left out.
package measure

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Times are durations of the same thing.
type Times []time.Duration

// Quantile returns the smallest time that a share q of all does not exceed.
func (t Times) Quantile(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[min(len(sorted)-1, max(0, int(math.Ceil(q*float64(len(sorted))))-1))]
}

// Median is half of them.
func (t Times) Median() time.Duration { return t.Quantile(0.5) }

// Max is the longest.
func (t Times) Max() time.Duration { return t.Quantile(1) }

// String prints what is usually asked for.
func (t Times) String() string {
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s (%d)", Ms(t.Median()), Ms(t.Quantile(0.9)), Ms(t.Quantile(0.99)), len(t))
}

// Ms prints a time in milliseconds, or in seconds where that reads better.
func Ms(d time.Duration) string {
	switch {
	case d >= 2*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1e3)
	default:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	}
}

// Us prints a time in microseconds.
func Us(d time.Duration) string { return fmt.Sprintf("%.1f µs", d.Seconds()*1e6) }

// MB prints a size.
func MB(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }

// KB prints a small size.
func KB(bytes int64) string { return fmt.Sprintf("%.1f KB", float64(bytes)/1e3) }

// Ratio is a in units of b.
func Ratio[T ~int64](a, b T) float64 {
	if b == 0 {
		return math.NaN()
	}
	return float64(a) / float64(b)
}
