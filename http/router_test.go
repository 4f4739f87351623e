package httpapi_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/company"
	httpapi "github.com/musique/musique/http"
)

// methodsOf are the methods of each path, with IDs that nothing has.
var methodsOf = map[string]string{
	"/auth":                              "DELETE, OPTIONS, POST",
	"/api/integration/auth":              "DELETE, OPTIONS, POST",
	"/test":                              "OPTIONS, POST",
	"/api/integration/test":              "OPTIONS, POST",
	"/tokens":                            "GET, HEAD, OPTIONS",
	"/tokens/tok_x":                      "DELETE, OPTIONS",
	"/audio":                             "GET, HEAD, OPTIONS, POST",
	"/api/audio":                         "GET, HEAD, OPTIONS, POST",
	"/audio/aud_x":                       "DELETE, GET, HEAD, OPTIONS",
	"/api/audio/aud_x":                   "DELETE, GET, HEAD, OPTIONS",
	"/api/aud_x":                         "DELETE, OPTIONS",
	"/audio/aud_x/send":                  "OPTIONS, POST",
	"/api/audio/aud_x/send":              "OPTIONS, POST",
	"/api/aud_x/send":                    "OPTIONS, POST",
	"/sends":                             "GET, HEAD, OPTIONS",
	"/sends/snd_x":                       "DELETE, GET, HEAD, OPTIONS, PATCH",
	"/sends/snd_x/deliveries":            "GET, HEAD, OPTIONS",
	"/locations":                         "GET, HEAD, OPTIONS, POST",
	"/locations/x":                       "DELETE, GET, HEAD, OPTIONS, PATCH",
	"/locations/import":                  "DELETE, GET, HEAD, OPTIONS, PATCH, POST",
	"/locations/x/devices":               "GET, HEAD, OPTIONS, POST",
	"/locations/import/devices":          "GET, HEAD, OPTIONS, POST",
	"/locations/x/devices/y":             "DELETE, OPTIONS",
	"/locations/x/devices/y/rotate":      "OPTIONS, POST",
	"":                                   "GET, HEAD, OPTIONS",
	"/":                                  "GET, HEAD, OPTIONS",
	"/api/integration":                   "GET, HEAD, OPTIONS",
	"/health":                            "GET, HEAD, OPTIONS",
	"/api/integration/health":            "GET, HEAD, OPTIONS",
	"/logs":                              "GET, HEAD, OPTIONS",
	"/api/integration/logs":              "GET, HEAD, OPTIONS",
	"/audit":                             "GET, HEAD, OPTIONS",
	"/limits":                            "GET, HEAD, OPTIONS",
	"/api/integration/limits":            "GET, HEAD, OPTIONS",
	"/api/player/v1/stream":              "GET, OPTIONS",
	"/api/player/v1/deliveries/dlv_x_10": "OPTIONS, POST",
}

func methodsAreTold(t *testing.T, w *world) {
	p := w.partner(t)
	for path, allowed := range methodsOf {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, "BREW"} {
			if slices.Contains(strings.Split(allowed, ", "), method) {
				continue
			}
			r := p.call(method, path, nil)
			require.Equal(t, http.StatusMethodNotAllowed, r.StatusCode, "%s %s", method, path)
			require.Equal(t, allowed, r.Header.Get("Allow"), "%s %s", method, path)
			require.NotEmpty(t, r.Header.Get("X-RateLimit-Limit"))
			if method != http.MethodHead {
				refused(t, r, http.StatusMethodNotAllowed, "method_not_allowed")
			}
		}
	}
}

// publicMethodsOf are those of the paths that need no token and stand outside the API.
var publicMethodsOf = map[string]string{
	"/media/a/b": "GET, HEAD, OPTIONS", "/openapi.json": "GET, HEAD, OPTIONS", "/asyncapi.json": "GET, HEAD, OPTIONS", "/docs": "GET, HEAD, OPTIONS", "/docs/": "GET, HEAD, OPTIONS", "/docs/errors": "GET, HEAD, OPTIONS",
	"/docs/assets/docs.css": "GET, HEAD, OPTIONS", "/report/co_x/live/dlv_x": "OPTIONS, POST",
}

// Anybody may ask what a path can be asked with, and that counts nowhere.
func optionsAreTold(t *testing.T, w *world) {
	p := w.company(t, company.Standard).as("hq", object{})
	_, url, ops := w.serve(t, w.config)
	left := map[string]bool{} // routes that were not asked about
	for _, r := range httpapi.Routes() {
		for _, path := range r.Paths {
			left[path] = true
		}
	}
	asked := 0
	for path, allowed := range merged(methodsOf, publicMethodsOf) {
		for route := range left {
			if httpapi.PathMatches(route, fullPath(path)) {
				delete(left, route)
			}
		}
		for _, token := range []string{"", p.token, "wrong"} {
			r := call(t, http.MethodOptions, url+fullPath(path), token, nil, header{"Origin", "https://elsewhere.example"}, header{"Access-Control-Request-Method", "GET"},
				header{"Access-Control-Request-Headers", "x-api-key"}, header{"X-Request-Id", "mine"})
			asked++
			require.Equal(t, http.StatusNoContent, r.StatusCode, path)
			require.Equal(t, allowed, r.Header.Get("Allow"), path)
			require.Empty(t, r.body)
			require.Equal(t, "mine", r.Header.Get("X-Request-Id"))
			require.Empty(t, r.Header.Get("X-RateLimit-Limit"), "nobody was counted")
			cors := map[string]string{}
			for name := range r.Header {
				if strings.HasPrefix(name, "Access-Control-") {
					cors[name] = r.Header.Get(name)
				}
			}
			if path == "/openapi.json" || path == "/asyncapi.json" || path == "/docs" || path == "/docs/" {
				require.Equal(t, map[string]string{"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "*", "Access-Control-Max-Age": "86400"}, cors)
			} else {
				require.Empty(t, cors, "a page of another site is not let in")
			}
		}
	}
	require.Empty(t, left, "these have no line in the table")
	require.InDelta(t, 1, ok[struct{ Usage map[string]float64 }](t, call(t, http.MethodGet, url+v1+"/limits", p.token, nil), http.StatusOK).Usage["perDay"], 0)
	metrics := string(call(t, http.MethodGet, ops+"/metrics", "", nil).body)
	require.Contains(t, metrics, fmt.Sprintf("musique_http_requests_total{operation=\"Options\",status=\"204\"} %d\n", asked))

	for _, path := range []string{"/nowhere", "/api/nowhere", v1 + "/audio/", v1 + "/audio/%00", v1 + "/audio/" + strings.Repeat("x", 257)} {
		for _, token := range []string{"", p.token} {
			r := call(t, http.MethodOptions, url+path, token, nil)
			refused(t, r, http.StatusNotFound, "not_found")
			require.Empty(t, r.Header.Get("Allow"))
		}
	}
	for path, allowed := range map[string]string{"/ops/companies": "GET, HEAD, OPTIONS, POST", "/ops/companies/co_x/suspend": "OPTIONS, POST", "/ops/projections": "GET, HEAD, OPTIONS"} {
		r := call(t, http.MethodOptions, ops+path, "", nil)
		require.Equal(t, http.StatusNoContent, r.StatusCode, path)
		require.Equal(t, allowed, r.Header.Get("Allow"))
		require.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
	}

	// Of all that, the logs have what was not found with the token.
	eventually(t, "the logs lack a request", func() bool {
		return len(ok[[]logged](t, p.get("/logs?method=OPTIONS"), http.StatusOK)) == 5
	})
	for _, row := range ok[[]logged](t, p.get("/logs?method=OPTIONS"), http.StatusOK) {
		require.Equal(t, http.StatusNotFound, row.Status)
	}

	// A page of any site may read what is published, and be told what it lacks.
	for _, path := range []string{"/openapi.json", "/asyncapi.json", "/docs", "/docs/"} {
		for _, headers := range [][]header{nil, {{"If-None-Match", "*"}}} {
			require.Equal(t, "*", call(t, http.MethodGet, url+path, "", nil, headers...).Header.Get("Access-Control-Allow-Origin"), path)
		}
	}
}

// fullPath is a path of the tables as it is asked for.
func fullPath(path string) string {
	if strings.HasPrefix(path, "/api") || publicMethodsOf[path] != "" {
		return path
	}
	return v1 + path
}

func merged(all ...map[string]string) map[string]string {
	one := map[string]string{}
	for _, m := range all {
		maps.Copy(one, m)
	}
	return one
}

// Headers that are too large are refused as everything is, wherever they go to.
func largeHeadersAreRefused(t *testing.T, w *world) {
	p := w.partner(t)
	fill := func(bytes int) header { return header{"X-Fill", strings.Repeat("x", bytes)} }
	require.Equal(t, http.StatusOK, p.call(http.MethodGet, "/audio", nil, fill(httpapi.MaxHeaderBytes-1024)).StatusCode)
	for _, path := range []string{"/audio", "/auth", "/nowhere", "/api/player/v1/stream"} {
		for _, r := range []reply{p.call(http.MethodGet, path, nil, fill(httpapi.MaxHeaderBytes)), p.call(http.MethodGet, path+"?q="+strings.Repeat("x", httpapi.MaxHeaderBytes), nil)} {
			require.Contains(t, refused(t, r, http.StatusBadRequest, "out_of_range").Error.DocURL, "/docs/errors#out_of_range", path)
		}
	}
	refused(t, call(t, http.MethodGet, w.ops+"/ops/companies", "", nil, fill(httpapi.MaxHeaderBytes)), http.StatusBadRequest, "out_of_range")
	refused(t, call(t, http.MethodGet, w.ops+"/ops/nothing", "", nil, fill(httpapi.MaxHeaderBytes)), http.StatusBadRequest, "out_of_range")
}

func namesThatNothingHas(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	d := p.device("till")
	for _, name := range []string{"%00", "a%00b", "%ff", "aud_%c3%28", "..", "%2e%2e", "%2F", "a%2Fb", strings.Repeat("x", 257), strings.Repeat("x", 30_000)} {
		for _, request := range [][2]string{
			{http.MethodGet, "/audio/NAME"}, {http.MethodDelete, "/audio/NAME"}, {http.MethodDelete, "/api/aud_NAME"}, {http.MethodPost, "/audio/NAME/send"},
			{http.MethodGet, "/sends/NAME"}, {http.MethodDelete, "/sends/NAME"}, {http.MethodGet, "/sends/NAME/deliveries"}, {http.MethodDelete, "/tokens/NAME"},
			{http.MethodGet, "/locations/NAME"}, {http.MethodPatch, "/locations/NAME"}, {http.MethodDelete, "/locations/NAME"},
			{http.MethodGet, "/locations/NAME/devices"}, {http.MethodPost, "/locations/NAME/devices"}, {http.MethodDelete, "/locations/NAME/devices/dvc_x"},
			{http.MethodDelete, "/locations/till/devices/NAME"}, {http.MethodPost, "/locations/NAME/devices/dvc_x/rotate"}, {http.MethodPost, "/locations/till/devices/NAME/rotate"},
		} {
			var body any
			switch {
			case strings.HasSuffix(request[1], "send"):
				body = object{"all": true}
			case request[0] == http.MethodPatch:
				body = object{"name": "x"}
			}
			r := p.call(request[0], strings.Replace(request[1], "NAME", name, 1), body)
			refused(t, r, http.StatusNotFound, "not_found")
		}
		refused(t, w.report(t, d.Token, name, "played"), http.StatusNotFound, "not_found")
		refused(t, call(t, http.MethodPost, w.ops+"/ops/companies/"+name+"/suspend", "", nil), http.StatusNotFound, "not_found")
		refused(t, call(t, http.MethodGet, w.url+"/media/"+name, "", nil), http.StatusNotFound, "not_found")
	}
}

// A location may be called what something else at its place is called.
func locationCalledImport(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("import")
	require.Equal(t, "import", ok[object](t, p.get("/locations/import"), http.StatusOK)["externalId"])
	require.Equal(t, "Tills", ok[object](t, p.call(http.MethodPatch, "/locations/import", object{"name": "Tills"}), http.StatusOK)["name"])
	p.device("import")
	require.Len(t, ok[[]object](t, p.get("/locations/import/devices"), http.StatusOK), 1)
	ok[object](t, p.post("/locations/import", object{"locations": []object{{"externalId": "import", "name": "Doors"}}}), http.StatusOK)
	require.Equal(t, "Doors", ok[object](t, p.get("/locations/import"), http.StatusOK)["name"])
	ok[object](t, p.del("/locations/import"), http.StatusOK)
	refused(t, p.get("/locations/import"), http.StatusNotFound, "not_found")
}
