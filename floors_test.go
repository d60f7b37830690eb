// SPDX-License-Identifier: Apache-2.0

package sonagi

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sonagi/sonagi"

// plan is floors.txt, read.
type plan struct {
	floor  map[string]int
	about  map[string]string
	stairs map[[2]string]bool
	doors  map[string][]string
	types  []string
}

// quietStd is what rules, api and plans may use of the standard library.
var quietStd = strings.Fields("bytes cmp context crypto/tls crypto/x509 embed encoding/hex encoding/json errors fmt hash/adler32 hash/fnv iter maps math math/big math/bits net/netip net/url path reflect regexp slices sort strconv strings sync sync/atomic time unicode unicode/utf8")

// clockReads are the functions of package time that ask what time it is.
var clockReads = strings.Fields("Now Since Until After AfterFunc Sleep Tick NewTimer NewTicker")

func TestFloors(t *testing.T) {
	p := readPlan(t)
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && file != "." && isModule(file) {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return err
		}
		room := filepath.ToSlash(filepath.Dir(file))
		floor, ok := p.floor[room]
		if !ok {
			t.Errorf("%s is not in floors.txt", room)
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if f.Doc != nil {
			seen[room] = true
			want := "Package " + f.Name.Name + " " + p.about[room] + "."
			if f.Name.Name == "main" {
				want = "Command " + path.Base(room) + " " + p.about[room] + "."
			}
			if got := new(doc.Package).Synopsis(f.Doc.Text()); got != want {
				t.Errorf("%s: doc says %q, floors.txt says %q", room, got, want)
			}
		}
		for _, spec := range f.Imports {
			p.checkImport(t, room, floor, strings.Trim(spec.Path.Value, `"`))
		}
		if floor <= 2 {
			checkQuiet(t, file, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range p.floor {
		if !seen[room] {
			t.Errorf("%s is in floors.txt but has no package doc", room)
		}
	}
}

func (p *plan) checkImport(t *testing.T, room string, floor int, imp string) {
	to, ours := strings.CutPrefix(imp, module+"/")
	switch {
	case ours:
		toFloor, known := p.floor[to]
		up := toFloor >= floor && !p.stairs[[2]string{room, to}]
		otherWing := wing(room) != wing(to) && toFloor != 0 && toFloor != 1 && toFloor != 3 && floor < 5
		if !known || up || otherWing {
			t.Errorf("%s (floor %d) may not import %s (floor %d)", room, floor, to, toFloor)
		}
	case strings.Contains(strings.Split(imp, "/")[0], "."):
		for door, who := range p.doors {
			if strings.HasPrefix(imp, door) && !slices.ContainsFunc(who, func(w string) bool {
				return strings.HasPrefix(room+"/", w) || room == w || (w[0] == '/' && strings.HasSuffix(room, w))
			}) {
				t.Errorf("%s may not open %s", room, door)
			}
		}
		if floor == 0 || floor <= 2 && !slices.ContainsFunc(p.types, func(t string) bool { return imp == t || strings.HasPrefix(imp, t+"/") }) {
			t.Errorf("%s (floor %d) may not import %s", room, floor, imp)
		}
	case floor <= 2 && !slices.Contains(quietStd, imp):
		t.Errorf("%s (floor %d) may not import %s", room, floor, imp)
	}
}

// checkQuiet reports goroutines and clock reads.
func checkQuiet(t *testing.T, file string, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			t.Errorf("%s starts a goroutine", file)
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clockReads, n.Sel.Name) {
				t.Errorf("%s calls time.%s; take the time as an argument", file, n.Sel.Name)
			}
		}
		return true
	})
}

// isModule says whether dir is a module of its own, and so no part of the house.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// wing is the part of the house a room is in: internal/mesh/authz is in mesh.
func wing(room string) string {
	parts := strings.Split(room, "/")
	return path.Join(parts[:min(2, len(parts))]...)
}

func readPlan(t *testing.T) *plan {
	text, err := os.ReadFile("floors.txt")
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{map[string]int{}, map[string]string{}, map[[2]string]bool{}, map[string][]string{}, nil}
	section, floor := "", -1
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
		case line[0] != '\t':
			section = words[0]
			if section == "floor" {
				floor++
			}
		case section == "floor":
			p.floor[words[0]] = floor
			p.about[words[0]] = strings.Join(words[1:], " ")
		case section == "stairs":
			p.stairs[[2]string{words[0], words[2]}] = true
		case section == "types":
			p.types = append(p.types, words...)
		case section == "doors":
			p.doors[words[0]] = words[1:]
		}
	}
	return p
}
