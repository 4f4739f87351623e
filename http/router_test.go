package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// methodsOf are the methods of each path, with IDs that nothing has.
var methodsOf = map[string]string{
	"/auth":                              "DELETE, POST",
	"/api/integration/auth":              "DELETE, POST",
	"/test":                              "POST",
	"/api/integration/test":              "POST",
	"/tokens":                            "GET, HEAD",
	"/tokens/tok_x":                      "DELETE",
	"/audio":                             "GET, HEAD, POST",
	"/api/audio":                         "GET, HEAD, POST",
	"/audio/aud_x":                       "DELETE, GET, HEAD",
	"/api/audio/aud_x":                   "DELETE, GET, HEAD",
	"/api/aud_x":                         "DELETE",
	"/audio/aud_x/send":                  "POST",
	"/api/audio/aud_x/send":              "POST",
	"/api/aud_x/send":                    "POST",
	"/sends":                             "GET, HEAD",
	"/sends/snd_x":                       "DELETE, GET, HEAD",
	"/sends/snd_x/deliveries":            "GET, HEAD",
	"/locations":                         "GET, HEAD, POST",
	"/locations/x":                       "DELETE, GET, HEAD, PATCH",
	"/locations/import":                  "DELETE, GET, HEAD, PATCH, POST",
	"/locations/x/devices":               "GET, HEAD, POST",
	"/locations/import/devices":          "GET, HEAD, POST",
	"/locations/x/devices/y":             "DELETE",
	"":                                   "GET, HEAD",
	"/":                                  "GET, HEAD",
	"/api/integration":                   "GET, HEAD",
	"/health":                            "GET, HEAD",
	"/api/integration/health":            "GET, HEAD",
	"/logs":                              "GET, HEAD",
	"/api/integration/logs":              "GET, HEAD",
	"/limits":                            "GET, HEAD",
	"/api/integration/limits":            "GET, HEAD",
	"/api/player/v1/stream":              "GET",
	"/api/player/v1/deliveries/dlv_x_10": "POST",
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
			{http.MethodDelete, "/locations/till/devices/NAME"},
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
