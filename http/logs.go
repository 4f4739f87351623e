package httpapi

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/usagelogs"
)

type loggedRequestData struct {
	RequestID  string    `json:"requestId"`
	Timestamp  timestamp `json:"timestamp"`
	Method     string    `json:"method"`
	Path       string    `json:"path"`
	Endpoint   string    `json:"endpoint"`
	Status     int       `json:"status"`
	DurationMs int64     `json:"durationMs"`
	ExternalID string    `json:"externalId"`
	TokenID    string    `json:"tokenId"`
	IP         string    `json:"ip"`
	UserAgent  string    `json:"userAgent"`
	ErrorCode  string    `json:"errorCode,omitempty"`
}

// listLogs lists the company's API requests, newest first.
func (s *Server) listLogs(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	filter := usagelogs.Filter{
		Start: q.day("startDate", false), End: q.day("endDate", true), Endpoint: q.text("endpoint"),
		Method:     q.oneOf("method", http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions),
		ExternalID: q.text("externalId"), RequestID: q.text("requestId"),
	}
	filter.StatusFrom, filter.StatusTo = q.statuses()
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := usagelogs.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, filter, cursor, limit, s.now())
	if err != nil {
		return err
	}
	all := make([]loggedRequestData, len(found))
	for i, r := range found {
		all[i] = loggedRequestData{
			RequestID: r.RequestID, Timestamp: timestamp(r.Timestamp), Method: r.Method, Path: r.Path, Endpoint: r.Endpoint, Status: r.Status,
			DurationMs: r.DurationMs, ExternalID: r.ExternalID, TokenID: r.TokenID, IP: r.IP, UserAgent: r.UserAgent, ErrorCode: r.ErrorCode,
		}
	}
	return c.list(all, limit, next)
}

// day reads a time, or a day (UTC), of which it gives the beginning, or with end that of the day after.
func (q *query) day(name string, end bool) *time.Time {
	if day, err := time.Parse(time.DateOnly, q.text(name)); err == nil {
		if end {
			day = day.AddDate(0, 0, 1)
		}
		return &day
	}
	return q.moment(name)
}

var statusPattern = regexp.MustCompile(`^[1-5](xx|[0-9]{2})$`)

// statuses reads a status (404) or a class of them (4xx) as the first and the last; 0 and 0 if it is not given.
func (q *query) statuses() (first, last int) {
	v := strings.ToLower(q.text("status"))
	switch {
	case v == "":
		return 0, 0
	case !statusPattern.MatchString(v):
		q.failed.Add("status", fault.InvalidFormat, "status must be a status like 404, or a class like 4xx.")
		return 0, 0
	case strings.HasSuffix(v, "xx"):
		class := int(v[0]-'0') * 100
		return class, class + 99
	}
	status, _ := strconv.Atoi(v) // three digits
	return status, status
}
