// Package docs holds what partners and analytics teams read, for the server to show.
package docs

import "embed"

// Partners are the guides, in Markdown.
//
//go:embed partners/*.md
var Partners embed.FS

// Guides are their names in the order that they are read in.
var Guides = []string{"quickstart", "authentication", "errors", "limits", "idempotency", "pagination", "audit", "sending", "sandbox", "going-live", "players", "endpoints"}

// Events are the JSON Schemas of the public events, and the AsyncAPI document of their topics.
//
//go:embed events/schemas/*.json events/asyncapi.json
var Events embed.FS
