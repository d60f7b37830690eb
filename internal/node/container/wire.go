// SPDX-License-Identifier: Apache-2.0

package container

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A message is four bytes of length, big-endian, and that much JSON. Files
// travel with the first byte of the message they belong to.
const (
	maxMessage = 4 << 20
	maxFiles   = 8
)

// request is what the client asks.
type request struct {
	Op     string    `json:"op"`
	ID     string    `json:"id,omitempty"`
	Spec   *Spec     `json:"spec,omitempty"`
	Exec   *ExecSpec `json:"exec,omitempty"`
	Signal int       `json:"signal,omitempty"`
	Size   *Size     `json:"size,omitempty"`
	Has    [3]bool   `json:"has,omitzero"` // which of stdin, stdout, stderr come with it
}

// reply is what the runtime answers.
type reply struct {
	Error    *wireError `json:"error,omitempty"`
	Started  *Started   `json:"started,omitempty"`
	Statuses []Status   `json:"statuses,omitempty"`
	Event    *Event     `json:"event,omitempty"`
	Usage    *Usage     `json:"usage,omitempty"`
	ExitCode int        `json:"exitCode,omitempty"`
	Version  string     `json:"version,omitempty"`
}

// wireError carries an error over the socket.
type wireError struct {
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message"`
}

// kinds are the errors that keep their identity over the socket.
func kinds() map[string]error {
	return map[string]error{"notFound": ErrNotFound, "exists": ErrExists, "notRunning": ErrNotRunning}
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	var start *StartError
	if errors.As(err, &start) {
		return &wireError{Kind: start.Reason, Message: start.Message}
	}
	for kind, known := range kinds() {
		if errors.Is(err, known) {
			return &wireError{Kind: kind, Message: err.Error()}
		}
	}
	return &wireError{Message: err.Error()}
}

// remoteError reads as it read in the runtime, and is what it was there.
type remoteError struct {
	message string
	is      error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.is }

func fromWire(w *wireError) error {
	switch {
	case w == nil:
		return nil
	case w.Kind == "":
		return errors.New(w.Message)
	case kinds()[w.Kind] != nil:
		return &remoteError{w.Message, kinds()[w.Kind]}
	}
	return &StartError{Reason: w.Kind, Message: w.Message}
}

// send writes one message, with files.
func send(c *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes is larger than %d", len(body), maxMessage)
	}
	message := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	if len(files) == 0 {
		_, err = c.Write(message)
		return err
	}
	n, _, err := c.WriteMsgUnix(message, unix.UnixRights(fds(files)...), nil)
	if err == nil && n < len(message) {
		_, err = c.Write(message[n:])
	}
	return err
}

// receive reads one message, and the files that came with it, which belong
// to the caller.
func receive(c *net.UnixConn, v any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := c.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if files, err = parseFiles(oob[:oobn]); err != nil {
		return files, err
	}
	if _, err = io.ReadFull(c, head[n:]); err != nil {
		return files, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxMessage {
		return files, fmt.Errorf("message of %d bytes is larger than %d", size, maxMessage)
	}
	body := make([]byte, size)
	if _, err = io.ReadFull(c, body); err != nil {
		return files, err
	}
	if err = json.Unmarshal(body, v); err != nil {
		return files, fmt.Errorf("decode message: %w", err)
	}
	return files, nil
}

func parseFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for _, m := range messages {
		rights, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, not files
		}
		for _, fd := range rights {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func fds(files []*os.File) []int {
	out := make([]int, len(files))
	for i, f := range files {
		out[i] = int(f.Fd())
	}
	return out
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
