package readmodel

import (
	"strings"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Fold is a text as it is searched: without regard to case (Unicode Standard §3.13, default case folding) and to how accents are put together (NFC). What
// PostgreSQL's ILIKE takes for the same depends on the locale that its cluster was made with.
func Fold(text string) string {
	folded := cases.Fold().String(norm.NFC.String(text))
	return norm.NFC.String(strings.ToLower(folded)) // letters of Cherokee are folded into each other
}
