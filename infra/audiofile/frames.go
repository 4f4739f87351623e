package audiofile

// maxJunkBytes is how many bytes of a stream of frames may belong to no frame and no tag, in all. Editors leave a few behind; more means that a
// piece is missing or damaged.
const maxJunkBytes = 2 << 10

// frames walks a stream of frames that has no container: MP3, or AAC in ADTS.
type frames struct {
	src     *source
	at, end int64

	// frame returns the length of the frame at an offset, 0 if none that fits the stream begins there. It need not lie inside the file.
	frame func(at int64) (int64, error)

	synced bool // what stands before at is a frame or a tag
	junk   int
}

// next returns where the next frame stands and how long it is, 0 when there is no other.
func (f *frames) next() (at, length int64, err error) {
	for f.at < f.end {
		n, err := f.frame(f.at)
		if err != nil {
			return 0, 0, err
		}
		if n > 0 && f.synced && n > f.end-f.at {
			return 0, 0, refuse("it is cut off within its last frame")
		}
		if n > 0 && !f.synced {
			if n, err = f.confirmed(n); err != nil {
				return 0, 0, err
			}
		}
		if n > 0 {
			at := f.at
			f.at += n
			f.synced = true
			return at, n, nil
		}
		if f.synced {
			skipped, err := f.skip()
			if err != nil {
				return 0, 0, err
			}
			if skipped {
				continue
			}
		}
		if f.junk++; f.junk > maxJunkBytes {
			return 0, 0, refuse("it is damaged, or no audio: over %d bytes belong to no frame", maxJunkBytes)
		}
		f.synced = false
		f.at++
	}
	if !f.synced {
		return 0, 0, refuse("it is cut off, or no audio: no frame ends where it ends")
	}
	return 0, 0, nil
}

// confirmed returns n if what follows a frame found in the dark is the end, another frame or a tag: two bytes look like a header often.
func (f *frames) confirmed(n int64) (int64, error) {
	after := f.at + n
	if after >= f.end {
		if after == f.end {
			return n, nil
		}
		return 0, nil
	}
	following, err := f.frame(after)
	if err != nil {
		return 0, err
	}
	if following > 0 {
		return n, nil
	}
	tag, err := forwardTag(f.src, after, f.end)
	if err != nil || tag == 0 {
		return 0, nil //nolint:nilerr // a tag that is cut confirms nothing; the walk tells its own error
	}
	return n, nil
}

// skip passes a tag, or zero bytes up to the end.
func (f *frames) skip() (bool, error) {
	n, err := forwardTag(f.src, f.at, f.end)
	if err != nil {
		return false, err
	}
	if n == 0 {
		ok, err := f.src.zeros(f.at, f.end)
		if err != nil || !ok {
			return false, err
		}
		n = f.end - f.at
	}
	f.at += n
	return true, nil
}

// bits reads n bits (at most 32) at a bit offset, most significant first. The caller has checked that they are there.
func bits(b []byte, at, n int) uint32 {
	var v uint32
	for i := at; i < at+n; i++ {
		v = v<<1 | uint32(b[i>>3]>>(7-i&7))&1
	}
	return v
}
