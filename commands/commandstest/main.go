package commandstest

import (
	"context"
	"fmt"
	"os"
	"testing"
)

// Main runs a package's tests. What start makes is there for all of them, and ends after the last.
func Main(m *testing.M, start func(testing.TB)) (code int) {
	all := &whole{}
	defer all.end()
	start(all)
	return m.Run()
}

// whole stands for the whole run of a package's tests, so that what takes a test can be made for all of them. A failure is a panic: there is no test
// yet that could tell it, or none any more.
type whole struct {
	testing.TB // what is not below is not for use before the tests run

	cleanups []func()
}

func (w *whole) Helper()                           {}
func (w *whole) Context() context.Context          { return context.Background() }
func (w *whole) Cleanup(f func())                  { w.cleanups = append(w.cleanups, f) }
func (w *whole) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (w *whole) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (w *whole) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (w *whole) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (w *whole) FailNow()                          { panic("the parts that the tests share cannot be made") }

func (w *whole) TempDir() string {
	dir, err := os.MkdirTemp("", "musique-test-")
	if err != nil {
		panic(err)
	}
	w.Cleanup(func() { _ = os.RemoveAll(dir) }) // a folder left behind harms no test
	return dir
}

// end undoes what was made, the last first.
func (w *whole) end() {
	for i := len(w.cleanups) - 1; i >= 0; i-- {
		w.cleanups[i]()
	}
}
