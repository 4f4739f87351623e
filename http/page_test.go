package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/keys"
	"github.com/musique/musique/projections/readmodel"
	"github.com/musique/musique/projections/tokens"
)

func queryOf(raw string) *query {
	return (&call{r: &http.Request{URL: &url.URL{RawQuery: raw}}}).query()
}

func TestStatusesAreReadAsRanges(t *testing.T) {
	for text, want := range map[string][2]int{"404": {404, 404}, "4xx": {400, 499}, "5XX": {500, 599}} {
		q := queryOf("status=" + text)
		first, last := q.statuses()
		require.NoError(t, q.err())
		require.Equal(t, want, [2]int{first, last})
	}
}

func TestAnEmptyParameterIsNotLeftOut(t *testing.T) {
	q := queryOf("limit=&method=&status=&online=&cursor=&q=")
	require.Equal(t, defaultPage, q.limit())
	require.Empty(t, q.oneOf("method", "GET"))
	require.Empty(t, q.open("cursor"), "the first page")
	require.Empty(t, q.open("q"), "what every name has")
	first, last := q.statuses()
	require.Equal(t, [2]int{}, [2]int{first, last})
	require.Nil(t, q.flag("online"))
	require.Len(t, q.failed, 4)
	require.Equal(t, fault.InvalidFormat, fault.CodeOf(q.err()))
}

// callOf is a call of a company's to a route.
func callOf(ring *keys.Ring, companyID string, env event.Environment, operation, query string) *call {
	return &call{
		server: &Server{keys: ring}, caller: tokens.Caller{CompanyID: companyID, Environment: env}, route: &route{operation: operation},
		r: &http.Request{URL: &url.URL{RawQuery: query}},
	}
}

func TestACursorIsOfOneList(t *testing.T) {
	older, newer := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	ring := func(secrets string) *keys.Ring {
		r, err := keys.Open("", secrets)
		require.NoError(t, err)
		return r
	}
	position := readmodel.Cursor{List: 'a', Keys: []uint64{1 << 40}}.String()
	sealed := callOf(ring(older), "co_1", event.Live, "ListAudio", "").sealCursor(position)
	require.Equal(t, sealed, callOf(ring(older), "co_1", event.Live, "ListAudio", "").sealCursor(position), "the same page has the same tag")
	require.NotContains(t, sealed, position[:8])
	for name, c := range map[string]*call{
		"the same list":       callOf(ring(older), "co_1", event.Live, "ListAudio", "cursor="+sealed),
		"after a rotation":    callOf(ring(newer+","+older), "co_1", event.Live, "ListAudio", "cursor="+sealed),
		"before the rotation": callOf(ring(older+","+newer), "co_1", event.Live, "ListAudio", "cursor="+sealed),
	} {
		q := c.query()
		require.Equal(t, position, c.cursor(q), name)
		require.NoError(t, q.err(), name)
	}
	for name, c := range map[string]*call{
		"another company":     callOf(ring(older), "co_2", event.Live, "ListAudio", "cursor="+sealed),
		"another environment": callOf(ring(older), "co_1", event.Test, "ListAudio", "cursor="+sealed),
		"another list":        callOf(ring(older), "co_1", event.Live, "ListSends", "cursor="+sealed),
		"a key that is gone":  callOf(ring(newer), "co_1", event.Live, "ListAudio", "cursor="+sealed),
		"not sealed":          callOf(ring(older), "co_1", event.Live, "ListAudio", "cursor="+position),
		"more behind it":      callOf(ring(older), "co_1", event.Live, "ListAudio", "cursor="+sealed+"A"),
	} {
		q := c.query()
		require.Empty(t, c.cursor(q), name)
		told, ok := errors.AsType[*fault.Error](q.err())
		require.True(t, ok, name)
		require.Equal(t, []fault.Field{{Param: "cursor", Code: fault.InvalidFormat, Message: readmodel.NoCursor().Message}}, told.Fields, name)
	}
}

func TestDaysAreWholeDays(t *testing.T) {
	q := queryOf("startDate=2026-05-01&endDate=2026-05-01&exact=2026-05-01T10:00:00%2B02:00")
	require.Equal(t, "2026-05-01T00:00:00Z", q.day("startDate", false).Format("2006-01-02T15:04:05Z07:00"))
	require.Equal(t, "2026-05-02T00:00:00Z", q.day("endDate", true).Format("2006-01-02T15:04:05Z07:00"))
	require.Equal(t, "2026-05-01T08:00:00Z", q.day("exact", true).Format("2006-01-02T15:04:05Z07:00"))
	require.NoError(t, q.err())
}

func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"limit=20&cursor=abc", "limit=1&limit=2", "a=%zz", "q=%00&status=4xx", "startDate=2026-05-01&online=true", "\xff=1"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q := queryOf(raw)
		limit := q.limit()
		require.True(t, limit >= 1 && limit <= maxPage)
		text := q.text("q")
		require.True(t, utf8.ValidString(text) && len(text) <= maxQueryValue)
		first, last := q.statuses()
		require.True(t, first <= last && last < 600)
		q.day("startDate", false)
		q.flag("online")
		if err := q.err(); err != nil {
			require.Contains(t, []fault.Code{fault.InvalidFormat, fault.OutOfRange}, fault.CodeOf(err))
		}
	})
}
