package httpapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/docs"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/send"
	"github.com/musique/musique/domain/token"
)

var update = flag.Bool("update", false, "write docs/openapi.json anew")

// documentFile is the document as it is reviewed.
const documentFile = "../docs/openapi.json"

func document(t *testing.T) (raw []byte, parsed node) {
	t.Helper()
	raw, err := openapiDocument((*Server)(nil).routes())
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &parsed))
	return raw, parsed
}

// at walks into a document.
func at(t *testing.T, v any, path ...string) any {
	t.Helper()
	for _, name := range path {
		object, ok := v.(node)
		require.True(t, ok, "%v has no %s", v, name)
		require.Contains(t, object, name, "of %v", path)
		v = object[name]
	}
	return v
}

// What is published changes in the repository when it changes, for all to see.
func TestTheDocumentInTheRepositoryIsTheOneServed(t *testing.T) {
	t.Parallel()
	raw, _ := document(t)
	var indented bytes.Buffer
	require.NoError(t, json.Indent(&indented, raw, "", "  "))
	indented.WriteByte('\n')
	if *update {
		require.NoError(t, os.WriteFile(documentFile, indented.Bytes(), 0o644))
	}
	kept, err := os.ReadFile(documentFile)
	require.NoError(t, err)
	require.Equal(t, string(kept), indented.String(), "go test ./http -run TheDocumentInTheRepository -update writes it anew")
}

// Each route is in the document at each of its paths with what it needs, and nothing else is.
func TestTheDocumentAndTheRoutesAreTheSame(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	left := map[string]bool{}
	paths := at(t, doc, "paths").(node) //nolint:forcetypeassert // a test
	for path, item := range paths {
		for method := range item.(node) { //nolint:forcetypeassert // a test
			left[method+" "+path] = true
		}
	}
	ids := map[any]bool{}
	for _, r := range (*Server)(nil).routes() {
		if r.outside {
			continue
		}
		for _, path := range r.paths {
			name := strings.ToLower(r.method) + " " + regexp.MustCompile(`:[^}]+}`).ReplaceAllString(path, "}")
			require.True(t, left[name], "%s is not in the document", name)
			delete(left, name)
			op := at(t, paths, strings.Fields(name)[1], strings.Fields(name)[0])
			id := at(t, op, "operationId")
			require.False(t, ids[id], "%s is there twice", id)
			ids[id] = true
			require.True(t, strings.HasPrefix(fmt.Sprint(id), r.operation))
			security := map[access]string{byAnyone: "[]", byDevice: "[map[deviceToken:[]]]", byToken: "[map[apiKey:[" + r.scope + "]]]"}[r.access]
			require.Equal(t, security, fmt.Sprint(at(t, op, "security")), name)
			responses := at(t, op, "responses").(node) //nolint:forcetypeassert // a test
			require.Equal(t, r.scope != "" || r.operation == "RevokeToken", responses["403"] != nil, name)
			require.Equal(t, r.access != byAnyone || r.operation == "GenerateToken", responses["401"] != nil, name)
			require.Equal(t, r.access == byToken || r.operation == "GenerateToken", responses["429"] != nil, name)
			tagged := r.method == http.MethodGet && r.access == byToken
			require.Equal(t, tagged, responses["304"] != nil, name)
			require.Equal(t, tagged, strings.Contains(fmt.Sprint(op), "/parameters/IfNoneMatch"), name)
			require.Equal(t, tagged, strings.Contains(fmt.Sprint(responses["200"]), "/headers/ETag"), name)
		}
	}
	// A location may be called import, and then is at the path of the import.
	const atImport = v1 + "/locations/import"
	for _, method := range []string{"get", "patch", "delete"} {
		alias := at(t, paths, atImport, method)
		require.Equal(t, at(t, at(t, paths, v1+"/locations/{externalId}", method), "operationId"), at(t, alias, "x-alias-of"))
		delete(left, method+" "+atImport)
	}
	require.Empty(t, left, "these have no route")
}

func TestWhatIsNotInTheDocumentIsKnown(t *testing.T) {
	t.Parallel()
	var outside []string
	for _, r := range (*Server)(nil).routes() {
		if r.outside {
			require.Equal(t, byAnyone, r.access)
			outside = append(outside, r.operation)
		}
	}
	require.Equal(t, []string{"GetMedia", "ReportFromEndpoint", "GetDocument", "GetEventsDocument", "GetReference", "GetReferenceAsset", "GetGuide"}, outside)
}

// The words give what the code gives.
func TestTheDocumentKnowsTheValuesAndTheBounds(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	texts := func(list any) (all []string) {
		for _, v := range list.([]any) { //nolint:forcetypeassert // a test
			if v != nil {
				all = append(all, v.(string)) //nolint:forcetypeassert // a test
			}
		}
		return all
	}
	schema := func(path ...string) any {
		return at(t, doc, append([]string{"components", "schemas"}, path...)...)
	}
	var codes, kinds []string
	for code, as := range answers {
		codes = append(codes, string(code))
		kinds = append(kinds, as.kind)
	}
	slices.Sort(kinds)
	for name, want := range map[string][]string{
		"Permission": token.Permissions, "Category": audio.Categories, "Format": audioFormats, "Priority": send.Priorities, "SendStatus": sendStatuses,
		"DeliveryStatus": deliveryStatuses, "ErrorCode": codes,
	} {
		require.ElementsMatch(t, want, texts(schema(name, "enum")), name)
	}
	require.ElementsMatch(t, slices.Compact(kinds), texts(schema("Error", "properties", "error", "properties", "type", "enum")))
	require.ElementsMatch(t, send.Priorities, texts(schema("SendRequest", "properties", "priority", "enum")))
	require.ElementsMatch(t, audio.Categories, texts(schema("UploadRequest", "properties", "category", "enum")))
	for bound, want := range map[string]float64{
		"SendRequest repeat maximum": send.MaxRepeat, "SendRequest volume maximum": send.MaxVolume,
		"SendRequest expiresIn maximum": send.MaxExpiresIn, "SendRequest expiresIn default": send.DefaultExpiresIn, "AcceptedSend destinations maxItems": maxListedDestinations,
		"ImportRequest locations maxItems": commands.MaxImport, "TokenRequest expiresIn maximum": float64(token.MaxLifetime / time.Second), "PlaybackReport reason maxLength": maxReason,
	} {
		parts := strings.Fields(bound)
		require.Equal(t, want, schema(parts[0], "properties", parts[1], parts[2]), bound)
	}
	require.Contains(t, schema("SendRequest", "properties", "externalIds", "description"), "100,000") // different ones, of which JSON Schema has no word
	require.Equal(t, 100_000, send.MaxDestinations)
	parameter := func(path ...string) any {
		return at(t, doc, append([]string{"components", "parameters"}, path...)...)
	}
	require.Equal(t, float64(maxPage), parameter("Limit", "schema", "maximum"))
	require.Equal(t, float64(defaultPage), parameter("Limit", "schema", "default"))
	require.Equal(t, float64(maxIdempotencyKey), parameter("IdempotencyKey", "schema", "maxLength"))
	require.Equal(t, float64(maxRequestID), at(t, doc, "components", "headers", "XRequestId", "schema", "maxLength"))
}

// doc_url leads to where the code is explained, and each link of the guides somewhere.
func TestGuidesExplainEachErrorAndTheirLinksHold(t *testing.T) {
	t.Parallel()
	r, err := newReference((*Server)(nil).routes())
	require.NoError(t, err)
	entries, err := docs.Partners.ReadDir("partners")
	require.NoError(t, err)
	require.Len(t, entries, len(docs.Guides), "a guide is not in the list")
	anchors := map[string]bool{docsPath: true, "/openapi.json": true}
	for name, guide := range r.guides {
		anchors[docsPath+"/"+name] = true
		for _, id := range regexp.MustCompile(` id="([^"]+)"`).FindAllSubmatch(guide.plain(), -1) {
			anchors[docsPath+"/"+name+"#"+string(id[1])] = true
		}
	}
	for code := range answers {
		require.True(t, anchors[errorDocs(code)], "%s is explained nowhere", code)
		require.Contains(t, string(r.guides["errors"].plain()), "Type <code>"+answers[code].kind+"</code>")
	}
	_, doc := document(t)
	ids := map[string]bool{}
	for _, item := range at(t, doc, "paths").(node) { //nolint:forcetypeassert // a test
		for _, op := range item.(node) { //nolint:forcetypeassert // a test
			ids[fmt.Sprintf("%s#/%s/%s", docsPath, at(t, op, "tags").([]any)[0], at(t, op, "operationId"))] = true //nolint:forcetypeassert // a test
		}
	}
	links := 0
	check := func(where, target string) {
		standard := strings.HasPrefix(target, "https://html.spec.whatwg.org/") || target == "https://www.standardwebhooks.com"
		if !standard && !strings.HasPrefix(target, docsPath+"/assets/") && target != "data:," {
			require.True(t, anchors[target] || ids[target], "%s has a link to %s", where, target)
			links++
		}
	}
	for name, guide := range r.guides {
		for _, link := range regexp.MustCompile(`href="([^"]+)"`).FindAllSubmatch(guide.plain(), -1) {
			target := string(link[1])
			if strings.HasPrefix(target, "#") {
				target = docsPath + "/" + name + target
			}
			check(name, target)
		}
	}
	raw, err := openapiFiles.ReadFile("openapi/info.yaml")
	require.NoError(t, err)
	for _, link := range regexp.MustCompile(`/docs/[a-z-]+`).FindAllString(string(raw), -1) {
		check("the document", link)
	}
	require.Greater(t, links, 100)
}

// A comma in an unquoted text of YAML begins another member, which has no value.
func TestTheDocumentHasNoMembersWithoutAValue(t *testing.T) {
	t.Parallel()
	_, doc := document(t)
	var walk func(where string, v any)
	walk = func(where string, v any) {
		switch v := v.(type) {
		case node:
			for name, inner := range v {
				if name != "example" && name != "examples" && name != "enum" { // where null is a value
					require.NotNil(t, inner, "%s/%s", where, name)
					walk(where+"/"+name, inner)
				}
			}
		case []any:
			for i, inner := range v {
				walk(fmt.Sprintf("%s/%d", where, i), inner)
			}
		}
	}
	walk("", doc)
}

func TestADescriptionWithoutARouteIsRefused(t *testing.T) {
	t.Parallel()
	routes := (*Server)(nil).routes()
	_, err := openapiDocument(routes[1:])
	require.ErrorContains(t, err, "GenerateToken is described")
	undescribed := *routes[0]
	undescribed.operation = "Surprise"
	_, err = openapiDocument(append(routes, &undescribed))
	require.ErrorContains(t, err, "Surprise: nothing describes it")
	moved := *routes[0]
	moved.paths = []string{"/api/{place}"}
	_, err = openapiDocument(append([]*route{&moved}, routes[1:]...))
	require.ErrorContains(t, err, "the variable place")
}

func TestAnchorsAreThoseOfGitHub(t *testing.T) {
	t.Parallel()
	ids := headingIDs{}
	for heading, want := range map[string]string{"not_found": "not_found", "Rotate without downtime": "rotate-without-downtime", "What every answer tells?": "what-every-answer-tells"} {
		require.Equal(t, want, string(ids.Generate([]byte(heading), 0)))
		require.Equal(t, want+"-1", string(ids.Generate([]byte(heading), 0)))
	}
}
