// SPDX-License-Identifier: Apache-2.0

package app

import (
	"fmt"
	"os"
)

// maxLog bounds what a process log keeps from earlier starts.
const maxLog = 32 << 20 // bytes

// LogFile is where a child's log is kept.
func (s Settings) LogFile(child string) string { return s.Path("logs", child+".log") }

// openLogs opens the children's log files. A file that has grown large is kept
// once under another name.
func openLogs(s Settings) (control, node *os.File, err error) {
	if err := os.MkdirAll(s.Path("logs"), 0o755); err != nil {
		return nil, nil, fmt.Errorf("logs: %w", err)
	}
	if control, err = openLog(s.LogFile("control")); err != nil {
		return nil, nil, err
	}
	if node, err = openLog(s.LogFile("node")); err != nil {
		control.Close()
		return nil, nil, err
	}
	return control, node, nil
}

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("logs: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	return f, nil
}
