package endpoint

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/musique/musique/domain/event"
)

// ReportPath is the path under which endpoints report.
const ReportPath = "/report/"

// ErrReportURL says that a URL was not signed by us as it stands, or is past its time.
var ErrReportURL = errors.New("the signature of this URL is wrong or past its time")

// Report is the delivery that a URL lets its bearer report on.
type Report struct {
	CompanyID   string
	Environment event.Environment
	DeliveryID  string
}

// Reports makes and checks the URLs that endpoints report to.
type Reports struct{ keys [][]byte }

// NewReports signs with the first key and takes signatures of each, so that keys can be changed.
func NewReports(keys [][]byte) Reports { return Reports{keys} }

// The query of a report's URL, in this order and with nothing else in it.
const (
	expiresParam   = "expires="
	signatureParam = "&signature="
)

// Path returns the path and query under which a delivery can be reported on up to a moment, rounded up to the second.
func (s Reports) Path(r Report, expires time.Time) string {
	until := strconv.FormatInt(expires.Add(time.Second-1).Unix(), 10)
	name := url.PathEscape(r.CompanyID) + "/" + url.PathEscape(string(r.Environment)) + "/" + url.PathEscape(r.DeliveryID)
	return ReportPath + name + "?" + expiresParam + until + signatureParam + signature(s.keys[0], name, until)
}

// Verify returns which delivery a URL is for, or ErrReportURL. Not one byte of the path, as it was received, or of the query may differ from what Path made.
func (s Reports) Verify(u *url.URL, now time.Time) (Report, error) {
	name, ok := strings.CutPrefix(u.EscapedPath(), ReportPath)
	rest, ok2 := strings.CutPrefix(u.RawQuery, expiresParam)
	until, signed, ok3 := strings.Cut(rest, signatureParam)
	parts := strings.Split(name, "/")
	if !ok || !ok2 || !ok3 || len(parts) != 3 {
		return Report{}, ErrReportURL
	}
	right := false
	for _, key := range s.keys {
		// The encoded forms are compared: base64 has several forms of the same bytes, and one is enough.
		if hmac.Equal([]byte(signature(key, name, until)), []byte(signed)) {
			right = true
		}
	}
	seconds, err := strconv.ParseInt(until, 10, 64)
	if !right || err != nil || now.Unix() >= seconds {
		return Report{}, ErrReportURL
	}
	for i := range parts {
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return Report{}, ErrReportURL
		}
	}
	return Report{CompanyID: parts[0], Environment: event.Environment(parts[1]), DeliveryID: parts[2]}, nil
}

// signature is HMAC-SHA256 (RFC 2104) in base64url without padding (RFC 4648 §5). A line feed, which neither part can hold, keeps the parts apart; the first
// line keeps these signatures apart from any other use of the key.
func signature(key []byte, name, until string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("musique report v1\n" + name + "\n" + until))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
