package audiofile

import (
	"encoding/binary"
)

// maxTags bounds the tags that are skipped in one place; more than two or three mean that something else is wrong.
const maxTags = 16

const (
	id3v1Bytes         = 128
	id3v1ExtendedBytes = 227 // "TAG+", in front of an ID3v1 tag
	id3v2HeaderBytes   = 10
	apeBytes           = 32 // an APE tag's header, and its footer
)

// skipLeadingTags returns where the first thing begins that is no ID3v2 tag.
func skipLeadingTags(src *source) (int64, error) {
	var at int64
	for range maxTags {
		n, err := id3v2(src, at, src.size)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return at, nil
		}
		at += n
		if at >= src.size {
			return 0, refuse("it holds a tag and no audio")
		}
	}
	return 0, refuse("it begins with more than %d tags", maxTags)
}

// id3v2 returns the length of the ID3v2 tag at an offset, 0 if there is none (ID3v2.4 main structure §3.1: four 7-bit bytes of size, and ten more
// if there is a footer). One that goes beyond end is an error.
func id3v2(src *source, at, end int64) (int64, error) {
	b, err := src.upTo(at, id3v2HeaderBytes)
	if err != nil || len(b) < id3v2HeaderBytes || string(b[:3]) != "ID3" || b[3] == 0xff || b[4] == 0xff || (b[6]|b[7]|b[8]|b[9])&0x80 != 0 {
		return 0, err
	}
	n := int64(b[6])<<21 | int64(b[7])<<14 | int64(b[8])<<7 | int64(b[9])
	n += id3v2HeaderBytes
	if b[5]&0x10 != 0 {
		n += id3v2HeaderBytes
	}
	if at+n > end {
		return 0, errCut
	}
	return n, nil
}

// forwardTag returns the length of a tag that begins at an offset between frames or behind the last, 0 if none does.
func forwardTag(src *source, at, end int64) (int64, error) {
	b, err := src.upTo(at, apeBytes)
	if err != nil {
		return 0, err
	}
	var n int64
	switch {
	case len(b) >= 3 && string(b[:3]) == "ID3":
		return id3v2(src, at, end)
	case len(b) >= 4 && string(b[:4]) == "TAG+":
		n = id3v1ExtendedBytes
	case len(b) >= 3 && string(b[:3]) == "TAG":
		n = id3v1Bytes
	case len(b) == apeBytes && string(b[:8]) == "APETAGEX":
		n = apeBytes + int64(binary.LittleEndian.Uint32(b[12:])) // APEv2: the size counts items and footer
	}
	if n > end-at {
		return 0, errCut
	}
	return n, nil
}

// withoutTrailingTags returns where the tags at the end of a file begin that can only be found from behind: ID3v1, APE without
// header, Lyrics3v2.
func withoutTrailingTags(src *source, start int64) (int64, error) {
	end := src.size
	for range maxTags {
		n, err := backwardTag(src, start, end)
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return end, nil
		}
		end -= n
	}
	return 0, refuse("it ends with more than %d tags", maxTags)
}

func backwardTag(src *source, start, end int64) (int64, error) {
	room := end - start
	if room >= id3v1Bytes {
		b, err := src.bytes(end-id3v1Bytes, 3)
		if err != nil {
			return 0, err
		}
		if string(b) == "TAG" {
			return id3v1Bytes, nil
		}
	}
	if room >= id3v1ExtendedBytes {
		b, err := src.bytes(end-id3v1ExtendedBytes, 4)
		if err != nil {
			return 0, err
		}
		if string(b) == "TAG+" {
			return id3v1ExtendedBytes, nil
		}
	}
	if room >= apeBytes {
		b, err := src.bytes(end-apeBytes, apeBytes)
		if err != nil {
			return 0, err
		}
		if string(b[:8]) == "APETAGEX" {
			n := int64(binary.LittleEndian.Uint32(b[12:]))
			if flags := binary.LittleEndian.Uint32(b[20:]); flags&(1<<31) != 0 {
				n += apeBytes
			}
			if n >= apeBytes && n <= room {
				return n, nil
			}
			return 0, refuse("its APE tag is damaged")
		}
	}
	return lyrics3(src, start, end)
}

// lyrics3 returns the length of a Lyrics3v2 tag that ends at end: "LYRICSBEGIN", fields, their length in six digits, "LYRICS200".
func lyrics3(src *source, start, end int64) (int64, error) {
	const tail = 15
	if end-start < tail {
		return 0, nil
	}
	b, err := src.bytes(end-tail, tail)
	if err != nil || string(b[6:]) != "LYRICS200" {
		return 0, err
	}
	var n int64 = tail
	scale := int64(100_000)
	for _, c := range b[:6] {
		if c < '0' || c > '9' {
			return 0, refuse("its Lyrics3 tag is damaged")
		}
		n += int64(c-'0') * scale
		scale /= 10
	}
	if n > end-start {
		return 0, refuse("its Lyrics3 tag is damaged")
	}
	return n, nil
}

// trailing takes what may stand behind the end of a container: tags and zero bytes. Anything else is refused.
func trailing(src *source, at int64) error {
	for range maxTags {
		if at >= src.size {
			return nil
		}
		n, err := forwardTag(src, at, src.size)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		at += n
	}
	ok, err := src.zeros(at, src.size)
	if err != nil {
		return err
	}
	if !ok {
		return refuse("unknown data follows the audio")
	}
	return nil
}
