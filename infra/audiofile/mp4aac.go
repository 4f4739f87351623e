package audiofile

import (
	"encoding/binary"
)

// readAACEntry reads the one sample entry of a sound track: "mp4a" with an elementary stream descriptor (ISO/IEC 14496-14 §5.6) that says AAC.
func readAACEntry(src *source, stsd box) (Info, error) {
	if stsd.kind == "" {
		return Info{}, refuse("it is damaged: its sound track does not say what it holds")
	}
	head, err := stsd.bytes(src, 8)
	if err != nil {
		return Info{}, err
	}
	if binary.BigEndian.Uint32(head[4:]) != 1 {
		return Info{}, refuse("its sound track holds several kinds of audio, which is not supported")
	}
	entry, err := readBox(src, stsd.body+8, stsd.end)
	if err != nil {
		return Info{}, err
	}
	switch entry.kind {
	case "mp4a":
	case "alac":
		return Info{}, refuse("Apple Lossless (ALAC) is not supported; save it as AAC")
	case "enca", "drms":
		return Info{}, refuse("it is protected against copying")
	default:
		return Info{}, refuse("its MP4 holds %q and not AAC", entry.kind)
	}
	// 28 bytes of AudioSampleEntry; QuickTime's versions 1 and 2 add fields.
	b, err := entry.bytes(src, 28)
	if err != nil {
		return Info{}, err
	}
	inner := entry
	switch version := binary.BigEndian.Uint16(b[8:]); version {
	case 0:
		inner.body += 28
	case 1:
		inner.body += 28 + 16
	case 2:
		inner.body += 28 + 36
	default:
		return Info{}, refuse("its sound track's description has version %d, which is not supported", version)
	}
	if inner.body > inner.end {
		return Info{}, refuse("it is damaged: its sound track's description is too short")
	}
	var esds box
	depth := 0
	var find func(b box) error
	find = func(b box) error {
		switch b.kind {
		case "esds":
			esds = b
		case "wave": // QuickTime wraps it
			if depth++; depth > maxMP4Depth {
				return refuse("it is damaged: its boxes are nested too deep")
			}
			return waveChildren(src, b, find)
		}
		return nil
	}
	if err := children(src, inner, find); err != nil {
		return Info{}, err
	}
	if esds.kind == "" {
		return Info{}, refuse("it is damaged: its sound track does not say what codec it has")
	}
	return readESDS(src, esds)
}

// waveChildren is children for QuickTime's wave atom, which may end with four zero bytes.
func waveChildren(src *source, b box, visit func(box) error) error {
	if b.end-b.body >= 4 {
		tail, err := src.bytes(b.end-4, 4)
		if err != nil {
			return err
		}
		if binary.BigEndian.Uint32(tail) == 0 && b.end-b.body != 8 {
			last := b
			last.end -= 4
			if boxes(src, last.body, last.end, func(box) error { return nil }) == nil {
				b = last
			}
		}
	}
	return children(src, b, visit)
}

// Tags of descriptors (ISO/IEC 14496-1 §7.2.2.1).
const (
	esDescriptor      = 3
	decoderConfig     = 4
	decoderSpecific   = 5
	objectAAC         = 0x40 // object type indications (§7.2.6.6): MPEG-4 audio,
	objectMPEG2AAC    = 0x66 // and MPEG-2 AAC main, low complexity,
	objectMPEG2AACSSR = 0x68 // scalable sampling rate
)

var errESDS error = &NotAudioError{Reason: "it is damaged: its sound track's codec description is not as it should be"}

// readESDS walks ES_Descriptor, DecoderConfigDescriptor and DecoderSpecificInfo.
func readESDS(src *source, esds box) (Info, error) {
	n := esds.end - esds.body
	if n < 4 || n > maxESDBytes {
		return Info{}, errESDS
	}
	b, err := src.bytes(esds.body, int(n))
	if err != nil {
		return Info{}, err
	}
	es, ok := descriptor(b[4:], esDescriptor)
	if !ok || len(es) < 3 {
		return Info{}, errESDS
	}
	flags := es[2]
	es = es[3:]
	skip := 0
	if flags&0x80 != 0 { // depends on another stream
		skip += 2
	}
	if flags&0x40 != 0 { // a URL
		if len(es) <= skip {
			return Info{}, errESDS
		}
		skip += 1 + int(es[skip])
	}
	if flags&0x20 != 0 { // a clock
		skip += 2
	}
	if len(es) < skip {
		return Info{}, errESDS
	}
	config, ok := descriptor(es[skip:], decoderConfig)
	if !ok || len(config) < 13 {
		return Info{}, errESDS
	}
	if object := config[0]; object != objectAAC && (object < objectMPEG2AAC || object > objectMPEG2AACSSR) {
		return Info{}, refuse("its MP4 holds MPEG audio of type 0x%02x and not AAC", object)
	}
	specific, ok := descriptor(config[13:], decoderSpecific)
	if !ok {
		return Info{}, errESDS
	}
	return audioSpecificConfig(specific)
}

// descriptor returns the body of the descriptor that b begins with, if it has the tag (§8.3.3: up to four bytes of seven bits give its size).
func descriptor(b []byte, tag byte) ([]byte, bool) {
	if len(b) < 2 || b[0] != tag {
		return nil, false
	}
	size := 0
	b = b[1:]
	for i := 0; ; i++ {
		if i == 4 || len(b) == 0 {
			return nil, false
		}
		c := b[0]
		b = b[1:]
		size = size<<7 | int(c&0x7f)
		if c&0x80 == 0 {
			break
		}
	}
	if size > len(b) {
		return nil, false
	}
	return b[:size], true
}

// audioSpecificConfig reads codec, rate and channels (ISO/IEC 14496-3 §1.6.2.1). The rate is that of the AAC core: with spectral band
// replication a decoder may give twice as much.
func audioSpecificConfig(b []byte) (Info, error) {
	const (
		aacMain, aacLC, aacLTP = 1, 2, 4
		sbr, ps                = 5, 29 // HE-AAC, and version 2 of it
		escape                 = 31
		explicitRate           = 15
	)
	at := 0
	take := func(n int) (uint32, bool) {
		if at+n > 8*len(b) {
			return 0, false
		}
		v := bits(b, at, n)
		at += n
		return v, true
	}
	object, ok := take(5)
	if ok && object == escape {
		var more uint32
		more, ok = take(6)
		object = 32 + more
	}
	if !ok {
		return Info{}, errESDS
	}
	switch object {
	case aacMain, aacLC, aacLTP, sbr, ps:
	default:
		return Info{}, refuse("its MP4 holds MPEG-4 audio of type %d and not AAC", object)
	}
	index, ok := take(4)
	rate := uint32(aacSampling[index&15])
	if ok && index == explicitRate {
		rate, ok = take(24)
	}
	layout, ok2 := take(4)
	if !ok || !ok2 || rate == 0 {
		return Info{}, errESDS
	}
	channels := 0
	switch {
	case int(layout) < len(aacChannels):
		channels = aacChannels[layout]
	case layout == 11:
		channels = 7
	case layout == 12, layout == 14:
		channels = 8
	}
	if channels == 0 {
		return Info{}, refuse("its AAC has channel layout %d, which is not supported", layout)
	}
	return Info{Format: AAC, Codec: "aac", SampleRate: int(rate), Channels: channels}, nil
}
