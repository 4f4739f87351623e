package readmodel

import "strings"

var likeEscapes = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// Containing is the LIKE pattern of texts that contain a text; "" for an empty one.
func Containing(text string) string {
	if text == "" {
		return ""
	}
	return "%" + likeEscapes.Replace(strings.ReplaceAll(text, "\x00", "\uFFFD")) + "%"
}
