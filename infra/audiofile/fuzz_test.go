package audiofile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/audiofile"
)

// FuzzInspect holds for any bytes: no panic, and either audio within the limits or an error of the three kinds.
func FuzzInspect(f *testing.F) {
	for name := range fixtures(f) {
		b := fixture(f, name)
		f.Add(b[:min(len(b), 6000)]) // short enough to change often
	}
	refused, err := filepath.Glob(filepath.Join("testdata", "chime", "refused", "*"))
	require.NoError(f, err)
	for _, name := range refused {
		b, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(b[:min(len(b), 6000)])
	}
	f.Add(fixture(f, "chime/quicktime.m4a"))
	f.Add(fixture(f, "chime/opus-cut-out.ogg"))
	f.Add(riff(wavFormat(7, 1, 8000, 8), chunk("data", make([]byte, 100))))
	f.Add(append(apeTag([]byte("item")), make([]byte, 10)...))

	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := inspect(b)
		var refused *audiofile.NotAudioError
		switch {
		case errors.As(err, &refused):
			require.NotEmpty(t, refused.Reason)
			require.Zero(t, info)
			return
		case errors.Is(err, audiofile.ErrTooLong):
			require.Greater(t, info.Duration, audiofile.MaxDuration)
		default:
			require.NoError(t, err)
			require.Positive(t, info.Duration)
			require.LessOrEqual(t, info.Duration, audiofile.MaxDuration)
		}
		require.Contains(t, []string{audiofile.MP3, audiofile.WAV, audiofile.Ogg, audiofile.AAC}, info.Format)
		require.NotEmpty(t, info.Codec)
		require.Positive(t, info.SampleRate)
		require.Positive(t, info.Channels)
		require.EqualValues(t, len(b), info.Size)
	})
}

// What a file says about itself buys it no memory: the same few buffers for all, hostile ones too.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 256 << 10 // bytes
	files := map[string][]byte{}
	for name := range fixtures(t) {
		files[name] = fixture(t, name)
	}
	for name, at := range map[string]string{"m4a-aac.m4a": "stsz", "m4a-faststart.m4a": "stts", "chime/surround.m4a": "stco", "chime/quicktime.m4a": "elst"} {
		b := bytes.Clone(files[name])
		i := bytes.Index(b, []byte(at))
		require.Positive(t, i)
		copy(b[i+8:], bytes.Repeat([]byte{0xff}, 8)) // counts in the billions
		_ = requireRefused(t, b, name)
		files[name+" with a huge "+at] = b
	}
	big := fixture(t, "mp3-vbr-no-header.mp3")
	big = append(bytes.Clone(big), bytes.Repeat(big[45:], 30)...)
	files["a megabyte of MP3"] = big
	const runs = 20
	for name, b := range files {
		r := bytes.NewReader(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			_, _ = audiofile.Inspect(r, int64(len(b)))
		}
		runtime.ReadMemStats(&after)
		require.Less(t, (after.TotalAlloc-before.TotalAlloc)/runs, uint64(limit), name)
	}
}

// BenchmarkInspect tells MB/s by format, on about two megabytes of each.
func BenchmarkInspect(b *testing.B) {
	const size = 2 << 20
	mp3, aac := fixture(b, "mp3-vbr-no-header.mp3"), fixture(b, "aac-adts.aac")
	ogg := fixture(b, "chime/vorbis.ogg")
	for name, file := range map[string][]byte{
		"mp3": slices.Concat(mp3, bytes.Repeat(mp3[45:], size/len(mp3))),
		"aac": bytes.Repeat(aac, size/len(aac)),
		"ogg": bytes.Repeat(ogg, size/len(ogg)),
		"wav": riff(wavFormat(1, 2, 44100, 16), chunk("data", make([]byte, size))),
		"m4a": fixture(b, "m4a-aac.m4a"),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(file)))
			b.ReportAllocs()
			r := bytes.NewReader(file)
			for b.Loop() {
				if _, err := audiofile.Inspect(r, int64(len(file))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
