package audiofile

import (
	"encoding/binary"
)

// Versions in the two bits of an MPEG audio header (ISO/IEC 11172-3 §2.4.2.3, 13818-3 §2.4.2.3; 2.5 is Fraunhofer's extension).
const (
	mpeg25 = 0
	mpeg2  = 2
	mpeg1  = 3
)

// layerIII is its two bits in the header.
const layerIII = 1

// Bit rates of layer III in kbit/s by the index in the header, and sample rates in Hz of MPEG 1; MPEG 2 has half of them and 2.5 a quarter.
var (
	mp3RatesMPEG1 = [16]int{0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0}
	mp3RatesMPEG2 = [16]int{0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0}
	mpegSampling  = [4]int{44100, 48000, 32000, 0}
)

// mp3Header is what the four bytes at the begin of a frame say.
type mp3Header struct {
	version  byte
	rate     int // Hz
	channels int
	length   int64 // bytes, header included
	crc      bool  // two bytes of CRC follow the header
}

// samples is how many a frame holds per channel.
func (h mp3Header) samples() uint64 {
	if h.version == mpeg1 {
		return 1152
	}
	return 576
}

// sideInfo is the length in bytes of what stands between header and main data.
func (h mp3Header) sideInfo() int {
	switch {
	case h.version == mpeg1 && h.channels == 2:
		return 32
	case h.version != mpeg1 && h.channels == 1:
		return 9
	}
	return 17
}

// parseMP3Header reads a header of layer III. Free format (bit rate index 0) is not supported.
func parseMP3Header(b []byte) (mp3Header, bool) {
	if len(b) < 4 || b[0] != 0xff || b[1]&0xe0 != 0xe0 || b[1]>>1&3 != layerIII {
		return mp3Header{}, false
	}
	h := mp3Header{version: b[1] >> 3 & 3, rate: mpegSampling[b[2]>>2&3], channels: 2, crc: b[1]&1 == 0}
	var kbit int
	switch h.version {
	case mpeg1:
		kbit = mp3RatesMPEG1[b[2]>>4]
	case mpeg2:
		kbit, h.rate = mp3RatesMPEG2[b[2]>>4], h.rate/2
	case mpeg25:
		kbit, h.rate = mp3RatesMPEG2[b[2]>>4], h.rate/4
	default:
		return mp3Header{}, false
	}
	const reservedEmphasis = 2
	if kbit == 0 || h.rate == 0 || b[3]&3 == reservedEmphasis {
		return mp3Header{}, false
	}
	if b[3]>>6 == 3 {
		h.channels = 1
	}
	h.length = int64(int(h.samples())/8*1000*kbit/h.rate) + int64(b[2]>>1&1)
	return h, true
}

// privateBits of MPEG 1's side information, by channels.
var privateBits = [3]int{1: 5, 2: 3}

// mp3FrameHead is the most that is read of a frame to judge it: header, CRC, side information.
const mp3FrameHead = 4 + 2 + 32

// decodable checks the side information (§2.4.1.7): values that no decoder takes, and main data longer than the reservoir and the frame can hold.
// That tells noise with a header in front from audio.
func (h mp3Header) decodable(b []byte) bool {
	at := 4
	if h.crc {
		at += 2
	}
	side := h.sideInfo()
	if len(b) < at+side || h.length < int64(at+side) {
		return false
	}
	b = b[at : at+side]
	granules, scalefac, last := 1, 9, 2
	var bit int
	var reservoir uint32
	if h.version == mpeg1 {
		granules, scalefac, last = 2, 4, 3
		reservoir = bits(b, 0, 9)
		bit = 9 + privateBits[h.channels] + 4*h.channels
	} else {
		reservoir = bits(b, 0, 8)
		bit = 8 + h.channels
	}
	var mainData uint32
	for range granules * h.channels {
		const maxBigValues = 288 // pairs; 576 lines a granule
		mainData += bits(b, bit, 12)
		if bits(b, bit+12, 9) > maxBigValues {
			return false
		}
		bit += 12 + 9 + 8 + scalefac
		const normalBlock = 0 // forbidden where a window switch is announced
		if bits(b, bit, 1) == 1 && bits(b, bit+1, 2) == normalBlock {
			return false
		}
		bit += 1 + 22 + last
	}
	return int64(mainData) <= 8*(int64(reservoir)+h.length-int64(at+side))
}

// mp3Summary is what the first frame may tell instead of audio: how much there is. Zero means that it does not say.
type mp3Summary struct {
	frames, bytes  uint32
	delay, padding uint64 // samples that the encoder added in front and behind
}

// inspectMP3 walks every frame. Where the first is a Xing, Info or VBRI header, what is there must be as much as it says.
func inspectMP3(src *source, start int64) (Info, error) {
	end, err := withoutTrailingTags(src, start)
	if err != nil {
		return Info{}, err
	}
	var first mp3Header
	f := &frames{src: src, at: start, end: end}
	f.frame = func(at int64) (int64, error) {
		b, err := src.upTo(at, int(min(mp3FrameHead, max(end-at, 0))))
		if err != nil {
			return 0, err
		}
		h, ok := parseMP3Header(b)
		if !ok || first.rate != 0 && (h.version != first.version || h.rate != first.rate) {
			return 0, nil
		}
		if h.length <= end-at && !h.decodable(b) {
			return 0, nil
		}
		return h.length, nil
	}

	var summary mp3Summary
	var count, bytes uint64
	for {
		at, n, err := f.next()
		if err != nil {
			return Info{}, notMP3(src, start, err, count)
		}
		if n == 0 {
			break
		}
		if first.rate == 0 {
			b, err := src.bytes(at, int(n))
			if err != nil {
				return Info{}, err
			}
			first, _ = parseMP3Header(b)
			var is bool
			if summary, is = mp3SummaryOf(first, b); is {
				bytes += uint64(n)
				continue
			}
		}
		count++
		bytes += uint64(n)
	}
	if first.rate == 0 || count == 0 {
		return Info{}, refuse("it holds no audio")
	}
	if missing := summary.missing(count, bytes); missing {
		return Info{}, refuse("it is cut off: it announces %d frames and holds %d", summary.frames, count)
	}
	samples := count * first.samples()
	if added := summary.delay + summary.padding; added < samples {
		samples -= added
	}
	return Info{
		Format: MP3, Codec: "mp3", SampleRate: first.rate, Channels: first.channels,
		Duration: playing(samples, first.rate),
	}, nil
}

// missing says whether fewer frames are there than announced. Some encoders count the header as one, so that where all announced bytes
// are there one frame fewer is right.
func (s mp3Summary) missing(frames, bytes uint64) bool {
	if frames >= uint64(s.frames) {
		return false
	}
	return frames+1 < uint64(s.frames) || s.bytes == 0 || bytes < uint64(s.bytes)
}

// mp3SummaryOf reads a Xing or Info header (behind the side information) with LAME's extension, or a VBRI header (32 bytes behind the frame's).
func mp3SummaryOf(h mp3Header, frame []byte) (mp3Summary, bool) {
	const vbriAt = 4 + 32
	if len(frame) >= vbriAt+18 && string(frame[vbriAt:vbriAt+4]) == "VBRI" {
		b := frame[vbriAt:]
		return mp3Summary{bytes: binary.BigEndian.Uint32(b[10:]), frames: binary.BigEndian.Uint32(b[14:])}, true
	}
	at := 4 + h.sideInfo()
	if len(frame) < at+8 {
		return mp3Summary{}, false
	}
	if id := string(frame[at : at+4]); id != "Xing" && id != "Info" {
		return mp3Summary{}, false
	}
	flags, rest := binary.BigEndian.Uint32(frame[at+4:]), frame[at+8:]
	take := func(flag uint32, n int) []byte {
		if flags&flag == 0 || len(rest) < n {
			return nil
		}
		b := rest[:n]
		rest = rest[n:]
		return b
	}
	var s mp3Summary
	if b := take(1, 4); b != nil {
		s.frames = binary.BigEndian.Uint32(b)
	}
	if b := take(2, 4); b != nil {
		s.bytes = binary.BigEndian.Uint32(b)
	}
	take(4, 100) // where to seek to
	take(8, 4)   // quality
	// LAME's extension: nine characters of encoder, and from its byte 21 twelve bits each of delay and padding.
	if len(rest) >= 24 {
		switch string(rest[:4]) {
		case "LAME", "Lavf", "Lavc":
			s.delay, s.padding = uint64(bits(rest, 21*8, 12)), uint64(bits(rest, 21*8+12, 12))
		}
	}
	return s, true
}

// notMP3 gives a better reason where nothing of an MP3 was found and the bytes look like something known.
func notMP3(src *source, start int64, err error, count uint64) error {
	if count > 0 {
		return err
	}
	b, readErr := src.upTo(start, 3)
	if readErr != nil {
		return readErr
	}
	if len(b) == 3 && b[0] == 0xff && b[1]&0xe0 == 0xe0 {
		switch {
		case b[1]>>1&3 > layerIII:
			return refuse("MPEG audio layers I and II are not supported; send MP3, WAV, Ogg or AAC")
		case b[1]>>1&3 == layerIII && b[2]>>4 == 0:
			return refuse("MP3 in free format is not supported")
		}
	}
	return err
}
