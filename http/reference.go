package httpapi

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	swaggerui "github.com/swaggest/swgui/v5/static"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"

	"github.com/musique/musique/docs"
	"github.com/musique/musique/domain/fault"
)

//go:embed pages
var pageFiles embed.FS

const (
	docsPath = "/docs"
	// referencePolicy and guidePolicy let a page load what this server has, and nothing from elsewhere (Content Security Policy Level 3). The reference
	// page's own program styles what it shows, and has pictures in its style sheet; what it asks goes to this server.
	referencePolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	guidePolicy     = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// errorDocs is where a code is explained.
func errorDocs(code fault.Code) string { return docsPath + "/errors#" + string(code) }

// reference is what is published for those who write against the API: the OpenAPI document, a page that shows it, the guides, and the AsyncAPI document.
type reference struct {
	document published
	events   published
	page     published
	guides   map[string]published
	assets   map[string]published
}

// published is a file that stays the same for as long as the process runs.
type published struct {
	kind   string
	hash   string // of its bytes
	policy string // Content-Security-Policy
	size   int    // in bytes, or less
	plain  func() []byte
	packed func() []byte // in gzip
}

// publish takes a file as it is. It is packed when somebody asks for that first.
func publish(kind string, body []byte, policy string) published {
	return published{kind, hashOf(body), policy, len(body), func() []byte { return body }, sync.OnceValue(func() []byte {
		var b bytes.Buffer
		packAt(gzip.BestCompression, &b, body)
		return b.Bytes()
	})}
}

// publishPacked takes a file in gzip. It is unpacked when somebody asks for that first, which no browser does.
func publishPacked(kind string, packed []byte) published {
	return published{kind, hashOf(packed), "", len(packed), sync.OnceValue(func() []byte {
		r, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			panic(err) // it is part of the program
		}
		body, err := io.ReadAll(r)
		if err != nil {
			panic(err)
		}
		return body
	}), func() []byte { return packed }}
}

// page is what a page's template is given.
type page struct {
	Title, Current string
	Guides         []guideLink
	Body           template.HTML
}

type guideLink struct{ Name, Title string }

func newReference(routes []*route) (*reference, error) {
	document, err := openapiDocument(routes)
	if err != nil {
		return nil, err
	}
	events, err := docs.Events.ReadFile("events/asyncapi.json")
	if err != nil {
		return nil, err
	}
	r := &reference{document: publish("application/json", document, ""), events: publish("application/json", events, ""), guides: map[string]published{}, assets: map[string]published{}}
	const style, script = "text/css; charset=utf-8", "text/javascript; charset=utf-8"
	for name, kind := range map[string]string{"docs.css": style, "reference.js": script} {
		raw, err := pageFiles.ReadFile("pages/" + name)
		if err != nil {
			return nil, err
		}
		r.assets[name] = publish(kind, raw, "")
	}
	for name, kind := range map[string]string{"swagger-ui.css": style, "swagger-ui-bundle.js": script} { // of Swagger UI, what the page loads
		packed, err := swaggerui.FS.ReadFile(name + ".gz")
		if err != nil {
			return nil, err
		}
		r.assets[name] = publishPacked(kind, packed)
	}
	templates, err := template.ParseFS(pageFiles, "pages/*.html")
	if err != nil {
		return nil, err
	}
	render := func(name string, p page, policy string) (published, error) {
		var b bytes.Buffer
		err := templates.ExecuteTemplate(&b, name, p)
		return publish("text/html; charset=utf-8", b.Bytes(), policy), err
	}
	guides, bodies := []guideLink{}, map[string]template.HTML{}
	for _, name := range docs.Guides {
		title, body, err := guide(name)
		if err != nil {
			return nil, fmt.Errorf("guide %s: %w", name, err)
		}
		guides, bodies[name] = append(guides, guideLink{name, title}), body
	}
	for _, g := range guides {
		if r.guides[g.Name], err = render("guide.html", page{g.Title, g.Name, guides, bodies[g.Name]}, guidePolicy); err != nil {
			return nil, err
		}
	}
	if r.page, err = render("reference.html", page{Guides: guides}, referencePolicy); err != nil {
		return nil, err
	}
	return r, nil
}

// guide renders a guide. Its title is its first heading.
func guide(name string) (title string, body template.HTML, err error) {
	raw, err := fs.ReadFile(docs.Partners, "partners/"+name+".md")
	if err != nil {
		return "", "", err
	}
	markdown := goldmark.New(
		goldmark.WithExtensions(extension.Table),
		goldmark.WithParserOptions(parser.WithAutoHeadingID(), parser.WithASTTransformers(util.Prioritized(guideLinks{}, 0))),
		goldmark.WithRendererOptions(html.WithXHTML()),
	)
	tree := markdown.Parser().Parse(text.NewReader(raw), parser.WithContext(parser.NewContext(parser.WithIDs(headingIDs{}))))
	heading, ok := tree.FirstChild().(*ast.Heading)
	if !ok {
		return "", "", fmt.Errorf("it begins without a heading")
	}
	var b bytes.Buffer
	if err := markdown.Renderer().Render(&b, raw, tree); err != nil {
		return "", "", err
	}
	return string(heading.Lines().Value(raw)), template.HTML(b.String()), nil //nolint:gosec // Markdown of this repository, rendered without raw HTML
}

// headingIDs make the anchors of headings as GitHub makes them, so that a guide's links hold there too.
type headingIDs map[string]bool

// Generate implements parser.IDs.
func (ids headingIDs) Generate(heading []byte, _ ast.NodeKind) []byte {
	id := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-', r == '_', r >= '0' && r <= '9', r >= 'a' && r <= 'z', r > '~':
			return r
		}
		return -1
	}, strings.ToLower(string(heading)))
	base := id
	for n := 1; ids[id]; n++ {
		id = fmt.Sprintf("%s-%d", base, n)
	}
	ids[id] = true
	return []byte(id)
}

// Put implements parser.IDs.
func (ids headingIDs) Put(id []byte) { ids[string(id)] = true }

// guideLinks makes links between the files links between the pages.
type guideLinks struct{}

// Transform implements parser.ASTTransformer.
func (guideLinks) Transform(tree *ast.Document, _ text.Reader, _ parser.Context) {
	_ = ast.Walk(tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) { // the function gives no error
		if link, ok := n.(*ast.Link); ok && entering {
			file, anchor, anchored := strings.Cut(string(link.Destination), "#")
			if name, isGuide := strings.CutSuffix(file, ".md"); isGuide && slices.Contains(docs.Guides, name) {
				to := docsPath + "/" + name
				if anchored {
					to += "#" + anchor
				}
				link.Destination = []byte(to)
			}
		}
		return ast.WalkContinue, nil
	})
}

// serve answers with a published file, as it is or in gzip, or that the caller has it already (RFC 9110 §13). The two forms have tags of their own, for a strong
// tag stands for the very bytes (RFC 9110 §8.8.3.3).
func (p published) serve(c *call) error {
	h := c.w.Header()
	body, tag := p.plain, `"`+p.hash+`"`
	if prefersGzip(c.r.Header, p.size) {
		body, tag = p.packed, `"`+p.hash+`-gzip"`
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", p.kind)
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-cache") // an update of the server shows at once
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if p.policy != "" {
		h.Set("Content-Security-Policy", p.policy)
	}
	content := body()
	h.Set("Content-Length", strconv.Itoa(len(content))) // which http.ServeContent leaves out beside a coding
	w := &contentWriter{ResponseWriter: c.w}
	http.ServeContent(w, c.r, "", time.Time{}, bytes.NewReader(content))
	return w.err()
}

// openapi serves the OpenAPI document.
func (s *Server) openapi(c *call) error { return s.reference.document.serve(c) }

// referencePage serves the page that shows the document.
func (s *Server) referencePage(c *call) error { return s.reference.page.serve(c) }

// guidePage serves a guide.
func (s *Server) guidePage(c *call) error {
	found, ok := s.reference.guides[c.pathVar("page")]
	if !ok {
		return errNoPath
	}
	return found.serve(c)
}

// referenceAsset serves what the pages load.
func (s *Server) referenceAsset(c *call) error {
	found, ok := s.reference.assets[c.pathVar("asset")]
	if !ok {
		return errNoPath
	}
	return found.serve(c)
}
