// SPDX-License-Identifier: Apache-2.0

// Tool is what the scenarios put into pods: its first argument says how it behaves.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	how := append(os.Args[1:], "serve")
	switch how[0] {
	case "serve":
		serve()
	case "fork":
		fork()
	case "fill":
		fill(how[1], how[2])
	case "eat":
		eat()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ignoring SIGTERM")
		forever()
	case "flood":
		flood()
	case "connect":
		connect(how[1], how[2])
	case "exit":
		code, _ := strconv.Atoi(how[1])
		os.Exit(code)
	default:
		log.Fatalf("%s?", how[0])
	}
}

func serve() {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if wait, err := time.ParseDuration(r.URL.Query().Get("wait")); err == nil {
			time.Sleep(wait)
		}
		fmt.Fprintln(w, os.Getenv("RESPONSE"))
	})
	http.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		if r.Method == http.MethodPut {
			text, err := io.ReadAll(r.Body)
			if err == nil {
				err = os.WriteFile(path, text, 0o644)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
			return
		}
		http.ServeFile(w, r, path)
	})
	log.Fatal(http.ListenAndServe(":"+port, nil))
}

// fork forks without end, and each child does too. A child of a bare fork has
// no Go runtime that works, so it makes system calls only.
func fork() {
	fmt.Println("forking")
	for {
		syscall.RawSyscall(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0)
	}
}

// fill writes into a directory until size, or for ever.
func fill(dir, size string) {
	left, _ := strconv.ParseInt(size, 10, 64)
	block := bytes.Repeat([]byte("x"), 1<<20)
	f, err := os.Create(filepath.Join(dir, "filled"))
	if err != nil {
		log.Fatal(err)
	}
	for ; left != 0; left-- {
		if _, err := f.Write(block); err != nil {
			fmt.Println(err)
			break
		}
	}
	fmt.Println("filled")
	forever()
}

func eat() {
	var eaten [][]byte
	for {
		eaten = append(eaten, bytes.Repeat([]byte("x"), 1<<20))
		_ = eaten
	}
}

func flood() {
	line := strings.Repeat("flood ", 30) + "\n"
	block := []byte(strings.Repeat(line, 300))
	for {
		if _, err := os.Stdout.Write(block); err != nil {
			os.Exit(1)
		}
	}
}

// connect opens connections that ask half a question, and keeps them.
func connect(addr, count string) {
	n, _ := strconv.Atoi(count)
	var open []net.Conn
	for range n {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: ")
		open = append(open, c)
	}
	fmt.Println("opened", len(open))
	forever()
}

func forever() {
	for {
		time.Sleep(time.Hour)
	}
}
