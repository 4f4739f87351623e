package httpapi

import "net/http"

// Route is what tests are told of a route.
type Route struct {
	Operation, Method string
	Paths             []string
	// Read says that its answers have a tag.
	Read bool
}

// Routes are those of the partners' address.
func Routes() (all []Route) {
	for _, r := range (*Server)(nil).routes() {
		all = append(all, Route{r.operation, r.method, r.paths, r.method == http.MethodGet && r.access == byToken})
	}
	return all
}

// PathMatches reports whether a path is one of a route's.
func PathMatches(route, path string) bool { return pathRegexp(route).MatchString(path) }

// TellPresence tells now what the server tells every few seconds.
func TellPresence(s *Server) { s.beatAll() }
