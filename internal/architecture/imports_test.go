// Package architecture holds the rules of the layout that no compiler checks.
package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/musique/musique"

// allowed says what each part may import of the project, beside its own packages: a part or one package of it. A part that is not listed is not known.
var allowed = map[string][]string{
	"domain":      nil,
	"commands":    {"domain", "infra"},
	"projections": {"domain", "infra"},
	"workers":     {"commands", "projections", "domain", "infra"},
	"http":        {"commands", "projections", "domain", "infra", "docs"},
	"infra":       {"domain/event"},
	"player":      {"domain"},
	"samples":     nil,
	"simulation":  nil,
	"docs":        nil,
	"cmd":         {"commands", "projections", "workers", "http", "infra", "domain", "player", "samples"},
}

// exceptions are imports that go sideways, and why. One that is not needed any more fails.
var exceptions = map[[2]string]string{
	{"projections", "commands"}: "the commands say what they ask of the read models, and projections.Reads answers it",
	{"http", "workers/inbox"}:   "the player stream tells what the delivery worker left in the inbox",
}

// source is a file that goes into the program.
type source struct {
	path string // from the root, with slashes
	pkg  string // its folder
	file *ast.File
}

// sources parses what the project is built of on any platform. Tests are not part of it, nor are packages that are there for tests (`…test`).
func sources(t *testing.T, mode parser.Mode) (all []source) {
	const root = "../.."
	require.NoError(t, filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if base := entry.Name(); name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "data" || base == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		relative, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(relative)}
		s.pkg = path.Dir(s.path)
		if !strings.HasSuffix(s.path, ".go") || strings.HasSuffix(s.path, "_test.go") || forTests(s.pkg) {
			return nil
		}
		if s.file, err = parser.ParseFile(token.NewFileSet(), name, nil, mode|parser.SkipObjectResolution); err == nil {
			all = append(all, s)
		}
		return err
	}))
	require.NotEmpty(t, all)
	return all
}

func forTests(pkg string) bool { return strings.HasSuffix(pkg, "test") }

// imports gives the packages that a file imports, those of the project by their folder.
func (s source) imports(t *testing.T) (ours, others []string) {
	for _, spec := range s.file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		require.NoError(t, err)
		if pkg, ok := strings.CutPrefix(name, module+"/"); ok {
			ours = append(ours, pkg)
		} else {
			others = append(others, name)
		}
	}
	return ours, others
}

func partOf(pkg string) string {
	part, _, _ := strings.Cut(pkg, "/")
	return part
}

// within reports whether a package is this one or lies in it.
func within(pkg, in string) bool { return pkg == in || strings.HasPrefix(pkg, in+"/") }

// http → commands, projections → domain; workers → commands, projections, domain; infra imports nothing of the others but domain/event.
func TestImportsGoDown(t *testing.T) {
	t.Parallel()
	unused := map[[2]string]bool{}
	for exception := range exceptions {
		unused[exception] = true
	}
	for _, s := range sources(t, parser.ImportsOnly) {
		part := partOf(s.pkg)
		may, known := allowed[part]
		require.True(t, known, "%s is in no part that the layout knows", s.path)
		ours, _ := s.imports(t)
		for _, pkg := range ours {
			if sideways := [2]string{part, pkg}; exceptions[sideways] != "" {
				delete(unused, sideways)
				continue
			}
			down := partOf(pkg) == part || slices.ContainsFunc(may, func(in string) bool { return within(pkg, in) })
			require.True(t, down, "%s imports %s", s.path, pkg)
			require.False(t, forTests(pkg), "%s imports %s, which is for tests", s.path, pkg)
		}
	}
	require.Empty(t, unused, "exceptions that nothing needs")
}

// Nothing but cmd knows that there are embedded parts, so nothing can depend on one.
func TestOnlyCmdKnowsTheEmbeddedStore(t *testing.T) {
	t.Parallel()
	known := false
	for _, s := range sources(t, parser.ImportsOnly) {
		ours, _ := s.imports(t)
		if slices.Contains(ours, "infra/esnode") {
			require.Equal(t, "cmd", partOf(s.pkg), s.path)
			known = true
		}
	}
	require.True(t, known)
}

// What a decision may use: packages that compute, and of those that do more only what computes.
var (
	computing = []string{
		"bytes", "cmp", "crypto/sha256", "encoding/base64", "encoding/binary", "encoding/hex", "encoding/json", "errors", "fmt", "hash/fnv", "maps", "math", "net/url", "regexp", "slices",
		"strconv", "strings", "time", "unicode", "unicode/utf8", "github.com/google/uuid",
	}
	impure = map[string][]string{
		"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer", "Local"},
		"fmt":  {"Print", "Printf", "Println", "Scan", "Scanf", "Scanln"},
		"uuid": {"New", "NewString", "NewRandom", "NewUUID", "NewV6", "NewV7"},
	}
)

// A decision follows from the events and the command: no clock, no randomness, no context, no I/O.
func TestTheDomainIsPure(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t, 0) {
		if partOf(s.pkg) != "domain" {
			continue
		}
		_, others := s.imports(t)
		for _, pkg := range others {
			require.Contains(t, computing, pkg, "%s imports %s", s.path, pkg)
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := selector.X.(*ast.Ident); ok {
					require.NotContains(t, impure[pkg.Name], selector.Sel.Name, "%s uses %s.%s", s.path, pkg.Name, selector.Sel.Name)
				}
			}
			return true
		})
	}
}
