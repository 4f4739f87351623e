package audiofile_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var le = binary.LittleEndian

// riff makes a WAVE file of chunks.
func riff(chunks ...[]byte) []byte {
	b := []byte("RIFF\x00\x00\x00\x00WAVE")
	for _, c := range chunks {
		b = append(b, c...)
	}
	le.PutUint32(b[4:], uint32(len(b)-8))
	return b
}

func chunk(id string, body []byte) []byte {
	b := append(le.AppendUint32([]byte(id), uint32(len(body))), body...)
	if len(body)%2 == 1 {
		b = append(b, 0)
	}
	return b
}

func wavFormat(tag, channels, rate, bits int) []byte {
	b := le.AppendUint16(nil, uint16(tag))
	b = le.AppendUint16(b, uint16(channels))
	b = le.AppendUint32(b, uint32(rate))
	b = le.AppendUint32(b, uint32(rate*channels*bits/8))
	b = le.AppendUint16(b, uint16(channels*bits/8))
	return chunk("fmt ", le.AppendUint16(b, uint16(bits)))
}

func TestWAV(t *testing.T) {
	t.Parallel()
	second := func(tag, channels, rate, bits int, more ...[]byte) []byte {
		return riff(append([][]byte{wavFormat(tag, channels, rate, bits), chunk("data", make([]byte, rate*channels*bits/8))}, more...)...)
	}
	for name, b := range map[string][]byte{
		"8 bit":                 second(1, 1, 11025, 8),
		"16 bit":                second(1, 2, 44100, 16),
		"24 bit":                second(1, 2, 48000, 24),
		"32 bit":                second(1, 6, 8000, 32),
		"float 32":              second(3, 1, 22050, 32),
		"float 64":              second(3, 2, 22050, 64),
		"A-law":                 second(6, 1, 8000, 8),
		"µ-law":                 second(7, 2, 8000, 8),
		"a chunk of odd length": second(1, 1, 8000, 8, chunk("LIST", []byte("odd"))),
		"a pad byte too many":   second(1, 1, 8000, 8, []byte{0}),
	} {
		got, err := inspect(b)
		require.NoError(t, err, name)
		require.Equal(t, time.Second, got.Duration, name)
	}

	data := chunk("data", make([]byte, 800))
	longer := chunk("data", make([]byte, 800))
	le.PutUint32(longer[4:], 801)
	open := riff(wavFormat(1, 1, 8000, 8), data)
	le.PutUint32(open[4:], 0xffffffff)
	short := riff(wavFormat(1, 1, 8000, 8), data)
	le.PutUint32(short[4:], uint32(len(short)-8-100))
	for name, b := range map[string][]byte{
		"no format":                    riff(data),
		"no data":                      riff(wavFormat(1, 1, 8000, 8)),
		"empty data":                   riff(wavFormat(1, 1, 8000, 8), chunk("data", nil)),
		"data longer than the file":    riff(wavFormat(1, 1, 8000, 8), longer),
		"two formats":                  riff(wavFormat(1, 1, 8000, 8), wavFormat(1, 1, 8000, 8), data),
		"two data chunks":              riff(wavFormat(1, 1, 8000, 8), data, data),
		"half a sample":                riff(wavFormat(1, 1, 8000, 16), chunk("data", make([]byte, 801))),
		"no channels":                  riff(wavFormat(1, 0, 8000, 16), data),
		"nine channels":                riff(wavFormat(1, 9, 8000, 8), chunk("data", make([]byte, 900))),
		"no rate":                      riff(wavFormat(1, 1, 0, 16), data),
		"a rate of two gigahertz":      riff(wavFormat(1, 1, 2_000_000_000, 8), data),
		"12 bits":                      riff(wavFormat(1, 2, 8000, 12), data),
		"a short format":               riff(chunk("fmt ", make([]byte, 10)), data),
		"extensible without extension": riff(wavFormat(0xfffe, 1, 8000, 16), data),
		"a header that was not closed": open,
		"data beyond the RIFF":         short,
	} {
		_ = requireRefused(t, b, name)
	}
	many := [][]byte{wavFormat(1, 1, 8000, 8)}
	for range 5000 {
		many = append(many, chunk("junk", nil))
	}
	_ = requireRefused(t, riff(append(many, data)...), "5,000 chunks")
}
