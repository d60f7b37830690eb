// SPDX-License-Identifier: Apache-2.0

package app

import (
	"encoding/json"
	"os"
	"time"

	"github.com/sonagi/sonagi/internal/supervise"
)

// A State is what the supervisor knows of its children, kept in a file so that
// "sonagi status" needs no one to answer.
type State struct {
	Pid      int                 `json:"pid"`
	Since    time.Time           `json:"since"`
	Children map[string]*Process `json:"children"`
}

// A Process is one child.
type Process struct {
	Pid       int       `json:"pid"`
	Since     time.Time `json:"since"`
	Ready     bool      `json:"ready"`
	Restarts  int       `json:"restarts"`
	LastError string    `json:"lastError,omitempty"` // of the run before this one
}

func (s Settings) stateFile() string { return s.Path("run", "state.json") }

// ReadState is the state that the running, or the last, supervisor wrote.
func ReadState(s Settings) (State, error) {
	var st State
	text, err := os.ReadFile(s.stateFile())
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(text, &st)
}

// note takes an event into the state and says whether all children are ready.
func (st *State) note(e supervise.Event) {
	p := st.Children[e.Child]
	if p == nil {
		p = &Process{Restarts: -1}
		st.Children[e.Child] = p
	}
	switch {
	case e.Exited:
		p.Ready, p.LastError = false, e.Error
	case e.Ready:
		p.Ready = true
	case e.Report == supervise.Report{}:
		p.Pid, p.Since, p.Ready = e.Pid, e.At, false
		p.Restarts++
	}
}

// ready says whether every one of n children is.
func (st *State) ready(n int) bool {
	count := 0
	for _, p := range st.Children {
		if p.Ready {
			count++
		}
	}
	return count == n
}

func (st *State) save(s Settings) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.stateFile(), text, 0o644)
}
