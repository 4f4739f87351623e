package audiofile

import (
	"encoding/binary"
)

// table walks the entries of a box, each of a fixed number of bytes, through a window of its own.
type table struct {
	src   *source
	at    int64
	left  uint32
	entry int
}

// openTable reads the count that stands at an offset in the box, behind version and flags, and checks that the entries behind it are there.
func openTable(src *source, b box, countAt, entry int) (*table, error) {
	if b.kind == "" {
		return nil, refuse("it is damaged: its sample table is not whole")
	}
	head, err := b.bytes(src, countAt+4)
	if err != nil {
		return nil, err
	}
	count := binary.BigEndian.Uint32(head[countAt:])
	at := b.body + int64(countAt) + 4
	if int64(count)*int64(entry) > b.end-at {
		return nil, refuse("it is cut off: its sample table is longer than its box")
	}
	return &table{src: newSourceOf(src.r, src.size, tableWindow), at: at, left: count, entry: entry}, nil
}

// next returns the next entry, good until the call after it; nil behind the last.
func (t *table) next() ([]byte, error) {
	if t.left == 0 {
		return nil, nil
	}
	b, err := t.src.bytes(t.at, t.entry)
	t.at += int64(t.entry)
	t.left--
	return b, err
}

// check walks all tables side by side: how long the samples are in time (returned in units of the media's time scale), in which chunk each
// lies and how many bytes it has. Every chunk must lie in the media data.
func (t tables) check(src *source, media []extent) (units uint64, err error) {
	samples, units, err := t.times(src)
	if err != nil {
		return 0, err
	}
	if samples == 0 || units == 0 {
		return 0, refuse("it holds no audio")
	}
	sizes, err := openSizes(src, t.stsz)
	if err != nil {
		return 0, err
	}
	if uint64(sizes.count) != samples {
		return 0, refuse("it is damaged: its sample table contradicts itself")
	}
	offsets, wide := t.stco, 4
	if offsets.kind == "" {
		offsets, wide = t.co64, 8
	}
	chunks, err := openTable(src, offsets, 4, wide)
	if err != nil {
		return 0, err
	}
	runs, err := openRuns(src, t.stsc)
	if err != nil {
		return 0, err
	}

	var room, used, placed uint64
	for _, m := range media {
		room += uint64(m.to - m.from)
	}
	for chunk := uint32(1); ; chunk++ {
		b, err := chunks.next()
		if err != nil {
			return 0, err
		}
		if b == nil {
			break
		}
		offset := uint64(binary.BigEndian.Uint32(b))
		if wide == 8 {
			offset = binary.BigEndian.Uint64(b)
		}
		n, err := runs.samplesIn(chunk)
		if err != nil {
			return 0, err
		}
		placed += uint64(n)
		if placed > samples {
			return 0, refuse("it is damaged: its sample table contradicts itself")
		}
		length, err := sizes.take(n)
		if err != nil {
			return 0, err
		}
		if used += length; used > room || !inside(media, offset, length) {
			return 0, refuse("it is cut off: audio that its sample table names is not in the file")
		}
	}
	if placed != samples {
		return 0, refuse("it is cut off: its sample table places %d of %d samples", placed, samples)
	}
	return units, nil
}

// inside says whether one extent holds length bytes at an offset.
func inside(media []extent, offset, length uint64) bool {
	for _, m := range media {
		if offset >= uint64(m.from) && offset <= uint64(m.to) && length <= uint64(m.to)-offset {
			return true
		}
	}
	return false
}

// times sums the decoding times (stts, §8.6.1.2). Both sums stay below 2^64: at most 2^29 entries fit a box of 32 bits, and a sum that passes 2^62 ends it.
func (t tables) times(src *source) (samples, units uint64, err error) {
	entries, err := openTable(src, t.stts, 4, 8)
	if err != nil {
		return 0, 0, err
	}
	for {
		b, err := entries.next()
		if err != nil || b == nil {
			return samples, units, err
		}
		count, delta := uint64(binary.BigEndian.Uint32(b)), uint64(binary.BigEndian.Uint32(b[4:]))
		samples += count
		if delta != 0 && count > (1<<62-units)/delta {
			return 0, 0, refuse("it is damaged: its times are beyond reason")
		}
		units += count * delta
	}
}

// sizes are those of the samples (stsz, §8.7.3.2).
type sizes struct {
	count uint32
	all   uint32 // of every sample; 0: each has its own
	each  *table
}

func openSizes(src *source, stsz box) (*sizes, error) {
	if stsz.kind == "" {
		return nil, refuse("it is damaged: its sample table is not whole")
	}
	b, err := stsz.bytes(src, 12)
	if err != nil {
		return nil, err
	}
	s := &sizes{all: binary.BigEndian.Uint32(b[4:]), count: binary.BigEndian.Uint32(b[8:])}
	if s.all == 0 {
		s.each, err = openTable(src, stsz, 8, 4)
	}
	return s, err
}

// take returns the bytes of the next n samples together.
func (s *sizes) take(n uint32) (uint64, error) {
	if s.all != 0 {
		return uint64(s.all) * uint64(n), nil
	}
	var sum uint64
	for range n {
		b, err := s.each.next()
		if err != nil {
			return 0, err
		}
		if b == nil {
			return 0, refuse("it is damaged: its sample table contradicts itself")
		}
		size := binary.BigEndian.Uint32(b)
		if size == 0 {
			return 0, refuse("it is damaged: a sample is empty")
		}
		sum += uint64(size)
	}
	return sum, nil
}

// runs tell how many samples each chunk has (stsc, §8.7.4).
type runs struct {
	entries *table
	current uint32 // samples in each chunk of this run
	next    uint32 // first chunk of the next run; 0: there is none
	after   uint32 // samples in each chunk of the next run
}

func openRuns(src *source, stsc box) (*runs, error) {
	entries, err := openTable(src, stsc, 4, 12)
	if err != nil {
		return nil, err
	}
	r := &runs{entries: entries}
	if err := r.advance(); err != nil {
		return nil, err
	}
	if r.next != 1 {
		return nil, refuse("it is damaged: its sample table does not begin with the first chunk")
	}
	return r, nil
}

func (r *runs) advance() error {
	b, err := r.entries.next()
	if err != nil {
		return err
	}
	if b == nil {
		r.next = 0
		return nil
	}
	first, samples, description := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if first <= r.next || samples == 0 {
		return refuse("it is damaged: its sample table contradicts itself")
	}
	if description != 1 {
		return refuse("its audio changes its kind on the way, which is not supported")
	}
	r.next, r.after = first, samples
	return nil
}

// samplesIn is asked chunk by chunk, from 1.
func (r *runs) samplesIn(chunk uint32) (uint32, error) {
	if chunk == r.next {
		r.current = r.after
		if err := r.advance(); err != nil {
			return 0, err
		}
	}
	return r.current, nil
}
