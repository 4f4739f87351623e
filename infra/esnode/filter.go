package esnode

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/EventStore/EventStore-Client-Go/v4/protos/streams"
)

// defaultWindow is EventStoreDB's own search window where the caller sets none.
const defaultWindow = 32

// maxFilterPrefixes bounds the prefixes of one filter.
const maxFilterPrefixes = 1024

// filter selects events of `$all` by their type or their stream. The zero filter selects all.
type filter struct {
	byStream bool
	regex    *regexp.Regexp
	prefixes []string
	// checkpointEvery is after how many events looked at a subscription says how far it got; 0 is never.
	checkpointEvery int
}

func parseFilter(o *streams.ReadReq_Options_FilterOptions) (filter, error) {
	if o == nil {
		return filter{}, nil
	}
	expression := o.GetEventType()
	f := filter{}
	if expression == nil {
		expression, f.byStream = o.GetStreamIdentifier(), true
	}
	switch {
	case expression.GetRegex() != "":
		regex, err := regexp.Compile(expression.GetRegex())
		if err != nil {
			return filter{}, fmt.Errorf("filter: %w", err)
		}
		f.regex = regex
	case len(expression.GetPrefix()) > maxFilterPrefixes:
		return filter{}, fmt.Errorf("filter: more than %d prefixes", maxFilterPrefixes)
	default:
		f.prefixes = expression.GetPrefix()
	}
	window := defaultWindow
	if o.GetMax() > 0 {
		window = int(o.GetMax())
	}
	f.checkpointEvery = window * max(int(o.GetCheckpointIntervalMultiplier()), 1)
	return f, nil
}

func (f filter) matches(e *recorded) bool {
	if f.regex == nil && len(f.prefixes) == 0 {
		return true
	}
	subject := e.Metadata["type"]
	if f.byStream {
		subject = string(e.StreamIdentifier.StreamName)
	}
	if f.regex != nil {
		return f.regex.MatchString(subject)
	}
	for _, p := range f.prefixes {
		if strings.HasPrefix(subject, p) {
			return true
		}
	}
	return false
}
