package httpapi

import (
	"bytes"
	"compress/gzip"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestGzipGoesToWhoTakesIt(t *testing.T) {
	t.Parallel()
	for accepted, want := range map[string]bool{
		"gzip": true, "x-gzip": true, "GZIP": true, "deflate, gzip;q=1.0, *;q=0.5": true, "br;q=1, gzip ; q=0.001": true, "*": true, "gzip;Q=0.5": true, "identity, gzip": true,
		"gzip;q=0.8, identity;q=0.8": true, "*;q=0.3, deflate": true, ",, gzip": true, "br, zstd, gzip, deflate": true, "identity;q=0, gzip": true,
		"": false, "identity": false, "br": false, "gzip;q=0": false, "gzip;q=0.000": false, "*;q=0": false, "identity, gzip;q=0.5": false, "*, gzip;q=0": false, "gzipped": false,
		"gzip;q=2": false, "gzip;q=-1": false, "gzip;q=0.1234": false, "gzip;q=": false, "gzip;level=9": false, "gzip;q=NaN": false, "gzip;q=1.001": false, "gzip q=1": false, "identity;q=0": false,
	} {
		require.Equal(t, want, prefersGzip(http.Header{"Accept-Encoding": {accepted}}, minPacked), accepted)
	}
	require.False(t, prefersGzip(http.Header{}, minPacked), "who says nothing gets what anybody can read")
	require.True(t, prefersGzip(http.Header{"Accept-Encoding": {"br", "gzip"}}, minPacked), "a field may be given in parts")

	// A small body is not worth it, unless it is not taken as it is.
	for accepted, want := range map[string]bool{"gzip": false, "*": false, "gzip, identity;q=0": true, "gzip, *;q=0": true, "identity;q=0": false} {
		require.Equal(t, want, prefersGzip(http.Header{"Accept-Encoding": {accepted}}, minPacked-1), accepted)
	}
}

func TestWeightsAreThoseOfTheStandard(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		thousandths := rapid.IntRange(0, 1000).Draw(t, "thousandths")
		text := strconv.FormatFloat(float64(thousandths)/1000, 'f', rapid.SampledFrom([]int{-1, 3}).Draw(t, "digits"), 64)
		got, ok := weightOf(" q=" + text)
		require.True(t, ok, text)
		require.Equal(t, thousandths, got)

		odd := rapid.StringMatching(`[0-9.e+-]{0,6}`).Draw(t, "odd")
		if got, ok := weightOf("q=" + odd); ok {
			n, err := strconv.ParseFloat(odd, 64)
			require.NoError(t, err, odd)
			require.Equal(t, int(math.Round(n*1000)), got)
		}
	})
}

func TestWhatIsPackedIsUnpackedTheSame(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		body := []byte(strings.Repeat(rapid.String().Draw(t, "part"), rapid.IntRange(0, 500).Draw(t, "times")))
		var packed bytes.Buffer
		pack(&packed, body)
		r, err := gzip.NewReader(&packed)
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(body, got))
	})
}

// What is kept for later answers is not what a few very large ones leave.
func TestLargeBuffersAreNotKept(t *testing.T) {
	t.Parallel()
	large := borrow()
	large.Grow(2 * maxPooledBytes)
	large.WriteString("x")
	giveBack(large)
	require.NotZero(t, large.Len(), "it was made ready for another answer")
	require.Zero(t, borrow().Len())
}
