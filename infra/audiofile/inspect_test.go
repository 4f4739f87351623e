package audiofile_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/audiofile"
)

// tolerance is what partners are promised: durations within 60 ms of the decoded length.
const tolerance = 60 * time.Millisecond

// expected is what a manifest says of a fixture: its format, and its decoded length in seconds.
type expected struct {
	Format   string
	Duration float64
}

// fixtures are all files that are to be taken, by their path in testdata.
func fixtures(t testing.TB) map[string]expected {
	t.Helper()
	all := map[string]expected{}
	for _, dir := range []string{".", "chime"} {
		var m map[string]expected
		require.NoError(t, json.Unmarshal(fixture(t, dir+"/manifest.json"), &m))
		require.NotEmpty(t, m)
		for name, want := range m {
			all[filepath.Join(dir, name)] = want
		}
	}
	return all
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(name)))
	require.NoError(t, err)
	return b
}

func inspect(b []byte) (audiofile.Info, error) {
	return audiofile.Inspect(bytes.NewReader(b), int64(len(b)))
}

// requireRefused holds that b is not taken, and that the reason can be shown to the one who sent it.
func requireRefused(t testing.TB, b []byte, why ...any) *audiofile.NotAudioError {
	t.Helper()
	info, err := inspect(b)
	var refused *audiofile.NotAudioError
	require.ErrorAs(t, err, &refused, why...)
	require.NotEmpty(t, refused.Reason)
	require.Zero(t, info)
	return refused
}

func TestFixtures(t *testing.T) {
	t.Parallel()
	for name, want := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := fixture(t, name)
			got, err := inspect(b)
			require.NoError(t, err)
			require.Equal(t, want.Format, got.Format)
			require.InDelta(t, want.Duration, got.Duration.Seconds(), tolerance.Seconds())
			require.EqualValues(t, len(b), got.Size)
		})
	}
}

func TestWhatTheFixturesAre(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]audiofile.Info{
		"wav-mulaw.wav":              {Codec: "mulaw", SampleRate: 8000, Channels: 1},
		"wav-float32.wav":            {Codec: "float", SampleRate: 8000, Channels: 1},
		"chime/pcm24-extensible.wav": {Codec: "pcm", SampleRate: 8000, Channels: 4},
		"chime/alaw.wav":             {Codec: "alaw", SampleRate: 8000, Channels: 1},
		"chime/mpeg25-vbr.mp3":       {Codec: "mp3", SampleRate: 8000, Channels: 1},
		"chime/id3v1-and-v2.mp3":     {Codec: "mp3", SampleRate: 24000, Channels: 2},
		"chime/vorbis.ogg":           {Codec: "vorbis", SampleRate: 44100, Channels: 2},
		"chime/opus-surround.ogg":    {Codec: "opus", SampleRate: 48000, Channels: 6},
		"chime/stereo.aac":           {Codec: "aac", SampleRate: 44100, Channels: 2},
		"chime/surround.m4a":         {Codec: "aac", SampleRate: 48000, Channels: 6},
	} {
		got, err := inspect(fixture(t, name))
		require.NoError(t, err, name)
		require.Equal(t, want, audiofile.Info{Codec: got.Codec, SampleRate: got.SampleRate, Channels: got.Channels}, name)
	}
}

// The sample that newcomers upload is taken.
func TestSample(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("..", "..", "samples", "welcome.mp3"))
	require.NoError(t, err)
	got, err := inspect(b)
	require.NoError(t, err)
	require.Equal(t, 4*time.Second, got.Duration.Round(time.Millisecond))
}

func TestOtherKindsAreRefusedByName(t *testing.T) {
	t.Parallel()
	reasons := map[string]string{
		"adpcm.wav": "0x0002", "aiff.aiff": "AIFF", "alac.m4a": "ALAC", "chained-unlike.ogg": "different kinds", "film.mp4": "film", "flac.flac": "FLAC",
		"flac.ogg": "FLAC", "fragmented.m4a": "fragmented", "free-format.mp3": "free format", "layer2.mp3": "layers I and II", "mp3.mp4": "not AAC", "mp3.wav": "0x0055",
		"piped.wav": "how long", "rf64.wav": "RIFF", "two-rates.mp3": "belong to no frame", "video.mp4": "film", "webm.webm": "WebM",
	}
	entries, err := os.ReadDir(filepath.Join("testdata", "chime", "refused"))
	require.NoError(t, err)
	require.Len(t, entries, len(reasons))
	for _, e := range entries {
		refused := requireRefused(t, fixture(t, "chime/refused/"+e.Name()), e.Name())
		require.Contains(t, refused.Reason, reasons[e.Name()], e.Name())
	}
}

func TestNotAudio(t *testing.T) {
	t.Parallel()
	mp3 := fixture(t, "mp3-cbr.mp3")
	noise := make([]byte, 300_000)
	state := uint32(1)
	for i := range noise { // xorshift: the same noise each time
		state ^= state << 13
		state ^= state >> 17
		state ^= state << 5
		noise[i] = byte(state)
	}
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"one byte":             {0xff},
		"text":                 []byte(strings.Repeat("This is a text that somebody renamed to announcement.mp3.\n", 2000)),
		"a short text":         []byte("ID3 is a tag"),
		"zero bytes":           make([]byte, 100_000),
		"ones":                 bytes.Repeat([]byte{0xff}, 100_000),
		"noise":                noise,
		"JSON":                 []byte(`{"audio": true}`),
		"a picture":            append([]byte("\x89PNG\r\n\x1a\n"), noise[:5000]...),
		"a picture as JPEG":    append([]byte("\xff\xd8\xff\xe0\x00\x10JFIF\x00"), noise[:5000]...),
		"a ZIP":                append([]byte("PK\x03\x04"), noise[:5000]...),
		"headers with noise":   framesOfNoise(mp3, noise),
		"only a tag":           []byte("ID3\x04\x00\x00\x00\x00\x00\x0aTIT2\x00\x00\x00\x00\x00\x00"),
		"a tag and text":       []byte("ID3\x04\x00\x00\x00\x00\x00\x00" + strings.Repeat("text", 1000)),
		"a tag without end":    []byte("ID3\x04\x00\x00\x7f\x7f\x7f\x7fTIT2"),
		"a hundred empty tags": bytes.Repeat([]byte("ID3\x04\x00\x00\x00\x00\x00\x00"), 100),
		"RIFF that is no WAVE": append([]byte("RIFF\x10\x00\x00\x00AVI "), noise[:100]...),
		"an Ogg page's magic":  append([]byte("OggS"), noise[:5000]...),
		"an MP4's first box":   []byte("\x00\x00\x00\x10ftypM4A \x00\x00\x00\x00"),
	} {
		_ = requireRefused(t, b, name)
	}
}

// framesOfNoise puts noise between the headers of real frames of MPEG 1 at 96 kbit/s and 44.1 kHz.
func framesOfNoise(mp3, noise []byte) []byte {
	var b []byte
	const frame = 313
	for i := range 200 {
		b = append(b, 0xff, 0xfb, 0x70, 0xc0)
		b = append(b, noise[i*frame:(i+1)*frame-4]...)
	}
	return b
}

func TestDamagedMP3(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mp3-cbr.mp3", "mp3-vbr-xing.mp3", "mp3-vbr-no-header.mp3"} {
		b := fixture(t, name)
		middle := len(b) / 2
		text := []byte(strings.Repeat("garbage ", 1000))

		_ = requireRefused(t, splice(b, middle, middle, text), "8,000 bytes put in")
		_ = requireRefused(t, splice(b, middle, middle+5000, text[:5000]), "5,000 bytes written over")
		_ = requireRefused(t, append(bytes.Clone(b), text...), "text behind")
		_ = requireRefused(t, append(bytes.Clone(text), b...), "text in front")
		_ = requireRefused(t, append(bytes.Clone(b), 'x'), "a byte behind")
	}
	// A few bytes that an editor left behind cost a frame or two and not the upload.
	whole, err := inspect(fixture(t, "mp3-vbr-no-header.mp3"))
	require.NoError(t, err)
	b := fixture(t, "mp3-vbr-no-header.mp3")
	got, err := inspect(splice(b, len(b)/2, len(b)/2, []byte("left behind")))
	require.NoError(t, err)
	require.InDelta(t, whole.Duration.Seconds(), got.Duration.Seconds(), tolerance.Seconds())
}

// splice returns b with the bytes from one offset to another replaced.
func splice(b []byte, from, to int, by []byte) []byte {
	return append(append(bytes.Clone(b[:from]), by...), b[to:]...)
}

func TestTagsAndPaddingBehindAreTaken(t *testing.T) {
	t.Parallel()
	id3v1 := append([]byte("TAGtitle"), make([]byte, 120)...)
	ape := apeTag([]byte("\x04\x00\x00\x00\x00\x00\x00\x00Year\x002026"))
	lyrics := []byte("LYRICSBEGININD0000200000021LYRICS200")
	for name := range fixtures(t) {
		b := fixture(t, name)
		want, err := inspect(b)
		require.NoError(t, err)
		frames := want.Format == audiofile.MP3 || strings.HasSuffix(name, ".aac")
		for kind, tail := range map[string][]byte{
			"ID3v1": id3v1, "zero bytes": make([]byte, 5000), "APE": ape, "APE and ID3v1": append(bytes.Clone(ape), id3v1...),
			"Lyrics3 and ID3v1": append(bytes.Clone(lyrics), id3v1...), "APE without header and ID3v1": append(bytes.Clone(ape[32:]), id3v1...),
		} {
			if !frames && (strings.HasPrefix(kind, "Lyrics3") || strings.Contains(kind, "without")) {
				continue // belong to streams of frames
			}
			if strings.HasPrefix(kind, "APE without") {
				tail = bytes.Clone(tail)
				tail[len(tail)-128-12+3] &^= 0x80 // the footer says that there is no header
				tail[len(tail)-128-32+23] &^= 0x80
			}
			got, err := inspect(append(bytes.Clone(b), tail...))
			require.NoError(t, err, "%s with %s", name, kind)
			require.Equal(t, want.Duration, got.Duration, "%s with %s", name, kind)
		}
		if frames {
			got, err := inspect(append([]byte("ID3\x04\x00\x00\x00\x00\x00\x05extra"), b...))
			require.NoError(t, err, name)
			require.Equal(t, want.Duration, got.Duration, name)
		}
	}
}

// apeTag makes an APEv2 tag with header and footer around one item.
func apeTag(item []byte) []byte {
	frame := func(flags byte) []byte {
		size := len(item) + 32
		return append([]byte{'A', 'P', 'E', 'T', 'A', 'G', 'E', 'X', 0xd0, 7, 0, 0, byte(size), byte(size >> 8), 0, 0, 1, 0, 0, 0, 0, 0, 0, flags}, make([]byte, 8)...)
	}
	return append(append(frame(0xa0), item...), frame(0x80)...)
}

func TestTooLong(t *testing.T) {
	t.Parallel()
	// 8 kHz of µ-law makes ten minutes in 4.8 MB.
	wav := func(samples int) []byte {
		return riff(wavFormat(7, 1, 8000, 8), chunk("data", make([]byte, samples)))
	}
	info, err := inspect(wav(8000 * 600))
	require.NoError(t, err)
	require.Equal(t, audiofile.MaxDuration, info.Duration)
	info, err = inspect(wav(8000*600 + 1))
	require.ErrorIs(t, err, audiofile.ErrTooLong)
	require.Greater(t, info.Duration, audiofile.MaxDuration)
	var refused *audiofile.NotAudioError
	require.False(t, errors.As(err, &refused), "it is audio")
}

// failingReader fails from an offset on.
type failingReader struct {
	b    []byte
	from int64
	err  error
}

func (f failingReader) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > f.from {
		return 0, f.err
	}
	return copy(p, f.b[at:]), nil
}

// An error of the disk is told as what it is, and not as a fault of the file.
func TestReadErrorsAreNotTheFilesFault(t *testing.T) {
	t.Parallel()
	broken := errors.New("the disk broke")
	for name := range fixtures(t) {
		b := fixture(t, name)
		for _, from := range []int64{0, 70_000, int64(len(b) - 1)} {
			_, err := audiofile.Inspect(failingReader{b, from, broken}, int64(len(b)))
			if err == nil && strings.HasSuffix(name, ".wav") && from > 0 {
				continue // the samples themselves are not read
			}
			if from < int64(len(b)) {
				require.ErrorIs(t, err, broken, "%s from %d", name, from)
			}
			var refused *audiofile.NotAudioError
			require.False(t, errors.As(err, &refused), name)
		}
	}
}
