// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A Row is one figure with its peer's.
type Row struct {
	What        string // was measured
	Ours, Peers string // in absolute figures
	Peer        string // who that is
	Ratio       float64
	Target      string // in words of the promise
	Met         bool
	Unjudged    bool // a figure beside the others, without a promise
}

func (r Row) cells() []string {
	ratio, met := "–", "no"
	if !math.IsNaN(r.Ratio) && r.Ratio != 0 {
		ratio = fmt.Sprintf("%.2f", r.Ratio)
	}
	switch {
	case r.Unjudged:
		met = "–"
	case r.Met:
		met = "yes"
	}
	return []string{r.What, or(r.Ours, "–"), or(r.Peers, "–"), or(r.Peer, "–"), ratio, or(r.Target, "–"), met}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// heading is the first two lines of a table.
const heading = "| what | Sonagi | peer | who that is | ratio | target | met |\n|---|---|---|---|---|---|---|\n"

// Table prints rows in Markdown.
func Table(rows []Row) string {
	var b strings.Builder
	b.WriteString(heading)
	for _, r := range rows {
		b.WriteString("| " + strings.Join(r.cells(), " | ") + " |\n")
	}
	return b.String()
}

// Publish replaces the table of one benchmark in a README: what stands between
// <!-- name --> and <!-- /name -->.
func Publish(readme, name string, rows []Row, notes string) error {
	text, err := os.ReadFile(readme)
	if err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	body := fmt.Sprintf("\n%s, %s.\n\n%s", time.Now().Format("2 January 2006"), Machine(), Table(rows))
	if notes != "" {
		body += "\n```\n" + strings.TrimRight(notes, "\n") + "\n```\n"
	}
	next, err := splice(string(text), name, body)
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(next), 0o644)
}

func splice(text, name, body string) (string, error) {
	begin, end := "<!-- "+name+" -->", "<!-- /"+name+" -->"
	head, rest, ok := strings.Cut(text, begin)
	if !ok {
		return "", fmt.Errorf("no %s", begin)
	}
	_, tail, ok := strings.Cut(rest, end)
	if !ok {
		return "", fmt.Errorf("no %s", end)
	}
	return head + begin + "\n" + strings.Trim(body, "\n") + "\n" + end + tail, nil
}

// Machine describes where the figures come from.
func Machine() string {
	model := "unknown processor"
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s, Linux %s", runtime.NumCPU(), model, strings.TrimSpace(string(kernel)))
}

// Root is the repository: this file is in bench/measure.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}
