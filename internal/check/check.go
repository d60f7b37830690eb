// SPDX-License-Identifier: Apache-2.0

// Package check says what this machine lacks and what to do about it.
//
// Law: a check is a value with a name, and its answer is one sentence that
// says what is wrong and one that says the remedy. Checks change nothing.
package check

import (
	"errors"
	"fmt"
	"strings"
)

// A Check looks at one thing that the platform needs.
type Check struct {
	Name string
	Run  func() error // a *Problem, or nil
}

// A Problem is what a check found, in words for the person at the keyboard.
type Problem struct {
	What   string
	Remedy string
}

// Error is the sentence and the remedy.
func (p *Problem) Error() string { return p.What + ". " + p.Remedy + "." }

func problem(remedy, format string, args ...any) error {
	return &Problem{What: fmt.Sprintf(format, args...), Remedy: remedy}
}

// All runs every check and joins the problems, so that a person mends them in one go.
func All(checks []Check) error {
	var found []error
	for _, c := range checks {
		if err := c.Run(); err != nil {
			found = append(found, err)
		}
	}
	if len(found) <= 1 {
		return errors.Join(found...)
	}
	var lines []string
	for _, err := range found {
		lines = append(lines, "  - "+err.Error())
	}
	return fmt.Errorf("this machine is not ready yet:\n%s", strings.Join(lines, "\n"))
}
