package audiofile

// aacSampling holds the sample rates in Hz by their index (ISO/IEC 14496-3 §1.6.3.4).
var aacSampling = [16]int{96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350}

// aacChannels holds the channels by the channel configuration (§1.6.3.5); 0 stands for a layout told elsewhere.
var aacChannels = [8]int{0, 1, 2, 3, 4, 5, 6, 8}

const (
	aacFrameSamples = 1024 // per raw data block and channel
	adtsHeaderBytes = 7    // and two more with a CRC
)

type adtsHeader struct {
	profile  byte
	rateAt   byte // index of the sample rate
	channels int
	blocks   uint64 // raw data blocks in the frame
	length   int64  // bytes, header included
}

// parseADTSHeader reads adts_fixed_header and adts_variable_header (ISO/IEC 13818-7 §6.2, 14496-3 §1.A.2.2).
func parseADTSHeader(b []byte) (adtsHeader, bool) {
	if len(b) < adtsHeaderBytes || b[0] != 0xff || b[1]&0xf6 != 0xf0 {
		return adtsHeader{}, false
	}
	h := adtsHeader{
		profile:  b[2] >> 6,
		rateAt:   b[2] >> 2 & 0xf,
		channels: aacChannels[b[2]&1<<2|b[3]>>6],
		length:   int64(b[3]&3)<<11 | int64(b[4])<<3 | int64(b[5])>>5,
		blocks:   uint64(b[6]&3) + 1,
	}
	header := int64(adtsHeaderBytes)
	if b[1]&1 == 0 {
		header += 2
	}
	return h, aacSampling[h.rateAt] != 0 && h.length > header
}

// inspectADTS walks every frame.
func inspectADTS(src *source, start int64) (Info, error) {
	end, err := withoutTrailingTags(src, start)
	if err != nil {
		return Info{}, err
	}
	first, known := adtsHeader{}, false
	header := func(at int64) (adtsHeader, bool, error) {
		b, err := src.upTo(at, int(min(adtsHeaderBytes, max(end-at, 0))))
		if err != nil {
			return adtsHeader{}, false, err
		}
		h, ok := parseADTSHeader(b)
		if known && (h.profile != first.profile || h.rateAt != first.rateAt || h.channels != first.channels) {
			ok = false
		}
		return h, ok, nil
	}
	f := &frames{src: src, at: start, end: end}
	f.frame = func(at int64) (int64, error) {
		h, ok, err := header(at)
		if err != nil || !ok {
			return 0, err
		}
		return h.length, nil
	}
	var blocks uint64
	for {
		at, n, err := f.next()
		if err != nil {
			return Info{}, err
		}
		if n == 0 {
			break
		}
		h, _, err := header(at)
		if err != nil {
			return Info{}, err
		}
		first, known = h, true
		blocks += h.blocks
	}
	if !known {
		return Info{}, refuse("it holds no audio")
	}
	if first.channels == 0 {
		return Info{}, refuse("its AAC does not say in its headers how many channels it has, which is not supported")
	}
	rate := aacSampling[first.rateAt]
	return Info{
		Format: AAC, Codec: "aac", SampleRate: rate, Channels: first.channels,
		Duration: playing(blocks*aacFrameSamples, rate),
	}, nil
}
