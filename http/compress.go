package httpapi

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzhttp/writer/gzkp"
	"github.com/klauspost/compress/gzip"
)

const (
	// minPacked is what a body has at least to be worth packing, in bytes: a smaller one goes in one packet either way.
	minPacked = 1 << 10
	// packLevel is how hard answers are packed. Of a page of audio, level 5 saves a hundredth more in 1.7 times the time.
	packLevel = gzip.BestSpeed
)

// pack writes a body in gzip.
func pack(into *bytes.Buffer, body []byte) { packAt(packLevel, into, body) }

func packAt(level int, into *bytes.Buffer, body []byte) {
	w := gzkp.NewWriter(into, level) // from a pool, to which Close gives it back
	_, _ = w.Write(body)             // a buffer takes everything
	_ = w.Close()
}

// prefersGzip reports whether a body of a size is to go out in gzip: its caller takes that at least as gladly as the body as it is, and it is worth it or
// nothing else is taken (RFC 9110 §12.5.3).
func prefersGzip(h http.Header, size int) bool {
	packed, plain := weights(h.Values("Accept-Encoding"))
	return packed > 0 && packed >= plain && (size >= minPacked || plain == 0)
}

// weights are how gladly gzip and no coding at all are taken, in thousandths; 0 is not at all. What is not said of no coding is that it will do.
func weights(field []string) (packed, plain int) {
	const unsaid = -1
	packed, plain, others := unsaid, unsaid, unsaid
	for _, line := range field {
		for coding := range strings.SplitSeq(line, ",") {
			name, parameter, weighted := strings.Cut(coding, ";")
			weight := 1000
			if weighted {
				var ok bool
				if weight, ok = weightOf(parameter); !ok {
					continue // not a coding as anybody may write it
				}
			}
			switch strings.ToLower(strings.Trim(name, blank)) {
			case "gzip", "x-gzip": // the same (RFC 9110 §8.4.1.3)
				packed = weight
			case "identity":
				plain = weight
			case "*":
				others = weight
			}
		}
	}
	if packed == unsaid {
		packed = max(others, 0)
	}
	if plain == unsaid {
		plain = others
	}
	if plain == unsaid {
		plain = 1
	}
	return packed, plain
}

// weightOf reads a weight (RFC 9110 §12.4.2) as thousandths.
func weightOf(parameter string) (thousandths int, ok bool) {
	name, value, _ := strings.Cut(strings.Trim(parameter, blank), "=")
	whole, part, _ := strings.Cut(value, ".")
	if name != "q" && name != "Q" || whole != "0" && whole != "1" || len(part) > 3 {
		return 0, false
	}
	n, err := strconv.Atoi(whole + (part + "000")[:3])
	return n, err == nil && n <= 1000
}
