// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Load is what wrk reports.
type Load struct {
	Requests  int64
	PerSecond float64
	P50, P99  time.Duration
	Errors    int64 // of sockets, and answers that are no 2xx or 3xx
}

// Wrk loads a server in a closed loop for a while.
func Wrk(ctx context.Context, connections int, d time.Duration, url, host string) (Load, error) {
	args := []string{"-t2", fmt.Sprint("-c", connections), fmt.Sprintf("-d%ds", max(1, int(d.Seconds()))), "--latency"}
	if host != "" {
		args = append(args, "-H", "Host: "+host)
	}
	out, err := exec.CommandContext(ctx, "wrk", append(args, url)...).CombinedOutput()
	if err != nil {
		return Load{}, fmt.Errorf("wrk %s: %w\n%s", url, err, out)
	}
	return parseWrk(string(out))
}

var (
	wrkTotal   = regexp.MustCompile(`(\d+) requests in `)
	wrkRate    = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	wrkP50     = regexp.MustCompile(`50%\s+([\d.]+)(us|ms|s)`)
	wrkP99     = regexp.MustCompile(`99%\s+([\d.]+)(us|ms|s)`)
	wrkSockets = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	wrkNot2xx  = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

func parseWrk(out string) (l Load, err error) {
	total, rate := wrkTotal.FindStringSubmatch(out), wrkRate.FindStringSubmatch(out)
	if total == nil || rate == nil {
		return l, fmt.Errorf("not a report of wrk:\n%s", out)
	}
	l.Requests, err = strconv.ParseInt(total[1], 10, 64)
	if err != nil {
		return l, fmt.Errorf("wrk: %w", err)
	}
	if l.PerSecond, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return l, fmt.Errorf("wrk: %w", err)
	}
	for re, to := range map[*regexp.Regexp]*time.Duration{wrkP50: &l.P50, wrkP99: &l.P99} {
		if m := re.FindStringSubmatch(out); m != nil {
			if *to, err = time.ParseDuration(strings.Replace(m[1]+m[2], "us", "µs", 1)); err != nil {
				return l, fmt.Errorf("wrk: %w", err)
			}
		}
	}
	for _, m := range [][]string{wrkSockets.FindStringSubmatch(out), wrkNot2xx.FindStringSubmatch(out)} {
		for _, n := range m[min(1, len(m)):] {
			v, _ := strconv.ParseInt(n, 10, 64)
			l.Errors += v
		}
	}
	return l, nil
}
