//go:build ignore

// Writes welcome.wav, a chime of four bells, from which welcome.mp3 is made:
//
//	go run chime.go && lame --quiet -q 2 -b 64 -m m --id3v2-only --tt "Welcome" welcome.wav welcome.mp3
package main

import (
	"encoding/binary"
	"log"
	"math"
	"os"
)

const (
	rate    = 44_100 // Hz
	seconds = 4
)

func main() {
	sound := make([]float64, rate*seconds)
	for i, pitch := range []float64{783.99, 659.26, 523.25, 1046.50} { // G5, E5, C5, C6
		bell(sound[i*rate*2/5:], pitch)
	}
	pcm := make([]int16, len(sound))
	for i, v := range sound {
		left := float64(len(sound)-i) / rate
		pcm[i] = int16(9000 * v * min(1, left/0.5)) // silent at the end
	}
	const header = 44
	le := binary.LittleEndian
	b := append([]byte("RIFF"), le.AppendUint32(nil, uint32(header-8+2*len(pcm)))...)
	b = append(b, "WAVEfmt "...)
	b = le.AppendUint32(b, 16)
	b = le.AppendUint16(b, 1) // PCM
	b = le.AppendUint16(b, 1) // channels
	b = le.AppendUint32(b, rate)
	b = le.AppendUint32(b, rate*2)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 16) // bits
	b = append(b, "data"...)
	b = le.AppendUint32(b, uint32(2*len(pcm)))
	b, err := binary.Append(b, le, pcm)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile("welcome.wav", b, 0o644); err != nil {
		log.Fatal(err)
	}
}

// bell adds a struck bell: partials that die away, the higher the sooner.
func bell(sound []float64, pitch float64) {
	for i := range sound {
		t := float64(i) / rate
		attack := min(1, t/0.004)
		for _, p := range []struct{ ratio, loud, decay float64 }{{1, 1, 1.6}, {2, 0.45, 2.4}, {2.76, 0.25, 4}, {5.4, 0.1, 8}} {
			sound[i] += attack * p.loud * math.Exp(-p.decay*t) * math.Sin(2*math.Pi*pitch*p.ratio*t)
		}
	}
}
