// Package docs holds what partners read, for the server to show.
package docs

import "embed"

// Partners are the guides, in Markdown.
//
//go:embed partners/*.md
var Partners embed.FS

// Guides are their names in the order that they are read in.
var Guides = []string{"quickstart", "authentication", "errors", "limits", "idempotency", "pagination", "sending", "sandbox", "going-live", "players", "endpoints"}
