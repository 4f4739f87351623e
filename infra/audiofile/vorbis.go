package audiofile

import (
	"encoding/binary"
)

// vorbis follows the Vorbis I specification §4.2, and appendix A for its place in Ogg.
type vorbis struct {
	channels int
	rate     int
	long     uint64 // samples of the longer block
}

func (v *vorbis) header(n int, b []byte) (bool, error) {
	kind := []byte{1, 3, 5}[n] // identification, comments, setup
	if len(b) < 7 || b[0] != kind || string(b[1:7]) != "vorbis" {
		return false, refuse("it is damaged: a Vorbis header is missing")
	}
	if n != 0 {
		return n == 2, nil
	}
	const identificationBytes = 30
	if len(b) != identificationBytes || binary.LittleEndian.Uint32(b[7:]) != 0 || b[29]&1 == 0 {
		return false, refuse("it is damaged: its Vorbis identification is not as it should be")
	}
	v.channels = int(b[11])
	v.rate = int(min(binary.LittleEndian.Uint32(b[12:]), 1<<30))
	short, long := b[28]&0xf, b[28]>>4
	if short < 6 || short > long || long > 13 {
		return false, refuse("it is damaged: its Vorbis block sizes are not as they should be")
	}
	v.long = 1 << long
	return false, nil
}

// audio: the first bit of an audio packet is 0. A packet gives at most half of two long blocks; the exact figure needs the setup header's modes.
func (v *vorbis) audio(b []byte) (uint64, error) {
	if len(b) > 0 && b[0]&1 != 0 {
		return 0, refuse("it is damaged: a Vorbis header stands amid the audio")
	}
	return v.long, nil
}

// played: the last granule position is the number of samples. A stream that was cut out of a longer one begins at a later position, by an
// amount that its packets alone tell.
func (v *vorbis) played(t oggTimes) (uint64, error) {
	if t.firstGranule > t.firstSamples {
		return 0, refuse("its begin is missing: its times do not start at zero")
	}
	if t.lastGranule > t.samples {
		return 0, refuse("it is damaged: it announces more audio than it holds")
	}
	return t.lastGranule, nil
}

func (v *vorbis) info() Info {
	return Info{Format: Ogg, Codec: "vorbis", SampleRate: v.rate, Channels: v.channels}
}
