// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Purge removes all of a store that no process has open: what is mounted in
// it, then its files. The containers that used it must have ended.
func Purge(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("purging images: %w", err)
	}
	mounted, err := mountsBelow(dir)
	if err != nil {
		return fmt.Errorf("purging images: %w", err)
	}
	for _, at := range mounted {
		if err := unmount(at); err != nil {
			return fmt.Errorf("purging images: %w", err) // what is still mounted must not be removed through
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("purging images: %w", err)
	}
	return nil
}

// mountsBelow lists what is mounted below a directory, the last mounted first.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The kernel writes these four as octal numbers.
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // a line has all the layers of a mount
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, errors.New("/proc/self/mountinfo is not as expected")
		}
		if at := plain.Replace(fields[4]); strings.HasPrefix(at, dir+"/") {
			found = append(found, at)
		}
	}
	slices.Reverse(found)
	return found, lines.Err()
}
