package httpapi

import (
	"mime"
	"strings"
)

// representation is a media type that an answer can have, with its parameters.
type representation struct {
	kind       string
	parameters map[string]string
}

var (
	inJSON = representation{"application/json", map[string]string{"charset": "utf-8"}}
	inCSV  = representation{"text/csv", map[string]string{"charset": "utf-8", "header": "present"}} // RFC 7111 §5.1
)

// prefersCSV reports whether CSV is taken more gladly than JSON. JSON is the answer to who takes both alike, or neither.
func prefersCSV(accept []string) bool { return inCSV.weight(accept) > inJSON.weight(accept) }

// weight is how gladly an Accept field takes the representation, in thousandths; 0 is not at all. Of the ranges that it is in, the most specific one tells (RFC
// 9110 §12.5.1). No field takes everything.
func (r representation) weight(accept []string) int {
	if len(accept) == 0 {
		return 1000
	}
	weight, closest := 0, -1
	for _, line := range accept {
		for text := range strings.SplitSeq(line, ",") { // no parameter that says anything about what is offered has a comma in it
			kind, parameters, err := mime.ParseMediaType(text)
			if err != nil {
				continue // not a range as anybody may write it
			}
			q, weighted := parameters["q"]
			delete(parameters, "q")
			said, ok := 1000, true
			if weighted {
				said, ok = weightOf("q=" + q)
			}
			if specific := r.within(kind, parameters); ok && specific > closest {
				weight, closest = said, specific
			}
		}
	}
	return weight
}

// within is how specific a media range is that has the representation in it; -1 if it has not.
func (r representation) within(kind string, parameters map[string]string) int {
	family, _, _ := strings.Cut(r.kind, "/")
	switch kind {
	case "*/*":
		return 0
	case family + "/*":
		return 1
	case r.kind:
		for name, value := range parameters {
			if !strings.EqualFold(r.parameters[name], value) {
				return -1
			}
		}
		return 2 + len(parameters)
	}
	return -1
}
