package locations

import "strings"

// arrayLiteral writes texts as PostgreSQL reads an array (PostgreSQL, "Array Input and Output Syntax"): unnest cannot take an array of arrays of
// different lengths, so the tags of many locations go as one literal each.
func arrayLiteral(texts []string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, text := range texts {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('"')
		for j := range len(text) {
			if text[j] == '"' || text[j] == '\\' {
				b.WriteByte('\\')
			}
			b.WriteByte(text[j])
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}
