// SPDX-License-Identifier: Apache-2.0

// Package build builds a source directory into an image.
//
// The same source gives the same image, so that deploying twice what has not
// changed makes one revision. Nothing is fetched to build on unless a base is
// named; what Go itself needs comes from where the user's Go gets it.
package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Options say what to build and where the image goes.
type Options struct {
	Dir        string       // the program's source
	Base       string       // image to build on; empty: an empty one, made here
	Platform   string       // as linux/amd64; empty: Linux on this machine's processor
	Repository string       // as 127.0.0.1:5000/hello
	Tag        string       // empty: latest
	Progress   func(string) // is given lines for a person
}

// A Language is what a program is written in.
type Language string

const LanguageGo Language = "go"

// What a person has to change, for errors.Is.
var (
	ErrNoProgram   = errors.New("no program to build")
	ErrNoToolchain = errors.New("the Go toolchain is not installed")
	ErrCompile     = errors.New("go build failed")
)

// markers are files that tell the language of a directory.
var markers = []struct {
	file     string
	language Language
	name     string
}{
	{"go.mod", LanguageGo, "Go"},
	{"go.work", LanguageGo, "Go"},
	{"package.json", "", "Node.js"},
	{"pyproject.toml", "", "Python"},
	{"requirements.txt", "", "Python"},
	{"pom.xml", "", "Java"},
	{"build.gradle", "", "Java"},
	{"Cargo.toml", "", "Rust"},
	{"Dockerfile", "", "container"},
	{"Containerfile", "", "container"},
}

// Detect tells the language of the program in a directory, or what to do when
// it cannot be built.
func Detect(dir string) (Language, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoProgram, err)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("%w: %s is not a directory", ErrNoProgram, dir)
	}
	for _, m := range markers {
		if !isFile(filepath.Join(dir, m.file)) {
			continue
		}
		if m.language == "" {
			return "", fmt.Errorf("%w: %s has %s; %s programs cannot be built here yet: build an image with your own tools, push it to the built-in registry and name it with `kn service create --image`", ErrNoProgram, dir, m.file, m.name)
		}
		return m.language, nil
	}
	if inGoModule(dir) {
		return LanguageGo, nil
	}
	if sources, _ := filepath.Glob(filepath.Join(dir, "*.go")); len(sources) > 0 {
		return "", fmt.Errorf("%w: %s has Go files and no go.mod: run `go mod init example.com/%s` there", ErrNoProgram, dir, filepath.Base(dir))
	}
	return "", fmt.Errorf("%w: no go.mod in %s: name the directory of a Go program", ErrNoProgram, dir)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// inGoModule reports whether a directory with Go files is a part of a module
// whose go.mod lies above it.
func inGoModule(dir string) bool {
	if sources, _ := filepath.Glob(filepath.Join(dir, "*.go")); len(sources) == 0 {
		return false
	}
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		if isFile(filepath.Join(up, "go.mod")) {
			return true
		}
		if up == filepath.Dir(up) {
			return false
		}
	}
}

// Go builds the Go program in a directory, pushes the image and returns its
// name by digest.
func Go(ctx context.Context, o Options) (string, error) {
	o.Tag = cmp.Or(o.Tag, "latest")
	o.Platform = o.platform()
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return "", fmt.Errorf("building %s: %w", o.Dir, err)
	}
	o.Dir = dir
	if _, err := Detect(o.Dir); err != nil {
		return "", err
	}
	if _, err := exec.LookPath("go"); err != nil {
		return "", fmt.Errorf("%w: install it from https://go.dev/dl/ or put its bin directory into PATH", ErrNoToolchain)
	}
	program, err := findMain(ctx, o.Dir)
	if err != nil {
		return "", err
	}
	o.Progress(fmt.Sprintf("building %s for %s", program, o.Platform))
	img, err := compile(ctx, o, program)
	if err != nil {
		return "", err
	}
	return push(ctx, o, img)
}

func (o Options) platform() string { return cmp.Or(o.Platform, "linux/"+runtime.GOARCH) }

// findMain finds the one program of a directory, in it or below it.
func findMain(ctx context.Context, dir string) (string, error) {
	here, err := listMains(ctx, dir, ".")
	if err == nil && len(here) == 1 {
		return here[0], nil
	}
	// The directory may have no Go files itself; what is below it decides.
	all, allErr := listMains(ctx, dir, "./...")
	if allErr != nil {
		return "", allErr
	}
	switch {
	case len(all) == 0 && err != nil && !strings.Contains(err.Error(), "no Go files"):
		return "", err
	case len(all) == 0:
		return "", fmt.Errorf("%w: %s has no package main", ErrNoProgram, dir)
	case len(all) > 1:
		return "", fmt.Errorf("%w: %s has several: %s; name the directory of one", ErrNoProgram, dir, strings.Join(all, ", "))
	}
	return all[0], nil
}

func listMains(ctx context.Context, dir, pattern string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-f", `{{if eq .Name "main"}}{{.ImportPath}}{{end}}`, pattern)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("%w:\n%s", ErrCompile, strings.TrimSpace(stderr.String()))
	}
	mains := strings.Fields(stdout.String())
	slices.Sort(mains)
	return mains, nil
}
