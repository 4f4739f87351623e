package httpapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	validation "github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/helpers"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	openapi "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/stretchr/testify/require"
)

// published is the OpenAPI document as a server publishes it, with what holds requests and answers against it.
type published struct {
	model     *openapi.Document
	validator validator.Validator
	schemas   schema_validation.SchemaValidator
}

var (
	publishedOnce sync.Once
	publishedDoc  *published
)

// document asks a server for its document, once for all tests: each server publishes the same.
func document(t *testing.T, base string) *published {
	t.Helper()
	publishedOnce.Do(func() {
		response, err := http.Get(base + "/openapi.json")
		require.NoError(t, err)
		defer response.Body.Close()
		raw, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		parsed, err := libopenapi.NewDocument(raw)
		require.NoError(t, err)
		model, err := parsed.BuildV3Model()
		require.NoError(t, err)
		v, errs := validator.NewValidator(parsed, config.WithFormatAssertions())
		require.Empty(t, errs)
		publishedDoc = &published{&model.Model, v, schema_validation.NewSchemaValidator(config.WithFormatAssertions())}
	})
	require.NotNil(t, publishedDoc, "the document cannot be read")
	return publishedDoc
}

// conforms holds an answer against the document: its status, headers and body; and if it is a success, the request too, since what is accepted has to be what the
// document allows. What the document does not have is OPTIONS, the answers to HEAD, and what caches are told.
func conforms(t *testing.T, request *http.Request, sent []byte, r reply) {
	t.Helper()
	if !strings.HasPrefix(request.URL.Path, "/api") || request.Method == http.MethodOptions || strings.HasPrefix(r.Header.Get("Content-Type"), "text/event-stream") {
		return
	}
	cachesAreTold(t, request, r)
	if request.Method == http.MethodHead {
		return
	}
	d := document(t, request.URL.Scheme+"://"+request.URL.Host)
	response := *r.Response
	response.Body = io.NopCloser(bytes.NewReader(r.body))
	ok, errs := d.validator.ValidateHttpResponse(request, &response)
	if notDescribed(errs) || r.StatusCode == http.StatusNotFound && strings.HasSuffix(request.URL.Path, "/") {
		// A wrong turn: an answer all the same, of the form that every error has. (To the validator, a slash at the end is nothing.)
		require.Contains(t, []int{http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusTooManyRequests}, r.StatusCode, "%s %s is not in the document, and is answered", request.Method, request.URL.Path)
		valid, errs := d.schemas.ValidateSchemaBytes(d.model.Components.Schemas.GetOrZero("Error").Schema(), r.body)
		require.True(t, valid, "%s", told(errs))
		return
	}
	require.True(t, ok, "%s %s answered %d %s\n%s", request.Method, request.URL.Path, r.StatusCode, r.body, told(errs))
	if r.StatusCode < 300 || r.StatusCode == http.StatusNotModified {
		request := request.Clone(t.Context())
		request.Body = io.NopCloser(bytes.NewReader(sent))
		ok, errs := d.validator.ValidateHttpRequestSync(request)
		require.True(t, ok, "%s %s with %.300s was accepted, and should not be, says the document:\n%s", request.Method, request.URL, sent, told(errs))
	}
}

var aToken = regexp.MustCompile(`_[0-9A-Za-z]{43}`)

// cachesAreTold checks that a read has a tag and may be kept by its caller, has no token in it, and that nothing else may be kept by anybody.
func cachesAreTold(t *testing.T, request *http.Request, r reply) {
	t.Helper()
	require.Empty(t, r.Header.Get("Access-Control-Allow-Origin"), "a page of another site has no key to use")
	varies := "X-API-Key, Authorization, Accept-Encoding"
	if strings.HasSuffix(request.URL.Path, "/deliveries") {
		varies += ", Accept"
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "text/csv") {
		require.Equal(t, varies, r.Header.Get("Vary"))
		require.Equal(t, "no-store", r.Header.Get("Cache-Control"))
		require.Empty(t, r.Header.Get("ETag"))
		return
	}
	isRead := request.Method == http.MethodGet || request.Method == http.MethodHead
	if !isRead || r.StatusCode != http.StatusOK && r.StatusCode != http.StatusNotModified {
		require.Equal(t, "no-store", r.Header.Get("Cache-Control"), "%s %s answered %d", request.Method, request.URL.Path, r.StatusCode)
		require.Empty(t, r.Header.Get("ETag"))
		return
	}
	require.Regexp(t, `^W/"[0-9a-f]{32}"$`, r.Header.Get("ETag"), request.URL.Path)
	require.Equal(t, "private, no-cache", r.Header.Get("Cache-Control"))
	require.Equal(t, varies, r.Header.Get("Vary"))
	require.NotRegexp(t, aToken, string(r.body))
}

// notDescribed reports whether there was no operation to hold an answer against.
func notDescribed(errs []*validation.ValidationError) bool {
	return slices.ContainsFunc(errs, func(e *validation.ValidationError) bool { return e.ValidationType == helpers.PathValidation })
}

func told(errs []*validation.ValidationError) string {
	var all []string
	for _, e := range errs {
		all = append(all, fmt.Sprintf("%s: %s", e.Message, e.Reason))
		for _, s := range e.SchemaValidationErrors {
			all = append(all, "  "+s.Error())
		}
	}
	return strings.Join(all, "\n")
}

// eventConforms holds an event of a player's stream against the document.
func eventConforms(t *testing.T, base string, e event) {
	t.Helper()
	name, known := map[string]string{"deliver": "DeliverEvent", "cancel": "CancelEvent"}[e.kind]
	require.True(t, known, "there is no event %s in the document", e.kind)
	d := document(t, base)
	ok, errs := d.schemas.ValidateSchemaObject(d.model.Components.Schemas.GetOrZero(name).Schema(), e.data)
	require.True(t, ok, "%v\n%s", e.data, told(errs))
}

// The document is one of OpenAPI 3.1, and each of its examples is what its schema allows.
func documentIsValid(t *testing.T, w *world) {
	d := document(t, w.url)
	ok, errs := d.validator.ValidateDocument()
	require.True(t, ok, "%s", told(errs))
	requests, answers := 0, 0
	hold := func(where string, media *openapi.MediaType) (examples int) {
		check := func(name string, value any) {
			valid, errs := d.schemas.ValidateSchemaObject(media.Schema.Schema(), value)
			require.True(t, valid, "example %s of %s: %s", name, where, told(errs))
			examples++
		}
		if media.Example != nil {
			var value any
			require.NoError(t, media.Example.Decode(&value))
			check("", value)
		}
		for name, example := range media.Examples.FromOldest() {
			var value any
			require.NoError(t, example.Value.Decode(&value))
			check(name, value)
		}
		return examples
	}
	for path, item := range d.model.Paths.PathItems.FromOldest() {
		for method, op := range item.GetOperations().FromOldest() {
			name := method + " " + path
			require.NotEmpty(t, op.Summary, name)
			require.Len(t, op.Tags, 1, name)
			if op.RequestBody != nil {
				for kind, media := range op.RequestBody.Content.FromOldest() {
					require.Positive(t, hold(name+" "+kind, media), "%s has no example", name)
					requests++
				}
			}
			for status, response := range op.Responses.Codes.FromOldest() {
				require.NotNil(t, response.Headers.GetOrZero("X-Request-Id"), "%s %s", name, status)
				for kind, media := range response.Content.FromOldest() {
					require.Positive(t, hold(name+" "+status+" "+kind, media), "%s %s has no example", name, status)
					answers++
				}
			}
		}
	}
	require.Greater(t, requests, 15)
	require.Greater(t, answers, 300)
}

// The document, the reference and the guides are there for anybody, and load nothing from elsewhere.
func documentIsPublished(t *testing.T, w *world) {
	get := func(path string, headers ...header) reply {
		return call(t, http.MethodGet, w.url+path, "", nil, headers...)
	}
	doc := get("/openapi.json")
	require.Equal(t, http.StatusOK, doc.StatusCode)
	require.Equal(t, "application/json", doc.Header.Get("Content-Type"))
	require.Equal(t, "*", doc.Header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, http.StatusNotModified, get("/openapi.json", header{"If-None-Match", doc.Header.Get("ETag")}).StatusCode)
	var version struct{ OpenAPI string }
	require.NoError(t, json.Unmarshal(doc.body, &version))
	require.Equal(t, "3.1.0", version.OpenAPI)

	events := get("/asyncapi.json")
	require.Equal(t, http.StatusOK, events.StatusCode)
	require.Equal(t, "application/json", events.Header.Get("Content-Type"))
	require.Equal(t, "*", events.Header.Get("Access-Control-Allow-Origin"))
	kept, err := os.ReadFile("../docs/events/asyncapi.json")
	require.NoError(t, err)
	require.JSONEq(t, string(kept), string(events.body))

	for _, path := range []string{"/docs", "/docs/", "/docs/quickstart", "/docs/errors"} {
		page := get(path)
		require.Equal(t, http.StatusOK, page.StatusCode, path)
		require.Contains(t, page.Header.Get("Content-Type"), "text/html")
		require.Contains(t, page.Header.Get("Content-Security-Policy"), "default-src 'none'")
		require.NotRegexp(t, `<(script|link|img)[^>]+(src|href)=["']?(https?:)?//`, string(page.body))
		require.NotRegexp(t, `<script>|<style>| on[a-z]+=`, string(page.body), "the policy allows nothing inside the page")
	}
	require.Equal(t, "*", get("/docs").Header.Get("Access-Control-Allow-Origin"))
	require.Empty(t, get("/docs/errors").Header.Get("Access-Control-Allow-Origin"))
	for asset, kind := range map[string]string{"docs.css": "text/css", "reference.js": "text/javascript", "swagger-ui.css": "text/css", "swagger-ui-bundle.js": "javascript"} {
		r := get("/docs/assets/" + asset)
		require.Equal(t, http.StatusOK, r.StatusCode, asset)
		require.Contains(t, r.Header.Get("Content-Type"), kind)
		require.NotEmpty(t, r.body)
		require.Equal(t, "nosniff", r.Header.Get("X-Content-Type-Options"))
	}
	for _, path := range []string{"/docs/nothing", "/docs/assets/nothing", "/docs/assets/swagger-ui-bundle.js.gz", "/docs/assets/favicon-16x16.png", "/docs/quickstart/"} {
		refused(t, get(path), http.StatusNotFound, "not_found")
	}
	require.Empty(t, call(t, http.MethodGet, w.url+v1+"/audio", "", nil).Header.Get("Access-Control-Allow-Origin"))
	page := get("/docs", header{"X-Forwarded-Host", "api.musique.app"})
	require.NotContains(t, string(page.body), "api.musique.app")

	// An error leads to its explanation, on the server that it came from.
	missing := refused(t, w.partner(t).get("/audio/aud_none"), http.StatusNotFound, "not_found")
	where, err := url.Parse(missing.Error.DocURL)
	require.NoError(t, err)
	require.Equal(t, w.url+"/docs/errors#not_found", where.String())
	require.Contains(t, string(get(where.Path).body), `id="`+where.Fragment+`"`)
	secure := refused(t, call(t, http.MethodGet, w.url+v1+"/audio", "", nil, header{"X-Forwarded-Proto", "https"}, header{"X-Forwarded-Host", "api.musique.app"}), http.StatusUnauthorized, "invalid_token")
	require.Equal(t, "https://api.musique.app/docs/errors#invalid_token", secure.Error.DocURL)
	require.Empty(t, refused(t, call(t, http.MethodGet, w.ops+"/ops/nowhere", "", nil), http.StatusNotFound, "not_found").Error.DocURL, "the ops address has no guides")
}

// bodyOf reads a request's body and leaves it to be sent.
func bodyOf(t *testing.T, request *http.Request) []byte {
	t.Helper()
	if request.GetBody == nil {
		return nil
	}
	body, err := request.GetBody()
	require.NoError(t, err)
	raw, err := io.ReadAll(body)
	require.NoError(t, errors.Join(err, body.Close()))
	return raw
}
