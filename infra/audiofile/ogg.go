package audiofile

import (
	"encoding/binary"
)

const (
	oggHeaderBytes = 27        // of a page, without its segment table (RFC 3533 §6)
	noGranule      = 1<<64 - 1 // no packet ends on the page
)

// Flags of a page.
const (
	oggContinued = 1
	oggBegin     = 2
	oggEnd       = 4
)

// oggPage is one page; its body is good until the next read.
type oggPage struct {
	flags    byte
	granule  uint64
	serial   uint32
	sequence uint32
	lacing   []byte
	body     []byte
	length   int64
}

// readOggPage reads the page at an offset and checks its CRC. No page there: *NotAudioError.
func readOggPage(src *source, at int64) (oggPage, error) {
	head, err := src.bytes(at, oggHeaderBytes)
	if err != nil {
		return oggPage{}, err
	}
	if string(head[:4]) != "OggS" || head[4] != 0 {
		return oggPage{}, refuse("it is damaged: something else stands where an Ogg page should")
	}
	segments := int(head[26])
	head, err = src.bytes(at, oggHeaderBytes+segments)
	if err != nil {
		return oggPage{}, err
	}
	body := 0
	for _, n := range head[oggHeaderBytes:] {
		body += int(n)
	}
	b, err := src.bytes(at, oggHeaderBytes+segments+body)
	if err != nil {
		return oggPage{}, err
	}
	if oggCRC(b) != binary.LittleEndian.Uint32(b[22:]) {
		return oggPage{}, refuse("it is damaged: the check sum of an Ogg page is wrong")
	}
	return oggPage{
		flags:    b[5],
		granule:  binary.LittleEndian.Uint64(b[6:]),
		serial:   binary.LittleEndian.Uint32(b[14:]),
		sequence: binary.LittleEndian.Uint32(b[18:]),
		lacing:   b[oggHeaderBytes : oggHeaderBytes+segments],
		body:     b[oggHeaderBytes+segments:],
		length:   int64(len(b)),
	}, nil
}

// oggCodec takes the packets of one logical stream.
type oggCodec interface {
	// header takes the first bytes (at most 255) of header packet n, and says whether audio follows it.
	header(n int, b []byte) (last bool, err error)
	// audio takes the first bytes of an audio packet of the given length and returns the most samples that it can decode to.
	audio(b []byte) (samples uint64, err error)
	// played turns what was found into the stream's length in samples.
	played(t oggTimes) (uint64, error)
	// describes the stream; the rate is that of the granule positions.
	info() Info
}

// oggTimes is what an audio stream's granule positions and packets say, in samples.
type oggTimes struct {
	firstGranule uint64 // of the first page on which an audio packet ends
	firstSamples uint64 // of the packets that end on it
	firstIsLast  bool
	lastGranule  uint64
	samples      uint64 // of all packets
}

// inspectOgg follows RFC 3533: whole pages in sequence, from one that begins the stream to one that ends it. Streams may be chained if they
// are alike; several at once (a film, a film's sound) are refused.
func inspectOgg(src *source, start int64) (Info, error) {
	var info Info
	at := start
	for {
		next, err := inspectOggStream(src, at, &info)
		if err != nil {
			return Info{}, err
		}
		at = next
		magic, err := src.upTo(at, 4)
		if err != nil {
			return Info{}, err
		}
		if string(magic) != "OggS" {
			break
		}
	}
	if err := trailing(src, at); err != nil {
		return Info{}, err
	}
	return info, nil
}

// inspectOggStream reads one logical stream, adds it to info and returns where it ends.
func inspectOggStream(src *source, at int64, info *Info) (int64, error) {
	var codec oggCodec
	var times oggTimes
	var serial, sequence uint32
	var packets int // header packets done
	headers, inPacket, seenAudio := true, false, false
	var granule uint64

	for first := true; ; first = false {
		page, err := readOggPage(src, at)
		if err != nil {
			return 0, err
		}
		at += page.length
		if first {
			if page.flags&oggBegin == 0 {
				return 0, refuse("its begin is missing: the first Ogg page does not begin a stream")
			}
			serial, sequence = page.serial, page.sequence
			if codec, err = oggCodecOf(page.body); err != nil {
				return 0, err
			}
		} else {
			if page.serial != serial || page.flags&oggBegin != 0 {
				return 0, refuse("it holds several streams, or its end is missing; one stream of Vorbis or Opus is supported")
			}
			if sequence++; page.sequence != sequence {
				return 0, refuse("it is damaged: Ogg pages are missing")
			}
		}
		if continued := page.flags&oggContinued != 0; continued != inPacket {
			return 0, refuse("it is damaged: a packet is missing a part")
		}

		var pageSamples uint64
		ended := false // an audio packet ended on this page
		body := page.body
		for i := 0; i < len(page.lacing); {
			// One packet, or what this page has of it.
			length, whole := 0, false
			for i < len(page.lacing) && !whole {
				length += int(page.lacing[i])
				whole = page.lacing[i] < 255
				i++
			}
			head := body[:min(length, 255)]
			body = body[length:]
			begins := !inPacket
			inPacket = !whole
			if headers {
				if begins {
					last, err := codec.header(packets, head)
					if err != nil {
						return 0, err
					}
					packets++
					if last && whole {
						headers = false
					}
					if last && !whole {
						packets = -1 // its end is the end of the headers
					}
				} else if whole && packets == -1 {
					headers = false
				}
				continue
			}
			if begins {
				n, err := codec.audio(head)
				if err != nil {
					return 0, err
				}
				pageSamples += n
				times.samples += n
			}
			ended = ended || whole
		}
		if ended {
			if page.granule == noGranule || page.granule>>63 == 1 || page.granule < granule {
				return 0, refuse("it is damaged: its times run backwards")
			}
			granule = page.granule
			times.lastGranule = granule
			if !seenAudio {
				seenAudio = true
				times.firstGranule, times.firstSamples, times.firstIsLast = granule, pageSamples, page.flags&oggEnd != 0
			}
		}
		if page.flags&oggEnd != 0 {
			if inPacket {
				return 0, refuse("it is cut off: its last packet is not whole")
			}
			break
		}
		if at >= src.size {
			return 0, refuse("it is cut off: the Ogg page that ends the stream is missing")
		}
	}
	if !seenAudio {
		return 0, refuse("it holds no audio")
	}
	samples, err := codec.played(times)
	if err != nil {
		return 0, err
	}
	one := codec.info()
	one.Duration = info.Duration + playing(samples, one.SampleRate)
	if info.Codec != "" && (info.Codec != one.Codec || info.SampleRate != one.SampleRate || info.Channels != one.Channels) {
		return 0, refuse("it chains streams of different kinds, which is not supported")
	}
	*info = one
	return at, nil
}

func oggCodecOf(body []byte) (oggCodec, error) {
	is := func(magic string) bool { return len(body) >= len(magic) && string(body[:len(magic)]) == magic }
	switch {
	case is("\x01vorbis"):
		return &vorbis{}, nil
	case is("OpusHead"):
		return &opus{}, nil
	case is("\x7fFLAC"):
		return nil, refuse("FLAC in Ogg is not supported; send MP3, WAV, Ogg (Vorbis, Opus) or AAC")
	case is("Speex   "):
		return nil, refuse("Speex is not supported; send MP3, WAV, Ogg (Vorbis, Opus) or AAC")
	}
	return nil, refuse("its Ogg stream is neither Vorbis nor Opus")
}

// oggTable is of the CRC of Ogg pages: polynomial 0x04c11db7, most significant bit first, begin 0, no final xor (RFC 3533 §6). Eight tables take
// eight bytes a step.
var oggTable = func() (t [8][256]uint32) {
	for i := range t[0] {
		c := uint32(i) << 24
		for range 8 {
			c = c<<1 ^ (c>>31)*0x04c11db7
		}
		t[0][i] = c
	}
	for k := 1; k < 8; k++ {
		for i := range t[k] {
			c := t[k-1][i]
			t[k][i] = c<<8 ^ t[0][c>>24]
		}
	}
	return t
}()

// oggCRC is the CRC of a page, its own field taken for zero.
func oggCRC(page []byte) uint32 {
	crc := oggCRCUpdate(0, page[:22])
	crc = oggCRCUpdate(crc, []byte{0, 0, 0, 0})
	return oggCRCUpdate(crc, page[26:])
}

func oggCRCUpdate(crc uint32, b []byte) uint32 {
	t := &oggTable
	for len(b) >= 8 {
		crc ^= binary.BigEndian.Uint32(b)
		crc = t[7][crc>>24] ^ t[6][crc>>16&0xff] ^ t[5][crc>>8&0xff] ^ t[4][crc&0xff] ^
			t[3][b[4]] ^ t[2][b[5]] ^ t[1][b[6]] ^ t[0][b[7]]
		b = b[8:]
	}
	for _, c := range b {
		crc = crc<<8 ^ t[0][byte(crc>>24)^c]
	}
	return crc
}
