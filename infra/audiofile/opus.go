package audiofile

import (
	"encoding/binary"
)

const (
	opusRate      = 48_000 // Hz, of all granule positions and of the decoder, whatever was encoded (RFC 7845 §4)
	maxOpusPacket = 5760   // samples, 120 ms (RFC 6716 §3.2.5)
)

// opus follows RFC 7845 for Ogg and RFC 6716 §3.1 for the first bytes of a packet.
type opus struct {
	channels int
	preSkip  uint64 // samples to drop at the begin
}

func (o *opus) header(n int, b []byte) (bool, error) {
	if n == 1 {
		if len(b) < 8 || string(b[:8]) != "OpusTags" {
			return false, refuse("it is damaged: its Opus comments are missing")
		}
		return true, nil
	}
	const majorVersion = 0xf0
	if len(b) < 19 || b[8]&majorVersion != 0 {
		return false, refuse("it is damaged: its Opus header is not as it should be")
	}
	o.channels = int(b[9])
	o.preSkip = uint64(binary.LittleEndian.Uint16(b[10:]))
	if family := b[18]; family == 0 && o.channels > 2 {
		return false, refuse("it is damaged: its Opus header contradicts itself")
	}
	return false, nil
}

// opusFrame holds the samples of a frame by the configuration in the first five bits of a packet.
var opusFrame = [32]uint64{
	480, 960, 1920, 2880, 480, 960, 1920, 2880, 480, 960, 1920, 2880, // SILK
	480, 960, 480, 960, // hybrid
	120, 240, 480, 960, 120, 240, 480, 960, 120, 240, 480, 960, 120, 240, 480, 960, // CELT
}

func (o *opus) audio(b []byte) (uint64, error) {
	if len(b) == 0 {
		return 0, refuse("it is damaged: an Opus packet is empty")
	}
	frames := uint64(1)
	switch b[0] & 3 {
	case 1, 2:
		frames = 2
	case 3:
		if len(b) < 2 {
			return 0, refuse("it is damaged: an Opus packet is not whole")
		}
		frames = uint64(b[1] & 0x3f)
	}
	samples := frames * opusFrame[b[0]>>3]
	if samples == 0 || samples > maxOpusPacket {
		return 0, refuse("it is damaged: an Opus packet is longer than one may be")
	}
	return samples, nil
}

// played: positions count the pre-skip; the last may cut samples off the end, and a first that is later than its packets is where the stream was
// cut out of a longer one (RFC 7845 §4.3 to 4.5).
func (o *opus) played(t oggTimes) (uint64, error) {
	var begin uint64
	if !t.firstIsLast && t.firstGranule > t.firstSamples {
		begin = t.firstGranule - t.firstSamples
	}
	length := min(t.lastGranule-begin, t.samples) // no page is missing, so a decoder gives no more than the packets hold
	if length <= o.preSkip {
		return 0, refuse("it holds no audio")
	}
	return length - o.preSkip, nil
}

func (o *opus) info() Info {
	return Info{Format: Ogg, Codec: "opus", SampleRate: opusRate, Channels: o.channels}
}
