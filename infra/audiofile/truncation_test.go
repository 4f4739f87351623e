package audiofile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/infra/audiofile"
)

// cuts are the lengths at which a file is cut: all near its begin and end, many between.
func cuts(size int) []int {
	var at []int
	for n := 0; n < size; n++ {
		if n < 1000 || n > size-1000 || n%127 == 0 {
			at = append(at, n)
		}
	}
	return at
}

// frameTime is how long one frame plays in the formats whose files do not say how long they are.
var frameTime = map[string]float64{
	"mp3-vbr-no-header.mp3":   576.0 / 22050,
	"chime/cbr-no-header.mp3": 576.0 / 24000,
	"aac-adts.aac":            1024.0 / 44100,
	"chime/stereo.aac":        1024.0 / 44100,
}

// A file that is cut anywhere is refused. Two kinds of cut are none: one behind the audio, through a tag that nobody misses, which leaves the
// duration as it was; and, in streams of frames that do not say how many they are, one exactly between two frames.
func TestCutFilesAreRefused(t *testing.T) {
	t.Parallel()
	for name := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := fixture(t, name)
			whole, err := inspect(b)
			require.NoError(t, err)
			frame, headless := frameTime[name]
			lengths := map[time.Duration]bool{}
			for _, n := range cuts(len(b)) {
				info, err := inspect(b[:n])
				if err != nil {
					var refused *audiofile.NotAudioError
					require.ErrorAs(t, err, &refused, "cut to %d", n)
					continue
				}
				if !headless {
					require.Equal(t, whole.Duration, info.Duration, "cut to %d of %d bytes and taken", n, len(b))
					require.Greater(t, n, len(b)-300, "cut to %d of %d bytes and taken", n, len(b))
					continue
				}
				frames := info.Duration.Seconds() / frame
				require.InDelta(t, float64(int(frames+0.5)), frames, 0.001, "cut to %d: not between frames", n)
				require.Less(t, info.Duration, whole.Duration)
				require.False(t, lengths[info.Duration], "cut to %d: more than one cut for the same frames", n)
				lengths[info.Duration] = true
			}
			require.Equal(t, headless, len(lengths) > 0)
		})
	}
}

// A piece that is missing from the middle is noticed wherever the file says how much there should be.
func TestMissingMiddleIsRefused(t *testing.T) {
	t.Parallel()
	for name := range fixtures(t) {
		if _, headless := frameTime[name]; headless || strings.HasSuffix(name, "id3v1-and-v2.mp3") {
			continue // the tag's bytes are not audio
		}
		b := fixture(t, name)
		rapid.Check(t, func(t *rapid.T) {
			missing := rapid.IntRange(3000, 8000).Draw(t, "missing")
			at := rapid.IntRange(1500, max(1501, len(b)-missing-300)).Draw(t, "at")
			if at+missing > len(b)-300 {
				return
			}
			_, err := inspect(splice(b, at, at+missing, nil))
			var refused *audiofile.NotAudioError
			require.ErrorAs(t, err, &refused, "%s without %d bytes at %d", name, missing, at)
		})
	}
}

// Every byte of an Ogg file stands under a check sum.
func TestChangedOggIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ogg-vorbis.ogg", "ogg-opus.ogg", "chime/vorbis-chained.ogg"} {
		b := fixture(t, name)
		rapid.Check(t, func(t *rapid.T) {
			changed := splice(b, 0, 0, nil)
			changed[rapid.IntRange(0, len(b)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
			_, err := inspect(changed)
			var refused *audiofile.NotAudioError
			require.ErrorAs(t, err, &refused)
		})
	}
}
