package httpapi

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestIfNoneMatchNamesTags(t *testing.T) {
	t.Parallel()
	tag := weakTag([]byte("content"))
	opaque := strings.TrimPrefix(tag, "W/")
	for field, named := range map[string]bool{
		tag: true, opaque: true, "*": true, " * ": true, `"other", ` + tag: true, tag + `,"other"`: true, ",, " + tag + " ,,": true, `"a,b",` + opaque: true, `"", ` + opaque: true,
		"": false, ",": false, `"other"`: false, `W/"other"`: false, `""`: false, strings.Trim(opaque, `"`): false,
		// RFC 9110 §8.8.3: W is upper case, a tag has quotes and no blanks in it, and commas part the tags.
		"w/" + opaque: false, "W/ " + opaque: false, "W/W/" + opaque: false, opaque + opaque: false, opaque + " " + opaque: false, opaque[:len(opaque)-1]: false, opaque + `, "`: false, opaque + ", x": false,
		`"a b", ` + opaque: false, "*, " + opaque: false, opaque + ", *": false, "**": false, opaque + ";": false, "\"\x7f\", " + opaque: false,
	} {
		require.Equal(t, named, noneMatch([]string{field}, tag), field)
	}
	require.False(t, noneMatch(nil, tag))
	require.True(t, noneMatch([]string{`"other"`, tag}, tag), "a field may be given in parts")
	require.False(t, noneMatch([]string{tag, "nonsense"}, tag))
}

// A well formed field names the tag that is in it in any form and among any others; one that is cut into names nothing else than it did.
func TestIfNoneMatchIsAnyListOfTags(t *testing.T) {
	t.Parallel()
	opaques := rapid.StringMatching(`"[!#-~\x{80}-\x{ff}]{0,8}"`)
	rapid.Check(t, func(t *rapid.T) {
		listed := rapid.SliceOfN(opaques, 1, 5).Draw(t, "listed")
		asked := rapid.OneOf(rapid.SampledFrom(listed), opaques).Draw(t, "asked")
		named := false
		var field strings.Builder
		blanks := rapid.SampledFrom([]string{"", " ", "\t", " , ,"})
		for i, opaque := range listed {
			if i > 0 {
				field.WriteString(",")
			}
			field.WriteString(blanks.Draw(t, "blanks") + rapid.SampledFrom([]string{"", "W/"}).Draw(t, "weak") + opaque + rapid.SampledFrom([]string{"", " ", "\t "}).Draw(t, "end"))
			named = named || opaque == asked
		}
		require.Equal(t, named, noneMatch([]string{field.String()}, "W/"+asked), field.String())

		at := rapid.IntRange(0, field.Len()).Draw(t, "at")
		broken := field.String()[:at] + rapid.SampledFrom([]string{" x ", "\n", "W", "\x00"}).Draw(t, "broken") + field.String()[at:]
		if noneMatch([]string{broken}, "W/"+asked) {
			require.Contains(t, broken, asked)
		}
	})
}

func TestAPartnersURLsLastAnHourAndKeepTheirForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "now"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns"))
		end := partnerURLEnd(now)
		require.GreaterOrEqual(t, end.Sub(now), time.Hour)
		require.Less(t, end.Sub(now), 90*time.Minute)
		require.Zero(t, end.Unix()%1800)
		later := now.Add(time.Duration(rapid.Int64Range(0, int64(30*time.Minute)).Draw(t, "later")))
		if step := 30 * time.Minute; later.Add(-1).Truncate(step).Equal(now.Add(-1).Truncate(step)) {
			require.True(t, end.Equal(partnerURLEnd(later)))
		} else {
			require.True(t, end.Add(30*time.Minute).Equal(partnerURLEnd(later)))
		}
	})
}
