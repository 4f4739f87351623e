// Package endpoint is the outside of HTTP endpoints that partners name: which addresses may be asked, a client that asks no others, signatures as Standard
// Webhooks (https://www.standardwebhooks.com) has them, and the URLs that endpoints report to.
package endpoint

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"code.dny.dev/ssrf"
)

const (
	// Timeout bounds a request from the look-up of the name to the last byte that is read of the answer.
	Timeout = 10 * time.Second
	// MaxAnswerBytes bounds what is read of an answer's body; the connection of a longer one is closed.
	MaxAnswerBytes = 64 << 10
	// maxHeaderBytes bounds the head of an answer.
	maxHeaderBytes  = 64 << 10
	idleTimeout     = time.Minute
	maxIdle         = 256
	tlsHandshakeMax = 5 * time.Second
)

// public lets through what IANA's special-purpose registries (https://www.iana.org/assignments/iana-ipv4-special-registry,
// https://www.iana.org/assignments/iana-ipv6-special-registry) do not set aside: nothing that is loopback, private, link-local, unique-local, multicast, shared
// (RFC 6598), for benchmarks or documentation, unspecified or reserved. Of IPv6 it lets through global unicast only, so no IPv4 that is mapped into IPv6 and
// no NAT64 (RFC 6052), and of that no 6to4 or Teredo, which have an IPv4 address inside.
var public = ssrf.New(ssrf.WithAnyPort())

// Public reports whether an address is one of the public internet.
func Public(addr netip.Addr) bool {
	network := "tcp4"
	if addr.Is6() {
		network = "tcp6"
	}
	return addr.IsValid() && public.Safe(network, netip.AddrPortFrom(addr, 0).String(), nil) == nil
}

// Policy says what the operator lets endpoints be.
type Policy struct {
	// AllowPrivate lets endpoints have private addresses, and be asked without TLS. Default false.
	AllowPrivate bool
}

// Check tells in a sentence why a URL cannot be an endpoint's, "" if it can. What a name stands for is seen when it is connected to.
func (p Policy) Check(u *url.URL) string {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	addr, err := netip.ParseAddr(host)
	switch {
	case u.User != nil: // it would be shown with the location, and kept in the clear
		return "The url has no user name or password in it; messages are signed with the channel's secret."
	case u.Port() != "" && !validPort(u.Port()):
		return "The url's port is from 1 to 65535."
	case err != nil && endsInNumber(host):
		return "The url's host is a name, or an IP address in its usual form."
	case p.AllowPrivate:
	case !strings.EqualFold(u.Scheme, "https"):
		return "The url begins with https://."
	case host == "localhost" || strings.HasSuffix(host, ".localhost"), err == nil && !Public(addr): // RFC 6761 §6.3
		return "The url's address is not one of the public internet."
	}
	return ""
}

func validPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}

// endsInNumber tells a host that browsers and resolvers would take for an IPv4 address (https://url.spec.whatwg.org/#ends-in-a-number-checker).
func endsInNumber(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return err == nil || strings.Trim(last, "0123456789") == ""
}

// Client makes a client for endpoints. Addresses are checked when it connects, after the name was looked up, so that a name that stands for another address
// the next time gains nothing. It follows no redirects, asks through no proxy, and unpacks nothing.
func (p Policy) Client() *http.Client {
	dialer := &net.Dialer{Timeout: Timeout}
	if !p.AllowPrivate {
		dialer.Control = public.Safe
	}
	return &http.Client{
		Timeout:       Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: dialer.DialContext, Proxy: nil, ForceAttemptHTTP2: true, DisableCompression: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: tlsHandshakeMax, MaxResponseHeaderBytes: maxHeaderBytes, MaxIdleConns: maxIdle, MaxIdleConnsPerHost: 2, IdleConnTimeout: idleTimeout,
		},
	}
}

// Refused reports whether a request failed because the address is not one of the public internet.
func Refused(err error) bool { return errors.Is(err, ssrf.ErrProhibitedIP) }
