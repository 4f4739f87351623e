package httpapi

import (
	"bytes"
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/musique/musique/domain/fault"
)

// The OpenAPI document is made of the route table and of words. From the table come the paths, the methods, who may ask, and the errors that follow from
// that; the words, in openapi/*.yaml, are what no table says. A route without words, or words without a route, is an error, and no server starts with it.

//go:embed openapi/*.yaml
var openapiFiles embed.FS

// openapiWords are what the files say.
type openapiWords struct {
	about struct {
		Info         any `yaml:"info"`
		ExternalDocs any `yaml:"externalDocs"`
		Servers      any `yaml:"servers"`
		Tags         any `yaml:"tags"`
	}
	components map[string]node
	operations map[string]*describedOperation
	// errors are an example of each code; that of a code's second status is called code_status.
	errors map[string]node
}

// node is a JSON object of the document.
type node = map[string]any

// describedOperation is what operations.yaml says of a route.
type describedOperation struct {
	Tag         string           `yaml:"tag"`
	Summary     string           `yaml:"summary"`
	Description string           `yaml:"description"`
	Parameters  []any            `yaml:"parameters"` // each the name of a component, or a parameter
	Body        *describedBody   `yaml:"body"`       // as JSON
	Form        *describedBody   `yaml:"form"`       // as multipart/form-data
	Success     *describedAnswer `yaml:"success"`
	Stream      *describedStream `yaml:"stream"` // instead of Success
	Errors      []fault.Code     `yaml:"errors"` // beyond those that follow from the route
}

type describedBody struct {
	Schema   string         `yaml:"schema"`
	Optional bool           `yaml:"optional"`
	Examples map[string]any `yaml:"examples"`
}

// describedAnswer is the answer that a caller hopes for.
type describedAnswer struct {
	Status  int    `yaml:"status"` // 0 is 200
	Schema  string `yaml:"schema"` // of what stands under `data`, or of one item of it
	List    bool   `yaml:"list"`
	Example any    `yaml:"example"`
	CSV     string `yaml:"csv"` // an example of the answer in CSV, if there is one
}

type describedStream struct {
	Description string `yaml:"description"`
	Example     string `yaml:"example"`
}

func readOpenAPIWords() (*openapiWords, error) {
	words := &openapiWords{}
	for name, into := range map[string]any{"info": &words.about, "components": &words.components, "operations": &words.operations, "errors": &words.errors} {
		raw, err := openapiFiles.ReadFile("openapi/" + name + ".yaml")
		if err != nil {
			return nil, err
		}
		decoder := yaml.NewDecoder(bytes.NewReader(raw))
		decoder.KnownFields(true)
		if err := decoder.Decode(into); err != nil {
			return nil, fmt.Errorf("openapi/%s.yaml: %w", name, err)
		}
	}
	return words, nil
}

// openapiDocument assembles the document of the routes.
func openapiDocument(routes []*route) ([]byte, error) {
	words, err := readOpenAPIWords()
	if err != nil {
		return nil, err
	}
	a := &assembly{words: words, responses: node{}, used: map[string]bool{}}
	for _, r := range routes {
		if r.outside {
			continue
		}
		if err := a.add(r); err != nil {
			return nil, fmt.Errorf("openapi: %s: %w", r.operation, err)
		}
	}
	if err := a.addHidden(routes); err != nil {
		return nil, err
	}
	for name := range words.operations {
		if !a.used[name] {
			return nil, fmt.Errorf("openapi: %s is described, and there is no such route", name)
		}
	}
	a.responses[a.errorsNamed(http.StatusMethodNotAllowed, []fault.Code{fault.MethodNotAllowed})] = a.refusal(http.StatusMethodNotAllowed, []fault.Code{fault.MethodNotAllowed}, true)
	components := words.components
	components["responses"], components["examples"] = a.responses, a.errorExamples()
	return encodeJSON(inOrder{
		{"openapi", "3.1.0"}, {"info", words.about.Info}, {"externalDocs", words.about.ExternalDocs}, {"servers", words.about.Servers}, {"tags", words.about.Tags},
		{"paths", a.paths}, {"components", components},
	})
}

// assembly is a document in the making.
type assembly struct {
	words     *openapiWords
	paths     inOrder // in the order of the routes
	responses node    // those of errors, which many operations share
	used      map[string]bool
}

// add adds an operation at each of its paths.
func (a *assembly) add(r *route) error {
	op := a.words.operations[r.operation]
	if op == nil {
		return fmt.Errorf("nothing describes it")
	}
	a.used[r.operation] = true
	for i, path := range r.paths {
		described, err := a.operation(r, op, i)
		if err != nil {
			return err
		}
		template := pathTemplate(path)
		if a.at(template) == nil {
			a.paths = append(a.paths, member{template, node{}})
		}
		a.at(template)[strings.ToLower(r.method)] = described
	}
	return nil
}

// at is what there is at a path; nil if it has none.
func (a *assembly) at(template string) node {
	for _, m := range a.paths {
		if m.name == template {
			item, _ := m.value.(node)
			return item
		}
	}
	return nil
}

// addHidden adds to a path what another path with a variable has there too: a location may be called import. OpenAPI 3.1 §4.8.8.2 finds the concrete path
// and looks no further.
func (a *assembly) addHidden(routes []*route) error {
	patterns := map[string]*regexp.Regexp{} // of the routes' paths
	for _, r := range routes {
		for _, path := range r.paths {
			patterns[path] = pathRegexp(path)
		}
	}
	for _, m := range a.paths {
		for _, r := range routes {
			method := strings.ToLower(r.method)
			hidden := slices.IndexFunc(r.paths, func(path string) bool { return pathTemplate(path) != m.name && patterns[path].MatchString(m.name) })
			if r.outside || hidden < 0 || a.at(m.name)[method] != nil {
				continue
			}
			op := *a.words.operations[r.operation]
			op.Parameters = slices.DeleteFunc(slices.Clone(op.Parameters), func(p any) bool { return a.inPath(p) != "" })
			also := *r
			also.paths = slices.Insert(slices.Clone(r.paths), 1, m.name)
			described, err := a.operation(&also, &op, 1)
			if err != nil {
				return fmt.Errorf("openapi: %s at %s: %w", r.operation, m.name, err)
			}
			described["operationId"] = r.operation + "_" + path.Base(m.name)
			a.at(m.name)[method] = described
		}
	}
	return nil
}

var routeVariable = regexp.MustCompile(`\{[^:}]+(?::([^}]+))?\}`)

// pathRegexp matches what a route's path matches.
func pathRegexp(path string) *regexp.Regexp {
	var pattern strings.Builder
	end := 0
	for _, at := range routeVariable.FindAllStringSubmatchIndex(path, -1) {
		pattern.WriteString(regexp.QuoteMeta(path[end:at[0]]))
		if end = at[1]; at[2] < 0 {
			pattern.WriteString("[^/]+")
		} else {
			pattern.WriteString(path[at[2]:at[3]])
		}
	}
	return regexp.MustCompile("^" + pattern.String() + regexp.QuoteMeta(path[end:]) + "$")
}

var pathPattern = regexp.MustCompile(`\{([^:}]+):[^}]+\}`)

// pathTemplate is a route's path as OpenAPI writes it: without the patterns of its variables, which the parameters' schemas have.
func pathTemplate(path string) string { return pathPattern.ReplaceAllString(path, "{$1}") }

var pathVariable = regexp.MustCompile(`\{([^}]+)\}`)

// operation describes a route at one of its paths.
func (a *assembly) operation(r *route, op *describedOperation, at int) (node, error) {
	parameters, err := a.parameters(r, op, at)
	if err != nil {
		return nil, err
	}
	said := []string{strings.TrimSpace(op.Description)}
	if r.scope != "" {
		said = append(said, "Needs the permission `"+r.scope+"`.")
	}
	out := node{"operationId": r.operation, "tags": []string{op.Tag}, "summary": op.Summary, "security": securityOf(r)}
	if at > 0 {
		out["operationId"] = r.operation + "_" + strconv.Itoa(at+1)
		out["x-alias-of"] = r.operation
		said = append(said, "The same as `"+r.method+" "+pathTemplate(r.paths[0])+"`, which is the one to write new code against.")
	}
	if text := strings.TrimSpace(strings.Join(said, "\n\n")); text != "" {
		out["description"] = text
	}
	if len(parameters) > 0 {
		out["parameters"] = parameters
	}
	if body := op.requestBody(); body != nil {
		out["requestBody"] = body
	}
	responses := node{}
	status, answer, err := a.answer(r, op)
	if err != nil {
		return nil, err
	}
	responses[strconv.Itoa(status)] = answer
	if isRead(r, op) {
		name := "NotModified"
		if op.isPaged() {
			name = "PageNotModified"
		}
		// RFC 9110 §15.4.5: of the headers of the answer, those that are not about a body that is not there.
		a.responses[name] = node{"description": http.StatusText(http.StatusNotModified) + ": the caller has it already.", "headers": answer["headers"]}
		responses[strconv.Itoa(http.StatusNotModified)] = node{"$ref": "#/components/responses/" + name}
	}
	for status, codes := range op.refusals(r) {
		name := a.errorsNamed(status, codes)
		if r.access != byToken {
			name += "Unmetered"
		}
		a.responses[name] = a.refusal(status, codes, r.access == byToken)
		responses[strconv.Itoa(status)] = node{"$ref": "#/components/responses/" + name}
	}
	out["responses"] = responses
	return out, nil
}

func securityOf(r *route) []node {
	switch r.access {
	case byToken:
		roles := []string{} // OpenAPI 3.1 §4.8.30: what the caller must be allowed, for schemes that are not OAuth too
		if r.scope != "" {
			roles = append(roles, r.scope)
		}
		return []node{{"apiKey": roles}}
	case byDevice:
		return []node{{"deviceToken": []string{}}}
	default:
		return []node{}
	}
}

// isRead reports whether a route's answer has a tag, by which it can be asked for again.
func isRead(r *route, op *describedOperation) bool {
	return r.method == http.MethodGet && op.Stream == nil
}

// parameters are those of the words, the Idempotency-Key that each POST takes, and the If-None-Match of each read.
func (a *assembly) parameters(r *route, op *describedOperation, at int) (all []any, err error) {
	inPath := map[string]bool{}
	for _, p := range op.Parameters {
		if a.parameter(p) == nil {
			return nil, fmt.Errorf("there is no parameter %v", p)
		}
		if name := a.inPath(p); name != "" {
			inPath[name] = true
		}
		if name, ok := p.(string); ok {
			p = node{"$ref": "#/components/parameters/" + name}
		}
		all = append(all, p)
	}
	variables := pathVariable.FindAllStringSubmatch(pathTemplate(r.paths[at]), -1)
	for _, v := range variables {
		if !inPath[v[1]] {
			return nil, fmt.Errorf("the variable %s of %s is not described", v[1], r.paths[at])
		}
	}
	if len(variables) != len(inPath) {
		return nil, fmt.Errorf("a parameter in the path is described that %s does not have", r.paths[at])
	}
	if r.method == http.MethodPost {
		all = append(all, node{"$ref": "#/components/parameters/IdempotencyKey"})
	}
	if isRead(r, op) {
		all = append(all, node{"$ref": "#/components/parameters/IfNoneMatch"})
	}
	return all, nil
}

// parameter is a parameter of the words, or the component that they name; nil if there is none.
func (a *assembly) parameter(said any) node {
	if name, ok := said.(string); ok {
		said = a.words.components["parameters"][name]
	}
	described, _ := said.(node)
	return described
}

// inPath is the name of a parameter that is a variable of the path, or "".
func (a *assembly) inPath(said any) string {
	described := a.parameter(said)
	if name, ok := described["name"].(string); ok && described["in"] == "path" {
		return name
	}
	return ""
}

func (op *describedOperation) requestBody() node {
	body, kind := op.Body, "application/json"
	if op.Form != nil {
		body, kind = op.Form, "multipart/form-data"
	}
	if body == nil {
		return nil
	}
	examples := node{}
	for name, value := range body.Examples {
		examples[name] = node{"value": value}
	}
	media := node{"schema": schemaRef(body.Schema), "examples": examples}
	return node{"required": !body.Optional, "content": node{kind: media}}
}

func schemaRef(name string) node { return node{"$ref": "#/components/schemas/" + name} }

// answer describes the success.
func (a *assembly) answer(r *route, op *describedOperation) (status int, described node, err error) {
	headers := responseHeaders("X-Request-Id")
	if r.access == byToken {
		maps.Copy(headers, responseHeaders(rateHeaders...))
	}
	switch {
	case op.Stream != nil:
		return http.StatusOK, node{
			"description": op.Stream.Description, "headers": headers,
			"content": node{"text/event-stream": node{"schema": node{"type": "string"}, "example": op.Stream.Example}},
		}, nil
	case op.Success == nil:
		return 0, nil, fmt.Errorf("its answer is not described")
	}
	if r.method == http.MethodPost && r.access != byDevice {
		maps.Copy(headers, responseHeaders("Idempotency-Replayed"))
	}
	if op.isPaged() {
		maps.Copy(headers, responseHeaders("Link"))
	}
	if isRead(r, op) {
		maps.Copy(headers, responseHeaders("ETag"))
	}
	schema, example := a.envelopeOf(op.Success)
	status = cmp.Or(op.Success.Status, http.StatusOK)
	content := node{"application/json": node{"schema": schema, "example": example}}
	if (op.Success.CSV != "") != r.csv {
		return 0, nil, fmt.Errorf("its answer in CSV is described, and there is none, or the other way round")
	}
	if r.csv {
		content["text/csv"] = node{"schema": node{"type": "string"}, "example": op.Success.CSV}
		maps.Copy(headers, responseHeaders("Content-Disposition"))
	}
	return status, node{"description": http.StatusText(status) + ".", "headers": headers, "content": content}, nil
}

// exampleTime is the time of all examples.
const exampleTime = "2026-11-24T09:00:00Z"

// envelopeOf is the schema of an answer, which has a name, and an example.
func (a *assembly) envelopeOf(s *describedAnswer) (schema, example node) {
	name, required := s.Schema+"Answer", []string{"data", "timestamp"}
	properties := node{"data": schemaRef(s.Schema), "timestamp": schemaRef("Timestamp")}
	example = node{"data": s.Example, "timestamp": exampleTime}
	if s.List {
		name, required = s.Schema+"Page", append(required, "pagination")
		properties["data"], properties["pagination"] = node{"type": "array", "items": schemaRef(s.Schema)}, schemaRef("Pagination")
		example["pagination"] = node{"limit": defaultPage, "hasMore": false, "nextCursor": nil}
	}
	a.words.components["schemas"][name] = node{"type": "object", "required": required, "additionalProperties": false, "properties": properties}
	return schemaRef(name), example
}

// refusals are the errors that an operation can answer, by status.
func (op *describedOperation) refusals(r *route) map[int][]fault.Code {
	all := map[int][]fault.Code{}
	at := func(status int, codes ...fault.Code) {
		all[status] = append(all[status], codes...)
		slices.Sort(all[status])
		all[status] = slices.Compact(all[status])
	}
	usual := func(codes ...fault.Code) {
		for _, code := range codes {
			at(answers[code].status, code)
		}
	}
	usual(fault.Internal, fault.ServiceUnavailable, fault.InvalidFormat, fault.OutOfRange) // the last two of If-Match, and of headers that are too large
	switch r.access {
	case byToken:
		usual(fault.InvalidToken, fault.ExpiredToken, fault.RateLimitExceeded)
	case byDevice:
		usual(fault.InvalidToken)
	case byAnyone:
	}
	if r.scope != "" {
		usual(fault.InsufficientScope)
	}
	if pathVariable.MatchString(r.paths[0]) {
		usual(fault.NotFound)
	}
	if r.method != http.MethodGet {
		usual(fault.Conflict)
	}
	if body := cmp.Or(op.Body, op.Form); body != nil {
		if !body.Optional {
			usual(fault.MissingField)
		}
		at(http.StatusRequestEntityTooLarge, fault.OutOfRange)
		at(http.StatusUnsupportedMediaType, fault.InvalidFormat)
	}
	usual(op.Errors...)
	return all
}

func (op *describedOperation) isPaged() bool { return slices.Contains(op.Parameters, any("Cursor")) }

// errorsNamed is what an answer with these codes is called in the document.
func (a *assembly) errorsNamed(status int, codes []fault.Code) string {
	var name strings.Builder
	for _, code := range codes {
		for word := range strings.SplitSeq(string(code), "_") {
			name.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	if answers[codes[0]].status != status {
		name.WriteString(strconv.Itoa(status))
	}
	return name.String()
}

// refusal describes an answer that is one of the errors.
func (a *assembly) refusal(status int, codes []fault.Code, metered bool) node {
	headers, examples := responseHeaders("X-Request-Id"), node{}
	if metered {
		maps.Copy(headers, responseHeaders(rateHeaders...))
	}
	switch status {
	case http.StatusUnauthorized:
		maps.Copy(headers, responseHeaders("WWW-Authenticate"))
	case http.StatusMethodNotAllowed:
		maps.Copy(headers, responseHeaders("Allow"))
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusConflict:
		maps.Copy(headers, responseHeaders("Retry-After"))
	}
	told := make([]string, len(codes))
	for i, code := range codes {
		told[i] = "`" + string(code) + "`"
		examples[string(code)] = node{"$ref": "#/components/examples/" + a.exampleNamed(status, code)}
	}
	one := node{"type": "object", "properties": node{"error": node{"type": "object", "properties": node{"code": node{"enum": codes}}}}}
	return node{
		"description": http.StatusText(status) + ": " + strings.Join(told, ", ") + ".", "headers": headers,
		"content": node{"application/json": node{"schema": node{"allOf": []node{schemaRef("Error"), one}}, "examples": examples}},
	}
}

func (a *assembly) exampleNamed(status int, code fault.Code) string {
	if answers[code].status == status {
		return string(code)
	}
	return string(code) + "_" + strconv.Itoa(status)
}

// errorExamples are the examples of errors as callers see them.
func (a *assembly) errorExamples() node {
	all := node{}
	for name, said := range a.words.errors {
		code, _, _ := strings.Cut(name, "_4") // the second status
		body := node{"code": code, "type": answers[fault.Code(code)].kind, "request_id": "req_696251f8015645529fe97b16032debb0", "doc_url": "https://api.musique.app" + errorDocs(fault.Code(code))}
		maps.Copy(body, said)
		all[name] = node{"value": node{"error": body, "timestamp": exampleTime}}
	}
	return all
}

// rateHeaders are on each answer to a token that is accepted.
var rateHeaders = []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"}

// responseHeaders refers to headers, whose components are called as they are without the dashes.
func responseHeaders(names ...string) node {
	all := node{}
	for _, name := range names {
		all[name] = node{"$ref": "#/components/headers/" + strings.ReplaceAll(name, "-", "")}
	}
	return all
}

// inOrder is a JSON object whose members keep their order.
type inOrder []member

type member struct {
	name  string
	value any
}

// MarshalJSON implements json.Marshaler.
func (o inOrder) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, m := range o {
		name, err := encodeJSON(m.name)
		if err != nil {
			return nil, err
		}
		value, err := encodeJSON(m.value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, name...), ':'), value...)
	}
	return append(out, '}'), nil
}

// encodeJSON writes JSON that people can read: <, > and & stay as they are.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
