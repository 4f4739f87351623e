package audiofile_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/audiofile"
)

// nested is an MP4 file of so many bytes that is nothing but boxes inside boxes.
func nested(kind string, size int) []byte {
	file := make([]byte, 0, size)
	file = append(file, "\x00\x00\x00\x10ftypM4A \x00\x00\x00\x00"...)
	file = append(file, "\x00\x00\x00\x08mdat"...)
	for _, outer := range []string{"moov", "trak"} {
		file = append(binary.BigEndian.AppendUint32(file, uint32(size-len(file))), outer...)
	}
	for size-len(file) >= 8 {
		file = append(binary.BigEndian.AppendUint32(file, uint32(size-len(file))), kind...)
	}
	return append(file, make([]byte, size-len(file))...)
}

// Files of the largest size that is taken, made to cost as much as they can. Time and stack stay small whatever they hold.
func TestHostileFilesCostLittle(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	files := map[string][]byte{
		"mdia in mdia": nested("mdia", size),
		"stbl in stbl": nested("stbl", size),
		"an ID3 tag that holds nothing, again and again": bytes.Repeat([]byte("ID3\x04\x00\x00\x00\x00\x00\x00"), size/10),
		"APE tags":                 bytes.Repeat(append([]byte("APETAGEX\xd0\x07\x00\x00\x20\x00\x00\x00"), make([]byte, 16)...), size/32),
		"zeros":                    make([]byte, size),
		"Ogg pages without a body": bytes.Repeat(append([]byte("OggS"), make([]byte, 23)...), size/27),
		"RIFF chunks without a body": append(append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, size-8)...),
			append([]byte("WAVE"), strings.Repeat("LIST\x00\x00\x00\x00", (size-12)/8)...)...),
		"sync words": bytes.Repeat([]byte{0xff, 0xfb, 0x90, 0x00}, size/4),
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			_, err := audiofile.Inspect(bytes.NewReader(file), int64(len(file)))
			var refused *audiofile.NotAudioError
			require.ErrorAs(t, err, &refused)
			require.Less(t, time.Since(began), 10*time.Second)
			if strings.Contains(name, " in ") {
				require.Contains(t, refused.Reason, "nested too deep", "each level takes a piece of the stack, which has an end")
			}
		})
	}
}
