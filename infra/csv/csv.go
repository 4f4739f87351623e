// Package csv writes CSV (RFC 4180) that spreadsheets can be trusted with.
package csv

import (
	"bytes"
	"strings"
)

// WriteRow writes a line. A value that a spreadsheet would take for a formula is told not to be one by an apostrophe before it (OWASP, "CSV Injection").
// encoding/csv would change the line breaks in a value.
func WriteRow(b *bytes.Buffer, cells []string) {
	for i, cell := range cells {
		if i > 0 {
			b.WriteByte(',')
		}
		writeCell(b, cell)
	}
	b.WriteString("\r\n")
}

func writeCell(b *bytes.Buffer, cell string) {
	if cell != "" && strings.IndexByte("=+-@\t\r", cell[0]) >= 0 {
		cell = "'" + cell
	}
	if !strings.ContainsAny(cell, "\",\r\n") {
		b.WriteString(cell)
		return
	}
	b.WriteByte('"')
	b.WriteString(strings.ReplaceAll(cell, `"`, `""`))
	b.WriteByte('"')
}
