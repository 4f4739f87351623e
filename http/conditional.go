package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/musique/musique/domain/fault"
)

// refuseConditions refuses what makes a request depend on a tag or a time (RFC 9110 §13.1) where nothing would keep to it: what is changed has no tag to be compared
// with, and doing it all the same is what whoever asks so wants to be kept from. A read knows If-None-Match, and may ignore If-Modified-Since, since nothing
// that it tells has a time (RFC 9110 §13.1.3).
func refuseConditions(r *http.Request) error {
	refused := []string{"If-Match", "If-None-Match", "If-Unmodified-Since"}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		refused = []string{"If-Match", "If-Unmodified-Since"}
	}
	var fields fault.Fields
	for _, name := range refused {
		if len(r.Header.Values(name)) > 0 {
			fields.Add(name, fault.InvalidFormat, "%s is not understood here, and nothing was done; leave it out.", name)
		}
	}
	return fields.Err()
}

// hashOf tells contents apart: 128 bits of their SHA-256, in hex.
func hashOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:16])
}

// weakTag is the entity tag of an answer with these contents (RFC 9110 §8.8.3). It is weak: answers that say the same differ in their time, and in their coding.
func weakTag(content []byte) string { return `W/"` + hashOf(content) + `"` }

// noneMatch reports whether an If-None-Match field (RFC 9110 §13.1.2) names a tag, or anything, so that the caller has what it asks for already. The tags are
// compared weakly. A field that is not well formed names nothing.
func noneMatch(field []string, tag string) bool {
	rest := strings.Join(field, ",") // RFC 9110 §5.3
	if strings.Trim(rest, blank) == "*" {
		return true
	}
	opaque, named := strings.TrimPrefix(tag, "W/"), false
	for {
		rest = strings.TrimLeft(rest, blank+",") // a list may have empty members (RFC 9110 §5.6.1.2)
		if rest == "" {
			return named
		}
		size := opaqueTagLength(strings.TrimPrefix(rest, "W/"))
		if size == 0 {
			return false
		}
		rest = strings.TrimPrefix(rest, "W/")
		named = named || rest[:size] == opaque
		if rest = strings.TrimLeft(rest[size:], blank); rest != "" && rest[0] != ',' {
			return false
		}
	}
}

// blank is the optional whitespace of a header field (RFC 9110 §5.6.3).
const blank = " \t"

// opaqueTagLength is the length of the opaque-tag (RFC 9110 §8.8.3) that a text begins with, quotes included; 0 if it begins with none.
func opaqueTagLength(s string) int {
	if s == "" || s[0] != '"' {
		return 0
	}
	for i := 1; i < len(s); i++ {
		switch b := s[i]; {
		case b == '"':
			return i + 1
		case b <= ' ', b == 0x7f:
			return 0
		}
	}
	return 0
}
