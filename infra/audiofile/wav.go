package audiofile

import (
	"encoding/binary"
)

// Format tags of WAVE (RFC 2361, Microsoft mmreg.h).
const (
	wavePCM        = 0x0001
	waveFloat      = 0x0003
	waveALaw       = 0x0006
	waveMuLaw      = 0x0007
	waveExtensible = 0xfffe
)

// waveSubformat is the end of every KSDATAFORMAT_SUBTYPE that stands for a format tag: {tag}-0000-0010-8000-00aa00389b71.
const waveSubformat = "\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"

// maxRIFFChunks bounds the chunks that are walked.
const maxRIFFChunks = 4096

type waveFormat struct {
	codec      string
	channels   int
	rate       int
	blockAlign uint64 // bytes of one sample of all channels
}

// inspectWAV follows "Multimedia Programming Interface and Data Specifications 1.0" (IBM, Microsoft 1991), with WAVE_FORMAT_EXTENSIBLE.
// The sizes in the headers must lie inside the file.
func inspectWAV(src *source, start int64) (Info, error) {
	head, err := src.bytes(start, 12)
	if err != nil {
		return Info{}, err
	}
	riffBytes := binary.LittleEndian.Uint32(head[4:])
	if riffBytes == 0 || riffBytes == 0xffffffff {
		return Info{}, refuse("its header does not say how long it is, as when a recording was not closed")
	}
	end := start + 8 + int64(riffBytes)
	if end > src.size {
		return Info{}, errCut
	}

	var format *waveFormat
	var data int64 = -1
	at := start + 12
	for n := 0; at < end; n++ {
		if n == maxRIFFChunks {
			return Info{}, refuse("it has more than %d chunks", maxRIFFChunks)
		}
		if end-at == 1 {
			break // the pad byte of a last chunk whose writer counted it twice
		}
		chunk, err := src.bytes(at, 8)
		if err != nil {
			return Info{}, err
		}
		id, length := string(chunk[:4]), int64(binary.LittleEndian.Uint32(chunk[4:]))
		if length > end-at-8 {
			return Info{}, refuse("it is cut off: its %q chunk is longer than the file", id)
		}
		switch id {
		case "fmt ":
			if format != nil {
				return Info{}, refuse("it has two format chunks")
			}
			if format, err = readWaveFormat(src, at+8, length); err != nil {
				return Info{}, err
			}
		case "data":
			if data >= 0 {
				return Info{}, refuse("it has two data chunks")
			}
			data = length
		}
		at += 8 + length + length&1
	}
	if format == nil {
		return Info{}, refuse("it has no format chunk")
	}
	if data <= 0 {
		return Info{}, refuse("it holds no audio")
	}
	if uint64(data)%format.blockAlign != 0 {
		return Info{}, refuse("it is cut off: its data ends within a sample")
	}
	if err := trailing(src, end); err != nil {
		return Info{}, err
	}
	return Info{
		Format: WAV, Codec: format.codec, SampleRate: format.rate, Channels: format.channels,
		Duration: playing(uint64(data)/format.blockAlign, format.rate),
	}, nil
}

func readWaveFormat(src *source, at, length int64) (*waveFormat, error) {
	if length < 16 {
		return nil, refuse("its format chunk is too short")
	}
	b, err := src.bytes(at, int(min(length, 40)))
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	tag, channels, rate, align, bits := le.Uint16(b), le.Uint16(b[2:]), le.Uint32(b[4:]), le.Uint16(b[12:]), le.Uint16(b[14:])
	if tag == waveExtensible {
		if len(b) < 40 || string(b[26:40]) != waveSubformat {
			return nil, refuse("its WAVE_FORMAT_EXTENSIBLE names no format that is supported")
		}
		if valid := le.Uint16(b[18:]); valid > bits {
			return nil, refuse("its format chunk contradicts itself")
		}
		tag = le.Uint16(b[24:])
	}
	f := &waveFormat{channels: int(channels), rate: int(min(rate, 1<<30)), blockAlign: uint64(align)}
	switch {
	case tag == wavePCM && (bits == 8 || bits == 16 || bits == 24 || bits == 32):
		f.codec = "pcm"
	case tag == waveFloat && (bits == 32 || bits == 64):
		f.codec = "float"
	case tag == waveALaw && bits == 8:
		f.codec = "alaw"
	case tag == waveMuLaw && bits == 8:
		f.codec = "mulaw"
	default:
		return nil, refuse("its WAVE format 0x%04x with %d bits is not supported; PCM, float, µ-law and A-law are", tag, bits)
	}
	if align == 0 || uint32(align) != uint32(channels)*uint32(bits)/8 {
		return nil, refuse("its format chunk contradicts itself")
	}
	return f, nil
}
