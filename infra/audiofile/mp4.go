package audiofile

import (
	"encoding/binary"
	"time"
)

// Limits of an MP4 file's structure.
const (
	maxBoxes     = 4096 // boxes that are walked in one container
	maxMP4Depth  = 8
	maxMediaData = 32      // mdat boxes
	maxEdits     = 32      // entries of an edit list
	maxESDBytes  = 4 << 10 // of an elementary stream descriptor
	tableWindow  = 4 << 10 // bytes of a sample table that are held at once
)

// box is one box of ISO/IEC 14496-12 §4.2: what stands from body to end.
type box struct {
	kind      string
	body, end int64
}

// readBox reads the header of the box at an offset inside a container that ends at end.
func readBox(src *source, at, end int64) (box, error) {
	if end-at < 8 {
		return box{}, errCut
	}
	b, err := src.upTo(at, 16)
	if err != nil {
		return box{}, err
	}
	if len(b) < 8 {
		return box{}, errCut
	}
	length, header := int64(binary.BigEndian.Uint32(b)), int64(8)
	switch length {
	case 0: // up to the end
		length = end - at
	case 1:
		if len(b) < 16 {
			return box{}, errCut
		}
		long := binary.BigEndian.Uint64(b[8:])
		if long > 1<<62 {
			return box{}, errCut
		}
		length, header = int64(long), 16
	}
	kind := string(b[4:8])
	if length < header {
		return box{}, refuse("it is damaged: an MP4 box is shorter than its header")
	}
	if length > end-at {
		return box{}, refuse("it is cut off: its MP4 box %q is longer than what holds it", kind)
	}
	return box{kind: kind, body: at + header, end: at + length}, nil
}

// boxes calls visit for each box from at to end.
func boxes(src *source, at, end int64, visit func(box) error) error {
	for n := 0; at < end; n++ {
		if n == maxBoxes {
			return refuse("it has more than %d MP4 boxes in one place", maxBoxes)
		}
		b, err := readBox(src, at, end)
		if err != nil {
			return err
		}
		if err := visit(b); err != nil {
			return err
		}
		at = b.end
	}
	return nil
}

// children calls visit for each box inside b.
func children(src *source, b box, visit func(box) error) error {
	return boxes(src, b.body, b.end, visit)
}

// bytes returns n bytes of a box from its begin.
func (b box) bytes(src *source, n int) ([]byte, error) {
	if int64(n) > b.end-b.body {
		return nil, refuse("it is damaged: its MP4 box %q is too short", b.kind)
	}
	return src.bytes(b.body, n)
}

// extent is a part of the file.
type extent struct{ from, to int64 }

// track is what is needed of one trak box; a zero box is one that is missing.
type track struct {
	handler   string
	timescale uint32
	edits     box
	stsd      box
	tables    tables
}

// tables are the boxes of a sample table (§8.6, 8.7).
type tables struct{ stts, stsc, stsz, stco, co64 box }

// inspectMP4 reads an MP4 file with one track, of AAC. Its sample table is walked entry by entry, and every sample must lie in a media data box inside
// the file, wherever the moov box stands.
func inspectMP4(src *source, start int64) (Info, error) {
	var moov box
	var media []extent
	err := topLevel(src, start, func(b box) error {
		switch b.kind {
		case "moov":
			if moov.kind != "" {
				return refuse("it is damaged: it has two moov boxes")
			}
			moov = b
		case "mdat":
			if len(media) == maxMediaData {
				return refuse("it has more than %d media data boxes", maxMediaData)
			}
			media = append(media, extent{b.body, b.end})
		case "moof":
			return refuse("fragmented MP4 is not supported; save it as a plain M4A")
		}
		return nil
	})
	if err != nil {
		return Info{}, err
	}
	if moov.kind == "" {
		return Info{}, refuse("it is cut off: its moov box is missing")
	}
	if len(media) == 0 {
		return Info{}, refuse("it holds no audio")
	}

	var movieScale uint32
	var sound *track
	err = children(src, moov, func(b box) error {
		switch b.kind {
		case "mvhd":
			var err error
			movieScale, err = timescale(src, b)
			return err
		case "mvex":
			return refuse("fragmented MP4 is not supported; save it as a plain M4A")
		case "trak":
			t, err := readTrack(src, b)
			if err != nil {
				return err
			}
			switch {
			case t.handler == "vide":
				return refuse("it is a film; send its sound alone")
			case t.handler == "soun" && sound != nil:
				return refuse("it has more than one sound track")
			case t.handler == "soun":
				sound = t
			}
		}
		return nil
	})
	if err != nil {
		return Info{}, err
	}
	if sound == nil {
		return Info{}, refuse("it has no sound track")
	}
	info, err := readAACEntry(src, sound.stsd)
	if err != nil {
		return Info{}, err
	}
	units, err := sound.tables.check(src, media)
	if err != nil {
		return Info{}, err
	}
	info.Duration, err = sound.duration(src, units, movieScale)
	return info, err
}

// topLevel walks the boxes of the file. Tags and zero bytes may follow the last.
func topLevel(src *source, at int64, visit func(box) error) error {
	for n := 0; at < src.size; n++ {
		if n == maxBoxes {
			return refuse("it has more than %d MP4 boxes in one place", maxBoxes)
		}
		if n > 0 {
			head, err := src.upTo(at, 8)
			if err != nil {
				return err
			}
			if len(head) < 8 || string(head[4:]) == "\x00\x00\x00\x00" || string(head[:3]) == "TAG" || string(head) == "APETAGEX" {
				return trailing(src, at)
			}
		}
		b, err := readBox(src, at, src.size)
		if err != nil {
			return err
		}
		if err := visit(b); err != nil {
			return err
		}
		at = b.end
	}
	return nil
}

func readTrack(src *source, trak box) (*track, error) {
	t := &track{}
	depth := 0
	var walk func(b box) error
	walk = func(b box) error {
		switch b.kind {
		case "edts", "mdia", "minf", "stbl":
			if depth++; depth > maxMP4Depth {
				return refuse("it is damaged: its boxes are nested too deep")
			}
			defer func() { depth-- }()
			return children(src, b, walk)
		case "mdhd":
			var err error
			t.timescale, err = timescale(src, b)
			return err
		case "hdlr":
			if t.handler != "" {
				return nil // QuickTime has a second one, for the data, in minf
			}
			h, err := b.bytes(src, 12)
			if err != nil {
				return err
			}
			t.handler = string(h[8:12])
		case "elst":
			t.edits = b
		case "stsd":
			t.stsd = b
		case "stts":
			t.tables.stts = b
		case "stsc":
			t.tables.stsc = b
		case "stsz":
			t.tables.stsz = b
		case "stco":
			t.tables.stco = b
		case "co64":
			t.tables.co64 = b
		}
		return nil
	}
	return t, children(src, trak, walk)
}

// timescale reads the units per second of an mvhd or mdhd box (§8.2.2, 8.4.2).
func timescale(src *source, b box) (uint32, error) {
	v, err := b.bytes(src, 16)
	if err != nil {
		return 0, err
	}
	if v[0] == 1 {
		if v, err = b.bytes(src, 24); err != nil {
			return 0, err
		}
		v = v[8:]
	}
	scale := binary.BigEndian.Uint32(v[12:])
	if scale == 0 {
		return 0, refuse("it is damaged: its time scale is zero")
	}
	return scale, nil
}

// duration is that of the media, less what the edit list (§8.6.6) leaves out: the encoder's delay in front, its padding behind.
func (t *track) duration(src *source, units uint64, movieScale uint32) (d time.Duration, err error) {
	if t.timescale == 0 {
		return 0, refuse("it is damaged: its sound track has no time scale")
	}
	whole := playing(units, int(t.timescale))
	if t.edits.kind == "" {
		return whole, nil
	}
	if movieScale == 0 {
		return 0, refuse("it is damaged: it has no time scale")
	}
	head, err := t.edits.bytes(src, 8)
	if err != nil {
		return 0, err
	}
	wide, count := head[0] == 1, binary.BigEndian.Uint32(head[4:])
	if count > maxEdits {
		return 0, refuse("its edit list has more than %d entries", maxEdits)
	}
	entry := 12
	if wide {
		entry = 20
	}
	b, err := t.edits.bytes(src, 8+entry*int(count))
	if err != nil {
		return 0, err
	}
	edited := false
	for b = b[8:]; len(b) >= entry; b = b[entry:] {
		length, from := uint64(binary.BigEndian.Uint32(b)), int64(int32(binary.BigEndian.Uint32(b[4:])))
		if wide {
			length, from = binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:]))
		}
		if from < 0 {
			continue // nothing plays for a while; players start at once
		}
		if uint64(from) >= units {
			return 0, refuse("it is damaged: its edit list goes beyond the audio")
		}
		edited = true
		rest := playing(units-uint64(from), int(t.timescale))
		if length > 0 {
			rest = min(rest, playing(length, int(movieScale)))
		}
		if d += rest; d > maxEdits*MaxDuration {
			break // no sum can overflow, and it is too long already
		}
	}
	if !edited {
		return whole, nil
	}
	return d, nil
}
