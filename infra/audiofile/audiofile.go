// Package audiofile tells from the bytes of a file whether it is a whole audio file of a kind that is supported, and how long it plays.
//
// It looks at every frame, page, chunk or sample-table entry but decodes no sample: a file whose structure is whole and whose coded
// samples are nonsense passes. Two cuts leave no trace and pass as shorter files: an MP3 without a Xing, Info or VBRI header and an AAC file in
// ADTS, each cut exactly between two frames.
//
// Memory is a few fixed buffers whatever the file says about itself, and time is linear in the size of the file.
package audiofile

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// MaxDuration is the longest audio that is taken, inclusive.
const MaxDuration = 10 * time.Minute

// Formats, as partners see them.
const (
	MP3 = "mp3" // MPEG 1, 2 and 2.5 layer III
	WAV = "wav" // RIFF WAVE with PCM, float, µ-law or A-law
	Ogg = "ogg" // Vorbis or Opus in Ogg
	AAC = "aac" // AAC in ADTS or in MP4 (M4A)
)

// Info is what a whole audio file says about itself.
type Info struct {
	Format     string        // MP3, WAV, Ogg or AAC
	Codec      string        // "mp3", "pcm", "float", "mulaw", "alaw", "vorbis", "opus" or "aac"
	Duration   time.Duration // of what a player plays: without encoder delay and padding where the file tells them
	SampleRate int           // Hz
	Channels   int
	Size       int64 // bytes, tags and all
}

// NotAudioError says that a file is not whole, supported audio. Reason is half a sentence for the person who sent it.
type NotAudioError struct{ Reason string }

// Error returns the reason.
func (e *NotAudioError) Error() string { return "not an audio file that can be taken: " + e.Reason }

// ErrTooLong says that a file is whole, supported audio that plays longer than MaxDuration.
var ErrTooLong = errors.New("audio is too long")

func refuse(format string, args ...any) error {
	return &NotAudioError{Reason: fmt.Sprintf(format, args...)}
}

// Limits of what is taken for audio.
const (
	maxChannels   = 8
	minSampleRate = 4_000   // Hz
	maxSampleRate = 384_000 // Hz
)

// Inspect reads the size bytes of r and says what audio they are. Its errors are a *NotAudioError, one that is ErrTooLong (the Info is
// returned beside it), or that of r.
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	if size <= 0 {
		return Info{}, refuse("the file is empty")
	}
	info, err := inspect(newSource(r, size))
	if err != nil {
		return Info{}, err
	}
	info.Size = size
	switch {
	case info.Channels < 1 || info.Channels > maxChannels:
		return Info{}, refuse("it has %d channels; 1 to %d are supported", info.Channels, maxChannels)
	case info.SampleRate < minSampleRate || info.SampleRate > maxSampleRate:
		return Info{}, refuse("it has a sample rate of %d Hz; %d to %d are supported", info.SampleRate, minSampleRate, maxSampleRate)
	case info.Duration <= 0:
		return Info{}, refuse("it holds no audio")
	case info.Duration > MaxDuration:
		return info, fmt.Errorf("%w: %s, at most %s", ErrTooLong, info.Duration.Round(time.Millisecond), MaxDuration)
	}
	return info, nil
}

// inspect chooses by the first bytes. An ID3v2 tag may stand in front of any stream of frames.
func inspect(src *source) (Info, error) {
	start, err := skipLeadingTags(src)
	if err != nil {
		return Info{}, err
	}
	head, err := src.upTo(start, 12)
	if err != nil {
		return Info{}, err
	}
	is := func(at int, magic string) bool {
		return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
	}
	switch {
	case is(0, "RIFF") && is(8, "WAVE"):
		return inspectWAV(src, start)
	case is(0, "RF64"), is(0, "BW64"), is(0, "RIFX"), is(0, "riff"):
		return Info{}, refuse("this kind of WAV is not supported; save it as a plain RIFF WAVE")
	case is(0, "OggS"):
		return inspectOgg(src, start)
	case is(4, "ftyp"), is(4, "moov"), is(4, "mdat"):
		return inspectMP4(src, start)
	case is(0, "fLaC"):
		return Info{}, refuse("FLAC is not supported; send MP3, WAV, Ogg or AAC")
	case is(0, "ADIF"):
		return Info{}, refuse("AAC in ADIF is not supported; send ADTS or M4A")
	case is(0, "FORM"):
		return Info{}, refuse("AIFF is not supported; send MP3, WAV, Ogg or AAC")
	case is(0, "\x1aE\xdf\xa3"):
		return Info{}, refuse("Matroska and WebM are not supported; send MP3, WAV, Ogg or AAC")
	case len(head) >= 2 && head[0] == 0xff && head[1]&0xf6 == 0xf0:
		return inspectADTS(src, start)
	}
	return inspectMP3(src, start)
}

// playing returns how long n samples play at a rate in Hz; n is bounded so that nothing overflows.
func playing(n uint64, rate int) time.Duration {
	if rate <= 0 {
		return 0
	}
	r := uint64(rate)
	whole := n / r
	if whole > maxSeconds {
		whole, n = maxSeconds, 0
	}
	return time.Duration(whole)*time.Second + time.Duration(n%r)*time.Second/time.Duration(rate)
}

// maxSeconds is the most that playing returns, in seconds: 100 years, far above MaxDuration and far below what a time.Duration holds.
const maxSeconds = 100 * 366 * 24 * 3600
