package csv

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

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
		var b bytes.Buffer
		WriteRow(&b, line)
		require.True(t, strings.HasSuffix(b.String(), "\r\n"))
		got, err := csv.NewReader(&b).ReadAll()
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
