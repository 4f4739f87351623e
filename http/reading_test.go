package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
)

// still is a server for which no time passes, so that what it answers changes for no other reason than what is done.
func (w *world) still(t *testing.T) (url, ops string) {
	t.Helper()
	config, now := w.config, time.Now()
	config.Now = func() time.Time { return now }
	_, url, ops = w.serve(t, config)
	return url, ops
}

// changing are the reads that say something else each time.
var changing = []string{"GetHealth", "GetLimits", "ListLogs"}

// eachRead calls visit with each path that can be read, filled with what there is.
func (s shop) eachRead(t *testing.T, visit func(operation, path string)) {
	t.Helper()
	for _, r := range httpapi.Routes() {
		if !r.Read {
			continue
		}
		for _, path := range r.Paths {
			visit(r.Operation, s.at(t, path))
		}
	}
}

var pathVariable = regexp.MustCompile(`\{(\w+)[^}]*\}`)

// at puts what there is into a route's path.
func (s shop) at(t *testing.T, path string) string {
	t.Helper()
	return pathVariable.ReplaceAllStringFunc(path, func(variable string) string {
		id := s.ids[pathVariable.FindStringSubmatch(variable)[1]]
		require.NotEmpty(t, id, variable)
		return id
	})
}

// What a caller has already is not sent again, at each path that can be read.
func readsHaveTags(t *testing.T, w *world) {
	s := w.shop(t)
	url, _ := w.still(t)
	reads := map[string]bool{}
	s.eachRead(t, func(operation, path string) {
		ask := func(method string, headers ...header) reply {
			return call(t, method, url+path, s.token, nil, append([]header{{"X-Request-Id", "mine"}}, headers...)...)
		}
		ifNone := func(method, field string) reply { return ask(method, header{"If-None-Match", field}) }
		notModified := func(first, r reply) {
			t.Helper()
			require.Equal(t, http.StatusNotModified, r.StatusCode, "%s %s", operation, path)
			require.Empty(t, r.wire)
			for _, name := range []string{"Content-Type", "Content-Length", "Content-Encoding"} { // of a body that is not there
				require.Empty(t, r.Header.Values(name), name)
			}
			require.Equal(t, "mine", r.Header.Get("X-Request-Id"))
			require.NotEmpty(t, r.Header.Get("X-RateLimit-Remaining"))
			for _, name := range []string{"Cache-Control", "Vary", "RateLimit-Policy"} {
				require.Equal(t, first.Header.Values(name), r.Header.Values(name), name)
			}
			require.Equal(t, len(first.Header.Values("Link")), len(r.Header.Values("Link")))
		}
		first := ask(http.MethodGet)
		tag, opaque := first.Header.Get("ETag"), strings.TrimPrefix(first.Header.Get("ETag"), "W/")
		require.Equal(t, http.StatusOK, first.StatusCode, "%s %s", operation, path)
		head := ask(http.MethodHead)
		require.Equal(t, http.StatusOK, head.StatusCode)
		require.Empty(t, head.wire)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			notModified(first, ifNone(method, "*"))
			for _, field := range []string{`"other"`, strings.Trim(opaque, `"`), tag + ` "other"`, "*, " + tag} {
				require.Equal(t, http.StatusOK, ifNone(method, field).StatusCode, field)
			}
		}
		reads[operation] = true
		if slices.Contains(changing, operation) {
			return
		}
		require.Equal(t, tag, head.Header.Get("ETag"))
		require.Equal(t, tag, ask(http.MethodGet, header{"Accept-Encoding", "identity"}).Header.Get("ETag"), "the tag is of what is said, in whatever coding")
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, field := range []string{tag, opaque, `W/"other", ` + tag, opaque + `,"other"`} {
				r := ifNone(method, field)
				notModified(first, r)
				require.Equal(t, tag, r.Header.Get("ETag"))
			}
		}
	})
	require.Greater(t, len(reads), 12)
	require.Subset(t, sortedKeys(reads), changing)

	// The page that comes next is a part of what is said.
	page := func(headers ...header) reply {
		return call(t, http.MethodGet, url+v1+"/audio?limit=1", s.token, nil, headers...)
	}
	first := page()
	again := page(header{"If-None-Match", first.Header.Get("ETag")})
	require.Equal(t, http.StatusNotModified, again.StatusCode)
	require.Contains(t, again.Header.Get("Link"), `rel="next"`)
	require.Equal(t, first.Header.Get("Link"), again.Header.Get("Link"))
	oldest := call(t, http.MethodGet, url+v1+"/audio?limit=1&cursor="+*first.envelope(t).Pagination.NextCursor, s.token, nil)
	require.Equal(t, http.StatusOK, page(header{"If-None-Match", oldest.Header.Get("ETag")}).StatusCode)
}

// What was changed is sent, with another tag.
func changedReadsHaveOtherTags(t *testing.T, w *world) {
	s := w.shop(t)
	url, _ := w.still(t)
	report := func(status string) {
		ok[object](t, w.report(t, s.device.Token, s.ids["deliveryId"], status), http.StatusOK)
	}
	changes := map[string]func(){
		"ListTokens":     func() { s.as("other", object{}) },
		"ListAudio":      func() { s.upload("New") },
		"GetAudio":       func() { s.send(s.ids["audioId"], object{"all": true}) },
		"ListSends":      func() { s.send(s.ids["audioId"], object{"all": true}) },
		"GetSend":        func() { report("delivered") },
		"ListDeliveries": func() { report("playing") },
		"ListLocations":  func() { s.location("new") },
		"GetLocation": func() {
			ok[object](t, s.call(http.MethodPatch, "/locations/store_001", object{"name": "Changed"}), http.StatusOK)
		},
		"ListDevices": func() { s.partner.device("store_001") },
		"ListAudit":   func() { s.location("newer") },
	}
	s.eachRead(t, func(operation, path string) {
		if slices.Contains(changing, operation) || operation == "GetInformation" { // of which nothing changes while the program runs
			return
		}
		require.NotNil(t, changes[operation], operation)
		ask := func(tag string) reply {
			return call(t, http.MethodGet, url+path, s.token, nil, header{"If-None-Match", tag})
		}
		before := ask(`"none"`)
		tag := before.Header.Get("ETag")
		require.Equal(t, http.StatusNotModified, ask(tag).StatusCode)
		changes[operation]()
		var after reply
		eventually(t, operation+" is what it was", func() bool {
			after = ask(tag)
			return after.StatusCode == http.StatusOK
		})
		require.NotEqual(t, tag, after.Header.Get("ETag"), operation)
		require.NotEqual(t, string(before.envelope(t).Data), string(after.envelope(t).Data), operation)
		require.Equal(t, http.StatusNotModified, ask(after.Header.Get("ETag")).StatusCode)
	})
}

// A tag says something to who may read what it is of, and nothing to others.
func tagsAreOfOneCompany(t *testing.T, w *world) {
	a, b := w.partner(t), w.partner(t)
	url, _ := w.still(t)
	ask := func(p partner, path, tag string) reply {
		return call(t, http.MethodGet, url+v1+path, p.token, nil, header{"If-None-Match", tag})
	}
	empty := ask(a, "/locations", "").Header.Get("ETag")
	require.Equal(t, http.StatusNotModified, ask(b, "/locations", empty).StatusCode, "of both there is nothing to tell")
	a.location("shop")
	full := ask(a, "/locations", empty)
	require.Equal(t, http.StatusOK, full.StatusCode)
	require.Equal(t, http.StatusOK, ask(b, "/locations", full.Header.Get("ETag")).StatusCode)
	one := ask(a, "/locations/shop", "").Header.Get("ETag")
	for _, tag := range []string{one, "*", `"none"`} {
		refused(t, ask(b, "/locations/shop", tag), http.StatusNotFound, "not_found")
	}
	b.location("shop")
	require.Equal(t, http.StatusOK, ask(b, "/locations/shop", one).StatusCode, "another shop of the same name")
	for _, tag := range []string{full.Header.Get("ETag"), "*"} {
		refused(t, call(t, http.MethodGet, url+v1+"/locations", "", nil, header{"If-None-Match", tag}), http.StatusUnauthorized, "invalid_token")
		narrow := a.as("narrow", object{"permissions": []string{"audio.read"}})
		refused(t, ask(narrow, "/locations", tag), http.StatusForbidden, "insufficient_scope")
	}
}

// An answer without a body is a request like any other.
func notModifiedCounts(t *testing.T, w *world) {
	p := w.company(t, company.Standard).as("hq", object{})
	url, ops := w.still(t)
	used := func() float64 {
		return ok[struct{ Usage map[string]float64 }](t, call(t, http.MethodGet, url+v1+"/limits", p.token, nil), http.StatusOK).Usage["perDay"]
	}
	before := used()
	require.Equal(t, http.StatusNotModified, call(t, http.MethodGet, url+v1+"/locations", p.token, nil, header{"If-None-Match", "*"}).StatusCode)
	require.InDelta(t, before+2, used(), 0)
	eventually(t, "it is not in the logs", func() bool {
		rows := ok[[]logged](t, p.get("/logs?status=304"), http.StatusOK)
		return len(rows) == 1 && rows[0].Endpoint == v1+"/locations" && rows[0].Status == http.StatusNotModified && rows[0].ErrorCode == ""
	})
	require.Contains(t, string(call(t, http.MethodGet, ops+"/metrics", "", nil).body), `musique_http_requests_total{operation="ListLocations",status="304"} 1`)

	anything := header{"If-None-Match", "*"}
	refused(t, p.call(http.MethodGet, "/locations/x", nil, anything), http.StatusNotFound, "not_found")
	refused(t, p.call(http.MethodGet, "/locations?limit=0", nil, anything), http.StatusBadRequest, "out_of_range")
}

// What asks for a condition that nothing keeps to is refused, and nothing is done (RFC 9110 §13.1).
func conditionsAreRefused(t *testing.T, w *world) {
	s := w.shop(t)
	url, _ := w.still(t)
	for _, r := range httpapi.Routes() {
		if r.Operation == "GetMedia" || strings.HasPrefix(r.Paths[0], "/docs") || r.Paths[0] == "/openapi.json" || r.Paths[0] == "/asyncapi.json" { // there a condition is kept to
			continue
		}
		for _, condition := range []header{{"If-Match", `"x"`}, {"If-Match", "*"}, {"If-Unmodified-Since", "Fri, 01 Jan 2027 00:00:00 GMT"}, {"If-None-Match", "*"}} {
			if condition.name == "If-None-Match" && r.Method == http.MethodGet {
				continue
			}
			headers := []header{condition}
			if strings.HasPrefix(r.Paths[0], "/api/player") {
				headers = append(headers, header{"Authorization", "Bearer " + s.device.Token})
			}
			for _, method := range []string{r.Method, http.MethodHead} {
				if method == r.Method || r.Read {
					answer := call(t, method, url+s.at(t, r.Paths[0]), s.token, nil, headers...)
					require.Equal(t, http.StatusBadRequest, answer.StatusCode, "%s %s: %s", method, r.Operation, answer.body)
					if method == r.Method {
						require.Equal(t, map[string]string{condition.name: "invalid_format"}, failing(refused(t, answer, http.StatusBadRequest, "invalid_format")))
					}
				}
			}
		}
	}
	refused(t, call(t, http.MethodPost, w.ops+"/ops/companies", "", object{"name": "x"}, header{"If-None-Match", "*"}), http.StatusBadRequest, "invalid_format")
	refused(t, call(t, http.MethodDelete, url+v1+"/locations/store_001", "", nil, header{"If-Match", "*"}), http.StatusUnauthorized, "invalid_token")
	require.Equal(t, "Main Street", ok[object](t, s.get("/locations/store_001"), http.StatusOK)["name"], "it is as it was")
	ok[object](t, s.post("/test", nil), http.StatusOK)
}

// The URL in an answer to a partner lasts an hour at least, and is the same in answers soon after each other.
func partnersURLsKeepTheirForm(t *testing.T, w *world) {
	p := w.partner(t)
	audio := p.upload("Clip")
	now := time.Now().Truncate(30 * time.Minute).Add(time.Second)
	at := func(now time.Time) (reply, uploaded) {
		config := w.config
		config.Now = func() time.Time { return now }
		_, url, _ := w.serve(t, config)
		r := call(t, http.MethodGet, url+v1+"/audio/"+audio.AudioID, p.token, nil, header{"X-Forwarded-Host", "api.musique.app"})
		return r, ok[uploaded](t, r, http.StatusOK)
	}
	first, one := at(now)
	second, same := at(now.Add(29 * time.Minute))
	third, other := at(now.Add(30 * time.Minute))
	require.Equal(t, one.URL, same.URL)
	require.Equal(t, first.Header.Get("ETag"), second.Header.Get("ETag"))
	require.NotEqual(t, one.URL, other.URL)
	require.NotEqual(t, first.Header.Get("ETag"), third.Header.Get("ETag"))
	expires := number(t, regexp.MustCompile(`expires=(\d+)`).FindStringSubmatch(one.URL)[1])
	require.EqualValues(t, now.Add(90*time.Minute-time.Second).Unix(), expires)
}

// URLs in answers begin as the server is told, whatever a caller says of the way that it came.
func urlsBeginAsIsSet(t *testing.T, w *world) {
	s := w.shop(t)
	config := w.config
	config.PublicURL = &url.URL{Scheme: "https", Host: "api.musique.app"}
	_, base, _ := w.serve(t, config)
	ask := func(path string) reply {
		return call(t, http.MethodGet, base+v1+path, s.token, nil, header{"X-Forwarded-Host", "elsewhere.example"}, header{"X-Forwarded-Proto", "http"})
	}
	page := ask("/audio?limit=1")
	require.Regexp(t, `^<https://api\.musique\.app/api/v1/integration/audio\?cursor=`, page.Header.Get("Link"))
	require.Regexp(t, `^https://api\.musique\.app/media/`, ok[[]uploaded](t, page, http.StatusOK)[0].URL)
	require.Regexp(t, `^https://api\.musique\.app/docs/errors#`, refused(t, ask("/audio/none"), http.StatusNotFound, "not_found").Error.DocURL)
	stream := w.listen(t, base, s.device.Token, "")
	require.Regexp(t, `^https://api\.musique\.app/media/`, stream.next("deliver").data["audio"].(object)["url"]) //nolint:forcetypeassert // a test
}

// Answers go out in gzip to who takes it, and are the same answers.
func answersArePacked(t *testing.T, w *world) {
	s := w.shop(t)
	url, _ := w.still(t)
	for range 4 {
		s.upload(strings.Repeat("long name ", 10))
	}
	ask := func(method, path string, body any, headers ...header) reply {
		t.Helper()
		if !slices.ContainsFunc(headers, func(h header) bool { return h.name == "Accept-Encoding" }) {
			headers = append(headers, header{"Accept-Encoding", "identity"})
		}
		return call(t, method, url+v1+path, s.token, body, append([]header{{"X-Request-Id", "mine"}}, headers...)...)
	}
	plain := ask(http.MethodGet, "/audio", nil)
	require.Greater(t, len(plain.wire), 1024)
	small := ask(http.MethodGet, "/audio?q=nothing", nil)
	require.Less(t, len(small.wire), 1024)
	for accepted, packed := range map[string]bool{
		"gzip": true, "gzip, deflate, br": true, "*": true, "x-gzip;q=0.2": true, "identity;q=0, gzip": true, "identity;q=0": false, "gzip;q=0": false, "br": false,
		"gzip;q=0.1, identity": false,
	} {
		takes := header{"Accept-Encoding", accepted}
		r, head := ask(http.MethodGet, "/audio", nil, takes), ask(http.MethodHead, "/audio", nil, takes)
		require.Equal(t, http.StatusOK, r.StatusCode)
		require.Equal(t, packed, r.Header.Get("Content-Encoding") == "gzip", accepted)
		require.Equal(t, packed, len(r.wire) < len(plain.wire)/2, accepted)
		require.EqualValues(t, len(r.wire), r.ContentLength)
		require.Equal(t, string(plain.body), string(r.body))
		require.Equal(t, r.ContentLength, head.ContentLength, "HEAD tells what GET sends")
		for _, name := range []string{"ETag", "Vary", "Cache-Control", "Content-Type", "Content-Encoding"} {
			if name != "Content-Encoding" {
				require.Equal(t, plain.Header.Values(name), r.Header.Values(name), name)
			}
			require.Equal(t, r.Header.Values(name), head.Header.Values(name), name)
		}
		again := ask(http.MethodGet, "/audio", nil, takes, header{"If-None-Match", plain.Header.Get("ETag")})
		require.Equal(t, http.StatusNotModified, again.StatusCode)
		require.Empty(t, again.Header.Get("Content-Encoding"))
		r = ask(http.MethodGet, "/audio?q=nothing", nil, takes)
		require.Equal(t, accepted == "identity;q=0, gzip", r.Header.Get("Content-Encoding") == "gzip", "a small answer is not worth it, unless nothing else is taken: %s", accepted)
		require.Equal(t, string(small.body), string(r.body))
	}

	// Errors and answers to commands are packed too, and kept by nobody.
	unknown := make([]string, 100)
	for i := range unknown {
		unknown[i] = "unknown_" + strconv.Itoa(i)
	}
	r := ask(http.MethodPost, "/audio/"+s.ids["audioId"]+"/send", object{"externalIds": unknown}, header{"Accept-Encoding", "gzip"})
	require.Len(t, refused(t, r, http.StatusNotFound, "not_found").Error.Details["externalIds"], len(unknown))
	require.Equal(t, "gzip", r.Header.Get("Content-Encoding"))
	rows := make([]object, 30)
	for i := range rows {
		rows[i] = object{"externalId": "row_" + strconv.Itoa(i), "name": "x"}
	}
	r = ask(http.MethodPost, "/locations/import", object{"locations": rows}, header{"Accept-Encoding", "gzip"})
	require.InDelta(t, len(rows), ok[object](t, r, http.StatusOK)["created"], 0)
	require.Equal(t, "gzip", r.Header.Get("Content-Encoding"))

	// Audio is packed as it is.
	clip := ask(http.MethodGet, "/audio/"+s.ids["audioId"], nil)
	media := call(t, http.MethodGet, ok[uploaded](t, clip, http.StatusOK).URL, "", nil, header{"Accept-Encoding", "gzip"})
	require.Equal(t, http.StatusOK, media.StatusCode)
	require.Empty(t, media.Header.Get("Content-Encoding"))
	require.Equal(t, wav(0.5, 440), media.wire)
	require.EqualValues(t, len(media.wire), media.ContentLength)
}

// What is published goes out in either form, and each form has a strong tag of its own.
func publishedFilesArePacked(t *testing.T, w *world) {
	get := func(path, accepted string, headers ...header) reply {
		return call(t, http.MethodGet, w.url+path, "", nil, append(headers, header{"Accept-Encoding", accepted})...)
	}
	for path, packed := range map[string]bool{
		"/openapi.json": true, "/asyncapi.json": true, "/docs": true, "/docs/": true, "/docs/errors": true, "/docs/assets/swagger-ui.css": true, "/docs/assets/swagger-ui-bundle.js": true, "/docs/assets/docs.css": true,
		"/docs/assets/reference.js": false,
	} {
		plain, other := get(path, "gzip;q=0"), get(path, "gzip")
		require.Empty(t, plain.Header.Get("Content-Encoding"))
		require.EqualValues(t, len(plain.wire), plain.ContentLength)
		require.Equal(t, packed, other.Header.Get("Content-Encoding") == "gzip", path)
		require.Equal(t, packed, len(other.wire) < len(plain.wire)*2/3, path)
		require.Equal(t, string(plain.body), string(other.body), path)
		require.Equal(t, packed, plain.Header.Get("ETag") != other.Header.Get("ETag"), path)
		for _, r := range []reply{plain, other} {
			require.Regexp(t, `^"[0-9a-f]{32}(-gzip)?"$`, r.Header.Get("ETag"))
			require.Equal(t, "Accept-Encoding", r.Header.Get("Vary"))
			require.Equal(t, "no-cache", r.Header.Get("Cache-Control"))
			accepted := map[bool]string{false: "identity", true: "gzip"}[r.Header.Get("Content-Encoding") != ""]
			tag := header{"If-None-Match", r.Header.Get("ETag")}
			same := get(path, accepted, tag)
			require.Equal(t, http.StatusNotModified, same.StatusCode)
			require.Equal(t, r.Header.Get("ETag"), same.Header.Get("ETag"))
			require.Equal(t, "Accept-Encoding", same.Header.Get("Vary"))
			require.Empty(t, same.Header.Get("Content-Encoding"))
			part := get(path, accepted, header{"Range", "bytes=10-19"}, header{"If-Range", r.Header.Get("ETag")})
			require.Equal(t, http.StatusPartialContent, part.StatusCode)
			require.Equal(t, r.Header.Get("Content-Encoding"), part.Header.Get("Content-Encoding"))
			require.Equal(t, r.wire[10:20], part.wire, "a part of the form that the tag is of")
		}
		if packed {
			require.Equal(t, http.StatusOK, get(path, "identity", header{"If-None-Match", other.Header.Get("ETag")}).StatusCode, "a strong tag is of one form")
			require.Equal(t, http.StatusOK, get(path, "gzip", header{"If-None-Match", plain.Header.Get("ETag")}).StatusCode)
			require.Equal(t, http.StatusOK, get(path, "identity", header{"Range", "bytes=10-19"}, header{"If-Range", other.Header.Get("ETag")}).StatusCode)
		}
		head := call(t, http.MethodHead, w.url+path, "", nil, header{"Accept-Encoding", "gzip"})
		require.Equal(t, other.Header.Get("ETag"), head.Header.Get("ETag"))
		require.Equal(t, other.Header.Get("Content-Encoding"), head.Header.Get("Content-Encoding"))
		require.EqualValues(t, len(other.wire), other.ContentLength)
		require.Equal(t, other.ContentLength, head.ContentLength, "HEAD tells what GET sends")
		failed := get(path, "gzip", header{"If-Match", `"none"`})
		require.Equal(t, http.StatusPreconditionFailed, failed.StatusCode)
		require.Empty(t, failed.wire)
		require.Zero(t, failed.ContentLength)
		require.Empty(t, failed.Header.Get("Content-Encoding"))
		for _, accepted := range []string{"identity", "gzip"} {
			r := get(path, accepted, header{"Range", "bytes=90000000-"})
			e := refused(t, r, http.StatusRequestedRangeNotSatisfiable, "out_of_range")
			require.Equal(t, "Range", e.Error.Param)
			require.Regexp(t, `^bytes \*/\d+$`, r.Header.Get("Content-Range"))
		}
	}
}

// A stream is not packed, whatever its player takes: each event comes at once.
func streamsAreNotPacked(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/api/player/v1/stream", nil)
	require.NoError(t, err)
	for name, value := range map[string]string{"Authorization": "Bearer " + p.device("till").Token, "Accept-Encoding": "gzip, identity;q=0", "If-None-Match": "*"} {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	for _, name := range []string{"Content-Encoding", "ETag", "Vary"} {
		require.Empty(t, response.Header.Get(name), name)
	}
	require.Equal(t, "no-store", response.Header.Get("Cache-Control"))
	lines := bufio.NewScanner(response.Body)
	require.True(t, lines.Scan(), "the stream's begin waits: %v", lines.Err())
	require.Regexp(t, `^retry: \d+$`, lines.Text())
	sent := p.send(p.upload("Clip").AudioID, object{"all": true})
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "data: ") { // the stream stays open, and the event is here
	}
	var event object
	require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(lines.Text(), "data: ")), &event))
	require.Equal(t, sent.SendID, event["sendId"])
}
