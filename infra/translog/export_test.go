package translog

import "os"

func init() { flush = func(*os.File) error { return nil } }

// For tests.
var (
	SplitNotes   = splitNotes
	SplitEntries = splitEntries
	ReadHead     = readHead
	TilePath     = tilePath
)

// EntriesLevel is where TilePath has the bundles of entries.
const EntriesLevel = entriesLevel
