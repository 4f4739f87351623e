package readmodel

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
)

func TestADecodedTextHasNoNUL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.SampledFrom([]string{"\x00", `\`, `u0000`, `\u0000`, "ä", `"`, "x"})).Draw(t, "parts")
		name := strings.Join(parts, "")
		data, err := json.Marshal(audio.Uploaded{Name: name})
		require.NoError(t, err)
		p, err := Decode[audio.Uploaded](event.Recorded{Data: data})
		require.NoError(t, err)
		require.Equal(t, strings.ReplaceAll(name, "\x00", "\uFFFD"), p.Name)
	})
}

func TestAnEventThatCannotBeReadIsNamed(t *testing.T) {
	_, err := Decode[audio.Uploaded](event.Recorded{Type: "AudioUploaded", Revision: 3, Stream: "audio-1", Data: []byte(`{"audioId": 5}`)})
	require.ErrorContains(t, err, "AudioUploaded 3@audio-1")
}

func TestACursorComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cursor{List: rapid.Byte().Draw(t, "list"), Keys: rapid.SliceOfN(rapid.Uint64(), 1, 3).Draw(t, "keys")}
		again, err := ParseCursor(c.String(), c.List, len(c.Keys))
		require.NoError(t, err)
		require.Equal(t, c, again)
		_, err = ParseCursor(c.String(), c.List+1, len(c.Keys))
		require.Equal(t, fault.InvalidFormat, fault.CodeOf(err), "another list's")
	})
}

func FuzzParseCursor(f *testing.F) {
	f.Add("")
	f.Add("nonsense")
	f.Add(Cursor{List: 'a', Keys: []uint64{1 << 40}}.String())
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCursor(text, 'a', 1)
		switch {
		case err != nil:
			require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
		case text == "":
			require.Equal(t, int64(7), c.Key(0, 7))
		default:
			require.Equal(t, text, c.String(), "there is one way to write a cursor")
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name": "a\u0000b\\u0000"}`))
	f.Add([]byte(`\u0000`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode[audio.Uploaded](event.Recorded{Data: data})
		if err == nil {
			require.False(t, strings.Contains(p.Name, "\x00"))
			require.True(t, utf8.ValidString(p.Name))
		}
	})
}

func TestMonthsAreThoseOfUTC(t *testing.T) {
	require.Equal(t, time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), Month(time.Date(2026, 3, 1, 0, 30, 0, 0, time.FixedZone("", 3600))))
}

func TestWhatIsSearchedIsFolded(t *testing.T) {
	t.Parallel()
	for _, same := range [][2]string{{"ÄRGER", "ärger"}, {"STRASSE", "straße"}, {"ΣΊΣΥΦΟΣ", "σίσυφος"}, {"e\u0301t\u00e9", "\u00c9TE\u0301"}, {"Ünïcode", "ÜNÏCODE"}, {"ПРИВЕТ", "привет"}} {
		require.Equal(t, Fold(same[0]), Fold(same[1]))
	}
	require.NotEqual(t, Fold("arger"), Fold("ärger"))
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		require.Equal(t, Fold(text), Fold(Fold(text)))
	})
}
