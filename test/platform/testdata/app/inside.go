// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A seen is what the app finds at a path.
type seen struct {
	Error, Kind, Mode, Link, Text string
	Owner                         [2]uint32
	Read, Write                   string // why not; empty: it can be
}

// inside tells how the world looks from in here: who we are, what was given to
// us, and what is at the paths that were asked for.
func inside(w http.ResponseWriter, r *http.Request) {
	cwd, _ := os.Getwd()
	groups, _ := os.Getgroups()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	status, _ := os.ReadFile("/proc/self/status")
	_, stdin := os.Stdin.Read(make([]byte, 1))
	host, _ := os.Hostname()
	paths := map[string]seen{}
	for _, path := range r.URL.Query()["path"] {
		paths[path] = look(path)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"args": os.Args, "env": os.Environ(), "uid": os.Getuid(), "euid": os.Geteuid(), "gid": os.Getgid(), "groups": groups, "pid": os.Getpid(),
		"cwd": cwd, "host": host, "mounts": strings.Split(string(mounts), "\n"), "status": string(status), "stdinEnds": errors.Is(stdin, io.EOF),
		"paths": paths,
	})
}

func look(path string) (s seen) {
	s.Link, _ = os.Readlink(path)
	info, err := os.Stat(path)
	if err != nil {
		return seen{Error: err.Error(), Link: s.Link}
	}
	s.Mode = info.Mode().String()
	s.Kind = map[bool]string{true: "directory", false: "file"}[info.IsDir()]
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		s.Owner = [2]uint32{st.Uid, st.Gid}
	}
	if info.IsDir() {
		if _, err := os.ReadDir(path); err != nil {
			s.Read = err.Error()
		}
		f, err := os.CreateTemp(path, "try")
		if err != nil {
			s.Write = err.Error()
			return s
		}
		f.Close()
		os.Remove(f.Name())
		return s
	}
	if f, err := os.Open(path); err != nil {
		s.Read = err.Error()
	} else if info.Mode().IsRegular() {
		text, _ := io.ReadAll(io.LimitReader(f, 4096))
		s.Text = string(text)
		f.Close()
	} else {
		f.Close()
	}
	if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		s.Write = err.Error()
	} else {
		f.Close()
	}
	return s
}

var (
	wellAt   = time.Now()
	sick     atomic.Bool
	alive    atomic.Int64 // how often it was asked whether it lives
	noticed  atomic.Int64 // milliseconds from when it was well until that was found out
	lastSeen atomic.Value // headers of the latest question after its health
)

// begin reads from the environment when the app is to be well.
func begin() {
	if wait, err := time.ParseDuration(os.Getenv("READY_DELAY")); err == nil {
		wellAt = time.Now().Add(wait)
	}
}

// wellness answers probes.
func wellness(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("live") {
		alive.Add(1)
	}
	lastSeen.Store(r.Header.Clone())
	if sick.Load() || time.Now().Before(wellAt) {
		http.Error(w, "not well", http.StatusServiceUnavailable)
		return
	}
	noticed.CompareAndSwap(0, max(1, time.Since(wellAt).Milliseconds()))
	fmt.Fprint(w, "well")
}

// probed tells how often and with what headers its health was asked for.
func probed(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{"alive": alive.Load(), "noticed": noticed.Load(), "header": lastSeen.Load()})
}

// crash ends the app with a code after having said why.
func crash(_ http.ResponseWriter, r *http.Request) {
	fmt.Println(r.URL.Query().Get("say"))
	code := 0
	_, _ = fmt.Sscan(r.URL.Query().Get("code"), &code)
	os.Exit(code)
}

// say prints, to standard output and to standard error.
func say(w http.ResponseWriter, r *http.Request) {
	fmt.Println(r.URL.Query().Get("out"))
	fmt.Fprintln(os.Stderr, r.URL.Query().Get("err"))
	fmt.Fprint(w, "said")
}

// do is the app as a command: in an init container, or asked by a probe.
func do(args []string) {
	switch {
	case args[0] == "write" && len(args) == 3:
		if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case args[0] == "get" && len(args) == 2:
		resp, err := http.Get(args[1])
		if err != nil || resp.StatusCode != http.StatusOK {
			fmt.Fprintln(os.Stderr, "no", err)
			os.Exit(1)
		}
		os.Exit(0)
	case args[0] == "processes":
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if name := e.Name(); name[0] >= '0' && name[0] <= '9' {
				fmt.Println(name)
			}
		}
		os.Exit(0)
	}
}
