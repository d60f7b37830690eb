// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"encoding/json"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// lifelineFD is where a child finds its lifeline; Child.Files follow it.
const lifelineFD = 3

// FirstFile is the file descriptor of the first of Child.Files.
const FirstFile = lifelineFD + 1

// A Reporter is the child's end of the lifeline. The zero value, of a process
// that was started by hand, reports nowhere.
type Reporter struct {
	mu   sync.Mutex
	conn *os.File
}

// Attach takes the lifeline, and calls orphaned when the supervisor is gone.
// Without a lifeline it returns a Reporter that reports nowhere.
func Attach(orphaned func()) *Reporter {
	if t, err := syscall.GetsockoptInt(lifelineFD, syscall.SOL_SOCKET, syscall.SO_TYPE); err != nil || t != syscall.SOCK_STREAM {
		return &Reporter{}
	}
	syscall.CloseOnExec(lifelineFD)
	_ = syscall.SetNonblock(lifelineFD, true)
	r := &Reporter{conn: os.NewFile(lifelineFD, "lifeline")}
	go func() {
		_, _ = io.Copy(io.Discard, r.conn)
		orphaned()
	}()
	return r
}

// Starting says that a part is being started. With Ready it makes a Reporter a run.Watcher.
func (r *Reporter) Starting(task string) { r.send(Report{Task: task, Starting: true}) }

// Ready says that a part became ready.
func (r *Reporter) Ready(task string, took time.Duration) { r.send(Report{Task: task, Took: took}) }

// AllReady says that the whole child is ready.
func (r *Reporter) AllReady() { r.send(Report{Ready: true}) }

// Failed says why the child is about to end.
func (r *Reporter) Failed(err error) { r.send(Report{Error: err.Error()}) }

// send ignores a broken lifeline: orphaned is called for that.
func (r *Reporter) send(rep Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn != nil {
		_ = json.NewEncoder(r.conn).Encode(rep)
	}
}
