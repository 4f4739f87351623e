package httpapi

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestWhoPrefersCSV(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		accept []string
		want   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"*/*"}, false},
		{[]string{"application/json"}, false},
		{[]string{"text/csv"}, true},
		{[]string{"Text/CSV"}, true},
		{[]string{"text/*"}, true},
		{[]string{"text/csv, application/json"}, false},
		{[]string{"application/json;q=0.9, text/csv"}, true},
		{[]string{"application/json", "text/csv;q=0.9"}, false},
		{[]string{"application/json;q=0.9", "text/csv"}, true},
		{[]string{"text/csv;q=0.5, */*;q=0.1"}, true},
		{[]string{"text/csv;q=0.1, */*;q=0.5"}, false},
		{[]string{"text/csv;q=0"}, false},
		{[]string{"text/csv;q=0, text/*"}, false},
		{[]string{"text/csv;q=0.001"}, true},
		{[]string{"application/json;q=0, */*"}, true},
		{[]string{"text/csv; header=present"}, true},
		{[]string{"text/csv; charset=UTF-8; header=present"}, true},
		{[]string{"text/csv; header=absent"}, false},
		{[]string{"text/csv; header=present; q=0.2, text/csv, application/json; q=0.5"}, false},
		{[]string{"text/csv;charset=iso-8859-1"}, false},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, false},
		{[]string{"application/xml"}, false},
		{[]string{"application/*, text/csv;q=0.5"}, false},
		{[]string{"nonsense/, text/csv"}, true},
		{[]string{"text/csv;q=2"}, false},
		{[]string{"text/csv;q=high, */*;q=0.1"}, false},
	} {
		require.Equal(t, c.want, prefersCSV(c.accept), "%q", c.accept)
	}
}

func FuzzAccept(f *testing.F) {
	for _, accept := range []string{"text/csv", "*/*;q=0.1", "text/csv;header=present;q=0.5,application/json", "a/b;\"", ",,;q="} {
		f.Add(accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		for _, r := range []representation{inJSON, inCSV} {
			weight := r.weight([]string{accept})
			require.True(t, weight >= 0 && weight <= 1000)
		}
	})
}

func TestCells(t *testing.T) {
	t.Parallel()
	for cell, want := range map[string]string{
		"":                         "",
		"store_001":                "store_001",
		"a,b":                      `"a,b"`,
		`say "no"`:                 `"say ""no"""`,
		"one\ntwo":                 "\"one\ntwo\"",
		"one\r\ntwo":               "\"one\r\ntwo\"",
		"=1+1":                     "'=1+1",
		"+1":                       "'+1",
		"-1":                       "'-1",
		"@SUM(A1)":                 "'@SUM(A1)",
		"\tx":                      "'\tx",
		"\rx":                      "\"'\rx\"",
		`=HYPERLINK("http://x";1)`: `"'=HYPERLINK(""http://x"";1)"`,
		"a=1":                      "a=1",
		"'quoted'":                 "'quoted'",
		"Süd":                      "Süd",
	} {
		var b bytes.Buffer
		writeCell(&b, cell)
		require.Equal(t, want, b.String())
	}
}

// What is written is read back as it was, but for the apostrophe, and no cell begins as a formula does.
func TestCellsComeBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"=", "+", "-", "@", "\t", "\r", "\n", ",", `"`, "'", " ", "a", "é"})
		line := []string{"first"}
		for range rapid.IntRange(1, 4).Draw(t, "cells") {
			line = append(line, strings.Join(rapid.SliceOfN(part, 0, 6).Draw(t, "cell"), ""))
		}
		var f csvFile
		f.row(line)
		require.True(t, strings.HasSuffix(f.rows.String(), "\r\n"))
		got, err := csv.NewReader(&f.rows).ReadAll()
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Len(t, got[0], len(line))
		for i, cell := range got[0] {
			require.False(t, cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])), cell)
			want := strings.ReplaceAll(line[i], "\r\n", "\n") // the reader does so
			require.Contains(t, []string{want, "'" + want}, cell)
		}
	})
}
